#!/usr/bin/env bash
# pack.sh [KIT]: puts beside this checkout, in .kit, what a GPU machine without network needs for run.sh: SGLang, by KIT's
# make-kit.sh (default ../shared/gpu), and the wheel of this package. Then let .kit travel with the checkout.
set -euo pipefail
cd "$(dirname "$0")/../.."
kit=${1:-../shared/gpu}
[ -x "$kit/make-kit.sh" ] || { echo "pack.sh: $kit/make-kit.sh is not there; name the folder of the kit" >&2; exit 1; }
PYTHON=${PYTHON:-.venv/bin/python} "$kit/make-kit.sh" .
.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir .kit/andes .
ls .kit/andes
