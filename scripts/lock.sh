#!/usr/bin/env bash
# Writes the complete lock files requirements/cpu.txt and requirements/cuda.txt from the lists requirements/*.in.
#
#   scripts/lock.sh            both
#   scripts/lock.sh cpu        one of them
#
# Run it on Linux with Python 3.11, the oldest that is supported, after changing a list. It reads only the packages' metadata (a
# few MB), even for CUDA. To move everything that is not pinned in a list to its newest version, just run it again.
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(find_python)" -m venv "$work/venv"
# Older versions of pip download whole wheels to learn what they require.
"$work/venv/bin/python" -m pip install -qq --upgrade 'pip>=25'

resolve() { # resolve DEVICE PIP-ARGS...
  local device=$1
  shift
  "$work/venv/bin/python" -m pip install -qq --dry-run --ignore-installed --use-feature=fast-deps \
    --report "$work/$device.json" -r "requirements/$device.in" "$@"
  "$work/venv/bin/python" scripts/write_lock.py "$work/$device.json" requirements/no_deps.in "requirements/$device.txt"
}

[ $# -gt 0 ] || set -- cpu cuda
for device in "$@"; do
  case "$device" in
  cpu) resolve cpu ;;
  cuda)
    # A CPU build of torch in a configured wheel folder would win over the CUDA build and hide its requirements.
    mkdir -p "$work/no-wheels"
    PIP_FIND_LINKS="$work/no-wheels" resolve cuda
    ;;
  *) die "no such lock" "value: $device" "limit: cpu or cuda" ;;
  esac
done
