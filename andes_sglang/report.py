"""One self-contained HTML page: what readers got under each policy, in pictures (inline SVG, nothing fetched)."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from andes_sglang.request import RequestRecord
from andes_sglang.summary import cells, host_line

__all__ = ["COLOURS", "CSS", "figure", "plot", "render"]

COLOURS = ("#b35806", "#2166ac", "#1b7837", "#762a83", "#8c510a", "#01665e")
_W, _H, _L, _B = 460, 260, 52, 36
CSS = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin:2rem 0 .2rem}p.note{color:#555;margin:.1rem 0 .6rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
.row{display:flex;flex-wrap:wrap;gap:1.2rem}figure{margin:0}figcaption{font-size:13px;color:#555;max-width:460px}
svg text{font:11px system-ui,sans-serif;fill:#444}.key{display:inline-block;width:.8em;height:.8em;margin:0 .35em 0 1em}
"""


def _ticks(low: float, high: float) -> list[float]:
    span = max(high - low, 1e-9)
    step = 10.0 ** np.floor(np.log10(span / 4))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first = np.ceil(low / step) * step
    return [float(t) for t in np.arange(first, high + step * 1e-6, step)]


def plot(
    series: Sequence[tuple[str, str, Sequence[float], Sequence[float]]],
    x_title: str,
    y_title: str,
    y_max: float | None = None,
    x_max: float | None = None,
) -> str:
    """Lines as an SVG. series: (name, colour or 'colour dash', xs, ys)."""
    xs = [x for _, _, a, _ in series for x in a] or [0.0, 1.0]
    ys = [y for _, _, _, b in series for y in b] or [0.0, 1.0]
    x0, x1 = min(0.0, min(xs)), x_max or (max(xs) if max(xs) > 1e-6 else 1.0)
    y0, y1 = 0.0, y_max or max(max(ys) * 1.05, 1e-9)

    def px(x: float) -> float:
        return _L + (min(x, x1) - x0) / (x1 - x0) * (_W - _L - 10)

    def py(y: float) -> float:
        return _H - _B - (min(y, y1) - y0) / (y1 - y0) * (_H - _B - 12)

    out = [
        f'<svg viewBox="0 0 {_W} {_H}" width="{_W}" role="img" aria-label="{html.escape(y_title)} by {html.escape(x_title)}">'
    ]
    for t in _ticks(y0, y1):
        out.append(f'<line x1="{_L}" x2="{_W - 10}" y1="{py(t):.1f}" y2="{py(t):.1f}" stroke="#eee"/>')
        out.append(f'<text x="{_L - 6}" y="{py(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    out += [f'<text x="{px(t):.1f}" y="{_H - _B + 15}" text-anchor="middle">{t:g}</text>' for t in _ticks(x0, x1)]
    out.append(f'<line x1="{_L}" x2="{_W - 10}" y1="{py(0):.1f}" y2="{py(0):.1f}" stroke="#888"/>')
    for name, style, a, b in series:
        colour, _, dash = style.partition(" ")
        stride = max(1, len(a) // 600)
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(list(a)[::stride], list(b)[::stride], strict=True))
        extra = ' stroke-dasharray="5 4"' if dash else ""
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{extra}><title>{html.escape(name)}</title></polyline>'
        )
    out.append(f'<text x="{(_W + _L) / 2}" y="{_H - 4}" text-anchor="middle">{html.escape(x_title)}</text>')
    out.append(
        f'<text x="12" y="{_H / 2}" text-anchor="middle" transform="rotate(-90 12 {_H / 2})">{html.escape(y_title)}</text></svg>'
    )
    return "".join(out)


def _cdf(values: Sequence[float]) -> tuple[list[float], list[float]]:
    ordered = sorted(values)
    return ordered, [(k + 1) / len(ordered) for k in range(len(ordered))]


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _reader_curves(record: RequestRecord, colour: str) -> list[tuple[str, str, list[float], list[float]]]:
    arrival, n = record.arrival_s, 0
    xs, ys, dx, dy = [0.0], [0.0], [0.0], [0.0]
    stream = RequestRecord(0, arrival, 0, 0, 0, record.ttft_target_s, record.tds).reader()
    for at, tokens in record.deliveries:
        xs += [at - arrival, at - arrival]
        ys += [n, n + tokens]
        for _ in range(tokens):
            stream.deliver(at)
            n += 1
            done = stream.end_s + stream.start_s - arrival
            dx += [done - 1 / record.tds, done]
            dy += [n - 1, n]
    return [("delivered", colour, xs, ys), ("read", f"{colour} dash", dx, dy)]


def render(
    summary: Mapping[str, Any],
    records: Mapping[str, Sequence[RequestRecord]],
    samples: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    """The page. records: one run of each policy over the same workload; samples: engine gauges about once a second."""
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(records)}
    policies = summary["policies"]
    names = list(policies)
    best = max(names, key=lambda n: policies[n]["qoe"]["mean"])
    first = names[0]
    headline = (
        f"{html.escape(best)}: mean QoE {policies[best]['qoe']['mean']:.2f}, against {policies[first]['qoe']['mean']:.2f} under {html.escape(first)}"
        if best != first
        else f"{html.escape(first)}: mean QoE {policies[first]['qoe']['mean']:.2f}"
    )
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in cells(policies[first]))
    rows = "".join(
        f"<tr><td>{html.escape(n)}</td>"
        + "".join(f"<td>{html.escape(text)}</td>" for _, text in cells(policies[n]))
        + "</tr>"
        for n in names
    )
    offload = "".join(
        f'<p class="note">{html.escape(n)}: {line}</p>' for n in names if (line := host_line(policies[n])) is not None
    )
    key = "".join(f'<span class="key" style="background:{c}"></span>{html.escape(n)}' for n, c in colours.items())

    def lines(values: Any) -> list[tuple[str, str, list[float], list[float]]]:
        return [(n, colours[n], *values(rs)) for n, rs in records.items()]

    pictures = [
        figure(
            plot(lines(lambda rs: _cdf([r.qoe for r in rs])), "QoE of a request", "share of requests", 1.0, 1.0),
            "Share of requests with at most this QoE: the lower the line, the better.",
        ),
        figure(
            plot(lines(lambda rs: _cdf([r.ttft_s for r in rs])), "time to first token, s", "share of requests", 1.0),
            "How soon the first token came: the further left, the better.",
        ),
        figure(
            plot(
                lines(lambda rs: _cdf([r.score().longest_stall_s for r in rs])),
                "longest stall inside the answer, s",
                "share of requests",
                1.0,
            ),
            "How long readers had to wait in mid-answer, at worst.",
        ),
        figure(
            plot(lines(lambda rs: ([r.arrival_s for r in rs], [r.qoe for r in rs])), "arrival, s", "QoE", 1.0),
            "QoE of each request by when it arrived: who pays for the surge.",
        ),
    ]
    over_time = []
    for gauge, title in (("queue", "waiting requests"), ("running", "running requests"), ("open", "open requests")):
        series = [
            (n, colours[n], [s["at_s"] for s in points if gauge in s], [s[gauge] for s in points if gauge in s])
            for n, points in samples.items()
            if n in colours
        ]
        if any(len(s[2]) for s in series):
            over_time.append(figure(plot(series, "time, s", title), f"{title.capitalize()} over the run."))
    readers = []
    reference = sorted(records[first], key=lambda r: r.qoe)
    for share in (0.05, 0.35, 0.65):
        index = reference[int(share * (len(reference) - 1))].index
        for n, rs in records.items():
            record = next((r for r in rs if r.index == index), None)
            if record is not None and record.deliveries:
                readers.append(
                    figure(
                        plot(_reader_curves(record, colours[n]), "seconds after arrival", "tokens"),
                        f"Request {index} under {html.escape(n)}: QoE {record.qoe:.2f}. Solid: delivered; dashed: read.",
                    )
                )
    workload, engine = summary["workload"], summary["engine"]
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{headline}</title><style>{CSS}</style></head><body>
<h1>{headline}</h1>
<p class="note">{html.escape(str(workload.get("name", "")))} · {workload.get("requests")} requests a run · {html.escape(str(engine.get("what", "")))}</p>
<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>
<p class="note">QoE 1: every token was there when its reader wanted it. ± is the standard deviation over repeats. A failed request scores 0.</p>
{offload}
<p>{key}</p>
<h2>What readers got</h2><div class="row">{"".join(pictures)}</div>
<h2>What the engine did</h2><div class="row">{"".join(over_time) or "<p>The endpoint has no metrics.</p>"}</div>
<h2>A few readers</h2><p class="note">The same requests under each policy: a badly, a poorly and a better served one under {html.escape(first)}.</p>
<div class="row">{"".join(readers)}</div></body></html>
"""
