#!/usr/bin/env bash
# The whole pipeline in miniature. Further flags go to the run: --config.seed=1 --workdir=runs/another
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec bash launch/python.sh -m rlhf_jax.main --config=experiments/quickstart.py --workdir=runs/quickstart "$@"
