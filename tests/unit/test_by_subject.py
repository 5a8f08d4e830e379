"""Subjects of a split and of a scoring run: shares corrected, what is not known said, and cells to look at first."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import summary as job
from pipeline.base.errors import InputError
from pipeline.evaluation.by_subject import (
    LOOK_AT,
    OLDER,
    by_subject,
    notes,
    refuse_contradictions,
    rules_here,
    table_of_subjects,
)
from pipeline.evaluation.intervals import Resampling
from pipeline.evaluation.outcomes import Outcomes
from pipeline.evaluation.predict import Outcome
from pipeline.evaluation.report.subjects import SHOWN, section, subjects_in_words
from pipeline.evaluation.subject_fit import CellCounts, fit_rules
from pipeline.images.load import Preprocessing
from pipeline.images.unit import Unit
from pipeline.model.bundle import BundleInfo
from pipeline.model.cell_rates import missed
from pipeline.model.prediction import Prediction
from pipeline.model.subject_rules import SubjectLabel, SubjectRules, detection
from pipeline.scoring.commit.subjects import SUBJECT_SCHEMA, Rule, roll_up
from pipeline.scoring.run_folder import RunFolder
from pipeline.scoring.summary.page import render_page
from pipeline.scoring.summary.summary import summarize
from pipeline.sources.manifest import Manifest, ManifestInfo, ManifestRow
from pipeline.sources.rows import Access
from tests.bundles import make_bundle
from tests.scoring_sources import mixed_files, score_here, write_files

RESAMPLING = Resampling(100, 0.95, 0)
INFO = BundleInfo(
    name="cells", version="v1", architecture="mean", task="binary", classes=("negative", "positive"),
    positive_classes=("positive",), input_size=32, preprocessing_digest=Preprocessing(32).digest(), weights_sha256="",
    graph_sha256="", threshold=0.5,
)  # fmt: skip
BETA = {True: (45, 5), False: (2, 38)}  # how often diseased and healthy cells are called, by subject


def counts(rng: np.random.Generator, shares: np.ndarray, cells: int) -> CellCounts:
    diseased = rng.binomial(cells, shares)
    called = [
        rng.binomial(n, rng.beta(*BETA[kind], len(shares))) for kind, n in ((True, diseased), (False, cells - diseased))
    ]
    return CellCounts(diseased, called[0], cells - diseased, called[1], [f"v{k}" for k in range(len(shares))])


def known_rules(label: SubjectLabel = SubjectLabel(), threshold: float = 0.5) -> SubjectRules:
    rng = np.random.default_rng(1)
    shares = np.where(np.arange(60) % 3 == 0, 0.6, 0.03)
    return fit_rules(
        counts(rng, shares, 60), (shares > 0.2).tolist(), label, on="validation", threshold=threshold, temperature=1.0
    )


def measured(subjects: int = 24, cells: int = 50, alarms: tuple[int, int] = BETA[False]) -> Outcomes:
    """Every third subject has many diseased cells."""
    rng, found = np.random.default_rng(2), []
    for subject in range(subjects):
        sick = rng.random(cells) < (0.6 if subject % 3 == 0 else 0.03)
        rate = {True: rng.beta(*BETA[True]), False: rng.beta(*alarms)}
        for is_sick in sick.tolist():
            value = float(np.float32(rng.uniform(0.5, 1) if rng.random() < rate[is_sick] else rng.uniform(0, 0.49)))
            decision = "positive" if value >= 0.5 else "negative"
            said = Prediction((1 - value, value), value, "positive", decision)  # type: ignore[arg-type]
            number = len(found)
            place = (number, f"/lab/s{subject}/{number}.png", None, Access.FILE, None, None, 10, "x", None)
            found.append(Outcome(ManifestRow(*place, int(is_sick), "c", f"s{subject}", "test"), said))
    return Outcomes(INFO, found)


def manifest(unit: Unit | None = "cell", units: str = "subjects", **columns: list[Any]) -> Manifest:
    table = pa.table({"subject_id": pa.array([f"s{k}" for k in range(24)]), **columns})
    return Manifest("lab/manifest", table, ManifestInfo(unit=unit, units=units))


def test_corrected_shares_hold_the_true_ones_and_subjects_are_told_apart() -> None:
    found = by_subject(measured(), manifest(), 0.5, known_rules(), RESAMPLING)
    assert found["coverage"]["subjects"] == 24 and found["coverage"]["covered"] >= 22
    rows = found["rows"]
    assert [row["is_positive"] for row in rows] == [True] * 8 + [False] * 16, "most suspicious first"
    assert found["roc_auc"]["value"] == 1.0 and found["roc_auc"]["low"] > 0.5
    assert all(row["probability"]["value"] > 0.8 for row in rows[:8])
    assert all(row["probability"]["value"] < 0.2 for row in rows[8:])
    observed = np.mean([abs(row["observed"]["value"] - row["true"]) for row in rows])
    corrected = np.mean([abs(row["corrected"]["value"] - row["true"]) for row in rows])
    assert corrected < observed
    assert notes(found) == []


def test_the_cells_to_look_at_are_those_of_the_highest_probability() -> None:
    outcomes = measured(3)
    found = by_subject(outcomes, manifest(), 0.5, known_rules(), RESAMPLING)
    table = outcomes.table(0.5).to_pylist()
    for row in found["rows"]:
        own = sorted(
            (cell for cell in table if cell["subject_id"] == row["subject_id"]), key=lambda cell: -cell["probability"]
        )
        assert [place["image_id"] for place in row["look_at"]] == [cell["image_id"] for cell in own[:LOOK_AT]]
        assert row["look_at"][0]["uri"] == own[0]["uri"]


def test_rates_that_do_not_hold_here_are_told() -> None:
    outcomes = measured(alarms=(20, 20))  # half of the healthy cells alarm, not a twentieth
    found = by_subject(outcomes, manifest(), 0.5, known_rules(), RESAMPLING)
    [note] = notes(found)
    assert "known from validation subjects, do not hold here" in note


@pytest.mark.parametrize(
    ("covered", "subjects", "is_told"),
    [(4, 5, False), (3, 5, True), (18, 20, False), (17, 20, False), (16, 20, True), (0, 1, False), (180, 200, True)],
)
def test_rates_are_doubted_where_luck_does_not_explain_what_intervals_miss(
    covered: int, subjects: int, is_told: bool
) -> None:
    """Of 5 subjects one in four sets misses one or more, though each interval holds 95 %."""
    record = {"coverage": {"covered": covered, "subjects": subjects}, "confidence": 0.95, "rates": {"on": "validation"}}
    assert bool(notes(record)) is is_told


def test_without_rates_shares_stay_as_they_are_and_it_is_said() -> None:
    found = by_subject(measured(), manifest(), 0.5, None, RESAMPLING)
    assert found["no_rates"] == found["no_roll_up"] == OLDER
    assert found["coverage"] is None and found["detection"] == [] and found["rows"][0]["corrected"] is None
    assert f"The shares are not corrected: {OLDER}." in subjects_in_words(found)
    assert found["roc_auc"]["value"] == 1.0, "by the share called"
    moved = by_subject(measured(), manifest(), 0.6, known_rules(), RESAMPLING)
    assert "called at 0.500 (temperature 1.000), here they are at 0.600 (1.000)" in moved["no_rates"]


@pytest.mark.parametrize(
    ("given", "why"),
    [(manifest("field"), "field"), (manifest(None), "nobody has said"), (manifest(units="blocks"), "no patients")],
)
def test_only_cells_of_patients_are_rolled_up(given: Manifest, why: str) -> None:
    found = by_subject(measured(), given, 0.5, known_rules(), RESAMPLING)
    assert list(found) == ["why_not"] and why in found["why_not"]
    assert section(found) is None and subjects_in_words(found) == [] and notes(found) == []


def test_labels_come_from_the_column_that_the_model_knows() -> None:
    label = SubjectLabel.parse("kind=APL")
    kinds = ["APL" if k % 2 else "AML" for k in range(24)]
    found = by_subject(measured(), manifest(kind=kinds), 0.5, known_rules(label), RESAMPLING)
    assert found["label"] == "kind is APL"
    assert {row["subject_id"]: row["is_positive"] for row in found["rows"]} == {
        f"s{k}": kinds[k] == "APL" for k in range(24)
    }
    assert found["roc_auc"]["low"] < 0.5
    assert "not shown to be better than guessing" in subjects_in_words(found)[-1]
    without = by_subject(measured(), manifest(), 0.5, known_rules(label), RESAMPLING)
    assert "by the column kind, which this manifest lacks" in without["label_note"]
    assert without["label"] == "kind is APL" and without["roll_up"] is not None, "its own, no other truth beside it"
    assert without["roc_auc"] is None and all(row["is_positive"] is None for row in without["rows"])
    assert [row["probability"] for row in without["rows"]] == [row["probability"] for row in found["rows"]]
    said = subjects_in_words(without)
    assert any("such subjects" in sentence and "(kind is APL)" in sentence for sentence in said)
    assert not any("ROC-AUC" in sentence or "of one kind" in sentence for sentence in said)
    assert next(csv.DictReader(io.StringIO(table_of_subjects(without, None))))["is_positive"] == ""


def test_a_subject_of_two_labels_is_refused_before_anything_is_predicted() -> None:
    info = INFO.model_copy(update={"subject_rules": known_rules(SubjectLabel.parse("kind=APL"))})
    both = pa.table({"subject_id": ["s1", "s1", "s2"], "kind": ["APL", "AML", "AML"]})
    with pytest.raises(InputError, match="subject 's1' has kind 'APL' and 'AML'"):
        refuse_contradictions(info, Manifest("lab/manifest", both, ManifestInfo(unit="cell")))
    for unit, units in (("field", "subjects"), ("cell", "blocks")):  # of which nothing is said by subject
        refuse_contradictions(info, Manifest("lab/manifest", both, ManifestInfo(unit=unit, units=units)))
    refuse_contradictions(INFO, Manifest("lab/manifest", both, ManifestInfo(unit="cell")))


def test_subjects_of_one_kind_have_no_area() -> None:
    found = by_subject(measured(1), manifest(), 0.5, known_rules(), RESAMPLING)
    assert found["roc_auc"] is None
    assert subjects_in_words(found)[-1].startswith("The subjects measured are all of one kind")


def test_more_cells_that_miss_no_less_are_not_said_to_help() -> None:
    rates = known_rules().rates
    assert rates is not None and missed(rates, 587, 0.01) > missed(rates, 87, 0.01), "counts are whole"
    assert "and more cells hardly help." in detection(rates, 87)[0]
    assert "500 more cells bring it to" in detection(rates, 100)[0]


def test_subjects_of_unknown_label_are_of_no_kind() -> None:
    label = SubjectLabel.parse("kind=APL")
    for kinds, said in (
        ([None] * 24, "No subject measured has a value of kind, so how well they are told apart cannot be measured."),
        (["APL"] * 20 + [None] * 4, "The subjects measured are all of one kind (4 without a value of kind left out), "),
        (["APL"] * 9 + ["AML"] * 9 + [None] * 6, "9 positive and 9 not (6 without a value of kind left out): "),
    ):
        given = manifest(kind=pa.array(kinds, pa.string()))
        assert said in subjects_in_words(by_subject(measured(), given, 0.5, known_rules(label), RESAMPLING))[-1]


def test_a_threshold_chosen_anew_has_rates_of_its_own() -> None:
    rules = rules_here(measured(), manifest(), 0.75, known_rules())
    assert rules.rates is not None and rules.threshold == 0.75 and rules.rates.found.mean < 0.6
    assert rules.roll_up is None and "the bundle's threshold" in rules.no_roll_up
    assert by_subject(measured(), manifest(), 0.75, rules, RESAMPLING)["coverage"]["subjects"] == 24


def test_the_table_says_all_of_it() -> None:
    rules = known_rules()
    found = by_subject(measured(), manifest(), 0.5, rules, RESAMPLING)
    listed = list(csv.DictReader(io.StringIO(table_of_subjects(found, rules))))
    assert [row["subject_id"] for row in listed] == [row["subject_id"] for row in found["rows"]]
    first, of = listed[0], found["rows"][0]
    assert float(first["share_corrected_low"]) == pytest.approx(of["corrected"]["low"], abs=1e-6)
    assert first["is_covered"] in ("True", "False") and 0 < float(first["smallest_share_told"]) < 1
    assert first["look_at_uris"].split(" | ")[0] == of["look_at"][0]["uri"]
    bare = by_subject(measured(), manifest(), 0.5, None, RESAMPLING)
    assert next(csv.DictReader(io.StringIO(table_of_subjects(bare, None))))["share_corrected"] == ""


def test_the_page_shows_the_most_suspicious_and_says_how_many_there_are() -> None:
    found = by_subject(measured(SHOWN + 5, 20), manifest(), 0.5, known_rules(), RESAMPLING)
    shown = section(found)
    assert shown is not None and len(shown.rows) == SHOWN
    assert f"The {SHOWN} most suspicious of {SHOWN + 5} are shown; subjects.csv has all." in shown.how_to_read
    assert shown.has_shares and shown.has_probabilities and not shown.has_review
    assert "s0" in shown.pictures[0].svg


# ---- scoring -----------------------------------------------------------------------------------------------


def predictions(subject: str, positive: int, review: int, cells: int) -> pa.Table:
    probability = [0.9] * positive + [0.55] * review + [0.1] * (cells - positive - review)
    decision = ["positive"] * positive + ["review"] * review + ["negative"] * (cells - positive - review)
    return pa.table(
        {
            "subject_id": [subject] * cells,
            "probability": pa.array(probability, pa.float32()),
            "decision": decision,
            "image_id": list(range(cells)),
        }
    )


def test_scoring_corrects_what_is_at_or_above_the_threshold_review_too() -> None:
    rules = known_rules()
    batches = [predictions("a", 10, 5, 60), predictions("b", 0, 0, 60)]
    table = roll_up(iter(batches), "run", "cell", Rule(0.5, rules))
    assert table.schema == SUBJECT_SCHEMA
    one, other = table.to_pylist()
    share = rules.share(15, 60)
    assert share is not None
    assert (one["n_positive"], one["n_review"], one["n_called"]) == (10, 5, 15)
    assert (one["share_corrected"], one["share_corrected_low"]) == (share.value, share.low)
    assert other["share_corrected_low"] == 0 and other["subject_probability"] < 0.1
    assert one["detection"].startswith("Of 60 cells of a subject, a share of 1 % that is positive is missed")
    plain = roll_up(iter(batches), "run", "cell").to_pylist()[0]
    assert plain["share_corrected"] is None and plain["n_called"] is None and plain["detection"] is None


def run_of(tmp_path: Path, unit: Unit | None, threshold: float = 0.5) -> RunFolder:
    bundle = make_bundle(tmp_path / "bundle", threshold=threshold, unit=unit, subject_rules=known_rules())
    source = write_files(tmp_path / "source", mixed_files(60))
    return score_here([str(source)], bundle, tmp_path / "scores", subject_pattern=r"(S\d{3})_")[0]


def test_a_run_has_corrected_shares_in_table_text_and_page(tmp_path: Path) -> None:
    run = run_of(tmp_path, "cell")
    rows = pq.read_table(Path(run.uri, "subjects.parquet")).to_pylist()
    assert rows and all(
        row["share_corrected_low"] <= row["share_corrected"] <= row["share_corrected_high"] for row in rows
    )
    found = summarize(run)
    assert found.run.counts.listed == found.run.counts.scored + found.run.counts.quarantined + found.run.counts.skipped
    text = "\n".join(job.account(found))
    assert "corrected" in text and "is missed with probability" in text
    page = render_page(found, {})
    assert "Corrected" in page and "is missed with probability" in page
    assert "“more than 20 % of the cells are truly positive”" in page


@pytest.mark.parametrize(("unit", "threshold"), [("field", 0.5), (None, 0.5), ("cell", 0.6)])
def test_a_run_of_other_images_or_another_threshold_corrects_nothing(
    tmp_path: Path, unit: Unit | None, threshold: float
) -> None:
    found = summarize(run_of(tmp_path, unit, threshold))
    assert found.subjects and all(row["share_corrected"] is None for row in found.subjects)
    assert "corrected" not in "\n".join(job.account(found)) and "Corrected" not in render_page(found, {})


def test_subjects_of_an_older_output_are_still_shown(tmp_path: Path) -> None:
    run = run_of(tmp_path, "cell")
    path = Path(run.uri, "subjects.parquet")
    table = pq.read_table(path)
    newer = [name for name in table.column_names if name.startswith(("share_corrected", "subject_prob", "detection"))]
    pq.write_table(table.drop_columns([*newer, "n_called", "smallest_share_told"]), path)
    found = summarize(run)
    assert found.subjects[0]["subject_id"] in "\n".join(job.account(found))
    assert found.subjects[0]["subject_id"] in render_page(found, {})


def test_rates_of_the_very_subjects_say_nothing_of_how_often_intervals_hold() -> None:
    found = by_subject(measured(), manifest(), 0.5, known_rules(), RESAMPLING, are_own=True)
    assert found["coverage"] is None and found["rates"] is not None
    told = " ".join(subjects_in_words(found))
    assert "of these very subjects" in told and "holds the true share in" not in told
