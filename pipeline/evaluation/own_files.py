"""How the files of an evaluation, a comparison or a transfer check are told from others that have their names.

One rule for all that is written into a folder of the user's choice: a command replaces what the same command made, and
nothing else.
"""

import functools
from collections.abc import Callable, Mapping

from pipeline.base.record import RECORD, is_record_of
from pipeline.storage.foreign import has_columns, has_keys, refuse_foreign_files
from pipeline.storage.stores import Stores

Tells = Callable[[bytes], bool]


def refuse_foreign(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where a file of somebody else would be replaced or removed by an evaluation."""
    refuse_foreign_files(out, {RECORD: _is_record("evaluate"), **_evaluation()}, "evaluation", stores=stores)


def refuse_foreign_comparison(out: str, job: str, stores: Stores = Stores()) -> None:
    """As `refuse_foreign`, where models are compared: by `evaluate`, or by `promote` for a protocol."""
    refuse_foreign_files(out, {RECORD: _is_record(job), **_COMPARISON}, f"comparison by {job}", stores=stores)


def refuse_foreign_transfer(out: str, stores: Stores = Stores()) -> None:
    refuse_foreign_files(out, {RECORD: _is_record("transfer-check"), **_TRANSFER}, "transfer check", stores=stores)


def refuse_foreign_explanation(out: str, table: str, stores: Stores = Stores()) -> None:
    ours: dict[str, Tells] = {
        RECORD: _is_record("explain"),
        table: lambda data: data.startswith(b"picture,uri,member,"),
    }
    refuse_foreign_files(out, ours, "explanation", stores=stores)


def _is_record(job: str) -> Tells:
    return functools.partial(is_record_of, job)


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
_TRANSFER: Mapping[str, Tells] = {
    "transfer.json": lambda data: has_keys(data, {"verdict", "reference"}),
    "transfer.html": _is_page("transfer check"),
}
