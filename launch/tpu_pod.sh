#!/usr/bin/env bash
# Runs an experiment on a TPU slice until it is done; makes the slice where there is none:
#
#   bash launch/tpu_pod.sh --name=pod --zone=us-east5-a --type=v5p-32 --spot \
#     --config=experiments/instructgpt.py:6b --workdir=gs://bucket/runs/6b --config.seed=1
#
#   --name=N --zone=Z    the slice; one that is there is used, one that was preempted is replaced
#   --project=P          (gcloud's default)
#   --type=T             what to make where there is none, e.g. v5litepod-16, v6e-64, v4-32
#   --runtime=V          its software (that which Google names for the type)
#   --spot               cheaper, and may be taken away
#   --queued             ask through a queued resource of the same name, and wait until it is granted
#   --slices=N           several slices with data parallelism across them (1); through a queued resource
#   --max-restarts=N     starts in a row, each shorter than half an hour, before a crashing run is given up (5)
#   --delete             delete the slice when the run is over; without --config: now
#   --stop               without --config: let the run save and stop
#   and the common flags, see flags.sh. WORKDIR is gs://BUCKET/... or a disk that you mounted on all workers.
#
# With --program=sweep, every arm of the sweep that --config declares runs on the whole slice, one after another:
#
#   bash launch/tpu_pod.sh --name=pod --zone=us-east5-a --type=v5litepod-16 --spot --program=sweep \
#     --config=experiments/figures/fig33_ptx_coef.py --workdir=gs://bucket/fig33
#
# The program goes on when this machine does not: the same command follows it again. A bucket is mounted with
# gcsfuse; make it with --enable-hierarchical-namespace, so that a checkpoint is renamed at once or not at all.
set -euo pipefail
# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

name="" zone="" project="" type="" runtime="" spot="" queued="" slices=1 max_restarts=5 delete="" stop="" had_slice=""
poll_seconds="${TPU_POD_POLL_SECONDS:-30}"
known=(--name --zone --project --type --runtime --spot --queued --slices --max-restarts --delete --stop)
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --spot) spot=--spot ;;
    --queued) queued=yes ;;
    --slices=*) slices="${1#*=}" ;;
    --max-restarts=*) max_restarts="${1#*=}" ;;
    --delete) delete=yes ;;
    --stop) stop=yes ;;
    --) program_flags+=("${@:2}") && break ;;
    *) common_flag "$1" || unknown "$1" "${known[@]}" ;;
  esac
  shift
done
need --name "$name" "what the slice is called"
need --zone "$zone" "where it is, e.g. --zone=us-east5-a"
whole --slices "$slices" && whole --max-restarts "$max_restarts"
((slices == 1)) || queued=yes

where=("--zone=$zone")
if [[ -n "$project" ]]; then where+=("--project=$project"); fi
if [[ -n "$queued" ]]; then
  kind=(gcloud compute tpus queued-resources) state_field=state.state ready=ACTIVE force=(--force)
  # gcloud's batches of 64 would wait for each other for ever: a process starts with all of its peers.
  all=(--node=all --worker=all --batch-size=all)
else
  kind=(gcloud compute tpus tpu-vm) state_field=state ready=READY force=()
  all=(--worker=all)
fi

delete_slice() {
  run "${kind[@]}" delete "$name" "${where[@]}" "${force[@]}" --quiet
}

# on_all COMMAND...: on all workers of all slices at once.
on_all() {
  run "${kind[@]}" ssh "$name" "${where[@]}" "${all[@]}" "--command=$(quoted "$@")"
}

if [[ -z "$config" && -n "$delete$stop" ]]; then
  if [[ -n "$stop" ]]; then on_all bash tpu_worker.sh stop; fi
  if [[ -n "$delete" ]]; then delete_slice; fi
  exit
fi

need_run --workdir=gs://bucket/runs/first
[[ "$config" != /* ]] || fail "--config=$config: give a path inside the project, which is what is copied to the workers"
bucket="" remote_workdir="$workdir"
case "$workdir" in
  gs://*/*)
    bucket="${workdir#gs://}" && bucket="${bucket%%/*}"
    remote_workdir="../buckets/${workdir#gs://}"  # where tpu_worker.sh mounts it, seen from the code
    ;;
  /*) ;;
  *) fail "--workdir=$workdir: every worker must see it; give gs://BUCKET/FOLDER or a disk mounted on all of them" ;;
esac
mounted "$bucket" "../buckets/$bucket"
if [[ -z "$runtime" ]]; then
  case "$type" in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) runtime=v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-* | "") runtime=tpu-ubuntu2204-base ;;
    *) fail "--type=$type: its software is not known here; name it with --runtime" ;;
  esac
fi
type="${type/#v5e-/v5litepod-}"  # as gcloud calls it

# The state of the slice, MISSING where there is none.
state() {
  local answer
  if answer="$("${kind[@]}" describe "$name" "${where[@]}" "--format=value($state_field)" 2>&1)"; then
    echo "${answer##*$'\n'}"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    fail "gcloud cannot say whether the slice $name is there"
  fi
}

create_slice() {
  need --type "$type" "there is no slice $name in $zone; say what to make, e.g. --type=v5litepod-16"
  local nodes=("--node-id=$name")
  if ((slices > 1)); then nodes=("--node-count=$slices" "--node-prefix=$name"); fi
  if [[ -n "$queued" ]]; then
    run "${kind[@]}" create "$name" "${where[@]}" "${nodes[@]}" "--accelerator-type=$type" \
      "--runtime-version=$runtime" $spot
  else
    run "${kind[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$runtime" $spot
  fi
}

# Returns when the slice is ready to be used.
have_slice() {
  local now shown=""
  if [[ -n "$dry_run" ]]; then
    create_slice
    return
  fi
  while true; do
    now="$(state)" || exit
    case "$now" in
      "$ready") had_slice=yes && return ;;
      MISSING)
        # The first time the reason is a typing error or a quota; later, that there is none just now.
        create_slice || { [[ -n "$had_slice" ]] && sleep "$poll_seconds"; } || exit 1
        ;;
      # What was taken away holds nothing but the code; the run is in its work directory.
      PREEMPTED | TERMINATED | SUSPENDED) delete_slice ;;
      FAILED) fail "the request for $name has failed: see ${kind[*]} describe $name ${where[*]}" ;;
      *)
        [[ "$now" == "$shown" ]] || echo "the slice $name is $now"
        shown="$now"
        sleep "$poll_seconds"
        ;;
    esac
  done
}

# over CODE: the end.
over() {
  if [[ -n "$delete" ]]; then
    delete_slice
  else
    echo "the slice $name is still there and costs money; to delete it:"
    echo "  bash launch/tpu_pod.sh --name=$name ${where[*]}${queued:+ --queued} --delete"
  fi
  exit "$1"
}

trap 'echo "no longer followed; the run goes on: the same command follows it, --stop stops it" >&2; exit 130' INT
files="$(mktemp -d)"
trap 'rm -rf "$files"' EXIT
failures=0
while true; do
  have_slice
  began=$SECONDS code=0
  pack_code "$files/rlhf_jax.tgz"
  {
    run "${kind[@]}" scp "$files/rlhf_jax.tgz" launch/tpu_worker.sh "$name:" "${where[@]}" "${all[@]}" &&
      on_all bash tpu_worker.sh run "$(date +%Y%m%dT%H%M%S)" "$bucket" "rlhf_jax.$program" --distributed=auto \
        "--config=$config" "--workdir=$remote_workdir" "${program_flags[@]}"
  } | tee "$files/output" || code=${PIPESTATUS[0]}
  if [[ -n "$dry_run" ]]; then over 0; fi
  # gcloud gives the code of the first worker that failed; another one may know better why.
  verdict="$(sed -n 's/^worker ended with exit code \([234]\)$/\1/p' "$files/output" | head -n 1)"
  code="${verdict:-$code}"
  if for_good "$code"; then over "$code"; fi
  echo "ended with exit code $code after $((SECONDS - began)) s"
  if grep -q '^worker was told to stop$' "$files/output"; then exit "$code"; fi
  if [[ "$code" == 75 ]] || ((SECONDS - began >= 1800)); then failures=0; fi
  if [[ "$code" != 75 ]] && ((++failures > max_restarts)); then
    echo "failed $failures times in a row: given up"
    over "$code"
  fi
  echo "running again from the last checkpoint"
  sleep "$poll_seconds"  # what took the slice away may not show yet
done
