"""Releases of SGLang beside the one in .venv: each wheel unpacked in a folder of its own, to be put first in PYTHONPATH.

Everything else (torch, transformers, ...) is that of .venv. ``.venv/bin/python tools/sglang_releases.py 0.5.23`` prints the
folder; pip is asked for a wheel once, by name.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["UnreachableError", "python_path", "unpacked"]

FOLDER = Path(__file__).resolve().parent.parent / ".setup" / "sglang"


class UnreachableError(RuntimeError):
    """pip could not get the wheel."""


def unpacked(release: str, folder: Path = FOLDER) -> Path:
    """The folder that holds ``release`` for this Python. Raises :class:`UnreachableError` with pip's last words."""
    target = folder / f"{release}-cp{sys.version_info.major}{sys.version_info.minor}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = [f"sglang=={release}", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *wanted]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise UnreachableError(f"pip cannot get sglang {release}: {said[-1]}")
        (wheel,) = Path(scratch).glob("*.whl")
        whole = Path(scratch) / "unpacked"
        zipfile.ZipFile(wheel).extractall(whole)
        whole.replace(target)
    return target


def python_path(release: str) -> list[str]:
    """What goes first in ``PYTHONPATH`` so that ``release`` is imported: nothing where it is the one in .venv. Raises
    :class:`UnreachableError`."""
    return [] if release == importlib.metadata.version("sglang") else [str(unpacked(release))]


if __name__ == "__main__":
    print(unpacked(sys.argv[1]))
