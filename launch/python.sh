#!/usr/bin/env bash
# Runs Python with this project installed:  bash launch/python.sh -m rlhf_jax.chat --workdir=runs/quickstart
#
# The first call makes .venv (of Python 3.11 or 3.12; PYTHON names another one) and installs what setup.cfg
# pins, with the extras named in EXTRAS; later calls do so again only when setup.cfg has changed.
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$project/.venv"
extras="${EXTRAS:+[$EXTRAS]}"
stamp="$venv/installed$extras"

find_python() {
  local names=(python3.11 python3.12 python3 python)
  if [[ -n "${PYTHON:-}" ]]; then names=("$PYTHON"); fi
  local candidate
  while read -r candidate; do  # every place on the PATH: the first may be a shim that does not run
    if "$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done < <(type -aP "${names[@]}")
  echo "no Python 3.11 to 3.13 with venv among: ${names[*]}; install one or name it, PYTHON=/path/to/python" >&2
  return 1
}

wanted="$(cksum < "$project/setup.cfg")"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    echo "making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$venv"
  fi
  echo "installing rlhf_jax$extras" >&2
  "$venv/bin/python" -m pip install --quiet --editable "$project$extras" >&2
  echo "$wanted" > "$stamp"
fi

# glibc gives XLA's buffers back to the system after every step and faults them in again at the next:
# keeping them takes a tenth to a quarter off a step on CPU, for a third to a half more memory. A stage that would lack
# that memory gives it back (rlhf_jax/forecast.py). One arena, or it does not help.
: "${GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=268435456}"
export GLIBC_TUNABLES
exec "$venv/bin/python" "$@"
