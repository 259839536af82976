"""Line charts as SVG text."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

__all__ = ["COLOURS", "Band", "Bar", "Series", "bars", "plot", "standalone"]

Series = tuple[str, str, Sequence[float], Sequence[float]]
"""Name, colour (``"#b35806"``, or ``"#b35806 dash"`` for a dashed line), x values, y values."""
Band = tuple[str, Sequence[float], Sequence[float], Sequence[float]]
"""Colour, x values, lower and upper end at each."""
Bar = tuple[float, float, str]
"""From, to, colour: a stretch of a row of :func:`bars`."""
COLOURS = ("#b35806", "#2166ac", "#1b7837", "#762a83", "#8c510a", "#01665e")
"""Told apart by people who do not see all colours (ColorBrewer PuOr, BrBG and PRGn, dark ends)."""
WIDTH, HEIGHT = 460, 260
LEFT, BOTTOM, RIGHT, TOP = 52, 36, 10, 12
"""Pixels; the margins hold the axes' labels."""
MAX_POINTS = 600
"""Points of a line; more than the chart has pixels would only make the page larger."""
MAX_TICKS = 5
KEY_HEIGHT = 20
"""Pixels above a chart that stands alone."""


def ticks(low: float, high: float) -> list[float]:
    """At most six multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    span = max(high - low, 1e-9)
    step = 10.0 ** np.floor(np.log10(span / (MAX_TICKS - 1)))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= MAX_TICKS)
    first = np.ceil(low / step) * step
    return [float(t) for t in np.arange(first, high + step * 1e-6, step)]


def _polyline(name: str, style: str, at: Iterable[tuple[float, float]]) -> str:
    """A line of a plot through pixels. style: a colour, and any further word for dashes."""
    colour, _, dash = style.partition(" ")
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    extra = ' stroke-dasharray="5 4"' if dash else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{extra}>'
        f"<title>{html.escape(name)}</title></polyline>"
    )


def _polygon(band: Band, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    colour, xs, low, high = band
    stride = max(1, len(xs) // MAX_POINTS)
    edge = [*zip(xs[::stride], low[::stride]), *reversed([*zip(xs[::stride], high[::stride])])]
    points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in edge)
    return f'<polygon points="{points}" fill="{colour}" fill-opacity="0.15" stroke="none"/>'


def _range(series: Sequence[Series], bands: Sequence[Band]) -> tuple[list[float], list[float]]:
    """All x values, and all y values and upper ends."""
    xs = [x for _, _, a, _ in series for x in a]
    ys = [y for _, _, _, b in series for y in b] + [y for *_, high in bands for y in high]
    return xs or [0.0, 1.0], ys or [0.0, 1.0]


def plot(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    y_max: float | None = None,
    x_max: float | None = None,
    *,
    bands: Sequence[Band] = (),
) -> str:
    """Lines as an SVG, over ``bands``; both axes start at 0 (x lower where a value is negative). y_max, x_max: ends of the
    axes, which cut what lies beyond; None: as far as the values go."""
    xs, ys = _range(series, bands)
    x0, x1 = min(0.0, min(xs)), x_max or (max(xs) if max(xs) > 1e-6 else 1.0)
    y1 = y_max or max(max(ys) * 1.05, 1e-9)

    def px(x: float) -> float:
        return LEFT + (min(x, x1) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - min(y, y1) / y1 * (HEIGHT - BOTTOM - TOP)

    end = WIDTH - RIGHT
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{html.escape(y_title)} by {html.escape(x_title)}">'
    ]
    for t in ticks(0.0, y1):
        out.append(f'<line x1="{LEFT}" x2="{end}" y1="{py(t):.1f}" y2="{py(t):.1f}" stroke="#eee"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    out += [
        f'<text x="{px(t):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{t:g}</text>' for t in ticks(x0, x1)
    ]
    out.append(f'<line x1="{LEFT}" x2="{end}" y1="{py(0):.1f}" y2="{py(0):.1f}" stroke="#888"/>')
    out += [_polygon(band, px, py) for band in bands]
    for name, style, a, b in series:
        stride = max(1, len(a) // MAX_POINTS)
        out.append(_polyline(name, style, zip(map(px, list(a)[::stride]), map(py, list(b)[::stride]), strict=True)))
    out.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_title)}</text>')
    out.append(
        f'<text x="12" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 12 {HEIGHT / 2})">'
        f"{html.escape(y_title)}</text></svg>"
    )
    return "".join(out)


def bars(rows: Sequence[Sequence[Bar]], x_title: str, y_title: str, x_max: float) -> str:
    """Each row as a line of stretches, from the top, as an SVG; the x axis ends at ``x_max``."""
    end, height = WIDTH - RIGHT, (HEIGHT - BOTTOM - TOP) / max(1, len(rows))
    scale = (end - LEFT) / max(x_max, 1e-9)
    out = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{html.escape(y_title)} by {html.escape(x_title)}">'
    ]
    for t in ticks(0.0, x_max):
        x = LEFT + t * scale
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{t:g}</text>')
    for k, row in enumerate(rows):
        for low, high, colour in row:
            width = (min(high, x_max) - low) * scale
            if width > 0:
                out.append(
                    f'<rect x="{LEFT + low * scale:.1f}" y="{TOP + k * height:.1f}" width="{width:.1f}" '
                    f'height="{0.8 * height:.1f}" fill="{colour}"/>'
                )
    out.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_title)}</text>')
    out.append(
        f'<text x="12" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 12 {HEIGHT / 2})">'
        f"{html.escape(y_title)}</text></svg>"
    )
    return "".join(out)


def standalone(svg: str, key: Mapping[str, str]) -> str:
    """A chart as a file of its own: with the names of its colours (``key``) above it, and type that needs no page."""
    entries, x = [], float(LEFT)
    for name, colour in key.items():
        entries.append(f'<rect x="{x:.0f}" y="4" width="10" height="10" fill="{colour}"/>')
        entries.append(f'<text x="{x + 14:.0f}" y="13">{html.escape(name)}</text>')
        x += 24 + 6.5 * len(name)
    inside = svg.partition(">")[2].removesuffix("</svg>")
    width, height = max(WIDTH, round(x)), HEIGHT + KEY_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        "<style>text{font:11px Helvetica,Arial,sans-serif;fill:#333}</style>"
        f'{"".join(entries)}<g transform="translate(0 {KEY_HEIGHT})">{inside}</g></svg>\n'
    )
