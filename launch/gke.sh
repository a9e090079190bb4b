#!/usr/bin/env bash
# Runs an experiment as a workload of a GKE cluster with TPU slices, through xpk (pip install xpk):
#
#   bash launch/gke.sh --cluster=research --name=beta --type=v5p-128 --zone=us-east5-a \
#     --config=experiments/instructgpt.py:6b --workdir=gs://bucket/runs/beta --config.ppo.kl_coef=0.05
#
#   --cluster=C          the cluster; xpk cluster create makes one, with --enable-gcsfuse-csi-driver for gs://
#   --name=W             what the workload is called
#   --type=T             the slice, e.g. v5litepod-16, v5p-128, v6e-256
#   --slices=N           several slices with data parallelism across them (1)
#   --zone=Z --project=P (gcloud's defaults)
#   --image=I            what the code is put on (python:3.12)
#   --priority=P         very-low to very-high (medium)
#   --max-restarts=N     starts after a preemption or a crash (100); bad input is not started again
#   --delete             delete the workload when it is over; without --config: now
#   and the common flags, see flags.sh. WORKDIR is gs://BUCKET/..., or /... on a storage of the cluster that
#   every workload mounts (xpk storage attach --auto-mount=true).
#
# The cluster starts the workload again by itself; this script only follows it. It may be interrupted: the same
# command follows it again.
set -euo pipefail
# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

cluster="" name="" type="" slices=1 zone="" project="" image=python:3.12 priority=medium max_restarts=100 delete=""
known=(--cluster --name --type --slices --zone --project --image --priority --max-restarts --delete)
while (($#)); do
  case "$1" in
    --cluster=*) cluster="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --priority=*) priority="${1#*=}" ;;
    --max-restarts=*) max_restarts="${1#*=}" ;;
    --delete) delete=yes ;;
    --) program_flags+=("${@:2}") && break ;;
    *) common_flag "$1" || unknown "$1" "${known[@]}" ;;
  esac
  shift
done
need --cluster "$cluster" "the GKE cluster, made with xpk cluster create"
need --name "$name" "what the workload is called"
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "--name=$name: at most 40 of a-z, 0-9 and -, a letter first"
whole --slices "$slices" && whole --max-restarts "$max_restarts"
where=("--cluster=$cluster")
if [[ -n "$zone" ]]; then where+=("--zone=$zone"); fi
if [[ -n "$project" ]]; then where+=("--project=$project"); fi

# lists NAME COMMAND...: whether the command prints a line whose first word is NAME.
lists() {
  local answer
  answer="$("${@:2}")" || fail "this did not work: $(quoted "${@:2}")"
  awk -v name="$1" '$1 == name { found = 1 } END { exit !found }' <<< "$answer"
}

delete_workload() {
  run xpk workload delete "--workload=$name" "${where[@]}" --force
}

if [[ -z "$config" && -n "$delete" ]]; then
  delete_workload
  exit
fi

need --type "$type" "the slice, e.g. --type=v5litepod-16"
need_run --workdir=gs://bucket/runs/first
[[ "$config" != /* ]] || fail "--config=$config: give a path inside the project, which is what is copied to the cluster"
storage=() bucket=""
case "$workdir" in
  gs://*/*)
    bucket="${workdir#gs://}" && bucket="${bucket%%/*}"
    workdir="/gs/${workdir#gs://}"
    storage=("--storage=$bucket")
    # implicit-dirs for folders that others made; the limit, so that a checkpoint can get its final name.
    attach=(
      xpk storage attach "$bucket" "${where[@]}" --type=gcsfuse "--bucket=$bucket" "--mount-point=/gs/$bucket"
      --readonly=false --auto-mount=false --size=1000 "--mount-options=implicit-dirs,rename-dir-limit=1000000"
    )
    if [[ -n "$dry_run" ]] || ! lists "$bucket" xpk storage list "${where[@]}"; then run "${attach[@]}"; fi
    ;;
  /*) ;;
  *) fail "--workdir=$workdir: every worker must see it; give gs://BUCKET/FOLDER or a path of an attached storage" ;;
esac

mounted "$bucket" "/gs/$bucket"

# `exec`: the program itself must get the SIGTERM of a preemption, and five minutes to save.
command="$(quoted exec env EXTRAS=tpu bash launch/python.sh -m "rlhf_jax.$program" --distributed=auto \
  "--config=$config" "--workdir=$workdir" "${program_flags[@]}")"
if [[ -n "$dry_run" ]] || ! lists "$name" xpk workload list "${where[@]}" "--filter-by-job=$name"; then
  code="$(mktemp -d)"
  trap 'rm -rf "$code"' EXIT
  pack_code "$code.tgz" && tar -xzf "$code.tgz" -C "$code" && rm "$code.tgz"
  # Again after every code but 2 (bad input), 3 (not finite) and 4 (arms of a sweep that failed).
  run xpk workload create "${where[@]}" "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" \
    "--priority=$priority" "--base-docker-image=$image" "--script-dir=$code" "${storage[@]}" \
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1,5-255 --termination-grace-period-seconds=300 \
    "--command=$command"
else
  echo "the workload $name is there: following it"
fi
echo "its output: kubectl logs --follow --prefix --selector=jobset.sigs.k8s.io/jobset-name=$name"
ended=0
run xpk workload list "${where[@]}" "--wait-for-job-completion=$name" || ended=$?
if [[ -n "$delete" ]]; then
  delete_workload
elif [[ "$ended" != 0 ]]; then
  echo "to run it again: bash launch/gke.sh --name=$name ${where[*]} --delete, then the same command"
fi
exit "$ended"
