"""Images that somebody else has labelled, under the class names of a model: what matches, by which name, what does not.

Names are compared as ingest compares them (`class_names.folded`), and the user's word on top is a `ClassRules`. Takes a
manifest's table, gives one with the model's names; every image that is left out is counted under its class or reason.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.base.errors import InputError, UsageError
from pipeline.base.text import folded
from pipeline.ingest.class_rules import ClassRules
from pipeline.model.bundle import BundleInfo
from pipeline.sources.manifest import Manifest

THEIR_CLASS = "their_class"  # column of the matched table: the name as the source has it
_SIDES = ("negative", "positive")
_UNNAMED = "(no class)"
_NAMED = 6


@dataclass(frozen=True)
class Pair:
    """Images of one of their classes that stand for one of the model's."""

    theirs: str
    ours: str
    images: int
    by: str  # 'name', 'flag', or 'label' of the source


@dataclass(frozen=True)
class Matched:
    """What is measured, and what is not."""

    pairs: tuple[Pair, ...]
    unmatched: Mapping[str, int] = field(default_factory=dict)  # their class -> images
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> images

    @property
    def images(self) -> int:
        return sum(pair.images for pair in self.pairs)


def match(manifest: Manifest, info: BundleInfo, rules: ClassRules = ClassRules()) -> tuple[pa.Table, Matched]:
    """The table with `class_name` and `label` as the model means them, and `split` 'test' for all that can be measured.

    Raises UsageError for a rule that names no class of the source or of the model, InputError where nothing matches or
    a class means the opposite side there.
    """
    names, labels, splits = (manifest.table[name].to_pylist() for name in ("class_name", "label", "split"))
    said = _said(rules, Counter(name for name in names if name is not None))
    unused = _Unused(frozenset(manifest.info.ignored), said, any(splits))
    reasons = [unused.why(*row) for row in zip(names, labels, splits, strict=True)]
    used = Counter(name for name, why in zip(names, reasons, strict=True) if why is None)
    ours = {name: _ours(name, info, said) for name in used}
    _refuse_opposites(info, said, names, labels, reasons)
    rows = [
        _row(name, label, ours.get(name), info, why) for name, label, why in zip(names, labels, reasons, strict=True)
    ]
    found = Counter((name or _UNNAMED, *row[2:]) for name, row in zip(names, rows, strict=True) if row[2] is not None)
    lost = [(name, why) for name, why, row in zip(names, reasons, rows, strict=True) if row[2] is None]
    matched = Matched(
        tuple(Pair(theirs, str(called), count, str(by)) for (theirs, called, by), count in sorted(found.items())),
        dict(Counter(str(name) for name, why in lost if why is None).most_common()),
        dict(Counter(why for _, why in lost if why is not None).most_common()),
    )
    if not matched.pairs:
        raise InputError(_nothing(manifest.uri, info, matched))
    return _table(manifest.table, names, rows), matched


_Row = tuple[str | None, int | None, str | None, str | None]  # class_name, label, what it is to the model, by what


@dataclass(frozen=True)
class _Unused:
    """Which images of a manifest nobody should measure."""

    ignored: frozenset[str]  # classes, by whoever made the manifest
    said: Mapping[str, str]  # of classes, by whoever measures now
    has_splits: bool

    def why(self, name: str | None, label: int | None, split: str | None) -> str | None:
        if name is None and label is None:
            return "without a label"
        if self.said.get(name or "") == "ignore":
            return "ignored, by --classes"
        if name in self.ignored:
            return None if name in self.said else "ignored, by their manifest"
        is_torn = split is None and self.has_splits
        return "in no split of their manifest: labels contradict each other" if is_torn else None


def _said(rules: ClassRules, counts: Counter[str]) -> dict[str, str]:
    """By their class what the rules say: 'positive', 'negative', 'ignore' or a name."""
    spelled = {folded(name): name for name in sorted(counts)}
    words = {"positive": rules.positive, "negative": rules.negative, "ignore": rules.ignored}
    given = {name: word for word, names in words.items() for name in names} | dict(rules.renamed)
    if unknown := sorted(name for name in given if folded(name) not in spelled):
        raise UsageError(
            f"--classes names no class of this source: {', '.join(unknown)}; classes found: "
            f"{', '.join(sorted(counts)) or 'none'}"
        )
    return {spelled[folded(name)]: word for name, word in given.items()}


def _ours(theirs: str | None, info: BundleInfo, said: Mapping[str, str]) -> tuple[str, str] | None:
    """(what a class of theirs is to the model, by what it is known); None where neither name nor user tells."""
    known = {folded(name): name for name in _known(info)}
    word = said.get(theirs) if theirs is not None else None
    if theirs is None:
        return None
    if word is None or (word in _SIDES and info.task == "multiclass" and folded(theirs) in known):
        found = known.get(folded(theirs))
        return None if found is None else (found, "name")
    if folded(word) not in known:
        raise UsageError(f"--classes {theirs}={word}: the model has no such class; it has {', '.join(known.values())}")
    return known[folded(word)], "flag"


def _known(info: BundleInfo) -> list[str]:
    """Names that stand for something to the model: its classes; of two sides also the classes that training had."""
    return [*info.classes, *(info.class_labels if info.task == "binary" else ())]


def _refuse_opposites(
    info: BundleInfo, said: Mapping[str, str], names: Sequence[str | None], labels: Sequence[int | None],
    reasons: Sequence[str | None],
) -> None:  # fmt: skip
    """A class that training took for one side and the source labels as the other is nobody's to guess."""
    if info.task != "binary":
        return
    meant = {folded(name): label for name, label in info.class_labels.items()}
    for name, label, why in zip(names, labels, reasons, strict=True):
        if why or name is None or label is None or name in said:
            continue
        if meant.get(folded(name), label) != label:
            raise InputError(
                f"class {name} is {_SIDES[label]} in this source and was {_SIDES[1 - label]} in training; say which it "
                f"is with --classes '{name}=positive' or '{name}=negative'"
            )


def _row(name: str | None, label: int | None, found: tuple[str, str] | None, info: BundleInfo, why: str | None) -> _Row:
    """What is measured of one image; nothing where it is left out."""
    if why is not None:
        return name, None, None, None
    if info.task == "multiclass":
        return (None, None, None, None) if found is None else (found[0], label, *found)
    if found is not None:
        side = _SIDES.index(found[0]) if found[0] in _SIDES else info.class_labels[found[0]]
        return name, side, found[0], found[1]
    return (name, None, None, None) if label is None else (name, label, _SIDES[label], "label")


def _table(table: pa.Table, names: Sequence[str | None], rows: Sequence[_Row]) -> pa.Table:
    columns = {
        "class_name": [row[0] if row[2] is not None else None for row in rows],
        "label": [row[1] if row[2] is not None else None for row in rows],
        "split": ["test" if row[2] is not None else None for row in rows],
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    if THEIR_CLASS in table.column_names:
        table = table.drop_columns([THEIR_CLASS])
    if all(name == row[0] for name, row in zip(names, rows, strict=True) if row[2] is not None):
        return table
    return table.append_column(THEIR_CLASS, pa.array(list(names), pa.string()))


def _nothing(uri: str, info: BundleInfo, matched: Matched) -> str:
    theirs = ", ".join(f"{name} ({count:,})" for name, count in list(matched.unmatched.items())[:_NAMED])
    other = "; ".join(f"{count:,} images {why}" for why, count in matched.left_out.items())
    advice = "name pairs with --classes 'theirs=ours', or give a table with --labels"
    return f"{uri}: no labelled image of a class that the model knows ({', '.join(info.classes)}); found: " + (
        f"{'; '.join(filter(None, (theirs, other))) or 'nothing labelled'}; {advice}"
    )
