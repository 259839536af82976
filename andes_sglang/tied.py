"""``python -m andes_sglang.tied COMMAND...``: ``andes`` for as long as the process lives that holds its standard input.

:class:`andes_sglang.bench.engine.Engine` starts its engines so. Killed, it ends nothing itself; but its end of the pipe is
closed by the system.
"""

from __future__ import annotations

import os
import signal
import threading

from andes_sglang import cli

__all__ = ["main"]


def main() -> int:
    """To be called in a process group of its own, standard input being a pipe that nothing is written to."""
    threading.Thread(target=_watch, daemon=True).start()
    return cli.main()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # itself, and what it has started


if __name__ == "__main__":
    raise SystemExit(main())
