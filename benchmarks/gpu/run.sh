#!/usr/bin/env bash
# On the GPU machine, from the root of the checkout with its .kit: installs it, measures, ends after LIMIT_S (540) seconds.
# Results in $OUT (else out/gpu), after every step.
set -euo pipefail
began=$(date +%s)
cd "$(dirname "$0")/../.."
export KIT_DIR=${KIT_DIR:-/tmp/kit} KIT_SITE=${KIT_SITE:-/tmp/site}
said=$(bash .kit/part1/install.sh none | tee /dev/stderr)
python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$KIT_SITE" .kit/andes/*.whl

cuda=$(sed -n 's/.*CUDA_HOME=\([^ ]*\).*/\1/p' <<<"$said")
[ "${cuda:-none}" = none ] || export CUDA_HOME=$cuda
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$KIT_SITE PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 SGLANG_IS_FLASHINFER_AVAILABLE=false
export TVM_FFI_CACHE_DIR=$KIT_DIR/jit TRITON_CACHE_DIR=$KIT_DIR/triton SGLANG_CACHE_DIR=$KIT_DIR/cache XDG_CACHE_HOME=$KIT_DIR/cache
export SGLANG_HOST_IP=127.0.0.1 HOST_IP=127.0.0.1 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
exec python3 -m benchmarks.gpu.measure --out "${OUT:-out/gpu}" --limit-s $((${LIMIT_S:-540} - $(date +%s) + began))
