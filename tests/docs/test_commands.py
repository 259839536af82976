"""Every ``andes`` and ``make`` command in README and docs is one that there is; those that run in seconds are run."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import site_source

from andes_sglang import cli
from andes_sglang.arms import Arm
from andes_sglang.sim import profile
from andes_sglang.sim.configure import configure

WHOLE = cli.whole_parser()
COMMANDS = next(a.choices for a in WHOLE._actions if isinstance(a, argparse._SubParsersAction))
MAKEFILE = (site_source.ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z0-9_/.-]*):", MAKEFILE, re.M))
TO_ENGINES = {"serve", "compare"}
"""Commands whose other flags go to SGLang."""
TO_SIMULATED = {"simulate", "sweep", "plan"}
"""Commands whose other flags are those of a simulated engine."""
SHORT = ("--limit", "30", "--duration", "20")
"""Of a workload, where a command is run: the same code, in a second."""


class Found(NamedTuple):
    """A command of a page, in one line without comments. block: it stands by itself, to be typed; else in a sentence."""

    page: str
    text: str
    block: bool


def commands(page: str, text: str) -> list[Found]:
    """Of the lines that are code, and of the code in sentences."""
    found, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        typed = re.match(r"\s*((?:andes|make) [a-z].*)$", line)
        if typed and (fenced or line.startswith("    ")) and not re.match(r"andes [a-z-]+:", typed[1]):
            said = re.sub(r"\s{2,}#.*$|\s#\s.*$", "", typed[1])
            found.append(Found(page, " ".join(said.split()), True))
    inline = re.findall(r"`((?:andes|make) [a-z][^`]*)`", text)
    return found + [Found(page, " ".join(said.split()), False) for said in inline]


FOUND = sorted({c for page in site_source.pages() if page.name != "CHANGELOG.md" and "decisions" not in page.parts
                for c in commands(str(page), (site_source.ROOT / page).read_text())})  # fmt: skip
ANDES = [c for c in FOUND if c.text.startswith("andes ")]
MAKES = [c for c in FOUND if c.text.startswith("make ")]


def words_of(text: str) -> list[str]:
    """As a shell would split it; what is optional or left out of a usage line is left out."""
    return [word for word in shlex.split(re.sub(r"\[[^\]]*\]|\.\.\.", " ", text)) if word not in ("|", "&&")]


def unknown_flags(words: list[str]) -> list[str]:
    """Flags that the command does not have."""
    name = words[1]
    if name in ("help", "operator"):
        return []
    parser = COMMANDS[name]
    known = {flag for action in parser._actions for flag in action.option_strings} | {"--help", "-h", "--version"}
    flags = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
    return [flag for flag in flags if flag not in known and name not in TO_ENGINES and not simulated(name, words, flag)]


def simulated(name: str, words: list[str], flag: str) -> bool:
    if name not in TO_SIMULATED:
        return False
    at = words.index(flag)
    value = words[at + 1 : at + 2] if at + 1 < len(words) and not words[at + 1].startswith("--") else []
    configure(profile.load("h100-llama-3.1-8b").engine, Arm("andes"), [flag, *value])
    return True


@pytest.mark.parametrize("found", ANDES, ids=lambda found: f"{found.page}: {found.text[:60]}")
def test_an_andes_command_is_one(found: Found) -> None:
    words = words_of(found.text)
    if "/" in words[1]:  # andes bench/compare, in a table
        words[1] = words[1].split("/")[0]
    assert words[1] in {*COMMANDS, "help"}
    assert unknown_flags(words) == []
    for action in COMMANDS[words[1]]._actions if words[1] in COMMANDS else ():
        for flag in set(action.option_strings) & set(words):
            value = words[words.index(flag) + 1 : words.index(flag) + 2]
            if action.choices is not None and value and not re.search(r"[A-Z|]", value[0]):
                assert value[0] in action.choices


@pytest.mark.parametrize("found", MAKES, ids=lambda found: f"{found.page}: {found.text[:60]}")
def test_a_make_target_is_one(found: Found) -> None:
    targets = [word for word in words_of(found.text)[1:] if "=" not in word and not word.endswith("-")]
    assert [target for target in targets if target not in TARGETS] == []


def test_what_is_looked_for_is_found() -> None:
    page = "    make demo     # words\n`andes simulate --x 1`\n    andes sweep --over a=1 \\\n      --jobs 2\nandes plan is a word\n"
    assert [(c.text, c.block) for c in commands("p", page)] == [
        ("make demo", True), ("andes sweep --over a=1 --jobs 2", True), ("andes simulate --x 1", False),
    ]  # fmt: skip
    assert len(ANDES) > 40
    assert len(MAKES) > 30
    assert unknown_flags(["andes", "bench", "--nonsense"]) == ["--nonsense"]


RUN = [c for c in ANDES if c.block and c.text.split()[1] in {*TO_SIMULATED, "diff", "export", "report", "score"}
       and not re.search(r"\b[A-Z]{3,}\b|\.\.\.", c.text) and "--search" not in c.text]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the commands read: two runs, a data set, a trace, the policy of docs/policies.md."""
    here = tmp_path_factory.mktemp("docs")
    policies = (site_source.ROOT / "docs" / "policies.md").read_text()
    (here / "spare.py").write_text(policies.split("```python\n")[1].split("```")[0])
    (here / "sharegpt.json").write_text(
        '[{"conversations": [{"from": "human", "value": "how?"}, {"from": "gpt", "value": "so, and so, and then so."}]}]'
    )
    for seed in ("before", "after"):
        run = ["simulate", "--profile", "cpu-tiny-llama", "--policies", "fcfs", "--rate", "1", "--duration", "30"]
        assert cli.main([*run, "--out", str(here / "out" / seed)]) == 0
    return here


@pytest.mark.parametrize("found", RUN, ids=lambda found: f"{found.page}: {found.text[:60]}")
def test_a_command_that_runs_in_seconds_runs(
    found: Found, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    words = words_of(found.text)
    if (at := words.index("--trace") + 1 if "--trace" in words else 0) and not Path(words[at]).exists():
        pytest.skip(f"{words[at]} is not part of the project")
    short = [*SHORT, "--out", str(tmp_path / "out")] if words[1] in TO_SIMULATED else []
    if words[1] == "plan":
        short += ["--seeds", "1", "--max-replicas", "3"]
    assert cli.main([*words[1:], *short]) == 0


def test_make_help_runs() -> None:
    said = subprocess.run(
        ["make", "help"], cwd=site_source.ROOT, capture_output=True, text=True, check=True, timeout=100
    ).stdout
    assert {line.split()[0] for line in said.splitlines() if line.startswith("  ")} <= TARGETS
