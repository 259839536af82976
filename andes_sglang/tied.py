"""Processes that end with the one that started them, also where that is killed and ends nothing itself.

``python -m andes_sglang.tied COMMAND...`` is ``andes`` for as long as the process lives that holds its standard input; the
system closes that process's end of the pipe. :class:`andes_sglang.bench.engine.Engine` starts its engines so.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

__all__ = ["exit_with_parent", "main"]


def main() -> int:
    """To be called in a process group of its own, standard input being a pipe that nothing is written to."""
    from andes_sglang import cli

    threading.Thread(target=_watch, daemon=True).start()
    return cli.main()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # itself, and what it has started


def exit_with_parent() -> None:
    """For workers of :mod:`multiprocessing`, as their initializer."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    raise SystemExit(main())
