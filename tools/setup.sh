#!/usr/bin/env bash
# Makes .venv from requirements/cpu.txt; does nothing when it is there and up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

command -v "$python" >/dev/null || fail "$python not found; set PYTHON to a Python 3.11, 3.12 or 3.13"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
3.11 | 3.12 | 3.13) ;;
*) fail "$python is Python $version; SGLang is built for 3.11, 3.12 and 3.13: set PYTHON to one of them" ;;
esac
wanted=$({ echo "$version"; cat requirements/cpu.txt pyproject.toml clients/python/pyproject.toml tools/setup.sh; } | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
[ -x .venv/bin/python ] && [ "$(cat .venv/.made-from 2>/dev/null)" = "$wanted" ] && exit 0

echo "setup: making .venv from requirements/cpu.txt (about 2 minutes and 2.7 GB)"
have=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
[ "$have" = "$version" ] || "$python" -m venv --clear .venv ||
    fail "$python cannot make a virtual environment; install the venv module of this Python"
pip=(.venv/bin/python -m pip --disable-pip-version-check)

# Which torch would pip take? Asked first, because the CUDA build is large and of no use here.
"${pip[@]}" install --quiet --dry-run --no-deps --ignore-installed --report .venv/torch.json "$(grep '^torch==' requirements/cpu.txt)"
.venv/bin/python - .venv/torch.json <<'CHECK' ||
import json, sys
from pip._vendor.packaging.requirements import Requirement

(torch,) = json.load(open(sys.argv[1]))["install"]
needs = [Requirement(line) for line in torch["metadata"].get("requires_dist", [])]
needs = [r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})]
sys.exit(any(name.startswith(("nvidia-", "cuda-")) for name in needs))
CHECK
    fail "pip would take the CUDA build of torch, whose libraries are not in this closure." \
        "Give pip the CPU wheel of $(grep '^torch==' requirements/cpu.txt): set PIP_FIND_LINKS to a folder or page" \
        "that holds it, or PIP_EXTRA_INDEX_URL to an index of CPU builds, and run again."

total=$(grep -c == requirements/cpu.txt)
log=.venv/install.log
# One line for every tenth package while pip collects them; the rest of pip's words go to the log.
"${pip[@]}" install --no-deps --progress-bar off -r requirements/cpu.txt 2>&1 | tee "$log" |
    awk -v total="$total" '/^(Collecting|Processing) / { n++; if (n % 10 == 0) print "setup: " n " of " total " packages"; fflush() }
        /^Installing/ { print "setup: unpacking"; fflush() } /ERROR|error:/ { print; fflush() }' ||
    fail "pip could not install requirements/cpu.txt; all it said is in $log"
"${pip[@]}" install --quiet --no-deps --no-build-isolation -e . -e clients/python
.venv/bin/python -c 'import torch' || fail "torch is installed but does not load (above)"
echo "$wanted" >.venv/.made-from
echo "setup: done"
