"""The page of a run: every figure in it is the run's, and nothing in it is fetched or run."""

from __future__ import annotations

import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from jinja2 import UndefinedError

from andes_sglang import summary
from andes_sglang.report import COLOURS, Figure, plot, render, render_page
from andes_sglang.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks
from andes_sglang.report.distribution import cdf, cdf_with_band
from andes_sglang.report.page import READS, STALLS, WAITS, _stretches, reader_curves
from andes_sglang.request import RequestRecord


class Page(HTMLParser):
    """Cells of tables, captions, titles and lines of charts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {}
        self.lines: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "polyline":
            self.lines.append(dict(attrs))
        if tag in ("td", "th", "figcaption", "h1", "h2"):
            self.found.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.found:
            self.found[self.open[-1]][-1] += data

    def __getitem__(self, tag: str) -> list[str]:
        return self.found.get(tag, [])


def points(line: dict[str, str | None]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in str(line["points"]).split())]


def run(late_s: float, count: int = 20) -> list[RequestRecord]:
    return [
        RequestRecord(
            k, float(k), float(k), 100, 3, 1.0, 5.0, [(k + late_s + 0.1 * j * k, 1) for j in range(3)], k + 9.0
        )
        for k in range(count)
    ]


def page(
    *, names: tuple[str, str] = ("stock", "andes"), samples: bool = True, records: bool = True
) -> tuple[str, Page]:
    runs = {names[0]: run(4.0), names[1]: run(1.5)}
    figures = {n: summary.combine([summary.summarise(r), summary.summarise(r[:10])]) for n, r in runs.items()}
    result = {
        "workload": {"name": "<a workload>", "requests": 20},
        "engine": {"what": "an engine & more"},
        "policies": figures,
    }
    gauges = [{"at_s": float(k), "queue": float(k % 3), "open": 1.0} for k in range(5)]
    text = render(result, runs if records else {}, {n: gauges if samples else [] for n in names})
    return text, Page(text)


def test_the_table_holds_the_figures_of_the_summary() -> None:
    _, seen = page()
    runs = {"stock": run(4.0), "andes": run(1.5)}
    rows = []
    for name, records in runs.items():
        figures = summary.combine([summary.summarise(records), summary.summarise(records[:10])])
        rows += [name, *(text for _, text in summary.cells(figures))]
    assert seen["td"] == rows
    assert seen["th"][1:] == [title for title, _ in summary.cells({})]
    qoe = np.mean([np.mean([r.qoe for r in part]) for part in (runs["stock"], runs["stock"][:10])])
    assert seen["td"][1].startswith(f"{qoe:.3f} ±")


def test_the_headline_is_the_best_against_the_first() -> None:
    _, seen = page()
    mean = {
        n: np.mean([np.mean([r.qoe for r in p]) for p in (run(s), run(s)[:10])]) for n, s in (("s", 4.0), ("a", 1.5))
    }
    assert seen["h1"] == [f"andes: mean QoE {mean['a']:.2f}, against {mean['s']:.2f} under stock"]
    alone = summary.combine([summary.summarise(run(4.0))])
    text = render({"workload": {"name": "w", "requests": 1}, "engine": {"what": "e"}, "policies": {"x": alone}}, {}, {})
    assert Page(text)["h1"] == [f"x: mean QoE {np.mean([r.qoe for r in run(4.0)]):.2f}"]


def figures_of(late_s: float, *repeats: int) -> dict[str, object]:
    return summary.combine([summary.summarise(run(late_s)[:count]) for count in repeats])


def test_it_is_compared_with_the_better_stock_arm_and_says_how_sure_it_is() -> None:
    policies = {"plain": figures_of(4.0, 20, 10), "mine": figures_of(1.5, 20, 10), "chunked": figures_of(3.0, 20, 10)}
    arms = {"plain": {"policy": "stock"}, "mine": {"policy": "andes"}, "chunked": {"policy": "stock"}}
    result = {
        "workload": {"name": "w", "requests": 20, "seeds": [7, 8]},
        "engine": {"what": "e", "arms": arms},
        "policies": policies,
    }
    text = render(result, {}, {})
    assert re.fullmatch(r"mine: mean QoE 0\.\d\d, against 0\.\d\d under chunked", Page(text)["h1"][0])
    mine, chunked = (
        (
            f"{p['qoe']['p5']:.3f} ±{p['std']['qoe']['p5']:.3f}",
            f"{p['ttft_s']['p90']:.2f} ±{p['std']['ttft_s']['p90']:.2f}",
        )
        for p in (policies["mine"], policies["chunked"])
    )
    assert f"p5 {mine[0]}, against {chunked[0]} · TTFT p90 in s {mine[1]}, against {chunked[1]} · seeds 7, 8" in text
    alone = {**result, "policies": {"x": figures_of(4.0, 20)}, "workload": {"name": "w", "requests": 20, "seeds": [7]}}
    assert "seed 7; one run says nothing of the spread" in render(alone, {}, {})


def test_arrivals_are_in_order_and_one_reader_s_charts_have_the_same_axes() -> None:
    runs = {"stock": run(4.0)[::-1], "andes": run(1.5)}
    result = {
        "workload": {"name": "w", "requests": 20},
        "engine": {"what": "e"},
        "policies": {"stock": figures_of(4.0, 20)},
    }
    page = Page(render(result, runs, {}))
    arrivals = [x for x, _ in points(page.lines[6])]
    assert arrivals == sorted(arrivals)
    late, soon = (max(x for x, _ in points(page.lines[-k])) for k in (3, 1))  # read, under stock and under andes
    assert late == pytest.approx(WIDTH - RIGHT, abs=0.06)
    assert soon < late - 50


def test_lines_are_the_distributions_of_the_records() -> None:
    _, seen = page()
    stock, andes = seen.lines[:2]
    assert (stock["stroke"], andes["stroke"]) == (COLOURS[0], COLOURS[1])
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    for line, late_s in ((stock, 4.0), (andes, 1.5)):
        qoe = sorted(r.qoe for r in run(late_s))
        drawn = points(line)
        assert [x for x, _ in drawn] == pytest.approx([LEFT + width * q for q in qoe], abs=0.06)
        assert [y for _, y in drawn] == pytest.approx(
            [HEIGHT - BOTTOM - height * (k + 1) / 20 for k in range(20)], abs=0.06
        )
    ttft = points(seen.lines[2])
    assert {x for x, _ in ttft} == {float(WIDTH - RIGHT)}  # every stock request waited the longest: 4 s
    stalls = points(seen.lines[4])
    longest = sorted(r.score().longest_stall_s for r in run(4.0))
    assert stalls[-1][0] == pytest.approx(WIDTH - RIGHT, abs=0.06)
    assert stalls[9][0] == pytest.approx(LEFT + width * longest[9] / longest[-1], abs=0.06)
    arrivals = points(seen.lines[6])
    assert arrivals[10] == pytest.approx(
        (LEFT + width * 10 / 19, HEIGHT - BOTTOM - height * run(4.0)[10].qoe), abs=0.06
    )


def test_a_badly_a_poorly_and_a_better_served_reader() -> None:
    _, seen = page()
    order = sorted(run(4.0), key=lambda r: r.qoe)
    told = [caption for caption in seen["figcaption"] if caption.startswith("Request")]
    expected = []
    for at in (0, 6, 12):
        index = order[at].index
        for name, records in (("stock", run(4.0)), ("andes", run(1.5))):
            expected.append(f"Request {index} under {name}: QoE {records[index].qoe:.2f}.")
    assert [caption.partition(" Solid")[0] for caption in told] == expected
    assert [line["stroke-dasharray"] for line in seen.lines[-12:] if "stroke-dasharray" in line] == ["5 4"] * 6


def test_a_reader_reads_at_their_speed_from_when_the_token_is_there() -> None:
    record = RequestRecord(0, 10.0, 10.0, 1, 2, 1.0, 2.0, [(10.5, 2), (15.0, 1)])
    (_, _, xs, ys), (_, style, dx, dy) = reader_curves(record, "#123")
    assert (xs, ys) == ([0.0, 0.5, 0.5, 5.0, 5.0], [0.0, 0, 2, 2, 3])
    assert dx == [0.0, 1.0, 1.5, 1.5, 2.0, 5.0, 5.5]
    assert dy == [0.0, 0, 1, 1, 2, 2, 3]
    assert style == "#123 dash"


def test_gauges_are_drawn_where_there_are_any() -> None:
    _, seen = page()
    assert [c for c in seen["figcaption"] if "over the run" in c] == [
        "Waiting requests over the run.", "Open requests over the run.",
    ]  # fmt: skip
    text, seen = page(samples=False)
    assert "The endpoint has no metrics." in text
    assert not [c for c in seen["figcaption"] if "over the run" in c]


def test_without_records_there_is_the_table() -> None:
    text, seen = page(records=False)
    assert len(seen["td"]) == 2 * (1 + len(summary.cells({})))
    assert not seen.lines
    assert "What readers got" not in text


def test_names_are_text_and_nothing_is_fetched() -> None:
    text, _ = page(names=("<script>alert(1)</script>", "a&b"))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;a workload&gt;" in text
    assert "an engine &amp; more" in text
    assert not re.search(r"(src|href|url)\s*[=(]", text)
    assert "http" not in text


def test_a_template_that_lacks_a_figure_fails() -> None:
    with pytest.raises(UndefinedError):
        render_page("report", title="t")


def test_a_plan_is_a_table_with_a_chart_for_each_profile() -> None:
    figure = Figure(plot([("andes", "#123", [0, 1], [0, 1])], "replicas", "mean"), "h100 & more")
    text = render_page("plan", title="t", workload={"name": "w", "requests": 5, "seeds": [1, 2]}, columns=["fleet", "n"],
                       rows=[["<h100>", "3"]], colours={"andes": "#123"}, figures=[figure])  # fmt: skip
    seen = Page(text)
    assert (seen["th"], seen["td"]) == (["fleet", "n"], ["<h100>", "3"])
    assert seen["figcaption"] == ["h100 & more"]
    assert len(seen.lines) == 1
    assert "w · 5 requests · seeds [1, 2]" in text


def test_a_line_is_drawn_to_scale_and_cut_at_the_ends_of_the_axes() -> None:
    seen = Page(plot([("a", "#123", [0.0, 5.0, 20.0], [0.0, 0.5, 9.0])], "x", "y", 1.0, 10.0))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
    assert points(seen.lines[0]) == [
        (LEFT, HEIGHT - BOTTOM),
        (LEFT + width / 2, HEIGHT - BOTTOM - height / 2),
        (WIDTH - RIGHT, TOP),
    ]
    left = Page(plot([("a", "#123", [-10.0, 10.0], [1.0, 1.0])], "x", "y"))
    assert points(left.lines[0])[0][0] == LEFT
    assert len(points(Page(plot([("a", "#1", list(range(6000)), [0.0] * 6000)], "x", "y")).lines[0])) == 600


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 7, [0, 2, 4, 6]),
        (0, 230, [0, 50, 100, 150, 200]),
        (3, 11, [4, 6, 8, 10]),
        (0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_the_share_of_values_that_are_at_most_that() -> None:
    assert cdf([3.0, 1.0, 2.0, 2.0]) == ([1.0, 2.0, 2.0, 3.0], [0.25, 0.5, 0.75, 1.0])


def test_the_band_of_one_run_is_the_inequality_of_dvoretzky_kiefer_and_wolfowitz() -> None:
    (_, _, xs, ys), (colour, at, low, high) = cdf_with_band("a", "#1", [[float(k) for k in range(100)]])
    half = math.sqrt(math.log(40) / 200)
    assert (colour, at) == ("#1", xs)
    assert low == pytest.approx([max(0.0, y - half) for y in ys])
    assert high == pytest.approx([min(1.0, y + half) for y in ys])


def test_the_band_over_repeats_is_students() -> None:
    runs = [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 3.0, 4.0], [2.0, 2.0, 3.0, 4.0]]
    (_, _, xs, ys), (_, _, low, high) = cdf_with_band("a", "#1", runs)
    at = xs.index(1.0)
    shares = [0.25, 0.5, 0.0]
    assert ys[at] == pytest.approx(np.mean(shares))
    half = 4.303 * np.std(shares, ddof=1) / math.sqrt(3)
    assert (low[at], high[at]) == (max(0.0, ys[at] - half), pytest.approx(ys[at] + half))
    assert (low[-1], ys[-1], high[-1]) == (1.0, 1.0, 1.0)


def test_bands_lie_under_the_lines_and_are_cut_with_them() -> None:
    text = plot(
        [("a", "#123", [0.0, 10.0], [0.5, 0.5])],
        "x",
        "y",
        1.0,
        10.0,
        bands=[("#123", [0.0, 10.0], [0.0, 0.0], [1.0, 9.0])],
    )
    polygon = re.search(r'<polygon points="(.+?)"', text)
    assert polygon is not None
    assert text.index("<polygon") < text.index("<polyline")
    assert polygon[1].split() == [
        f"{LEFT:.1f},{HEIGHT - BOTTOM:.1f}", f"{WIDTH - RIGHT:.1f},{HEIGHT - BOTTOM:.1f}",
        f"{WIDTH - RIGHT:.1f},{TOP:.1f}", f"{LEFT:.1f},{TOP:.1f}",
    ]  # fmt: skip


def test_a_timeline_tells_waiting_reading_and_stalls_apart() -> None:
    late = RequestRecord(0, 1.0, 1.0, 9, 4, 1.0, 2.0, [(3.0, 2), (7.0, 2)], 7.0)
    assert _stretches(late) == [(1.0, 3.0, WAITS), (3.0, 4.0, READS), (4.0, 7.0, STALLS), (7.0, 8.0, READS)]
    soon = RequestRecord(0, 1.0, 1.0, 9, 2, 1.0, 2.0, [(1.5, 1), (2.4, 1)], 2.4)
    assert _stretches(soon) == [(1.0, 1.5, WAITS), (1.5, 3.0, READS)], "a reader reads no sooner than they expected"
    assert _stretches(RequestRecord(0, 1.0, 1.0, 9, 0, 1.0, 2.0, [], 5.0, "HTTP 500")) == [(1.0, 5.0, WAITS)]


def test_the_report_says_how_it_was_made() -> None:
    figures = {"x": figures_of(4.0, 20)}
    made = {"version": "1.2", "command": ["andes", "simulate", "--arm", "a b"], "at": "2026-01-02T03:04:05+00:00"}
    result = {"workload": {"name": "w", "requests": 20, "seeds": [7, 8]}, "engine": {"what": "e"}, "policies": figures}
    text = render({**result, "made_by": made}, {"x": run(4.0)}, {})
    assert (
        html.escape("andes simulate --arm 'a b'; seeds 7, 8; andes 1.2, 2026-01-02", quote=True).replace(
            "&#x27;", "&#39;"
        )
        in text
    )
    assert text.count("A row is a request under x") == 1
    assert text.count("<polygon") == 3
