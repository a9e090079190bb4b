#!/usr/bin/env bash
# Runs the tests:  bash launch/test.sh [--slow] [--torch] [--libtpu] [--browser] [arguments of pytest]
#   --slow    the slow tests too
#   --torch   installs torch and peft first: without them the comparisons with PyTorch, PEFT and lm-eval's backend are skipped
#   --libtpu  installs the TPU compiler first: without it what is compiled for TPUs is skipped
#   --browser installs Debian's chromium first, where root may: without it the page of rlhf_jax.label is tested by requests
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export EXTRAS=test
selection="not slow"
install_browser() {
  if command -v chromium && command -v chromedriver; then return; fi >/dev/null
  if [[ "$EUID" == 0 ]] && command -v apt-get >/dev/null &&
    apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      chromium chromium-driver >/dev/null; then return; fi
  echo "no chromium and chromedriver, and they cannot be installed here: tests in a browser are skipped" >&2
}
while [[ "${1:-}" =~ ^--(slow|torch|libtpu|browser)$ ]]; do
  case "$1" in
    --slow) selection="slow or not slow" ;;
    --libtpu) EXTRAS+=,plan ;;
    --browser) install_browser ;;
    --torch) bash launch/python.sh -m pip install --quiet torch==2.13.0 'accelerate>=1.10,<2' 'peft>=0.21,<0.22' ;;
  esac
  shift
done
# Two at a time, a file's tests in one process: they share what is dear to make. -n 0 for one, as a debugger wants it.
exec bash launch/python.sh -m pytest -m "$selection" -n 2 --dist loadfile "$@"
