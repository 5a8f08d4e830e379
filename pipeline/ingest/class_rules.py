"""What the user says of classes, on top of what paths and tables say: positive, negative, ignored, or another name.

Names are compared without regard to case, separators and the way letters are composed. Nothing is made healthy by
leaving it out: with only the positive classes named, whatever is no healthy cell by its name is asked about.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml

from pipeline.base.errors import InputError, UsageError
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_names import common_label, folded, is_no_cell_of_health, spellings, twins

_OPEN = "?"  # in a draft, where nobody has said
_WORDS = ("positive", "negative", "ignore")


@dataclass(frozen=True)
class ClassRules:
    """`renamed`: class -> the name of the class it belongs to. The others hold class names, as they are after that."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def say_labels(self) -> bool:
        return bool(self.positive or self.negative)

    @classmethod
    def from_yaml(cls, text: str, where: str) -> "ClassRules":
        """A mapping of class names to 'positive', 'negative', 'ignore', or the name of another class."""
        try:
            found = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{where}: no YAML ({error}); write lines such as `blast: positive`") from error
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise InputError(f"{where}: must map class names to positive, negative, ignore or another class name")
        said = {str(name): str(value) for name, value in found.items()}
        if open_ones := [name for name, value in said.items() if value == _OPEN]:
            raise InputError(f"{where}: {', '.join(open_ones)}: still {_OPEN!r}; say what each is, or delete its line")
        of = {word: tuple(name for name, value in said.items() if value == word) for word in _WORDS}
        renamed = {name: value for name, value in said.items() if value not in _WORDS}
        return cls(of["positive"], of["negative"], of["ignore"], renamed)

    def joined(self, other: "ClassRules") -> "ClassRules":
        return ClassRules(
            self.positive + other.positive,
            self.negative + other.negative,
            self.ignored + other.ignored,
            {**self.renamed, **other.renamed},
        )


def one_spelling(annotations: Sequence[Annotation]) -> tuple[list[Annotation], list[str]]:
    """Classes and subjects that are spelled in several ways get one name; and what was merged, in sentences."""
    classes = spellings(row.class_name for row in annotations if row.class_name is not None)
    subjects = spellings(row.subject_id for row in annotations if row.subject_id is not None)
    merged = twins(classes)
    labels = _labels_of_twins(annotations, classes, merged)
    result = []
    for row in annotations:
        name = classes[row.class_name] if row.class_name is not None else None
        label = labels.get(name, row.label)
        subject = subjects[row.subject_id] if row.subject_id is not None else None
        result.append(replace(row, class_name=name, label=label, subject_id=subject))
    said = [f"{' and '.join(map(repr, names))} are one class, {chosen!r}" for chosen, names in merged.items()]
    if both := twins(subjects):
        chosen, names = next(iter(both.items()))
        said.append(
            f"{len(both)} subjects are spelled in several ways and taken for one each, e.g. "
            f"{' and '.join(map(repr, names))} for {chosen!r}"
        )
    return result, said


def _labels_of_twins(
    annotations: Sequence[Annotation], classes: Mapping[str, str], merged: Mapping[str, list[str]]
) -> dict[str | None, int | None]:
    """The one label of each class that was merged; None where its spellings disagree."""
    found: dict[str, set[int]] = {}
    for row in annotations:
        if row.class_name is not None and row.label is not None and classes[row.class_name] in merged:
            found.setdefault(classes[row.class_name], set()).add(row.label)
    return {name: next(iter(labels)) if len(labels) == 1 else None for name, labels in found.items()}


def apply_rules(annotations: Sequence[Annotation], rules: ClassRules) -> list[Annotation]:
    """The annotations with the rules applied; those of ignored classes keep their name and have no label.

    Raises UsageError for a name that no class has or that two rules hold, InputError where a class would be made
    negative (or positive) by nothing but not being named, though its name speaks against it.
    """
    counts = Counter(row.class_name for row in annotations if row.class_name is not None)
    names = _Names(counts)
    new_name = {names.find("--classes", old): new for old, new in rules.renamed.items()}
    renamed = [
        replace(row, class_name=new_name.get(row.class_name, row.class_name)) if row.class_name is not None else row
        for row in annotations
    ]
    after = Counter(row.class_name for row in renamed if row.class_name is not None)
    table, ignored = _label_table(after, rules)
    return [
        row
        if row.class_name is None
        else replace(row, label=None, is_ignored=True)
        if row.class_name in ignored
        else replace(row, label=table.get(row.class_name))
        if rules.say_labels
        else row
        for row in renamed
    ]


class _Names:
    """The classes of a source, found by any spelling."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._folded = {folded(name): name for name in sorted(counts)}

    def find(self, flag: str, name: str) -> str:
        found = self._folded.get(folded(name))
        if found is None:
            classes = ", ".join(sorted(self._counts)) or "none"
            raise UsageError(f"{flag} names no class of this source: {name}; classes found: {classes}")
        return found


def _label_table(counts: Counter[str], rules: ClassRules) -> tuple[dict[str, int], set[str]]:
    """(label by class, classes that are ignored)."""
    names = _Names(counts)
    ones = {names.find("--positive", name) for name in rules.positive}
    zeros = {names.find("--negative", name) for name in rules.negative}
    ignored = {names.find("--ignore", name) for name in rules.ignored}
    if twice := (ones & zeros) | (ones & ignored) | (zeros & ignored):
        raise UsageError(
            f"{', '.join(sorted(twice))}: named by two of --positive, --negative and --ignore; a class has one label"
        )
    if rules.say_labels and not (ones and zeros):
        rest = set(counts) - ones - zeros - ignored
        _ask_about(rest, counts, is_negative=not zeros)
        ones, zeros = (ones, rest) if not zeros else (rest, zeros)
    return {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0)}, ignored


def _ask_about(rest: set[str], counts: Counter[str], *, is_negative: bool) -> None:
    """Refuse to label by silence what a name speaks against: debris made healthy, 'normal' made leukemia."""
    doubtful = [name for name in sorted(rest) if is_no_cell_of_health(name) or common_label(name) == 0]
    asked = [name for name in doubtful if common_label(name) != (0 if is_negative else 1)]
    if not asked:
        return
    listed = ", ".join(f"{name} ({counts[name]:,} images)" for name in asked)
    given, other = ("--positive", "negative") if is_negative else ("--negative", "positive")
    why = "they are no healthy cells" if is_negative else "they are no leukemia"
    raise InputError(
        f"with {given} alone these classes would be {other}, though by their names {why}: {listed}; say what they "
        "are: --ignore NAME ... leaves them out of training and figures, --negative and "
        "--positive label them, or --write-classes FILE writes all classes into a file to edit and give back with "
        "--classes FILE"
    )


def draft_of_rules(annotations: Sequence[Annotation]) -> str:
    """A file of rules to edit: every class with its label so far, '?' where nobody has said."""
    counts = Counter(row.class_name for row in annotations if row.class_name is not None)
    of_class = {row.class_name: row for row in annotations}
    words = {1: "positive", 0: "negative", None: _OPEN}
    said = {name: "ignore" if of_class[name].is_ignored else words[of_class[name].label] for name in sorted(counts)}
    lines = [f"# what a class is: {', '.join(_WORDS)}, or the name of the class that it belongs to"]
    for name, word in said.items():
        entry = yaml.safe_dump({name: word}, allow_unicode=True, width=1000).strip()
        lines.append(f"{entry}  # {counts[name]:,} images")
    return "\n".join(lines) + "\n"
