# shellcheck shell=bash
# What tpu_pod.sh, gke.sh and slurm.sh share (each sources it): their common flags, and how they print,
# run and fail. Common flags:
#   --config=FILE    the experiment, a path in this project; required
#   --workdir=DIR    where the run lives: a place that every machine of the run sees; required
#   --program=sweep  run rlhf_jax.sweep, every arm on all the machines, instead of rlhf_jax.main (main)
#   --dry-run        print every command, run none
#   --config.*, --data=DIR, --heartbeat_seconds=N    passed on to the program
#   -- FLAGS         passed on unchecked
dry_run="" config="" workdir="" program=main program_flags=()
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Reads one flag that all scripts know; false for another one.
common_flag() {
  # shellcheck disable=SC2034  # what the scripts run
  case "$1" in
    --config=*) config="${1#*=}" ;;
    --workdir=*) workdir="${1#*=}" ;;
    --dry-run) dry_run=yes ;;
    --program=main | --program=sweep) program="${1#*=}" ;;
    --config.* | --noconfig.* | --data=* | --heartbeat_seconds=*) program_flags+=("$1") ;;
    *) return 1 ;;
  esac
}

# unknown FLAG KNOWN...: stops; a typing error must not cost an hour in a queue.
unknown() {
  fail "unknown flag '$1'; the flags are ${*:2} --config --workdir --program=main|sweep --dry-run" \
    "--config.* --data --heartbeat_seconds; what follows a lone -- is passed on unchecked"
}

# need FLAG VALUE MEANING: stops where the flag was not given.
need() {
  [[ -n "$2" ]] || fail "$1 is missing: $3"
}

# whole FLAG VALUE: stops where the value is not a number without sign.
whole() {
  [[ "$2" =~ ^[0-9]+$ ]] || fail "$1=$2 is not a whole number"
}

need_run() {
  need --config "$config" "the experiment, e.g. --config=experiments/quickstart.py"
  need --workdir "$workdir" "where the run lives, e.g. $1"
  [[ -f "${config%%:*}" ]] || fail "--config=$config: no such file in $PWD"
}

# The command line as one could type it.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  echo "${line# }"
}

# Prints a command and, unless --dry-run, runs it.
run() {
  echo "+ $(quoted "$@")"
  [[ -n "$dry_run" ]] || "$@"
}

# mounted BUCKET PLACE: where --data names a folder of the bucket, names it under the place it is mounted at.
mounted() {
  local i
  for i in "${!program_flags[@]}"; do
    case "${program_flags[i]}" in
      --data=gs://"$1"/*) program_flags[i]="--data=$2/${program_flags[i]#--data=gs://"$1"/}" ;;
      --data=gs://*) fail "${program_flags[i]}: give a folder in the bucket of --workdir, which is mounted" ;;
    esac
  done
}

# for_good CODE: true where running again cannot help (done, bad input, not finite, arms of a sweep that failed).
for_good() {
  [[ "$1" == [0234] ]]
}

# The code of this project, without what is made here: for machines that do not see this disk.
pack_code() {
  tar -czf "$1" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ --exclude=./*.egg-info .
}
