#!/usr/bin/env bash
# Runs the tests:  bash launch/test.sh [--slow] [--torch] [--libtpu] [arguments of pytest]
#   --slow    the slow tests too
#   --torch   installs torch and peft first: without them the comparisons with PyTorch, PEFT and lm-eval's backend are skipped
#   --libtpu  installs the TPU compiler first: without it what is compiled for TPUs is skipped
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export EXTRAS=test
selection="not slow"
while [[ "${1:-}" == --slow || "${1:-}" == --torch || "${1:-}" == --libtpu ]]; do
  case "$1" in
    --slow) selection="slow or not slow" ;;
    --libtpu) EXTRAS+=,plan ;;
    --torch) bash launch/python.sh -m pip install --quiet torch==2.13.0 'accelerate>=1.10,<2' 'peft>=0.21,<0.22' ;;
  esac
  shift
done
# Two at a time, a file's tests in one process: they share what is dear to make. -n 0 for one, as a debugger wants it.
exec bash launch/python.sh -m pytest -m "$selection" -n 2 --dist loadfile "$@"
