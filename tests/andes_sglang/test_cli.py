"""The ``andes`` command as a whole: what every command's help says, and what a shell completes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from andes_sglang import cli
from andes_sglang.usage import Help

PARSER = cli.whole_parser()
COMMANDS = {name for name, _ in cli._one_parser([])[1].items()}
OWN_HELP = {"gateway", "operator"}
"""Their flags are settings, which write their own defaults, and the operator's parser is its own."""


def test_every_command_is_in_the_whole_parser_with_its_flags() -> None:
    found, _ = cli._one_parser([])
    assert {*COMMANDS} >= {*cli.COMMANDS, "serve", "gateway", "operator", "completion"}
    assert set(found) == COMMANDS
    arguments = PARSER.parse_args(["sweep", "--profile", "x", "--over", "load=1"])
    assert arguments.over == ["load=1"]
    assert PARSER.parse_args(["serve", "--model", "m", "--preemption-mode", "offload"]).preemption_mode == "offload"


@pytest.mark.parametrize("name", sorted(COMMANDS - OWN_HELP))
def test_help_says_every_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for action in cli._one_parser([name])[0][name]._actions:
        if (
            not action.option_strings
            or action.nargs == 0
            or action.default in (None, "==SUPPRESS==", "")
            or action.default == []
        ):
            continue
        expected = Help("andes")._expand_help(action)
        assert "default" in expected, action.option_strings
        assert " ".join(expected.split())[:60] in said.replace("- ", "-") or name == "serve", action.option_strings


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["sim"], {"simulate"}),
        (["sweep", "--ov"], {"--over"}),
        (["bench", "--endp"], {"--endpoint"}),
        (["simulate", "--population", "li"], {"listening"}),
        (["serve", "--prof"], {"--profile"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(typed: list[str], expected: set[str], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "andes.bash").write_text(capsys.readouterr().out)
    words = " ".join(f"'{word}'" for word in ("andes", *typed))
    script = f"source {tmp_path}/andes.bash; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_andes; echo ${{COMPREPLY[@]}}"
    answer = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, timeout=100)
    assert set(answer.stdout.split()) == expected
