"""The pages: figures and records in, HTML out. Names that come from files are escaped by the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from andes_sglang.report.charts import COLOURS, Series, plot
from andes_sglang.request import RequestRecord
from andes_sglang.summary import cells, group_rows, host_line

__all__ = ["Figure", "render", "render_page"]

Records = Mapping[str, Sequence[RequestRecord]]
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


def render(summary: Mapping[str, Any], records: Records, samples: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The page of a run. records: one run of each policy over the same workload, where there are any; samples: the engine's
    gauges about once a second."""
    policies = summary["policies"]
    rival = rival_of(policies, summary["engine"].get("arms", {}))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(records)}
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
        overall=_overall(records, colours) if records else [],
        over_time=_over_time(samples, colours),
        readers=_readers(records, colours),
        first=next(iter(records), ""),
    )


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


def cdf(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Values in order, and the share of them that are at most that."""
    ordered = sorted(values)
    return ordered, [(k + 1) / len(ordered) for k in range(len(ordered))]


def _by_arrival(run: Sequence[RequestRecord]) -> tuple[list[float], list[float]]:
    ordered = sorted(run, key=lambda r: r.arrival_s)
    return [r.arrival_s for r in ordered], [r.qoe for r in ordered]


def _overall(records: Records, colours: Mapping[str, str]) -> list[Figure]:
    def lines(of: Callable[[Sequence[RequestRecord]], tuple[list[float], list[float]]]) -> list[Series]:
        return [(name, colours[name], *of(run)) for name, run in records.items()]

    share = "share of requests"
    return [
        Figure(
            plot(lines(lambda run: cdf([r.qoe for r in run])), "QoE of a request", share, 1.0, 1.0),
            "Share of requests with at most this QoE: the lower the line, the better.",
        ),
        Figure(
            plot(lines(lambda run: cdf([r.ttft_s for r in run])), "time to first token, s", share, 1.0),
            "How soon the first token came: the further left, the better.",
        ),
        Figure(
            plot(
                lines(lambda run: cdf([r.score().longest_stall_s for r in run])),
                "longest stall inside the answer, s",
                share,
                1.0,
            ),
            "How long readers had to wait in mid-answer, at worst.",
        ),
        Figure(
            plot(lines(_by_arrival), "arrival, s", "QoE", 1.0),
            "QoE of each request by when it arrived: who pays for the surge.",
        ),
    ]


def _over_time(samples: Mapping[str, Sequence[Mapping[str, float]]], colours: Mapping[str, str]) -> list[Figure]:
    figures = []
    for gauge, title in GAUGES:
        series: list[Series] = [
            (name, colours[name], [p["at_s"] for p in points if gauge in p], [p[gauge] for p in points if gauge in p])
            for name, points in samples.items()
            if name in colours
        ]
        if any(len(ys) for _, _, _, ys in series):
            figures.append(Figure(plot(series, "time, s", title), f"{title.capitalize()} over the run."))
    return figures


def _readers(records: Records, colours: Mapping[str, str]) -> list[Figure]:
    """The same few requests under each policy, chosen by what the first policy gave them."""
    figures: list[Figure] = []
    reference = sorted(next(iter(records.values()), ()), key=lambda r: r.qoe)
    chosen = [reference[int(share * (len(reference) - 1))].index for share in READER_SHARES if reference]
    for index in dict.fromkeys(chosen):
        figures += _one_reader(index, records, colours)
    return figures


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
