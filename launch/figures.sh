#!/usr/bin/env bash
# The sweeps of experiments/figures one after the other, and the page of all their claims, REPRODUCTION.md:
#   bash launch/figures.sh [NAME ...] [flags of rlhf_jax.sweep]     NAMEs: only these, e.g. fig36_kl_coef
# Each sweep runs until its claims are decided (docs/sweeps.md); all its seeds with --nountil-decided.
# With --workers=2 two arms at a time, which takes two cores two thirds to five sixths of the time.
# They lie in runs/figures (RUNS names another folder) and share their stages there. Start it again after
# Ctrl-C: what is done is not done again. What each takes: docs/measurements.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs="${RUNS:-runs/figures}"
names=()
while [[ $# -gt 0 && "$1" != -* ]]; do
  if [[ ! -f "experiments/figures/$1.py" ]]; then
    echo "there is no experiments/figures/$1.py; the names are those of the files there" >&2
    exit 2
  fi
  names+=("$1")
  shift
done
if [[ ${#names[@]} -eq 0 ]]; then
  for file in experiments/figures/*.py; do
    if grep -q '^def sweep' "$file"; then names+=("$(basename "$file" .py)"); fi
  done
fi

for name in "${names[@]}"; do
  echo "== $name" >&2
  bash launch/python.sh -m rlhf_jax.sweep --config="experiments/figures/$name.py" --workdir="$runs/$name" \
    --stages="$runs/stages" --until-decided "$@" || [[ $? -eq 4 ]]  # 4: arms failed, which is a result
done
bash launch/python.sh -m rlhf_jax.report --all "$runs"
