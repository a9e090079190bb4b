#!/usr/bin/env bash
# Submits a run, or an array of runs, to Slurm:
#
#   bash launch/slurm.sh --config=experiments/instructgpt.py:1.3b --workdir=/shared/runs/1.3b \
#     --nodes=2 --gpus=8 --time=24:00:00 --seeds=0-3
#
#   --nodes=N          machines of one run (1)
#   --gpus=N           GPUs of each (8; 0 for CPUs)
#   --processes=N      processes on each node (one a GPU; 1 without GPUs). One a GPU is what JAX expects
#                      under Slurm, where process k of a node takes GPU k; --processes=1 takes them all.
#   --seeds=0-3,7      a run per seed, in WORKDIR/seed=0 and so on: one job array
#   --sweep=FILE       a run per line of flags, in a folder named after them; with --seeds, each of each
#   --arms=0-5,9       arms of the sweep that --config declares, a job each: task N of the array is arm N. Not to be
#                      typed: python -m rlhf_jax.sweep --runner=cluster finds out which arms are missing
#   --parallel=N       so many tasks of an array at a time (all)
#   --time=D           per start of a job (24:00:00); five minutes before, the run saves and is queued again
#   --max-restarts=N   starts in a row, each shorter than half an hour, before a crashing run is given up (5)
#   --python=FILE      a Python with this project installed (.venv, which is made or updated first)
#   --sbatch=FLAG      a flag for sbatch, e.g. --sbatch=--partition=gpu; may be repeated
#   and the common flags, see flags.sh.
#
# The project and WORKDIR lie on a disk that the nodes see. A job runs the code as it is when it starts.
set -euo pipefail
# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

nodes=1 gpus=8 processes="" seeds="" sweep="" arms="" parallel="" time=24:00:00 max_restarts=5 python="" sbatch_flags=()
known=(--nodes --gpus --processes --seeds --sweep --arms --parallel --time --max-restarts --python --sbatch)
while (($#)); do
  case "$1" in
    --nodes=*) nodes="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --processes=*) processes="${1#*=}" ;;
    --seeds=*) seeds="${1#*=}" ;;
    --sweep=*) sweep="${1#*=}" ;;
    --arms=*) arms="${1#*=}" program=sweep ;;
    --parallel=*) parallel="${1#*=}" ;;
    --time=*) time="${1#*=}" ;;
    --max-restarts=*) max_restarts="${1#*=}" ;;
    --python=*) python="${1#*=}" ;;
    --sbatch=*) sbatch_flags+=("${1#*=}") ;;
    --) program_flags+=("${@:2}") && break ;;
    *) common_flag "$1" || unknown "$1" "${known[@]}" ;;
  esac
  shift
done
need_run --workdir=/shared/runs/first
[[ "$workdir" == /* ]] || fail "--workdir=$workdir: give an absolute path, on a disk that every node sees"
whole --nodes "$nodes" && whole --gpus "$gpus" && whole --max-restarts "$max_restarts"
processes="${processes:-$((gpus > 0 ? gpus : 1))}"
whole --processes "$processes"
((gpus == 0 || processes == gpus || processes == 1)) ||
  fail "--processes=$processes: with $gpus GPUs a node, give $gpus (one a GPU) or 1 (one process for all)"
[[ -z "$parallel" ]] || whole --parallel "$parallel"
if [[ -n "$arms" ]]; then
  [[ "$arms" =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$ ]] || fail "--arms=$arms: give numbers and ranges, e.g. 0-5,9"
  [[ -z "$seeds$sweep" ]] || fail "--arms=$arms: a sweep has its own seeds; leave out --seeds and --sweep"
fi

# The runs of the array: their folders and their flags, one line each.
seed_list=()
IFS=, read -ra parts <<< "$seeds"
for part in "${parts[@]}"; do
  [[ "$part" =~ ^([0-9]+)(-([0-9]+))?$ ]] || fail "--seeds=$seeds: give numbers and ranges, e.g. 0-3,7"
  for ((seed = BASH_REMATCH[1]; seed <= ${BASH_REMATCH[3]:-BASH_REMATCH[1]}; seed++)); do seed_list+=("$seed"); done
done
lines=("")
if [[ -n "$sweep" ]]; then
  [[ -f "$sweep" ]] || fail "--sweep=$sweep: no such file in $PWD"
  mapfile -t lines < <(grep -v '^[[:space:]]*\(#\|$\)' "$sweep" || true)
  ((${#lines[@]})) || fail "--sweep=$sweep holds no line of flags"
fi
runs=()
for line in "${lines[@]}"; do
  for seed in "${seed_list[@]:-}"; do
    flags="$line${seed:+ --config.seed=$seed}"
    flags="${flags# }"
    # "--config.ppo.kl_coef=0.1 --config.seed=0" lives in "ppo.kl_coef=0.1,seed=0"
    folder="$(sed -E 's/(^| +)--(config\.)?/,/g; s/^,//; s/[^A-Za-z0-9._=,+-]/_/g' <<< "$flags")"
    for other in "${runs[@]}"; do
      [[ "${other%% *}" != "$folder" ]] || fail "two runs of the sweep would live in one folder, $folder"
    done
    runs+=("$folder $flags")
  done
done
options=(
  "--job-name=$(basename "$workdir")" "--nodes=$nodes" "--ntasks-per-node=$processes" "--time=$time"
  --signal=TERM@300 --requeue --open-mode=append
)
if ((gpus)); then options+=("--gpus-per-node=$gpus"); fi
if [[ -n "$arms" ]]; then runs=(); fi  # the number of a task says it all
if [[ -n "$seeds$sweep$arms" ]]; then
  options+=("--array=${arms:-0-$((${#runs[@]} - 1))}${parallel:+%$parallel}" "--output=$workdir/slurm/%A_%a.log")
else
  options+=("--output=$workdir/slurm/%j.log")
fi
if ((gpus && processes == 1)); then
  JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((gpus - 1)))"
  export JAX_LOCAL_DEVICE_IDS  # or JAX would take the first GPU alone
  echo "+ export JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS"
fi
if [[ -z "$python" ]]; then
  python="$PWD/.venv/bin/python"
  if ((gpus)); then export EXTRAS="${EXTRAS-cuda}"; fi
  run bash launch/python.sh -c pass  # here, once: a hundred processes must not install at the same time
fi
run mkdir -p "$workdir/slurm"
run sbatch "${options[@]}" "${sbatch_flags[@]}" launch/slurm_job.sh "$workdir" "$max_restarts" "${runs[@]}" -- \
  "$python" -m "rlhf_jax.$program" --distributed=auto "--config=$config" "${program_flags[@]}"
echo "logs: $workdir/slurm; to stop it: scancel JOB; the same command again goes on"
