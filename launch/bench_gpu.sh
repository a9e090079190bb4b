#!/usr/bin/env bash
# Measures the programs on one GPU and writes docs/bench_gpu.md:
#   bash launch/bench_gpu.sh                          about half an hour on a GPU with 80 GB or more
#   bash launch/bench_gpu.sh --toy --out=FILE         tiny models on any machine, to try the script
# EXTRAS=cuda installs JAX for NVIDIA's GPUs first; it is the default, unless --toy is given.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=docs/bench_gpu.md
toy=()
for flag in "$@"; do
  case "$flag" in
    --toy) toy=(--toy) ;;
    --out=*) out="${flag#--out=}" ;;
    *)
      echo "bench_gpu.sh knows --toy and --out=FILE, not $flag" >&2
      exit 2
      ;;
  esac
done
if [[ ${#toy[@]} -eq 0 ]]; then
  export EXTRAS="${EXTRAS-cuda}"
  if ! bash launch/python.sh -c 'import jax; raise SystemExit(jax.default_backend() == "cpu")'; then
    echo "there is no GPU here that JAX sees; --toy --out=FILE tries the script without one" >&2
    exit 2
  fi
elif [[ "$out" == docs/bench_gpu.md ]]; then
  echo "--toy needs --out=FILE: docs/bench_gpu.md is for what a GPU measured" >&2
  exit 2
fi
bash launch/python.sh -m rlhf_jax.bench.gpu --out="$out" ${toy[@]+"${toy[@]}"}
echo "$out"
