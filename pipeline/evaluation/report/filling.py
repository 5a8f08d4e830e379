"""What every page and card is made with: templates, the words they print figures in, pixels as part of the page.

Nothing here draws: matplotlib takes a second to load, which a card does not need.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation import explanation
from pipeline.evaluation.report import elsewhere, words

_TEMPLATES = Path(__file__).parent / "templates"


def environment(*, autoescape: bool = True, folders: Sequence[Path] = ()) -> Environment:
    """Jinja2 with this package's templates and those in `folders`; a missing name is an error, not a blank."""
    loaded = Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.filters |= {"number": words.number, "limits": words.interval, "with_interval": words.with_interval}
    loaded.filters |= {"level": words.level}
    loaded.filters |= {"recognized": words.recognized, "signed": elsewhere.signed}
    loaded.filters |= {"share": words.percent_with_limits}
    loaded.filters |= {"optimism": words.optimism, "ways_to_split": words.ways_to_split}
    loaded.filters |= {"map_sentences": explanation.sentences}
    return loaded


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 (h, w, 3), RGB, as a JPEG data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
