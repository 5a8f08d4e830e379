"""The rows of `leukoray predict`, one a file, and how they are written: CSV, JSON, JSON lines, Parquet, or a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from pipeline.base.csv_text import csv_of

ENDINGS = (".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """One file: what the model said, or `error_code` and `error_message`, never both and never none."""

    file: str
    decision: str | None = None
    probability: float | None = None
    class_name: str | None = None
    is_ood: bool | None = None
    ood_score: float | None = None
    remarks: tuple[str, ...] = ()
    threshold: float | None = None
    model_name: str | None = None
    model_version: str | None = None
    model_sha256: str | None = None
    request_id: str | None = None
    attempts: int = 0  # requests that were sent for its prediction
    error_code: str | None = None
    error_message: str | None = None
    overlay: str | None = None  # the picture that was written

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                object.__setattr__(self, name, _encodable(value))


def _encodable(text: str) -> str:
    """What no encoding has, such as a name's bytes in a message, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def answered(file: str, body: dict[str, Any] | None, request_id: str, attempts: int) -> Row | None:
    """The row of a body of `serving.schemas.PredictionBody`; None where it is none."""
    model = (body or {}).get("model")
    if body is None or not isinstance(model, dict) or not _is_prediction(body, model):
        return None
    return Row(
        file,
        decision=body.get("decision"),
        probability=body.get("probability"),
        class_name=body.get("class_name"),
        is_ood=body.get("is_ood"),
        ood_score=body.get("ood_score"),
        remarks=tuple(_encodable(str(remark)) for remark in body.get("remarks") or ()),
        threshold=body.get("threshold"),
        model_name=model.get("name"),
        model_version=model.get("version"),
        model_sha256=model.get("sha256"),
        request_id=body.get("request_id") or request_id,
        attempts=attempts,
    )


def _is_prediction(body: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether what the row takes of it is of the right kind; a column has one."""
    words = [body.get("class_name"), *(model.get(name) for name in ("name", "version", "sha256"))]
    numbers = [body[name] for name in ("ood_score", "threshold") if body.get(name) is not None]
    return (
        all(isinstance(word, str) for word in words)
        and all(map(_is_number, numbers))
        and _is_number(body.get("probability"))
        and 0 <= body["probability"] <= 1
        and body.get("decision") in (None, "positive", "negative", "review")
        and body.get("is_ood") in (None, True, False)
        and isinstance(body.get("remarks") or [], list)
        and isinstance(body.get("request_id") or "", str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written(rows: Sequence[Row], ending: str) -> bytes:
    """All rows as a file of one of ENDINGS."""
    if ending == ".parquet":
        return _parquet(rows)
    if ending == ".csv":
        names = [field.name for field in fields(Row)]
        cells = ([_cell(asdict(row)[name]) for name in names] for row in rows)
        return csv_of([names, *cells]).encode()
    if ending == ".jsonl":
        return "".join(json_line(row) + "\n" for row in rows).encode()
    return ("[\n" + ",\n".join(map(json_line, rows)) + "\n]\n").encode()


def json_line(row: Row, *, is_ascii: bool = False) -> str:
    return json.dumps(asdict(row), ensure_ascii=is_ascii, allow_nan=False)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return "; ".join(value)
    return str(value).lower() if isinstance(value, bool) else value


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa  # here: nobody else waits for it

    from pipeline.storage.parquet import to_parquet

    kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_(), int: pa.int32(), tuple: pa.list_(pa.string())}
    schema = pa.schema([(name, kinds[_plain(hint)]) for name, hint in get_type_hints(Row).items()])
    return to_parquet(pa.Table.from_pylist([asdict(row) | {"remarks": list(row.remarks)} for row in rows], schema))


def _plain(hint: Any) -> type:
    """`str` for `str | None`, `tuple` for `tuple[str, ...]`."""
    kinds = [kind for kind in getattr(hint, "__args__", ()) if kind in (str, float, bool, int)]
    return tuple if getattr(hint, "__origin__", None) is tuple else kinds[0] if kinds else hint


def table_head(class_width: int) -> str:
    return f"{'decision':<8}  {'probability':>11}  {'class':<{class_width}}  {'unlike':<6}  file"


def table_line(row: Row, class_width: int) -> str:
    """A file in one line of a terminal, whatever its name holds."""
    file = _one_line(row.file)
    if row.error_code is not None:
        why = _one_line(row.error_message or "")
        return f"{'error':<8}  {'':>11}  {'':<{class_width}}  {'':<6}  {file}: {row.error_code}: {why}"
    unlike = {True: "yes", False: "no", None: "?"}[row.is_ood]
    said = f"{row.decision or '-':<8}  {row.probability:>11.4f}  {row.class_name:<{class_width}}  {unlike:<6}"
    return f"{said}  {file}" + (f"  ({'; '.join(row.remarks)})" if row.remarks else "")


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
