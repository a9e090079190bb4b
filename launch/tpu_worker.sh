#!/usr/bin/env bash
# What tpu_pod.sh calls on every worker of a slice. Not to be called by hand.
#
#   tpu_worker.sh run ATTEMPT BUCKET MODULE FLAGS...   starts MODULE, such as rlhf_jax.main, and follows it until it ends
#   tpu_worker.sh stop                                 asks it to save and stop, and waits until it has
#
# The program runs apart from this shell, so that a lost connection does not end it: `run` follows what runs,
# and starts something only where nothing does. ATTEMPT tells a call that is repeated after the connection was
# lost (gcloud does so) from a new one. BUCKET is mounted at ~/buckets/BUCKET; "" mounts none.
set -euo pipefail
here=~/rlhf_jax_run
mkdir -p "$here" ~/rlhf_jax
cd ~/rlhf_jax

running() {
  [[ -e "$here/pid" ]] && kill -0 "$(cat "$here/pid")" 2>/dev/null
}

install_gcsfuse() {
  local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl --silent --show-error --fail "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get update -q
  sudo apt-get install -qy gcsfuse
}

install_code() {  # the new code in the place of the old, whose environment stays
  find . -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
  tar -xzf ~/rlhf_jax.tgz
  if [[ -n "$1" ]] && ! mountpoint -q ~/buckets/"$1"; then
    command -v gcsfuse >/dev/null || install_gcsfuse
    mkdir -p ~/buckets/"$1"
    # It stays behind, and must keep neither the connection nor the lock open.
    gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" ~/buckets/"$1" > "$here/gcsfuse.log" 2>&1 < /dev/null 9>&- ||
      { cat "$here/gcsfuse.log" >&2 && exit 1; }
  fi
  export EXTRAS=tpu
  if [[ ! -d .venv ]] && ! command -v python3.11 python3.12 >/dev/null; then  # the image has 3.10
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    PYTHON="$(python3 -m uv python find 3.12)"
    export PYTHON
  fi
  bash launch/python.sh -c pass
}

start() {
  echo "$1" > "$here/attempt"
  echo "${*:3}" > "$here/flags"
  rm -f "$here/code" "$here/stopped"
  : > "$here/log"  # the program's shell may open it only after `run` begins to follow it
  # The trap keeps this shell alive until it has written how the program ended.
  # shellcheck disable=SC2016
  nohup setsid bash -c 'trap : TERM; "${@:2}"; echo $? > "$1/code.new"; mv "$1/code.new" "$1/code"' \
    worker "$here" bash launch/python.sh -m "${@:3}" > "$here/log" 2>&1 < /dev/null 9>&- &
  echo $! > "$here/pid"
}

case "$1" in
  run)
    exec 9> "$here/lock"
    flock 9
    if running; then
      if [[ "$(cat "$here/flags")" != "${*:4}" ]]; then
        echo "another run is under way on this slice: $(cat "$here/flags"); wait for it or stop it with --stop" >&2
        echo "worker ended with exit code 2"
        exit 2
      fi
    elif [[ "$(cat "$here/attempt" 2>/dev/null)" != "$2" ]]; then
      install_code "$3"
      start "${@:2}"
    fi
    flock -u 9
    exec 9>&-
    tail --lines=+1 --follow --sleep-interval=1 --pid="$(cat "$here/pid")" "$here/log"
    if [[ -e "$here/stopped" ]]; then echo "worker was told to stop"; fi
    code="$(cat "$here/code" 2>/dev/null || echo 137)"  # no code: it was killed together with its shell
    echo "worker ended with exit code $code"
    exit "$code"
    ;;
  stop)
    touch "$here/stopped"
    if running; then kill -TERM -- "-$(cat "$here/pid")"; fi
    while running; do sleep 1; done
    ;;
esac
