#!/usr/bin/env bash
# benchmarks/gpu.sh [WHEELS [OPTION…]]: everything that needs a CUDA device, in an environment of its own: the tests marked `gpu`, then
# the measurements of benchmarks/gpu.py, which go to benchmarks/results/gpu-<card>.json and .md. Sized for 20 minutes on a data-centre GPU.
# WHEELS: a folder with the wheels of all dependencies, for a machine without a package registry; '' for a registry. It is filled, with a
#   CUDA build of torch for that machine's system and Python, by `pip download -d WHEELS hatchling editables '.[test,peers]'` in a checkout.
# OPTION: of `python -m benchmarks.gpu`; `--device cpu --small --out DIR` tries this script on any machine.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
from=()
if [ -n "${1:-}" ]; then from=(--no-index --find-links "$(cd "$1" && pwd)"); fi
shift $(($# > 0))
# the same tests run on a CPU, marked `slow`
marked=gpu
case " $* " in *" --device cpu "*) marked='slow and not gpu' ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_DATA_HOME="$work/data"
cd "$top"

python3 -m venv "$work/venv"
# with the wheels of hatchling and editables, since a build would look for them in a registry
"$work/venv/bin/pip" install --quiet "${from[@]}" hatchling editables
"$work/venv/bin/pip" install --quiet "${from[@]}" --no-build-isolation -e '.[test,peers]'
# a test that fails is no reason not to measure
tested=0
"$work/venv/bin/python" -m pytest -n 0 -m "$marked" tests/test_gpu.py || tested=$?
"$work/venv/bin/python" -m benchmarks.gpu "$@"
exit "$tested"
