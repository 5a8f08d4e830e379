"""How the files of an evaluation are told from those of somebody else that have their names."""

from pipeline.base.record import RECORD, is_record_of
from pipeline.evaluation.by_subject import SUBJECTS_CSV
from pipeline.evaluation.recognized import RECOGNIZED
from pipeline.storage.foreign import has_columns, has_keys, refuse_foreign_files
from pipeline.storage.stores import Stores


def refuse_foreign(out: str, stores: Stores = Stores()) -> None:
    """Raises InputError where a file of somebody else would be replaced or removed."""
    refuse_foreign_files(out, _IS_OURS, "evaluation", stores=stores)


_IS_OURS = {
    RECORD: lambda data: is_record_of("evaluate", data),
    "metrics.json": lambda data: has_keys(data, {"split", "provenance"}),
    "predictions.parquet": lambda data: has_columns(data, {"image_id", "uri", "probability"}),
    SUBJECTS_CSV: lambda data: data.startswith(b"subject_id,cells,"),
    RECOGNIZED: lambda data: data.startswith(b"uri,member,image_id,"),
}
