"""Which of a machine's cards a process may use, by the rule of CUDA_VISIBLE_DEVICES."""

import pytest

from pipeline.base import machine


@pytest.mark.parametrize(
    ("named", "cards"), [(None, 4), ("", 0), ("-1", 0), ("NoDevFiles", 0), ("2", 1), ("0,3", 2), ("0,1,2,3,4,5", 4)]
)
def test_cards_that_are_left_out_are_not_counted(
    named: str | None, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "nvidia_cards", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.visible_cards() == cards
