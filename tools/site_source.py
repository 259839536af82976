"""What the documentation's site is built from, laid out as mkdocs wants it: a hook of mkdocs.yml.

Every page keeps its place in the tree, so that links between pages are links of the site. What a page links to that is no
page is copied beside it, or, where it is a folder or code, written as text; a page of the API is made for each public module.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "anchors", "lay_out", "links", "on_config", "pages"]

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/**/*.md", "charts/**/*.md", "clients/**/*.md", "examples/*.md")
SHOWN = {".svg", ".png"}
"""Files that a page shows; others that it links to are written as text."""
REFERENCE = (
    "andes_sglang.qoe", "andes_sglang.objective", "andes_sglang.expectations", "andes_sglang.request",
    "andes_sglang.state", "andes_sglang.latency", "andes_sglang.policy.base", "andes_sglang.policy.options",
    "andes_sglang.policy.packer", "andes_sglang.policy.registry", "andes_sglang.conformance",
    "andes_sglang.routing.base", "andes_sglang.stream_forecast", "andes_sglang.workload.base",
    "andes_sglang.workload.shapes", "andes_sglang.workload.traces", "andes_sglang.workload.datasets",
    "andes_sglang.workload.measured", "andes_sglang.summary", "andes_sglang.results", "andes_sglang.sim.engine",
    "andes_sglang.sim.profile", "andes_sglang.sim.replica", "andes_sglang.sim.fleet", "andes_sglang.sim.whatif",
)  # fmt: skip
"""Modules whose docstrings are the reference: what docs and examples use from Python."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( {0,3})(```|~~~).*?^\1\2\s*$", re.M | re.S)
_NAMED_FENCE = re.compile(r"^```(\w+) (\S+)$", re.M)
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.M)


def pages() -> list[Path]:
    """Every page of the tree, relative to its root."""
    found = {path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)}
    return sorted(path for path in found if "node_modules" not in path.parts)


def links(text: str) -> Iterator[str]:
    """Targets of the links and pictures in a page, code apart."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    yield from (match[3] for match in _LINK.finditer(prose))


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub and the site name them."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}_1")
    return found


def lay_out(out: Path) -> None:
    """Write the site's source to ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    known = set(pages())
    for page in known:
        text = (ROOT / page).read_text()
        target = out / page
        target.parent.mkdir(parents=True, exist_ok=True)
        text = _NAMED_FENCE.sub(r'```\1 title="\2"', text)
        target.write_text(_LINK.sub(lambda match, page=page: _rewritten(match, page, known, out), text))
    for module in REFERENCE:
        target = out / "reference" / f"{module}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"# {module}\n\n::: {module}\n    options: {{show_root_heading: false}}\n")


def _rewritten(match: re.Match[str], page: Path, known: set[Path], out: Path) -> str:
    """A link as the site can have it."""
    shown, text, target = match.groups()
    if "://" in target or target.startswith(("#", "mailto:")):
        return match[0]
    file = (ROOT / page.parent / target.partition("#")[0]).resolve()
    if not file.exists() or file.relative_to(ROOT) in known:
        return match[0]
    if file.suffix in SHOWN:
        copy = out / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        return match[0]
    return text if not shown else match[0]


def on_config(config: Any) -> Any:
    """mkdocs calls it before it looks at files: the source is laid out, and folders of the navigation become their pages."""
    source = Path(config["docs_dir"])
    lay_out(source)
    nav = [_expanded(entry, source) for entry in config["nav"]]
    named = set(_names(nav))
    more = [str(page) for page in pages() if str(page) not in named]
    config["nav"] = [*nav, {"More": more}] if more else nav
    return config


def _names(nav: Any) -> Iterator[str]:
    """Every page of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _names(entry)


def _expanded(entry: Any, source: Path) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(inside, source) for title, inside in entry.items()}
    if isinstance(entry, list):
        return [_expanded(inside, source) for inside in entry]
    if (source / entry).is_dir():
        return sorted(str(page.relative_to(source)) for page in (source / entry).glob("*.md"))
    return entry
