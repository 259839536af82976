"""The pages: figures and records in, HTML out. Names that come from files are escaped by the templates."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from andes_sglang.qoe import MIN_STALL_S
from andes_sglang.report.charts import COLOURS, Bar, Series, bars, plot
from andes_sglang.report.distribution import BAND, cdf_with_band
from andes_sglang.request import RequestRecord
from andes_sglang.summary import cells, group_rows, host_line

__all__ = ["Figure", "colours_of", "figures", "made_by", "render", "render_page"]

Records = Mapping[str, Sequence[RequestRecord]]
Repeats = Mapping[str, Sequence[Sequence[RequestRecord]]]
Samples = Mapping[str, Sequence[Mapping[str, float]]]
TIMELINE_ROWS = 40
"""Requests, evenly picked in order of arrival."""
WAITS, READS, STALLS = "#f1a340", "#92c5de", "#b2182b"
"""Colours of a timeline (ColorBrewer PuOr and RdBu)."""
READER_SHARES = (0.05, 0.35, 0.65)
"""Which readers are shown one by one: at these shares of the first policy's requests in order of QoE."""
GAUGES = (("queue", "waiting requests"), ("running", "running requests"), ("open", "open requests"))
STOCK = ("stock", "stock-mixed")
BESIDE = (
    ("QoE mean", ("qoe", "mean"), ".3f"),
    ("p5", ("qoe", "p5"), ".3f"),
    ("TTFT p90 in s", ("ttft_s", "p90"), ".2f"),
)
"""What the line under the headline says: title, path in a summary, format."""
_TEMPLATES = Environment(
    loader=PackageLoader("andes_sglang.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Figure(NamedTuple):
    """A chart as :func:`plot` draws it, and what it shows, in plain text."""

    svg: str
    caption: str

    @property
    def markup(self) -> Markup:
        return Markup(self.svg)  # noqa: S704 (our own charts, which escape what they are given)


def render_page(template: str, **context: Any) -> str:
    """Fill ``templates/<template>.html.jinja``. Raises ``jinja2.UndefinedError`` for what the context lacks."""
    return _TEMPLATES.get_template(f"{template}.html.jinja").render(context)


def render(summary: Mapping[str, Any], records: Records, samples: Samples, *, repeats: Repeats | None = None) -> str:
    """The page of a run. records: one run of each policy over the same workload, where there are any; samples: the engine's
    gauges about once a second; repeats: all runs of each policy, the first among them."""
    policies = summary["policies"]
    rival = rival_of(policies, summary["engine"].get("arms", {}))
    colours = colours_of(records)
    drawn = figures(records, samples, repeats=repeats)
    return render_page(
        "report",
        title=headline(policies, rival),
        beside=_beside(policies, rival, summary["workload"].get("seeds", ())),
        workload=summary["workload"],
        engine=summary["engine"],
        columns=[title for title, _ in cells(next(iter(policies.values())))],
        rows={name: [text for _, text in cells(figures)] for name, figures in policies.items()},
        groups=group_rows(policies),
        host={name: line for name, figures in policies.items() if (line := host_line(figures)) is not None},
        colours=colours,
        overall=drawn["overall"],
        timelines=drawn["timeline"],
        over_time=drawn["over_time"],
        readers=drawn["reader"],
        first=next(iter(records), ""),
        made_by=made_by(summary),
    )


def colours_of(records: Records) -> dict[str, str]:
    """By policy."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(records)}


def figures(records: Records, samples: Samples, *, repeats: Repeats | None = None) -> dict[str, list[Figure]]:
    """The charts of :func:`render`, by the part of the page that they stand in."""
    colours = colours_of(records)
    records = {name: run for name, run in records.items() if run}
    all_runs = {name: [run for run in (repeats or {}).get(name, ()) if run] or [run] for name, run in records.items()}
    return {
        "overall": _overall(all_runs, colours) if records else [],
        "timeline": _timelines(records),
        "over_time": _over_time(samples, colours),
        "reader": _readers(records, colours),
    }


def made_by(summary: Mapping[str, Any]) -> str:
    """Command, seeds, version and date, for captions; empty for a summary that does not know."""
    made, seeds = summary.get("made_by"), summary["workload"].get("seeds", ())
    if not made:
        return ""
    drawn = f"; seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}" if seeds else ""
    return f"{shlex.join(made['command'])}{drawn}; andes {made['version']}, {made['at'][:10]}"


def headline(policies: Mapping[str, Any], rival: str) -> str:
    """The best policy by mean QoE, against ``rival``."""
    best = best_of(policies)
    text = f"{best}: mean QoE {policies[best]['qoe']['mean']:.2f}"
    return text if rival == best else f"{text}, against {policies[rival]['qoe']['mean']:.2f} under {rival}"


def best_of(policies: Mapping[str, Any]) -> str:
    return max(policies, key=lambda name: policies[name]["qoe"]["mean"])


def rival_of(policies: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Whom the best is compared with: the better arm of stock SGLang; where there is none, the first. arms: what each runs,
    as in ``summary.json``."""
    stock = {name: run for name, run in policies.items() if arms.get(name, {}).get("policy", name) in STOCK}
    return best_of(stock) if stock else next(iter(policies))


def _beside(policies: Mapping[str, Any], rival: str, seeds: Sequence[int]) -> str:
    """What stands under the headline: the readers served worst, the wait for the first token, and how sure all that is."""
    best = best_of(policies)
    said = []
    for title, path, form in BESIDE:
        text = f"{title} {_spread(policies[best], path, form)}"
        said.append(text if rival == best else f"{text}, against {_spread(policies[rival], path, form)}")
    runs = len(policies[best].get("repeats", ())) or 1
    drawn = f"seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}" if seeds else f"{runs} run{'s'[: runs > 1]}"
    return " · ".join([*said, f"{drawn}; {'± is over them' if runs > 1 else 'one run says nothing of the spread'}"])


def _spread(figures: Mapping[str, Any], path: tuple[str, str], form: str) -> str:
    group, name = path
    over = ((figures.get("std") or {}).get(group) or {}).get(name)
    return format(figures[group][name], form) + ("" if over is None else f" ±{format(over, form)}")


def _by_arrival(run: Sequence[RequestRecord]) -> tuple[list[float], list[float]]:
    ordered = sorted(run, key=lambda r: r.arrival_s)
    return [r.arrival_s for r in ordered], [r.qoe for r in ordered]


def _overall(repeats: Repeats, colours: Mapping[str, str]) -> list[Figure]:
    def shares(of: Callable[[RequestRecord], float], title: str, x_max: float | None, caption: str) -> Figure:
        drawn = [
            cdf_with_band(name, colours[name], [[of(r) for r in run] for run in runs]) for name, runs in repeats.items()
        ]
        lines, bands = [line for line, _ in drawn], [band for _, band in drawn]
        return Figure(plot(lines, title, "share of requests", 1.0, x_max, bands=bands), f"{caption} {BAND}")

    by_arrival: list[Series] = [(name, colours[name], *_by_arrival(runs[0])) for name, runs in repeats.items()]
    return [
        shares(
            lambda r: r.qoe, "QoE of a request", 1.0,
            "Share of requests with at most this QoE: the lower the line, the better.",
        ),
        shares(
            lambda r: r.ttft_s, "time to first token, s", None,
            "How soon the first token came: the further left, the better.",
        ),
        shares(
            lambda r: r.score().longest_stall_s, "longest stall inside the answer, s", None,
            "How long readers had to wait in mid-answer, at worst.",
        ),
        Figure(
            plot(by_arrival, "arrival, s", "QoE", 1.0),
            "QoE of each request by when it arrived: who pays for the surge.",
        ),
    ]  # fmt: skip


def _timelines(records: Records) -> list[Figure]:
    """What each of some requests waited for, under each policy, on one axis."""
    first = sorted(next(iter(records.values()), ()), key=lambda r: r.arrival_s)
    every = max(1, len(first) // TIMELINE_ROWS)
    chosen = {r.index for r in first[::every]}
    ends_s = [r.end_s or r.arrival_s for run in records.values() for r in run if r.index in chosen]
    return [
        Figure(
            bars([_stretches(r) for r in sorted(run, key=lambda r: r.arrival_s) if r.index in chosen], "time, s",
                 "requests by arrival", max(ends_s, default=1.0)),
            f"A row is a request under {name}: orange waits for its first token, blue is read, red waits in mid-answer.",
        )
        for name, run in records.items()
    ]  # fmt: skip


def _stretches(record: RequestRecord) -> list[Bar]:
    """From the arrival on: waiting, read, and stalled wherever its reader had read all that was there."""
    first_s = record.arrival_s + record.ttft_s
    found: list[Bar] = [(record.arrival_s, first_s, WAITS)]
    since_s, read_s = first_s, max(first_s, record.arrival_s + record.ttft_target_s)
    for at_s, tokens in record.deliveries:
        if at_s > read_s + MIN_STALL_S:
            found += [(since_s, read_s, READS), (read_s, at_s, STALLS)]
            read_s = since_s = at_s
        read_s = max(read_s, at_s) + tokens / record.tds
    return [*found, (since_s, read_s, READS)] if record.deliveries else found


def _over_time(samples: Samples, colours: Mapping[str, str]) -> list[Figure]:
    found = []
    for gauge, title in GAUGES:
        series: list[Series] = [
            (name, colours[name], [p["at_s"] for p in points if gauge in p], [p[gauge] for p in points if gauge in p])
            for name, points in samples.items()
            if name in colours
        ]
        if any(len(ys) for _, _, _, ys in series):
            found.append(Figure(plot(series, "time, s", title), f"{title.capitalize()} over the run."))
    return found


def _readers(records: Records, colours: Mapping[str, str]) -> list[Figure]:
    """The same few requests under each policy, chosen by what the first policy gave them."""
    found: list[Figure] = []
    reference = sorted(next(iter(records.values()), ()), key=lambda r: r.qoe)
    chosen = [reference[int(share * (len(reference) - 1))].index for share in READER_SHARES if reference]
    for index in dict.fromkeys(chosen):
        found += _one_reader(index, records, colours)
    return found


def _one_reader(index: int, records: Records, colours: Mapping[str, str]) -> list[Figure]:
    """One request under each policy, on the same axes."""
    found = {name: next((r for r in run if r.index == index), None) for name, run in records.items()}
    shown = {name: record for name, record in found.items() if record is not None and record.deliveries}
    curves = {name: reader_curves(record, colours[name]) for name, record in shown.items()}
    lines = [line for drawn in curves.values() for line in drawn]
    x_max = max((max(xs) for _, _, xs, _ in lines), default=1.0)
    y_max = max((max(ys) for _, _, _, ys in lines), default=1.0)
    return [
        Figure(
            plot(curves[name], "seconds after arrival", "tokens", 1.05 * y_max, x_max),
            f"Request {index} under {name}: QoE {record.qoe:.2f}. Solid: delivered; dashed: read.",
        )
        for name, record in shown.items()
    ]


def reader_curves(record: RequestRecord, colour: str) -> list[Series]:
    """Tokens delivered and tokens read, by seconds after the arrival."""
    arrival_s, n = record.arrival_s, 0
    xs, ys, dx, dy = [0.0], [0.0], [0.0], [0.0]
    stream = RequestRecord(0, arrival_s, 0, 0, 0, record.ttft_target_s, record.tds).reader()
    for at_s, tokens in record.deliveries:
        xs += [at_s - arrival_s, at_s - arrival_s]
        ys += [n, n + tokens]
        for _ in range(tokens):
            stream.deliver(at_s)
            n += 1
            read_s = stream.end_s + stream.start_s - arrival_s
            dx += [read_s - 1 / record.tds, read_s]
            dy += [n - 1, n]
    return [("delivered", colour, xs, ys), ("read", f"{colour} dash", dx, dy)]
