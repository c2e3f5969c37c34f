#!/usr/bin/env bash
# Builds the image tml:cpu or tml:cuda from Dockerfile. Arguments go to `docker build`.
#
#   TML_DEVICE=cpu|cuda   which one; default: what this machine has (see setup.sh)
#   TML_TORCH_INDEX, PIP_INDEX_URL, PIP_EXTRA_INDEX_URL are handed to the build if they are set
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

device=$(choose_device)
arguments=(--build-arg "DEVICE=$device")
for name in TML_TORCH_INDEX PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
  if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name"); fi
done
docker_command build --tag "$(image_name "$device")" "${arguments[@]}" "$@" .
