#!/usr/bin/env bash
# Runs a config as N processes on this machine, which work as N hosts do:
#   bash launch/local.sh N CONFIG [--dry-run] [--program=sweep] [--workdir=DIR] [--config.field=value ...]
#   bash launch/local.sh 2 experiments/quickstart.py --workdir=runs/two
# Each has CPU devices of its own (LOCAL_DEVICES of them, default 1) and its output starts with its number.
# Ctrl-C, SIGTERM and the end of the terminal are passed on to all. When one fails, the others have GRACE seconds (default 15) to see it and
# end; the script's exit status is that of the first which failed. PORT is that of process 0, by default a free one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,4p' "${BASH_SOURCE[0]}" | cut -c3- >&2
  echo "launch/local.sh: $1" >&2
  exit 2
}
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then usage "the first argument is the number of processes, not '${1:-}'"; fi
if [[ -z "${2:-}" || "$2" == -* ]]; then usage "the second argument is the config, such as experiments/quickstart.py"; fi
count=$1 config=$2
shift 2
dry_run=false has_workdir=false program=main flags=()
for flag in "$@"; do
  case "$flag" in
    --dry-run) dry_run=true ;;
    --program=main | --program=sweep) program="${flag#*=}" ;;
    --workdir | --workdir=*) has_workdir=true; flags+=("$flag") ;;
    *) flags+=("$flag") ;;
  esac
done
if ! $has_workdir; then
  name=${config##*/}
  flags=(--workdir="runs/${name%%.py*}" ${flags[@]+"${flags[@]}"})
fi

python=(bash launch/python.sh)
if [[ -n "${LOCAL_PYTHON:-}" ]]; then python=("$LOCAL_PYTHON"); fi  # with the project installed
find_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
if $dry_run; then port=${PORT:-PORT}; else port=${PORT:-$("${python[@]}" -c "$find_port")}; fi
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${LOCAL_DEVICES:-1}"

command_of() {
  command=("${python[@]}" -u -m "rlhf_jax.$program" --config="$config" "${flags[@]}"
    --coordinator="127.0.0.1:$port" --num_processes="$count" --process_id="$1")
}
if $dry_run; then
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    echo "JAX_PLATFORMS=$JAX_PLATFORMS JAX_NUM_CPU_DEVICES=$JAX_NUM_CPU_DEVICES $(printf '%q ' "${command[@]}")&"
  done
  exit 0
fi

prefixed() {
  local line
  while IFS= read -r line || [[ -n "$line" ]]; do printf '[%s] %s\n' "$1" "$line"; done
}
alive=()
# shellcheck disable=SC2317  # the traps call it
signal_all() {
  local pid
  for pid in ${alive[@]+"${alive[@]}"}; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT
trap 'signal_all HUP' HUP
set -m  # a process group each: Ctrl-C comes here alone, and is passed on once
for ((i = 0; i < count; i++)); do
  command_of "$i"
  "${command[@]}" > >(trap '' INT TERM HUP; prefixed "$i") 2>&1 < /dev/null &
  alive[i]=$!
done
set +m

status=0 deadline=
while ((${#alive[@]})); do
  for i in "${!alive[@]}"; do
    if ! kill -0 "${alive[i]}" 2>/dev/null; then
      ended=0
      wait "${alive[i]}" || ended=$?
      unset "alive[i]"
      if ((ended && !status)); then
        status=$ended deadline=$((SECONDS + ${GRACE:-15}))
        if ((ended != 75 && ended != 130)); then echo "launch/local.sh: process $i of $count ended with status $ended" >&2; fi
      fi
    fi
  done
  if [[ -n "$deadline" ]] && ((SECONDS > deadline)); then
    for pid in ${alive[@]+"${alive[@]}"}; do kill -KILL -- "-$pid" 2>/dev/null || true; done
  fi
  sleep 0.1 || true
done
wait 2>/dev/null || true
exit "$status"
