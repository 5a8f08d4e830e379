"""The pixels that a version of the rules gives never change: whatever moves one is another version."""

import json

import numpy as np

from pipeline.images.load import Preprocessing
from tests.data.pixels import NOTED, crops


def test_pixels_move_only_with_the_version_of_their_rules() -> None:
    noted = json.loads(NOTED.read_text()).get(str(Preprocessing(1).version))
    assert noted is not None, "new rules: note their pixels with `python -m tests.data.pixels`"
    for name, found in crops().items():
        levels = np.abs(np.array(found) - np.array(noted[name])).max()
        assert levels <= 1, f"{name}: a pixel moved by {levels} levels; raise Preprocessing.version"
