#!/usr/bin/env bash
# benchmarks/gpu.sh [WHEELS]: everything that needs a CUDA device, in an environment of its own: the tests marked `gpu`, then the
# measurements of benchmarks/gpu.py, which go to benchmarks/results/gpu-<card>.json and .md. Sized for 20 minutes on a data-centre GPU.
# WHEELS: a folder with the wheels of all dependencies, for a machine without a package registry; torch must be a CUDA build.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
from=()
if [ $# -gt 0 ]; then from=(--no-index --find-links "$(cd "$1" && pwd)"); fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_DATA_HOME="$work/data"
cd "$top"

python3 -m venv "$work/venv"
# with the wheels of hatchling and editables, since a build would look for them in a registry
"$work/venv/bin/pip" install --quiet "${from[@]}" hatchling editables
"$work/venv/bin/pip" install --quiet "${from[@]}" --no-build-isolation -e '.[test,peers]'
"$work/venv/bin/python" -m pytest -n 0 -m gpu tests/test_gpu.py
"$work/venv/bin/python" -m benchmarks.gpu
