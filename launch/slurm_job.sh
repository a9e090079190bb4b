#!/usr/bin/env bash
# The job that slurm.sh submits: runs one task of the array until it is done. Not to be called by hand.
#
#   slurm_job.sh WORKDIR MAX_RESTARTS RUN... -- PROGRAM...
#
# A RUN is "FOLDER FLAGS": where in WORKDIR the run of an array task lives, and its flags. Without a RUN the task is
# the arm of that number of the sweep in WORKDIR. A plain scancel ends this shell too, so that nothing is queued again.
set -uo pipefail
workdir="$1" max_restarts="$2"
shift 2
runs=()
while [[ "$1" != -- ]]; do runs+=("$1") && shift; done
shift
folder="" flags="--arms=${SLURM_ARRAY_TASK_ID:-}"
if ((${#runs[@]})); then read -r folder flags <<< "${runs[${SLURM_ARRAY_TASK_ID:-0}]}"; fi
read -ra flags <<< "$flags"
verdict="$workdir/slurm/verdict-$SLURM_JOB_ID"
program=("$@" "--workdir=$workdir${folder:+/$folder}" "${flags[@]}")
echo "${program[*]}"

# Slurm reports the highest code of all processes, that of a killed one (137) before that of the one which
# knows why (2, 3, 4): such a one leaves its code in a file. The trap keeps the shell alive until it has.
# shellcheck disable=SC2016
one_process=(bash -c 'trap : TERM; "${@:2}"; code=$?; case $code in 2 | 3 | 4) echo $code > "$1" ;; esac; exit $code')

failures=0
while true; do
  began=$SECONDS
  rm -f "$verdict"
  # Not --kill-on-bad-exit: the first process that ends with 75 would cut short what the others still save. A
  # process whose peer died ends by itself; --wait is for one that does not.
  srun --kill-on-bad-exit=0 --wait=600 "${one_process[@]}" one_process "$verdict" "${program[@]}"
  code=$?
  if [[ -e "$verdict" ]]; then
    code="$(cat "$verdict")"
    rm "$verdict"
  fi
  echo "exit code $code after $((SECONDS - began)) s"
  case "$code" in 0 | 2 | 3 | 4) exit "$code" ;; esac
  if [[ "$code" == 75 ]]; then
    echo "stopped with everything saved: queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
  fi
  if ((SECONDS - began >= 1800)); then failures=0; fi
  if ((++failures > max_restarts)); then
    echo "failed $failures times in a row: given up"
    exit "$code"
  fi
  echo "running again from the last checkpoint"
done
