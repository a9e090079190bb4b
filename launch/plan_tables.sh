#!/usr/bin/env bash
# Compiles experiments/instructgpt.py at its three sizes for TPUs and GPUs and writes docs/plan:
#   EXTRAS=plan,plan_gpu bash launch/plan_tables.sh [flags of rlhf_jax.plan]
# Takes hours on a laptop. What is compiled already is not compiled again: start it again after Ctrl-C.
# What does not fit gets its row too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
more=("$@")

# size topology ways tensor: the mesh is fsdp=ways (across slices: data=slices) and tensor. How many rows are computed and
# sampled at once, and what is computed again, the plan chooses by the memory of the chips.
plan() {
  local size="$1" topology="$2" ways="$3" tensor="$4" sft=32
  shift 4
  # 175B: the paper's batch of 8 does not divide over so many chips.
  if [[ "$size" == 175b ]]; then sft=$((ways > 8 ? ways : 8)); fi
  echo "== $size on $topology" >&2
  bash launch/python.sh -m rlhf_jax.plan --config="experiments/instructgpt.py:$size" --topology="$topology" \
    --lengths=prompt:166,completion:130 --config.mesh.tensor="$tensor" --config.sft.batch_size="$sft" \
    --out=docs/plan "$@" "${more[@]}" > /dev/null ||
    [[ $? -eq 1 ]]  # 1: does not fit, which is a result
}

plan 1.3b v5e:4x4 8 2
plan 1.3b v6e:2x4 8 1
plan 1.3b v5p:2x2x1 4 1
plan 1.3b v4:2x2x4 16 1
plan 1.3b h100:8 8 1

plan 6b v5e:8x8 32 2
plan 6b v5e:8x8x2slices 64 2 --config.mesh.data=2
plan 6b v6e:4x8 32 1
plan 6b v5p:2x2x4 16 1
plan 6b v4:4x4x4 32 2
plan 6b h100:2x8 16 1

# Decoding wants the weights of 175B split over tensor alone: 350 GB in bfloat16.
plan 175b v5p:8x8x8 64 8
plan 175b v6e:16x16 8 32
plan 175b v4:8x8x8 16 32
plan 175b h100:64x8 64 8
plan 175b h200:16x8 16 8
