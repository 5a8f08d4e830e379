"""What the user says of classes, on top of what paths and tables say: positive, negative, ignored, or another name.

Names are compared without regard to case, separators and the way letters are composed. Nothing is made healthy by
leaving it out: with only the positive classes named, whatever is no healthy cell by its name is asked about.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import folded
from pipeline.ingest.annotation import Annotation
from pipeline.ingest.class_names import common_label, is_no_cell_of_health, spellings, twins

_OPEN = "?"  # in a draft, where nobody has said
_WORDS = ("positive", "negative", "ignore")
# What people write for these, and no class is called.
_NO_WORDS = frozenset(
    {"", "pos", "neg", "true", "false", "yes", "no", "1", "0", "ignored", "exclude", "excluded", "skip"}
)


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
        said = _mapping(text, where)
        if open_ones := [name for name, value in said.items() if value == _OPEN]:
            raise InputError(f"{where}: {', '.join(open_ones)}: still {_OPEN!r}; say what each is, or delete its line")
        if unclear := [f"{name}: {value}" for name, value in said.items() if folded(value) in _NO_WORDS]:
            raise InputError(f"{where}: {'; '.join(unclear)}: write positive, negative, ignore or another class name")
        word_of = {name: folded(value) for name, value in said.items() if folded(value) in _WORDS}
        of = {word: tuple(name for name, said_word in word_of.items() if said_word == word) for word in _WORDS}
        renamed = {name: value for name, value in said.items() if name not in word_of}
        return cls(of["positive"], of["negative"], of["ignore"], renamed)

    @classmethod
    def from_pairs(cls, pairs: Sequence[str], where: str) -> "ClassRules":
        """Pairs such as 'their name=positive', read as the lines of such a file. Raises UsageError, InputError."""
        parted = [pair.partition("=") for pair in pairs]
        if wrong := [
            pair for pair, (name, _, value) in zip(pairs, parted, strict=True) if not name.strip() or not value
        ]:
            raise UsageError(f"{where} {wrong[0]!r}: expected theirs=ours, or a YAML file")
        lines = (f"{json.dumps(name.strip())}: {json.dumps(value.strip())}" for name, _, value in parted)
        return cls.from_yaml("\n".join(lines), where) if parted else cls()

    def joined(self, other: "ClassRules") -> "ClassRules":
        return ClassRules(
            self.positive + other.positive,
            self.negative + other.negative,
            self.ignored + other.ignored,
            {**self.renamed, **other.renamed},
        )


def _mapping(text: str, where: str) -> dict[str, str]:
    """Keys and values as they are written: to YAML itself `no` is no name, and the last of two lines wins."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: no YAML ({error}); write lines such as `blast: positive`") from error
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    if (node is not None and not pairs) or not all(isinstance(one, yaml.ScalarNode) for pair in pairs for one in pair):
        raise InputError(f"{where}: must map class names to positive, negative, ignore or another class name")
    said: dict[str, str] = {}
    spelling: dict[str, str] = {}
    for key, value in pairs:
        name = spelling.setdefault(folded(key.value), key.value)
        if said.setdefault(name, value.value.strip()) != value.value.strip():
            raise InputError(f"{where}: {name} is both {said[name]!r} and {value.value!r}; keep one line a class")
    return said


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
    """The one label of each class that was merged; None where its spellings disagree.

    Where one spelling alone has both labels, these are said of images and not of classes: each image keeps its own.
    """
    found: dict[str, set[int]] = {}
    for row in annotations:
        if row.class_name is not None and row.label is not None and classes[row.class_name] in merged:
            found.setdefault(row.class_name, set()).add(row.label)
    result: dict[str | None, int | None] = {}
    for chosen, names in merged.items():
        of_spelling = [found[name] for name in names if name in found]
        if of_spelling and all(len(labels) == 1 for labels in of_spelling):
            labels = set.union(*of_spelling)
            result[chosen] = labels.pop() if len(labels) == 1 else None
    return result


def apply_rules(annotations: Sequence[Annotation], rules: ClassRules) -> list[Annotation]:
    """The annotations with the rules applied; those of ignored classes keep their name and have no label.

    Raises UsageError for a name that no class has or that two rules hold, InputError where a class would be made
    negative (or positive) by nothing but not being named, though its name speaks against it.
    """
    counts = Counter(row.class_name for row in annotations if row.class_name is not None)
    names = _Names(counts)
    spelled = spellings([*counts, *rules.renamed.values()])
    new_name = {names.find("--classes", old): spelled[new] for old, new in rules.renamed.items()}
    renamed = _renamed(annotations, new_name)
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


def _renamed(annotations: Sequence[Annotation], new_name: Mapping[str, str]) -> list[Annotation]:
    """With the names of the classes that they belong to, and the labels of these where only a name told one."""
    labels: dict[str, set[int | None]] = {}
    for row in annotations:
        if row.class_name and row.class_name in new_name.values() and row.class_name not in new_name:
            labels.setdefault(row.class_name, set()).add(row.label)
    result = []
    for row in annotations:
        if row.class_name is None or row.class_name not in new_name:
            result.append(row)
            continue
        name, label = new_name[row.class_name], row.label
        if label == common_label(row.class_name):
            known = labels.get(name, {common_label(name)})
            label = next(iter(known)) if len(known) == 1 else None
        result.append(replace(row, class_name=name, label=label))
    return result


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
