"""Pages link to what is there; where the site's generator is installed, the site builds without a warning."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import site_source
import yaml

GENERATOR = site_source.ROOT / ".setup" / "docs" / "bin" / "mkdocs"
PAGES = site_source.pages()


def faults(page: Path, text: str) -> list[str]:
    """Links of ``page`` to files, pages and headings that are not there."""
    found = []
    for link in site_source.links(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        file = (site_source.ROOT / page.parent / name).resolve() if name else site_source.ROOT / page
        if not file.exists():
            found.append(f"{page}: {link}: no such file")
        elif anchor and file.suffix == ".md":
            headings = site_source.anchors(text if not name else file.read_text())
            if anchor not in headings:
                found.append(f"{page}: {link}: no such heading; there are {', '.join(sorted(headings))}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    assert faults(page, (site_source.ROOT / page).read_text()) == []


def test_a_dead_link_is_found() -> None:
    page = Path("docs/bench.md")
    text = "# A `b` C\n[x](nowhere.md) [y](#a-b-c) [z](traces.md#nothing) ![p](benchmarks/none.svg) `[c](code.md)`\n"
    assert [fault.split(": ")[1] for fault in faults(page, text)] == [
        "nowhere.md",
        "traces.md#nothing",
        "benchmarks/none.svg",
    ]


def test_every_page_has_its_place_in_the_navigation(tmp_path: Path) -> None:
    """Those that mkdocs.yml does not name stand under More."""
    nav = yaml.safe_load((site_source.ROOT / "mkdocs.yml").read_text())["nav"]
    config = site_source.on_config({"docs_dir": str(tmp_path), "nav": [entry for entry in nav if "Scale" not in entry]})
    named = list(site_source._names(config["nav"]))
    assert {str(page) for page in PAGES} <= set(named)
    assert "docs/operator.md" in config["nav"][-1]["More"]
    assert len(named) == len(set(named))


def test_every_module_of_the_reference_is_there() -> None:
    assert [name for name in site_source.REFERENCE if importlib.util.find_spec(name) is None] == []


def test_the_source_of_the_site_keeps_links_between_pages(tmp_path: Path) -> None:
    site_source.lay_out(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "](docs/install.md)" in readme
    assert (tmp_path / "docs" / "benchmarks" / "end-to-end.svg").exists()
    assert "](andes_sglang/" not in readme, "code is no page"
    assert "::: andes_sglang.qoe" in (tmp_path / "reference" / "andes_sglang.qoe.md").read_text()
    assert '```csv title="burstgpt.csv"' in (tmp_path / "docs" / "traces.md").read_text()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = str(GENERATOR) if GENERATOR.exists() else shutil.which("mkdocs")
    if mkdocs is None:
        pytest.skip("NOT HERE: mkdocs with material and mkdocstrings; `make docs` installs them")
    (site_source.ROOT / "out" / "site-source").mkdir(parents=True, exist_ok=True)
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=site_source.ROOT, check=True, timeout=250)
    page = (tmp_path / "site" / "reference" / "andes_sglang.qoe.html").read_text()
    assert "ReaderStream" in page
