"""`leukoray summary`: what a scoring run found, as text and as one HTML page."""

from pydantic import Field

from jobs.common import job, job_stores, start
from jobs.config import NamingConfig, positional
from pipeline.base.record import INCOMPLETE
from pipeline.scoring.record import TOO_MANY_ERRORS
from pipeline.scoring.summary import advice
from pipeline.scoring.summary.gallery import Thumbnail, load_pictures
from pipeline.scoring.summary.subjects import corrected_share, detection_of
from pipeline.scoring.summary.summary import REASONS, Summary, find_run, stages, summarize, throughput
from pipeline.sources.masks import MASKS, masks_note
from pipeline.storage.stores import Stores
from pipeline.storage.uris import absolute, join

EXAMPLES = """examples:
  leukoray summary scores                                   the latest finished run
  leukoray summary scores/run-20261122-210000-123 --out night.html
  leukoray summary s3://results/scores --no-pictures        leaves out the pictures

The page holds its pictures: it can be mailed or archived, and shows images of the source to whoever opens it.
Research software, not a medical device."""
_SUBJECTS_SHOWN = 10


class SummaryConfig(NamingConfig):
    """Print and draw what a scoring run found: counts, codes, throughput, pictures, subjects."""

    run: str = positional(description="folder of a run, or the output of leukoray score: then its latest run")
    out: str | None = Field(None, description="HTML file to write, local or s3:// (default: RUN/summary.html)")
    pictures: bool = Field(True, description="read the images that the page shows again from their source")


def main(config: SummaryConfig) -> None:
    stores = job_stores(config)
    summary = summarize(find_run(absolute(config.run), stores))
    for line in account(summary):
        print(line, flush=True)
    from pipeline.scoring.summary.page import render_page

    pictures = _pictures(summary, stores) if config.pictures else {}
    page = absolute(config.out) if config.out else join(summary.folder.uri, "summary.html")
    stores.of(page).write(page, render_page(summary, pictures).encode())
    print(f"page: {page}")
    print(summary.run.notice)


def _pictures(summary: Summary, stores: Stores) -> dict[int, Thumbnail]:
    rows = [*summary.highest, *summary.strangest, *summary.borderline, *summary.quarantined]
    return load_pictures(rows, summary.run.request.limits, stores, bit_depth=summary.run.model.bit_depth)


def account(summary: Summary) -> list[str]:
    """The run as lines of text."""
    run = summary.run
    counts, model = run.counts, run.model
    lines = [f"{summary.folder.run_id}: {summary.headline()}"]
    lines.append(
        f"listed {counts.at_least}{counts.listed:,} = scored {counts.scored:,} + quarantined {counts.quarantined:,} "
        f"+ skipped {counts.skipped:,}  (counted in the files written)"
    )
    lines.append(f"model {model.name} {model.version} ({model.sha256[:12]})" + _rule(summary))
    if model.synthetic:
        lines.append(advice.SYNTHETIC)
    lines += filter(None, (*run.notes, summary.drift_note))
    if summary.uncounted:
        lines.append(
            f"{run.status}: {counts.uncounted:,} archives or folders hold an unknown number of images"
            + ("; mend them and run again" if run.status == INCOMPLETE else ", which is accepted")
        )
        lines += [f"  {place}" for place in summary.uncounted]
    if counts.masks:
        lines.append(masks_note(counts.left_out[MASKS], counts.masks))
    if run.status == TOO_MANY_ERRORS:
        share, limit = 100 * run.error_share, 100 * run.max_error_share
        lines.append(f"too many errors: {share:.1f} % quarantined, at most {limit:g} % were accepted")
    return [*lines, *_counted(summary), *_time(summary), *_subjects(summary)]


def _rule(summary: Summary) -> str:
    return f", threshold {summary.threshold:.3f}" if summary.threshold is not None else ", makes no decision"


def _counted(summary: Summary) -> list[str]:
    total = max(1, summary.run.counts.scored)
    counted = summary.decisions or summary.classes
    lines = ["", "said", *(f"  {rows:>9,}  {100 * rows / total:5.1f} %  {name}" for name, rows in counted.items())]
    if summary.codes:
        lines += ["", "quarantined"]
        lines += [f"  {item.rows:>9,}  {item.code:<18}  {_advice(item.code)}" for item in summary.codes]
    remarks = summary.run.counts.remarks
    if remarks:
        lines += ["", "remarked on", *(f"  {rows:>9,}  {kind}" for kind, rows in remarks.items())]
    skipped = summary.run.counts.skipped_reasons
    if skipped:
        lines += ["", "skipped", *(f"  {rows:>9,}  {REASONS.get(reason, reason)}" for reason, rows in skipped.items())]
    return lines


def _advice(code: str) -> str:
    found = advice.of_code(code)
    return f"{found.meaning} {found.remedy}"


def _time(summary: Summary) -> list[str]:
    shares = stages(summary.run.progress)
    if not shares:
        return []
    lines = ["", "time", f"  {throughput(summary.run)}"]
    for item in shares:
        mark = "  <- most" if item.is_slowest else ""
        lines.append(f"  {item.name:<8}  {100 * item.share:3.0f} %  {item.milliseconds:8.2f} ms an image{mark}")
    return lines


def _subjects(summary: Summary) -> list[str]:
    if not summary.subjects or not summary.decides:
        return []
    shown = summary.subjects[:_SUBJECTS_SHOWN]
    width = min(32, max(7, *(len(row["subject_id"]) for row in shown)))
    of_fields = summary.run.unit == "field"
    how = "by their highest probabilities: an image is a field" if of_fields else "share positive, 95 % Wilson interval"
    lines = ["", f"most suspicious subjects ({how})"]
    is_corrected = any(row.get("share_corrected") is not None for row in shown)  # older versions wrote none
    corrected = f"  {'corrected':>17}" if is_corrected else ""
    lines.append(
        f"  {'subject':<{width}}  {'images':>7}  {'positive':>8}  {'share':>15}{corrected}  {'mean':>5}  {'top':>5}"
    )
    for row in shown:
        share, low, high = (row[name] for name in ("share_positive", "share_low", "share_high"))
        interval = f"{100 * share:3.0f} % ({100 * low:.0f}-{100 * high:.0f})" if share is not None else "-"
        lines.append(
            f"  {row['subject_id'][:width]:<{width}}  {row['n_images']:>7,}  {row['n_positive']:>8,}  {interval:>15}"
            f"{f'  {corrected_share(row):>17}' if is_corrected else ''}  "
            f"{row['mean_probability']:5.3f}  {row['top_mean_probability']:5.3f}"
        )
    if summary.subject_count > len(shown):
        lines.append(f"  and {summary.subject_count - len(shown):,} more in {summary.folder.file('subjects.parquet')}")
    if is_corrected:
        lines.append("  corrected: of those at or above the threshold, in review too; by the model's rates, 95 %")
    lines += [f"  {sentence}" for sentence in detection_of(summary)]
    return [*lines, ""]


command = job("summary", SummaryConfig, main, EXAMPLES)


if __name__ == "__main__":
    start(command)
