"""The arithmetic and tables of the benchmarks; nothing is timed."""

import csv
import importlib
import importlib.util
import json
import math
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.sources.manifest import read_manifest
from tests.benchmarks import train_recipe
from tests.benchmarks.measure import (
    Measured,
    agreement,
    markdown_table,
    parse_result,
    ratio,
    read_rows,
    spread,
    steady_rate,
)
from tests.benchmarks.memory import Trace, growth
from tests.benchmarks.rounds import Budget, result_table
from tests.benchmarks.serve_load import parse
from tests.benchmarks.train_inputs import training_set
from tests.benchmarks.train_measure import Trained, Trainer, figures, our_timeline, printed_timeline, run, table
from tests.benchmarks.train_timeline import Timeline


def test_steady_rate_leaves_start_and_stragglers_out():
    slow_start = [(0.0, 10), (100.0, 10)]
    steady = [(100.0 + number, 10) for number in range(1, 8)]
    straggler = [(1000.0, 10)]
    assert steady_rate(slow_start + steady + straggler) == pytest.approx(10.0)


def test_steady_rate_does_not_depend_on_order():
    events = [(float(second), 5) for second in range(20)]
    assert steady_rate(events[::-1]) == steady_rate(events) == pytest.approx(5.0)


def test_steady_rate_of_one_batch_is_unknown():
    assert math.isnan(steady_rate([(1.0, 100)]))


def test_spread_is_the_median_with_its_range():
    assert str(spread([410.0, 390.0, 400.0])) == "400 (390–410)"
    assert str(spread([50.4])) == "50"


def test_ratio_compares_medians_so_one_bad_round_does_not_decide():
    assert ratio([400.0, 400.0, 10.0], [100.0, 100.0, 900.0]) == 4.0


def test_markdown_table_has_a_line_for_each_row_and_aligns_numbers_right():
    assert markdown_table(["what", "img/s"], [["ours", "400"]]) == "| what | img/s |\n|---|---:|\n| ours | 400 |"


def test_result_table_compares_whole_jobs_of_the_same_size_only():
    results = {
        "ours": [Measured(1000, 5.0, 300.0, 0.5), Measured(1000, 4.0, 320.0, 0.5)],
        "limit": [Measured(1000, 4.0, 310.0, 0.5)],
        "rival": [Measured(100, 4.0, 31.0, 0.5)],
    }
    lines = result_table(results, "ours").splitlines()
    assert "| 310 (300–320) |" in lines[2]
    assert "| 1.00x | 250 | 0.90x | 1 |" in lines[3]
    assert "| 10.00x | 25 | – | 1 |" in lines[4]


def test_result_is_the_last_json_line_of_a_chatty_output():
    line = '{"images": 3, "seconds_total": 1.5, "rate_steady": 2.0, "mean_probability": 0.25}'
    assert parse_result(f"starting\n{{}}\n{line}\nbye\n") == Measured(3, 1.5, 2.0, 0.25)
    with pytest.raises(ValueError, match="no result line"):
        parse_result("it crashed\n")


def test_agreement_joins_two_outputs_by_file_name(tmp_path):
    ours = {"uri": ["/a/x.jpg", "/a/y.jpg", "/a/z.jpg"], "probability": [0.1, 0.5, 0.9]}
    theirs = {"path": ["file:///b/z.jpg", "file:///b/x.jpg", "file:///b/y.jpg"], "probability": [0.8, 0.0, 0.4]}
    for name, columns in (("ours", ours), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "part.parquet")
    correlation, difference = agreement(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    assert correlation == pytest.approx(1.0)
    assert difference == pytest.approx(0.1)


def test_rows_of_one_batch_are_one_event(tmp_path):
    columns = {"probability": [0.2, 0.4, 0.6], "finished_at": [10.0, 10.0, 11.0]}
    pq.write_table(pa.table(columns), tmp_path / "part.parquet")
    finished, mean = read_rows(str(tmp_path))
    assert sorted(finished) == [(10.0, 2), (11.0, 1)]
    assert mean == pytest.approx(0.4)


def test_memory_growth_compares_the_peaks_of_the_smallest_and_the_largest_run():
    small = Trace(1000, driver=[50.0, 100.0], worker=[200.0, 150.0])
    large = Trace(100_000, driver=[110.0, 90.0], worker=[210.0, 100.0])
    assert growth([large, small]) == pytest.approx((1.1, 1.05))


def test_a_spent_budget_leaves_out_and_names_what_does_not_fit():
    budget = Budget(limit_s=100.0)
    assert budget.allows("short", 1.0)
    assert not budget.allows("long", 1000.0)
    assert budget.left_out == ["long"]


def test_training_is_told_by_its_moments():
    line = Timeline(100, first_step_at=12.0, epochs=[(10.0, 20.0), (25.0, 30.0), (35.0, 40.0)], decode_s=10.0)
    found = figures(line, 4.0, 43.0, [(5.0, 0.0), (13.0, 1.0), (30.0, 0.5), (42.0, 0.0)])
    assert (found.rate_first, found.rate_later) == (5.0, 20.0)
    assert (found.seconds_to_first_step, found.seconds_after_last_step, found.seconds_total) == (8.0, 3.0, 39.0)
    assert found.gpu_idle == 0.25
    assert math.isnan(figures(line, 4.0, 43.0).gpu_idle)


def test_our_own_moments_come_from_the_history_and_from_what_is_shown(tmp_path):
    speed = {"seconds": 12.0, "train_seconds": 10.0, "images_per_s": 9.6, "val_auc": 0.75, "step": 4}
    (tmp_path / "model" / "1").mkdir(parents=True)
    record = {"training": {"history": [speed | {"ended_at": 112.0}, speed | {"ended_at": 125.0}]}}
    (tmp_path / "model" / "1" / "bundle.json").write_text(json.dumps(record))
    lines = [
        (95.0, "decoded 1,120 images in 4.5 s"),
        (113.0, "epoch   1/2"),
    ]
    line = our_timeline(tmp_path, lines)
    assert line == Timeline(96, 102.5, [(100.0, 110.0), (113.0, 123.0)], auc=0.75, decode_s=4.5)


def test_the_table_of_training_says_what_ours_is_of_each():
    fast, slow = (
        Trained(40.0, 5.0, 2.0, 100.0, 120.0, 0.9, math.nan),
        Trained(80.0, 10.0, 1.0, 50.0, 60.0, 0.9, math.nan),
    )
    header, _, ours, rival = table({"ours": [fast], "rival": [slow]}, "ours").splitlines()
    assert "GPU" not in header
    assert ours == "| ours | 100 | 120 | 40.0 | 5.0 | 2.0 | 0.900 | 1 |"
    assert rival == "| rival | 50 [2.00x] | 60 [2.00x] | 80.0 [0.50x] | 10.0 [0.50x] | 1.0 [2.00x] | 0.900 | 1 |"


def test_a_failed_trainer_is_named_with_the_end_of_its_output(tmp_path):
    command = [sys.executable, "-c", "print('no memory'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match=r"rival failed \(3\): no memory"):
        run(Trainer("rival", command, printed_timeline), gpu=False)


def test_both_sides_get_the_same_images_of_the_asked_size(tmp_path):
    found = training_set(tmp_path, 10, 64, 48)
    with found.listing.open() as file:
        listed = {(row["path"], int(row["label"]), row["split"]) for row in csv.DictReader(file)}
    rows = read_manifest(str(found.manifest)).table.select(["uri", "label", "split"]).to_pylist()
    assert {(row["uri"], row["label"], row["split"]) for row in rows} == listed
    assert (found.train, found.validation, len(listed)) == (10, 2, 12)
    assert {Image.open(path).size for path, _, _ in listed} == {(64, 48)}
    for split, count in (("train", 10), ("validation", 2)):
        seen = train_recipe.Listed(str(found.listing), split, 32)
        image, label = seen[0]
        assert (len(seen), tuple(image.shape), label in (0, 1)) == (count, (3, 32, 32), True)


def test_both_rivals_can_be_loaded():
    for name in ("train_rival_ddp", "train_rival_lightning"):
        if name == "train_rival_lightning" and importlib.util.find_spec("lightning") is None:
            continue
        assert importlib.import_module(f"tests.benchmarks.{name}").main


WRK = """Running 8s test @ http://127.0.0.1:7112/predict
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    25.11ms    4.02ms  61.20ms   80.10%
    Req/Sec   316.00     21.00   370.00     70.00%
  Latency Distribution
     50%   24.10ms
     75%   27.00ms
     90%  950.00us
     99%    1.25s
  1600 requests in 8.00s, 1.20MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 80
Requests/sec:    200.00
"""


def test_load_counts_answers_and_what_failed():
    measured = parse(WRK, 8, 6.4)
    assert measured.rate == pytest.approx((1600 - 80) / 8)
    assert (measured.p50_ms, measured.p99_ms) == (pytest.approx(24.1), pytest.approx(1250))
    assert measured.failed == 85
    assert measured.cpu_ms == pytest.approx(4.0)


def test_load_refuses_what_is_no_output_of_wrk():
    with pytest.raises(ValueError, match="not the output"):
        parse("unable to connect", 8, 0)
