#!/usr/bin/env bash
# Everything that a machine with a GPU can prove when it has PyTorch and ONNX Runtime and nothing can be downloaded there:
# the tests that need a GPU, then the GPU day. Wheels that it lacks (msgspec, cuda-bindings, mlcommons-loadgen) are given as a
# directory.
#
#     benchmarks/gpu_day.sh OUTPUT [WHEELS] [MINUTES]
#
# OUTPUT gets tests.txt and gpu-day.json; run again with the same OUTPUT, the day goes on where it was.
set -uo pipefail
cd "$(dirname "$0")/.."
output=$1 wheels=${2:-} minutes=${3:-40}
mkdir -p "$output"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ -n $wheels ]]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
python3 -m pytest -m gpu -q -p no:cacheprovider -rsf --durations=10 2>&1 | tee "$output/tests.txt"
failed=$?
python3 -m vggdeploy doctor --gpu-day -o "$output/gpu-day.json" --minutes "$minutes" || failed=$?
exit $failed
