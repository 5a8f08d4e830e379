"""What an image shows: one cell, or a field with many. A model of one says nothing of the other."""

from typing import Literal

from pipeline.base.errors import InputError

Unit = Literal["cell", "field"]
DESCRIBED: dict[str | None, str] = {
    "cell": "one white cell, with what lies around it",
    "field": "a field with many cells",
    None: "not known",
}


def mismatch(model: Unit | None, images: Unit | None) -> str | None:
    """A sentence where the model was made of other images than these; None where they agree or nobody knows."""
    if model is None or images is None or model == images:
        return None
    return (
        f"the model was trained on images of {_plural(model)}, these are of {_plural(images)}: it says nothing of them"
    )


def refuse_mismatch(model: Unit | None, images: Unit | None, where: str) -> None:
    """Raise InputError, with what to do."""
    if found := mismatch(model, images):
        raise InputError(
            f"{where}: {found}; take a model of {_plural(str(images))}, or say what the images are with "
            "`leukoray ingest --unit`"
        )


def _plural(unit: str) -> str:
    return {"cell": "single cells", "field": "whole fields"}[unit]
