"""The Grafana boards as pictures, without Grafana: their queries asked of a Prometheus and drawn by matplotlib.

    python infra/monitoring/draw.py http://127.0.0.1:9090 --minutes 360 --out pictures

Wants the extra `train`, for matplotlib. Panels that have no data say so, and are named on stdout.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BOARDS = Path(__file__).parent / "boards"
_POINTS = 240  # of a line, as Grafana asks for about as many as a panel is wide
_COLUMNS, _INCHES = 24, 0.62  # of Grafana's grid; of a unit of it
_UNITS = {"percentunit": "share", "s": "seconds", "reqps": "1/s", "MBs": "MB/s"}
Series = dict[str, Any]  # 'metric' (labels) and 'values' (time, text)


def ask(prometheus: str, expression: str, begin: float, end: float) -> list[Series]:
    """The series of an expression over a time. Raises SystemExit with Prometheus's own words."""
    step = max(1.0, (end - begin) / _POINTS)
    asked = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": step})
    try:
        with urllib.request.urlopen(f"{prometheus.rstrip('/')}/api/v1/query_range?{asked}", timeout=60) as answer:
            found: list[Series] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{prometheus}: {expression}: {error.read().decode(errors='replace')[:300]}")
    except (OSError, ValueError) as error:
        sys.exit(f"{prometheus}: does not answer as a Prometheus does ({error})")
    return [one for one in found if any(math.isfinite(float(value)) for _, value in one["values"])]


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], f"NO LABEL {found[1]}"), template)


def draw(board: dict[str, Any], prometheus: str, begin: float, end: float, to: Path) -> list[str]:
    """One board into a PNG; the titles of panels without data."""
    from matplotlib.figure import Figure

    places = [panel["gridPos"] for panel in board["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    figure = Figure(figsize=(_COLUMNS * _INCHES, (rows + 1) * _INCHES), dpi=80)
    figure.suptitle(board["title"])
    empty = []
    for panel, place in zip(board["panels"], places, strict=True):
        left, low = place["x"] / _COLUMNS + 0.035, (rows - place["y"] - place["h"]) / (rows + 1) + 0.022
        axes = figure.add_axes((left, low, place["w"] / _COLUMNS - 0.045, (place["h"] - 1.6) / (rows + 1)))
        unit = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), "")
        axes.set_title(f"{panel['title']} ({unit})" if unit else panel["title"], fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        found = [(target, one) for target in panel["targets"] for one in ask(prometheus, target["expr"], begin, end)]
        if not found:
            empty.append(panel["title"])
            axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        elif panel["type"] == "heatmap":
            _heatmap(axes, [one for _, one in found], end)
        else:
            _lines(axes, found, end)
    figure.savefig(to)
    return empty


def _lines(axes: Any, found: Sequence[tuple[dict[str, Any], Series]], end: float) -> None:
    for target, one in found:
        minutes, values = zip(*(((at - end) / 60, float(value)) for at, value in one["values"]), strict=True)
        name = legend(target["legendFormat"], one["metric"])
        axes.plot(minutes, values, linewidth=1.2, marker=".", markersize=2, label=name)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="upper left", framealpha=0.7)


def _heatmap(axes: Any, found: Sequence[Series], end: float) -> None:
    """Cumulative buckets as the images in each."""
    buckets = sorted(found, key=lambda one: float(one["metric"]["le"]))
    times = sorted({at for one in buckets for at, _ in one["values"]})
    table = [[dict(one["values"]).get(at, "nan") for at in times] for one in buckets]
    cumulative = [[float(value) for value in row] for row in table]
    below = [[0.0] * len(times), *cumulative[:-1]]
    in_each = [[high - low for high, low in zip(*rows, strict=True)] for rows in zip(cumulative, below, strict=True)]
    drawn = axes.pcolormesh([(at - end) / 60 for at in times], range(len(buckets)), in_each, shading="nearest")
    axes.set_yticks(range(len(buckets)), [one["metric"]["le"] for one in buckets])
    axes.tick_params(axis="y", labelsize=5)
    axes.figure.colorbar(drawn, ax=axes).ax.tick_params(labelsize=6)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address: http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=360, help="how far back (default: 360, as the boards)")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of the PNG files")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time()
    for path in sorted(BOARDS.glob("*.json")):
        to = options.out / f"{path.stem}.png"
        empty = draw(json.loads(path.read_text()), options.prometheus, end - 60 * options.minutes, end, to)
        print(f"{to}" + "".join(f"\n  no data: {title}" for title in empty))
    return 0


if __name__ == "__main__":
    sys.exit(main())
