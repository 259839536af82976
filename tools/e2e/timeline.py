"""The run as a picture: demand, engines and QoE over time, one SVG."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from andes_sglang.report import COLOURS, plot
from e2e.story import OBJECTIVE, Outcome

__all__ = ["draw", "summary"]

BIN_S = 3.0
HEIGHT, TOP, WIDTH = 260, 70, 460
Series = tuple[str, str, Sequence[float], Sequence[float]]


def _steps(at_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of a line that changes at ``at_s``."""
    xs = [x for a, b in zip(at_s, [*at_s[1:], at_s[-1]]) for x in (a, b)] if at_s else []
    return xs, [y for value in values for y in (value, value)]


def _binned(outcome: Outcome) -> tuple[list[float], list[float], list[float]]:
    """By bins of arrival: their middles, requests/s, and the mean QoE of those who came then."""
    bins: dict[int, list[float]] = {}
    for record in outcome.records:
        bins.setdefault(int(record.arrival_s // BIN_S), []).append(record.qoe)
    numbers = range(min(bins), max(bins) + 1)
    rates = [len(bins.get(k, [])) / BIN_S for k in numbers]
    means = [sum(q) / len(q) if (q := bins.get(k)) else float("nan") for k in numbers]
    return [(k + 0.5) * BIN_S for k in numbers], rates, means


def draw(outcome: Outcome) -> str:
    """Three panels over the same seconds."""
    middles, rates, qoe = _binned(outcome)
    served = [(x, y) for x, y in zip(middles, qoe) if y == y]
    samples = [s for s in outcome.samples if s["ready"] is not None]
    at_s = [s["at_s"] for s in samples]
    end_s = max([*middles, *at_s])
    orange, blue, green, violet = COLOURS[:4]
    panels: list[tuple[str, list[Series], float | None]] = [
        ("requests/s", [("requests/s that came", blue, middles, rates)], None),
        ("engines", [
            ("engines that serve", green, *_steps(at_s, [s["ready"] for s in samples])),
            ("engines wanted", f"{orange} dash", *_steps(at_s, [s["recommended"] for s in samples])),
        ], None),
        ("QoE", [
            ("of those who came then (their clients)", violet, [x for x, _ in served], [y for _, y in served]),
            ("in the operator's window", f"{blue} dash", *_known(samples)),
            ("objective", "#999", [0.0, end_s], [OBJECTIVE, OBJECTIVE]),
        ], 1.05),
    ]  # fmt: skip
    drawn = []
    for row, (title, series, y_max) in enumerate(panels):
        y = TOP + row * (HEIGHT + 34)
        inner = plot(series, "seconds" if row == len(panels) - 1 else "", title, y_max=y_max, x_max=end_s)
        drawn.append(re.sub("<svg ", f'<svg y="{y}" height="{HEIGHT}" ', inner, count=1))
        drawn.append(_key(y - 8, [(name, colour) for name, colour, _, _ in series]))
    height = TOP + len(panels) * (HEIGHT + 34)
    head = (
        '<text x="8" y="20" font-size="14">A surge on real processes, end to end</text>'
        '<text x="8" y="38">simulated engines of about 1 request/s each, real gateways, operator and</text>'
        '<text x="8" y="52">control plane; time is scaled down: a look a second</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{2 * WIDTH}" '
        f'font-family="system-ui,sans-serif" font-size="11" fill="#333"><rect width="{WIDTH}" height="{height}" '
        f'fill="#fff"/>{head}{"".join(drawn)}</svg>\n'
    )


def _known(samples: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    known = [s for s in samples if s["qoe"] is not None]
    return [s["at_s"] for s in known], [s["qoe"] for s in known]


def _key(y: float, entries: Sequence[tuple[str, str]]) -> str:
    out, x = [], 52.0
    for name, style in entries:
        colour, _, dash = style.partition(" ")
        extra = ' stroke-dasharray="5 4"' if dash else ""
        out.append(f'<line x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"{extra}/>')
        out.append(f'<text x="{x + 22}" y="{y + 4}">{html.escape(name)}</text>')
        x += 32 + 5.4 * len(name)
    return "".join(out)


def summary(outcome: Outcome) -> dict[str, object]:
    """What came of it, in a few numbers."""
    qoe = [record.qoe for record in outcome.records]
    seen = [s["qoe"] for s in outcome.samples if s["qoe"] is not None]
    return {
        "streams": len(outcome.records),
        "cut": [record.error or "wrong length" for record in outcome.cut],
        "mean_qoe": round(sum(qoe) / len(qoe), 4),
        "lowest_qoe_in_window": min(seen),
        "qoe_objective": OBJECTIVE,
        "most_engines": max(s["ready"] for s in outcome.samples if s["ready"] is not None),
        "gpu_hours_saved": outcome.gpu_hours_saved,
        "left_behind": sorted(outcome.left),
        "steps": [{"at_s": round(at_s, 1), "what": text} for at_s, text in outcome.steps],
        "decisions": [{"reason": reason, "message": message} for reason, message in outcome.events],
        "samples": outcome.samples,
    }
