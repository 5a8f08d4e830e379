"""The head of a model card, as the Hugging Face Hub's own client reads it."""

from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.metrics import evaluate_binary
from pipeline.evaluation.report.card import render_card
from tests.unit.test_report import info


def measured() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 2
    scores = np.clip(rng.normal(0.2 + 0.6 * truth, 0.2), 0, 1)
    return evaluate_binary(truth, scores, threshold=0.5, resampling=Resampling(100))


def test_the_hub_reads_tags_task_and_figures() -> None:
    metrics = measured()
    card = ModelCard(render_card(info(manifest_digest="f" * 64, unit="cell"), metrics=metrics))
    assert card.data.license == "unknown" and card.data.pipeline_tag == "image-classification"
    assert {"leukemia", "not-a-medical-device", "shows-cell"} <= set(card.data.tags or [])
    found = {result.metric_type: result for result in card.data.eval_results or []}
    assert found["recall"].metric_value == pytest.approx(metrics["metrics"]["sensitivity"]["value"], abs=1e-6)
    assert found["recall"].metric_name is not None and "95 % CI" in found["recall"].metric_name
    assert (found["roc_auc"].dataset_split, found["roc_auc"].dataset_name) == ("test", "Manifest ffffffffffff")
    assert card.text.lstrip().startswith("# Model card")


@pytest.mark.parametrize(
    ("subjects", "units", "told"),
    [([f"s{k // 2}" for k in range(60)], "subjects", "over subjects"),
     ([f"s{k // 2}" for k in range(60)], "blocks", "over blocks"), (None, "blocks", "over images")],
)  # fmt: skip
def test_intervals_are_over_what_the_manifest_calls_subjects(
    subjects: list[str | None] | None, units: str, told: str
) -> None:
    truth = np.arange(60) % 2
    scores = np.clip(np.random.default_rng(0).normal(0.2 + 0.6 * truth, 0.2), 0, 1)
    metrics = evaluate_binary(truth, scores, threshold=0.5, resampling=Resampling(100), subjects=subjects, units=units)
    card = ModelCard(render_card(info(), metrics=metrics))
    names = [result.metric_name or "" for result in card.data.eval_results or []]
    assert any(told in name for name in names) and all(told in name for name in names if "CI" in name)


def test_without_figures_there_is_no_index_and_a_synthetic_model_says_so() -> None:
    card = ModelCard(render_card(info(synthetic=True)))
    assert not card.data.eval_results and "synthetic" in (card.data.tags or [])


def test_odd_names_do_not_break_the_head() -> None:
    card = ModelCard(render_card(info(name="a: 'b' --- #c"), metrics=measured()))
    assert card.data.model_name == "a: 'b' --- #c"
