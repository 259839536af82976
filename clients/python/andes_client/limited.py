"""``python -m andes_client.limited BYTES COMMAND...``: a command that cannot take more memory than that."""

from __future__ import annotations

import os
import resource
import sys

if __name__ == "__main__":
    size = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
