"""What costs far more than it looks like is refused for what it is, or read, in about the time of a large image."""

import time

import pytest

from pipeline.base.errors import ImageRejected
from pipeline.images.load import load_image
from serving.settings import ServingSettings
from tests.bombs import BOMBS

LIMITS = ServingSettings(model="m").limits
_PATIENCE_S = 3.0  # of CPU, where the worst of them takes a third of it; without limits they take 4 to 20


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_a_large_image(name: str) -> None:
    bomb = BOMBS[name]
    data = bomb.make()
    begin = time.thread_time()
    try:
        code = None if load_image(data, 64, LIMITS).pixels.size else "nothing"
    except ImageRejected as rejected:
        code = rejected.code.value
    assert time.thread_time() - begin < _PATIENCE_S
    assert code in bomb.codes or (code is None and bomb.is_sound), code
