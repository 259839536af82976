"""docs/policies.md is true: its policy passes the suite, its commands run, its tables are those of the code."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from andes_sglang import cli
from andes_sglang.policy import CLAIRVOYANT, POLICIES

PAGE = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
_POLICY, _SUITE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

_spare = types.ModuleType("spare")
sys.modules["spare"] = _spare
exec(compile(_POLICY, "spare.py", "exec"), _spare.__dict__)  # noqa: S102 (a page of this repository)
exec(compile(_SUITE, "test_spare.py", "exec"), globals())  # noqa: S102


def test_the_suite_of_the_page_was_found() -> None:
    suite: Any = globals()["TestSpare"]
    assert suite().make().options.spare_s == 5.0


def test_its_comparison_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = re.search(r"^    andes (simulate .*\n(      .*\n)+)", PAGE, re.M)
    assert command is not None
    arguments = shlex.split(command[1].replace("\\\n", " "))
    arguments[arguments.index("--duration") + 1] = "5"
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert re.search(r"^mine ", capsys.readouterr().out, re.M)


def test_the_options_are_those_of_the_code() -> None:
    def shown(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else "null" if value is None else f"{value:g}"

    tables = dict(re.findall(r"^### ([\w-]+)\n\n((?:\|.*\n)*)", PAGE + "\n", re.M))
    assert list(tables) == [*POLICIES, *CLAIRVOYANT]
    for name, policy in {**POLICIES, **CLAIRVOYANT}.items():
        rows = [
            f"| `{option}` | {allowed} | {shown(default)} | {doc} | {source} |"
            for option, allowed, default, doc, source in policy.options_type.describe()  # type: ignore[attr-defined]
        ]
        assert tables[name].splitlines()[2:] == rows


def test_the_table_of_policies_says_what_they_say_of_themselves() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| [^|]* \| [^|]* \| ([^|]*) \| ([^|]*) \|$", PAGE.split("## Write one")[0], re.M)
    told = {}
    for names, weights, starve in rows:
        for name, weight in zip(names.split(", "), (weights.split(", ") * 2), strict=False):
            told[name.strip("`")] = (weight == "yes", starve == "yes")
    assert told == {
        name: (getattr(policy, "uses_weight", False), getattr(policy, "may_starve", False))
        for name, policy in {**POLICIES, **CLAIRVOYANT}.items()
    }
