"""One folder a class: which of the folders above an image names its class, and which its subject.

Takes paths relative to the source root ('/' between folders, archives as folders), gives a reader of Annotations.
Pure functions over strings.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from pipeline.ingest.annotation import Annotation, normalize
from pipeline.ingest.class_names import common_label
from pipeline.ingest.split_names import Split, split_named

Read = Callable[[str], Annotation | None]
Pairs = Counter[tuple[str, ...]]  # (upper, lower) folder -> images

# Folders that say nothing about what is in them.
_PLAIN_FOLDERS = frozenset(
    {"data", "dataset", "datasets", "images", "image", "imgs", "img", "photos", "pictures", "raw"}
    | {"original", "originals"}
)
_ARCHIVE_SUFFIX = re.compile(r"\.(tar|zip|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
# Folders with a number that say nothing either: parts of a set, days, magnifications.
_PART = re.compile(
    r"(?:fold|part|batch|shard|chunk|set|split|run|day|week|month|year|date|size|level|scale)s?[-_ ]?\d+"
    r"|(?:19|20)\d\d(?:[-_. ]?\d{1,2}){0,2}|\d{1,2}[-_. ]\d{1,2}[-_. ](?:19|20)\d\d"
    r"|x[-_ ]?\d+|\d+[-_ ]?x|\d+[-_ ]?x[-_ ]?\d+(?:px)?|\d+[-_ ]?(?:px|um|nm|mag)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"(\d+)\s*[-–_]\s*(\d+)")  # of file numbers: '0001-1000'
_PATIENT = re.compile(r"(?:patient|pat|pt|p|subject|subj|sub|s|case|donor|person|id)[-_ ]?\d+", re.IGNORECASE)
# What is taken of a patient: below or above one it says nothing; alone it is the best that is known of who is who.
_OF_PATIENT = re.compile(
    r"(?:slide|smear|film|section|scan|field|fov|view|roi|region|tile|patch|visit|sample|specimen|image|img|frame)s?"
    r"[-_ ]?\w{0,4}",
    re.IGNORECASE,
)
_FAB = re.compile(r"(?:L[1-3]|M[0-7][a-z]?)", re.IGNORECASE)  # subtypes of the French-American-British classification
# What neither a date nor a number has: two letters of any script in a row, or a sign as in '=1+1' and '"a"'.
_WORDY = re.compile(r"""[^\W\d_]{2}|["'=<>|&!@{}]""")
_MOST = 0.95  # of the images: a few stray folders do not change how all others are read
_RECOGNIZED_SHARE = 0.5
_MAX_CLASSES = 64  # more folders than this are dates or patients, not classes


@lru_cache(maxsize=65_536)  # a folder holds many files
def telling_folders(folder: str) -> tuple[str, ...]:
    """Names within a folder's path that may name a class or a subject, outermost first."""
    telling = [stem for name in folder.split("/") if (stem := _telling(name)) is not None]
    if any(_PATIENT.fullmatch(name) for name in telling):
        telling = [name for name in telling if not _OF_PATIENT.fullmatch(name)]
    return tuple(telling)


@lru_cache(maxsize=65_536)
def _telling(name: str) -> str | None:
    """A folder's name without the suffix of an archive; None where it says nothing of class or subject."""
    stem = _ARCHIVE_SUFFIX.sub("", name)
    if not stem or (stem != name and common_label(stem) is None):
        return None  # 'shard-000.tar' is no class, 'leukemia.zip' is
    is_plain = stem.casefold() in _PLAIN_FOLDERS or split_named(stem) is not None
    return None if is_plain or _PART.fullmatch(stem) or _is_range(stem) else stem


def _is_range(name: str) -> bool:
    """'0001-1000' holds a round number of files; '12-345' may be a patient."""
    found = _RANGE.fullmatch(name)
    return found is not None and int(found[2]) > int(found[1]) and (int(found[2]) - int(found[1]) + 1) % 10 == 0


def _may_be_subject(name: str) -> bool:
    """Names of patients hold a number, by which they stay apart; words alone are kinds of something."""
    return bool(re.search(r"\d", name)) and not _FAB.fullmatch(name)


@lru_cache(maxsize=65_536)
def given_split(folder: str) -> Split | None:
    """The part of a set that the outermost folder of such a name means."""
    found = (split_named(_ARCHIVE_SUFFIX.sub("", name)) for name in folder.split("/"))
    return next((split for split in found if split is not None), None)


def patient_folder(folder: str) -> str | None:
    """The innermost folder that is a patient by its name: 'P01', 'patient_7'."""
    return next((name for name in reversed(telling_folders(folder)) if _PATIENT.fullmatch(name)), None)


def telling_folder(path: str) -> tuple[str, str] | None:
    """(the folders above, the last folder that may name a class) of a normalized path, None where there is none."""
    folder = path.rpartition("/")[0]
    while folder:
        above, _, name = folder.rpartition("/")
        if telling_folders(name):
            return above, name
        folder = above
    return None


def read_last_folder(path: str) -> Annotation | None:
    """The last telling folder is the class."""
    folder = path.rpartition("/")[0]
    names = telling_folders(folder)
    return Annotation(names[-1], common_label(names[-1]), split=given_split(folder)) if names else None


def reader(paths: Sequence[str]) -> Read:
    """How these paths name classes and subjects, by what holds for most of them.

    'class/file', 'class/subject/file' or 'subject/class/file', in each case with a folder of the same name everywhere
    allowed above the files.
    """
    telling = [names for path in paths if (names := telling_folders(normalize(path).rpartition("/")[0]))]
    last = {names[-1] for names in telling}
    nothing_said = len(last) == 1 and common_label(*last) is None and all(len(names) > 1 for names in telling)
    nothing_said = nothing_said and not _may_be_subject(*last)  # of the first patient in an archive, say
    depth = 1 if nothing_said else 0
    wrapper = _wrapper([names[: len(names) - depth] for names in telling])

    def names_of(folder: str) -> tuple[str, ...]:
        names = telling_folders(folder)
        begin = len(wrapper) if names[: len(wrapper)] == wrapper else 0
        return names[begin : len(names) - depth]

    read = [names for path in paths if (names := names_of(normalize(path).rpartition("/")[0]))]

    pairs = Counter(names[-2:] for names in read if len(names) > 1)
    flat = Counter(names[0] for names in read if len(names) == 1)
    if _is_class_level(pairs, flat):
        return _class_above(pairs, flat, names_of)
    return _class_last(pairs, names_of)


def _wrapper(telling: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The outermost folders that hold everything: a level with one name is no level of classes.

    Not where nothing but patients would be left: 'leukemia/patient_01' is a class that stands alone.
    """
    wrapper: tuple[str, ...] = ()
    while telling:
        outer, images = Counter(names[0] for names in telling).most_common(1)[0]
        inner = [names[1:] for names in telling if names[0] == outer and len(names) > 1]
        if len(inner) < _MOST * len(telling) or images < len(telling):
            break
        if sum(_may_be_subject(names[0]) for names in inner) > len(inner) / 2:
            break
        wrapper, telling = (*wrapper, outer), inner
    return wrapper


def _of(class_name: str, subject: str | None, folder: str) -> Annotation:
    return Annotation(class_name, common_label(class_name), subject, given_split(folder))


def _most(pairs: Pairs, holds: Callable[[str, str], object]) -> bool:
    return sum(n for (upper, lower), n in pairs.items() if holds(upper, lower)) >= _MOST * pairs.total()


def _is_class_level(pairs: Pairs, flat: Counter[str]) -> bool:
    """Whether the upper of two folders names the class."""
    if not pairs or not _most(pairs, lambda _, lower: common_label(lower) is None):
        return False
    if _most(pairs, lambda upper, _: common_label(upper) is not None or upper in flat):
        return True
    if flat.total() > (1 - _MOST) * (flat.total() + pairs.total()):
        return False
    if _most(pairs, lambda upper, lower: _PATIENT.fullmatch(lower) and not _PATIENT.fullmatch(upper)):
        return True  # however it is called: 'NPM1', 'PML_RARA'
    several = len({upper for upper, _ in pairs}) > 1
    return several and _most(pairs, lambda upper, lower: not re.search(r"\d", upper) and _may_be_subject(lower))


def _class_above(pairs: Pairs, flat: Counter[str], names_of: Callable[[str], tuple[str, ...]]) -> Read:
    """The upper folder is the class; the lower the subject, where most of them may be one."""
    has_subjects = _most(pairs, lambda _, lower: _may_be_subject(lower))
    usual = flat.total() > pairs.total()
    classes = {upper for upper, _ in pairs} | {name for name in flat if usual or common_label(name) is not None}

    def read(path: str) -> Annotation | None:
        folder = path.rpartition("/")[0]
        names = names_of(folder)
        if len(names) < 2:
            return _of(names[0], None, folder) if names and names[0] in classes else None
        return _of(names[-2], names[-1] if has_subjects else None, folder)

    return read


def _class_last(pairs: Pairs, names_of: Callable[[str], tuple[str, ...]]) -> Read:
    """The last folder is the class; the one above it the subject, where such names are usual for patients."""
    has_subjects = bool(pairs) and _most(
        pairs, lambda upper, lower: _PATIENT.fullmatch(upper) and not re.search(r"\d", lower)
    )

    def read(path: str) -> Annotation | None:
        folder = path.rpartition("/")[0]
        names = names_of(folder)
        if not names:
            return None
        return _of(names[-1], names[-2] if has_subjects and len(names) > 1 else None, folder)

    return read


def names_classes(read: Read, paths: Sequence[str]) -> bool:
    """Whether the folders look like classes and not like dates, patients or one folder of everything."""
    found = [annotation for path in paths if (annotation := read(normalize(path)))]
    names = {annotation.class_name or "" for annotation in found}
    if len(found) < _RECOGNIZED_SHARE * len(paths) or not 0 < len(names) <= _MAX_CLASSES:
        return False
    if any(common_label(name) is not None for name in names):
        return True
    if sum(_PATIENT.fullmatch(annotation.class_name or "") is not None for annotation in found) > len(found) / 2:
        return False
    return len(names) > 1 and all(_WORDY.search(name) or _FAB.fullmatch(name) for name in names)
