"""What a directory in the settings has to be."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["directory_fault"]


def directory_fault(path: Path) -> str:
    """What is wrong with a directory that several processes are to write to; empty where it does."""
    if not path.is_dir():
        return f"no directory {str(path)!r}; make it first"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return f"{str(path)!r} is not to be written to by this user"
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError as error:
        return f"the file system of {str(path)!r} has no locks (flock): {error.strerror}"
    finally:
        os.close(file)
    return ""
