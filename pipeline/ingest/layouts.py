"""What the path of an image says about it: class, label, subject and given split, by the habits of known data
sets.

Takes paths relative to the source root ('/' between folders; '<archive>!/<member>' inside archives), gives
one `Annotation` a path. Pure functions over strings; labels that come from a table are read in
`label_table`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.base.errors import InputError, UsageError
from pipeline.images.unit import Unit
from pipeline.ingest.annotation import UNKNOWN, Annotation, block_id, normalize, with_subjects
from pipeline.ingest.class_folders import given_split, names_classes, read_last_folder, reader, telling_folder
from pipeline.ingest.class_names import common_label
from pipeline.ingest.splits import SplitRule

_RECOGNIZED_SHARE = 0.5  # of all paths: public sets carry unlabelled parts (30 % of C-NMC 2019)
_MIXED_SHARE = 0.05  # a second public set of at least this share is no accident
_SAMPLE = 20_000  # paths looked at to recognize a layout


@dataclass(frozen=True)
class Layout:
    """How one data set names its folders and files.

    `read` gives an Annotation, or None for a path that is not of this layout. `positive` maps class to label
    (None: the classes have no positive or negative meaning, or are matched by common words). `block_size`:
    this many consecutive file numbers of a class stand in for one patient, where names carry no subject. `unit`: what
    an image shows, where all images of the set show the same.
    """

    name: str
    title: str
    example: str
    read: Callable[[str], Annotation | None]
    split_rule: SplitRule
    why: str
    positive: Mapping[str, int] | None = None
    block_size: int | None = None
    unit: Unit | None = None
    caveats: tuple[str, ...] = ()
    subject_caveats: tuple[str, ...] = ()  # they hold unless the user says what a subject is

    def matches(self, paths: Sequence[str]) -> float:
        """Share of `paths` (0 to 1) that this layout recognizes."""
        return sum(self.read(normalize(path)) is not None for path in paths) / len(paths) if paths else 0.0

    def annotate(self, path: str) -> Annotation:
        """The annotation of one path; UNKNOWN where the path is not of this layout."""
        plain = normalize(path)
        annotation = self.read(plain) or UNKNOWN
        if annotation.class_name is None:
            return annotation
        if annotation.split is None:  # folders of parts that somebody made of a known set
            annotation = replace(annotation, split=given_split(plain.rpartition("/")[0]))
        if self.block_size:
            block = block_id(plain, annotation, self.block_size)
            annotation = replace(annotation, subject_id=block, is_block=block is not None)
        return annotation


# ---- the known layouts -------------------------------------------------------------------------------------

_KAGGLE = re.compile(
    r"(?:^|/)(TRAIN|TEST|TEST_SIMPLE)/(EOSINOPHIL|LYMPHOCYTE|MONOCYTE|NEUTROPHIL)/_\d+_\d+\.\w+$",
    re.IGNORECASE,
)
_C_NMC = re.compile(r"(?:^|/)UID_(H?\d+)_\d+_\d+_(all|hem)(?: ?\(\d+\))?\.\w+$", re.IGNORECASE)
_TALEQANI = re.compile(r"(?:^|/)WBC-(?:Malignant-(?=[EP])|(?=B))(Benign|Early|Pre|Pro)-\d+[^/]*$", re.IGNORECASE)
_ALL_IDB = re.compile(r"(?:^|/)Im\d{3,}_([01])\.\w+$", re.IGNORECASE)
_AML_CODES = "BAS|EBO|EOS|KSC|LYA|LYT|MMZ|MOB|MON|MYB|MYO|NGB|NGS|PMB|PMO"
_AML = re.compile(rf"(?:^|/)({_AML_CODES})_\d{{4}}\.tiff?$")  # bone marrow of the same authors: five digits, .jpg
_SAMPLES = re.compile(r"(?:^|/)(?:leukemia|healthy)/(?:[^/]+/)*(S\d{3,})_\d{4,}\.\w+$")  # S is no rare letter

_TALEQANI_LABELS = {"Benign": 0, "Early": 1, "Pre": 1, "Pro": 1}
_ALL_IDB_LABELS = {"healthy": 0, "lymphoblast": 1}
_C_NMC_LABELS = {"hem": 0, "all": 1}
_AML_LABELS = {code: int(code in ("MOB", "MYO")) for code in _AML_CODES.split("|")}


def _read_kaggle(path: str) -> Annotation | None:
    found = _KAGGLE.search(path)
    if not found:
        return None
    return Annotation(found[2].upper(), split="train" if found[1].upper() == "TRAIN" else "test")


def _read_c_nmc(path: str) -> Annotation | None:
    found = _C_NMC.search(path)
    if not found:
        return None
    class_name = found[2].lower()
    return Annotation(class_name, _C_NMC_LABELS[class_name], found[1].upper())


def _read_taleqani(path: str) -> Annotation | None:
    found = _TALEQANI.search(path)
    return Annotation(found[1].capitalize(), _TALEQANI_LABELS[found[1].capitalize()]) if found else None


def _read_all_idb(path: str) -> Annotation | None:
    found = _ALL_IDB.search(path)
    return Annotation("lymphoblast" if found[1] == "1" else "healthy", int(found[1])) if found else None


def _read_aml(path: str) -> Annotation | None:
    found = _AML.search(path)
    return Annotation(found[1], _AML_LABELS[found[1]]) if found else None


def _read_samples(path: str) -> Annotation | None:
    found = _SAMPLES.search(path)
    annotation = read_last_folder(path) if found else None
    if not found or not annotation:
        return None
    return Annotation(annotation.class_name, annotation.label, found[1], annotation.split)


def _read_nothing(path: str) -> Annotation | None:
    return UNKNOWN


# In the order in which they are tried: the most specific first.
_CATALOGUE = (
    Layout(
        name="leukoray-samples",
        title="synthetic smears made by this project; S### in the file name is the subject",
        example="leukemia/S003_0007.jpg",
        read=_read_samples,
        split_rule="subjects",
        why="stain and camera vary by subject, so a subject must stay on one side",
        unit="field",
        caveats=("the images are synthetic: figures measured on them say nothing about real cells",),
    ),
    Layout(
        name="kaggle-blood-cells",
        title="Kaggle 'Blood Cell Images' (Mooney): four white-cell types, no positive or negative",
        example="dataset2-master/images/TRAIN/EOSINOPHIL/_0_1169.jpeg",
        read=_read_kaggle,
        split_rule="given",
        unit="cell",
        why="TRAIN and TEST were made from different originals by rotating and flipping, so only the given "
        "split keeps the siblings of one original together; TEST_SIMPLE holds the originals of TEST and goes with it",
        caveats=(
            "siblings carry no id, so validation images taken from TRAIN have siblings in train: validation figures "
            "are optimistic, test figures are not",
        ),
    ),
    Layout(
        name="c-nmc-2019",
        title="C-NMC 2019 (TCIA): single cells of lymphoblastic leukemia; all = positive, hem = negative",
        example="training_data/fold_0/all/UID_11_10_1_all.bmp",
        read=_read_c_nmc,
        split_rule="subjects",
        why="the file names carry the subject, so no subject is on two sides",
        positive=_C_NMC_LABELS,
        unit="cell",
    ),
    Layout(
        name="taleqani-all",
        title="Taleqani ALL (Aria et al. 2021): Benign = negative; Early, Pre, Pro B-ALL = positive",
        example="Original/Early/WBC-Malignant-Early-001.jpg",
        read=_read_taleqani,
        split_rule="subjects",
        why="names carry no patient, but one patient's files tend to be numbered consecutively: blocks of 36 "
        "numbers of a class (3,256 images of 89 patients) stand in for patients",
        positive=_TALEQANI_LABELS,
        unit="field",
        block_size=36,
        caveats=("stain and background differ by class, so figures stay optimistic",),
        subject_caveats=("blocks only stand in for patients: a patient at a block's edge can be on two sides",),
    ),
    Layout(
        name="aml-cytomorphology-lmu",
        title="AML-Cytomorphology LMU (Matek et al. 2019): 15 cell types; MYO and MOB (blasts) = positive",
        example="MYO/MYO_0001.tiff",
        read=_read_aml,
        split_rule="images",
        # Of the paper's binary questions (doi.org/10.1038/s42256-019-0101-9) this is 'blast character':
        # myeloblast or monoblast.
        why="the public files carry no patient and many cell types are rare (11 to 80 images), so images are "
        "split at random within each type, as in the paper",
        positive=_AML_LABELS,
        unit="cell",
        subject_caveats=("cells of one of the 200 patients are on both sides: figures are optimistic",),
    ),
    Layout(
        name="all-idb2",
        title="ALL-IDB1 and ALL-IDB2 (Labati et al. 2011): ImNNN_1 = positive, ImNNN_0 = negative",
        example="ALL_IDB2/img/Im001_1.tif",
        read=_read_all_idb,
        split_rule="subjects",
        why="names carry no subject; blocks of 10 consecutive numbers stand in for subjects, since "
        "neighbouring cells were cut from few smears",
        positive=_ALL_IDB_LABELS,
        block_size=10,
        caveats=("ALL-IDB2's cells are cut from ALL-IDB1's images: train and test on one of the two, not on both",),
        subject_caveats=("blocks only stand in for subjects: figures stay optimistic",),
    ),
    Layout(
        name="class-folders",
        title="one folder a class, at any depth; train/val/test folders are kept as splits; a numbered "
        "folder between class and file, or a patient's folder above the class, is the subject",
        example="train/leukemia/0001.jpg, healthy/patient_07/0001.png, patient_07/blast/0001.png",
        read=read_last_folder,
        split_rule="auto",
        why="given train/test folders are kept, else subjects where known, else images with a warning",
    ),
    Layout(
        name="table",
        title="a CSV or Parquet file of labels beside the images",
        example="labels.csv with columns path, label, subject_id",
        read=_read_nothing,
        split_rule="auto",
        why="a split column is kept, else subjects where the table names them, else images with a warning",
    ),
    Layout(
        name="flat",
        title="images without labels: good for scoring",
        example="0001.jpg",
        read=_read_nothing,
        split_rule="auto",
        why="without labels there is nothing to split",
    ),
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _CATALOGUE}
GENERIC = ("class-folders", "table", "flat")


def describe_layouts() -> str:
    """The layouts by name, for a help text."""
    width = max(map(len, LAYOUTS))
    return "\n".join(
        f"  {layout.name:{width}}  {layout.title}\n  {'':{width}}  e.g. {layout.example}" for layout in _CATALOGUE
    )


# ---- recognition and annotation ----------------------------------------------------------------------------


def recognize(paths: Sequence[str], forced: str | None = None) -> Layout:
    """The most specific layout of these paths, or the one named by `forced`.

    Raises UsageError for an unknown name and InputError when the source mixes several public sets.
    """
    sample = paths[:: max(1, len(paths) // _SAMPLE)]
    if forced is not None:
        if forced not in LAYOUTS:
            raise UsageError(f"unknown layout '{forced}'; known layouts: {', '.join(LAYOUTS)}")
        return _class_folders(sample) if forced == "class-folders" else LAYOUTS[forced]
    shares = {layout.name: layout.matches(sample) for layout in _CATALOGUE if layout.name not in GENERIC}
    public = [name for name, share in shares.items() if share >= _MIXED_SHARE]
    if len(public) > 1:
        raise InputError(
            f"the source mixes several data sets "
            f"({', '.join(f'{name} {shares[name]:.0%}' for name in public)}); "
            "name the folder of one of them, or say how to read all: --layout class-folders, or "
            "--layout flat to score"
        )
    if public and shares[public[0]] >= _RECOGNIZED_SHARE:
        return LAYOUTS[public[0]]
    folders = _class_folders(sample)
    return folders if names_classes(folders.read, sample) else LAYOUTS["flat"]


def _class_folders(paths: Sequence[str]) -> Layout:
    return replace(LAYOUTS["class-folders"], read=reader(paths))


def left_out(paths: Sequence[str], layout: Layout) -> Counter[str]:
    """Folders that the layout does not read -> images in them: beside those of its classes, or named for a label.

    They are classes as well: a set of the same habits with more of them, say, or another source.
    """
    if layout.name in GENERIC:
        return Counter()
    read: set[str] = set()
    unread: Counter[tuple[str, str]] = Counter()
    for path in map(normalize, paths):
        folder = telling_folder(path)
        if folder is None:
            continue
        if layout.read(path) is not None:
            read.add(folder[0])
        else:
            unread[folder] += 1
    return Counter(
        {name: count for (above, name), count in unread.items() if above in read or common_label(name) is not None}
    )


def annotate(
    paths: Sequence[str],
    layout: Layout,
    *,
    subject_pattern: str | None = None,
    subject_blocks: int | None = None,
) -> list[Annotation]:
    """One annotation a path, in order, by the layout and what the user says of subjects."""
    annotations = [layout.annotate(path) for path in paths]
    return with_subjects(annotations, paths, subject_pattern=subject_pattern, subject_blocks=subject_blocks)
