#!/usr/bin/env bash
# Makes .venv from requirements/cpu.txt; does nothing when it is there and up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "setup: $python not found; set PYTHON to a Python >= 3.11" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "setup: $("$python" --version) is too old; set PYTHON to a Python >= 3.11" >&2; exit 2; }
wanted=$(cat requirements/cpu.txt pyproject.toml tools/setup.sh | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.made-from 2>/dev/null)" = "$wanted" ] && exit 0

echo "setup: making .venv from requirements/cpu.txt (about 2 minutes and 1.7 GB)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
total=$(grep -c == requirements/cpu.txt)
# One line for every tenth package while pip collects them.
.venv/bin/pip install --disable-pip-version-check --no-deps --progress-bar off -r requirements/cpu.txt 2>&1 |
    awk -v total="$total" '/^Collecting/ { n++; if (n % 10 == 0) print "setup: " n " of " total " packages"; fflush() }
        /^Installing/ { print "setup: unpacking"; fflush() } /ERROR|error:/ { print }'
.venv/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "setup: torch does not load. pip took the CUDA build, whose libraries are not in this closure." >&2
    echo "setup: give pip the CPU wheel of torch 2.13.0 (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL) and run again." >&2
    exit 1
fi
echo "$wanted" >.venv/.made-from
echo "setup: done"
