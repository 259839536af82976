"""Standard output that cannot be written: every command says so in one line, ends with 1, and keeps its files."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from andes_sglang import cli
from andes_sglang.bench.ports import free_port
from andes_sglang.usage import Output

COMMANDS = sorted(cli._one_parser([])[1])
SIMULATE = [
    "simulate", "--profile", "h100-llama-3.1-8b", "--policies", "stock", "--shape", "poisson", "--rate", "5",
    "--duration", "5",
]  # fmt: skip
TO_FULL, UNREAD, CLOSED = '"$@" >/dev/full', '"$@"', '"$@" >&-'
"""Of a shell that runs the command; the second's reader has gone."""


def andes(command: list[str], shell: str) -> tuple[int, list[str]]:
    """Status and lines on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ["sh", "-c", f"exec {shell}", "sh", sys.executable, "-m", "andes_sglang.cli", *command]
    try:
        done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=250)
    finally:
        os.close(writer)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("shell", "number"), [(TO_FULL, errno.ENOSPC), (UNREAD, errno.EPIPE), (CLOSED, errno.EBADF)],
    ids=["a full disk", "a closed pipe", "not open"],
)  # fmt: skip
def test_results_are_kept_and_one_line_says_why_they_are_not_printed(shell: str, number: int, tmp_path: Path) -> None:
    if shell == TO_FULL and not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this machine")
    status, said = andes([*SIMULATE, "--out", str(tmp_path)], shell)
    assert said[-1] == f"andes simulate: standard output cannot be written: {os.strerror(number)}"
    assert not [line for line in said if "Traceback" in line or "Exception" in line], said
    assert status == 1
    assert (tmp_path / "summary.json").exists()
    assert (tmp_path / "report.html").exists()


def test_what_went_wrong_before_keeps_its_status() -> None:
    status, said = andes(["simulate", "--policies", "stock"], CLOSED)
    assert status == 2
    assert "--profile" in said[-1]


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main([name, "--help"]) == 1
    said = capsys.readouterr().err
    assert said == f"andes {name}: standard output cannot be written: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.server
def test_a_server_without_standard_output_takes_no_socket_for_it() -> None:
    """uvloop ends a process that closes a descriptor as low as that."""
    serve = [sys.executable, "-m", "andes_sglang.cli", "gateway", "--upstream", "http://127.0.0.1:9", "--port"]
    words = ["sh", "-c", f"exec {CLOSED}", "sh", *serve, str(free_port())]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as gateway:
        assert gateway.stderr is not None
        next(line for line in gateway.stderr if "listens" in line)
        gateway.send_signal(signal.SIGTERM)
        _, said = gateway.communicate(timeout=250)
    assert gateway.returncode == 0, said


def test_a_server_writes_its_log_again_once_the_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fault is what is told at the end."""

    class Disk(io.StringIO):
        full = False

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stdout", disk)
    with Output() as output:
        log = logging.Logger("access")
        log.addHandler(logging.StreamHandler(sys.stdout))
        for line, disk.full in (("before", False), ("lost", True), ("after", False)):
            log.info(line)
    assert disk.getvalue().splitlines() == ["before", "after"]
    assert output.error is not None
    assert output.error.errno == errno.ENOSPC
