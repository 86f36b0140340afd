#!/usr/bin/env bash
# Runs all measurements that need a TPU, in parts that can be resumed; see benchmarks/day.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
command -v "$python" > /dev/null || python=python3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" benchmarks/day.py tpu "$@"
