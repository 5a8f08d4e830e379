"""How the files of an evaluation, a comparison or a transfer check are told from others that have their names.

One rule for all that is written into a folder of the user's choice: a command replaces what the same command made, and
nothing else.
"""

import csv
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence

from pipeline.base.csv_text import unguarded
from pipeline.base.record import RECORD, is_record_of
from pipeline.evaluation.report.words import NOT_A_DEVICE
from pipeline.storage.foreign import has_columns, has_keys, refuse_foreign_files
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

Tells = Callable[[bytes], bool]
_HEAD = 4096  # bytes of a picture within which it says what it is


def refuse_foreign(out: str, stores: Stores = Stores(), *, study: bool = False) -> None:
    """Raises InputError where a file of somebody else would be replaced or removed by an evaluation of one model.

    The record of a comparison by the same job is one as well: whose it was would be told nowhere else. `study`: its
    documents are written too.
    """
    ours: dict[str, Tells] = {RECORD: lambda data: _is_evaluation(data, of_several=False), **_evaluation()}
    refuse_foreign_files(out, {**ours, **(_STUDY if study else {})}, "evaluation of one model", stores=stores)


def refuse_foreign_comparison(out: str, job: str, stores: Stores = Stores()) -> None:
    """As `refuse_foreign`, where models are compared: by `evaluate`, or by `promote` for a protocol and a study."""
    if job == "evaluate":
        ours: dict[str, Tells] = {RECORD: lambda data: _is_evaluation(data, of_several=True), **_COMPARISON}
    else:
        ours = {RECORD: _is_record(job), **_COMPARISON, **_STUDY}
    refuse_foreign_files(out, ours, f"comparison by {job}", stores=stores)


def refuse_foreign_transfer(out: str, stores: Stores = Stores()) -> None:
    refuse_foreign_files(out, {RECORD: _is_record("transfer-check"), **_TRANSFER}, "transfer check", stores=stores)


def refuse_foreign_explanation(out: str, table: str, stores: Stores = Stores()) -> None:
    ours: dict[str, Tells] = {
        RECORD: _is_record("explain"),
        table: lambda data: data.startswith(b"picture,uri,member,"),
    }
    refuse_foreign_files(out, ours, "explanation", stores=stores)


def refuse_foreign_pictures(out: str, names: Sequence[str], stores: Stores = Stores()) -> None:
    """As `refuse_foreign`, of the pictures of an explanation."""
    refuse_foreign_files(out, dict.fromkeys(names, _is_picture), "explanation", stores=stores)


def pictures_of(out: str, table: str, stores: Stores) -> set[str]:
    """Names of the pictures in the folder `out` that an earlier explanation made and its table tells of."""
    data = stores.read_if_there(join(absolute(out), table)) or b""
    lines = csv.DictReader(io.StringIO(data.decode(errors="replace"), newline=""))
    named = {unguarded(line["picture"] or "") for line in lines}
    return {name for name in named if name and "/" not in name and _is_there(out, name, stores)}


def _is_there(out: str, name: str, stores: Stores) -> bool:
    found = stores.read_if_there(join(absolute(out), name))
    return found is not None and _is_picture(found)


def _is_picture(data: bytes) -> bool:
    return data.startswith(b"\x89PNG") and NOT_A_DEVICE.encode() in data[:_HEAD]


def _is_record(job: str) -> Tells:
    return functools.partial(is_record_of, job)


def _is_evaluation(data: bytes, *, of_several: bool) -> bool:
    """Whether it is the record of `evaluate` of one model, or that of several."""
    if not is_record_of("evaluate", data):
        return False
    models = json.loads(data).get("configuration", {}).get("model")
    return (isinstance(models, list) and len(models) > 1) is of_several


def _is_page(title: str) -> Tells:
    """By the end of its title, which stayed the same from the first version on."""
    return lambda data: f"{title}</title>".encode() in data


def _evaluation() -> dict[str, Tells]:
    from pipeline.evaluation.by_subject import SUBJECTS_CSV  # scikit-learn, which the other commands do without
    from pipeline.evaluation.recognized import RECOGNIZED

    return {
        "metrics.json": lambda data: has_keys(data, {"split", "provenance"}),
        "predictions.parquet": lambda data: has_columns(data, {"image_id", "uri", "probability"}),
        SUBJECTS_CSV: lambda data: data.startswith(b"subject_id,cells,"),
        RECOGNIZED: lambda data: data.startswith(b"uri,member,image_id,"),
        "report.html": _is_page("evaluation report"),
    }


_COMPARISON: Mapping[str, Tells] = {
    "comparison.json": lambda data: has_keys(data, {"split_digest", "models"}),
    "comparison.parquet": lambda data: has_columns(data, {"image_id", "uri", "probability_A"}),
    "comparison.html": _is_page("models compared"),
}
_STUDY: Mapping[str, Tells] = {  # its texts are sealed, and one that is not ours stays
    "study/flow.svg": lambda data: data.startswith(b"<svg ") and b" labelled and in a part, " in data,
}
_TRANSFER: Mapping[str, Tells] = {
    "transfer.json": lambda data: has_keys(data, {"verdict", "reference"}),
    "transfer.html": _is_page("transfer check"),
}
