#!/usr/bin/env bash
# Makes .venv with the packages of the lock file and tml itself (editable). Does nothing when that is already so.
# `scripts/setup.sh packages` stops before tml itself, which lets an image keep the packages in a layer of their own.
#
#   TML_DEVICE=cpu|cuda   which lock; default: cuda where `nvidia-smi` finds a GPU, otherwise cpu
#   TML_PYTHON=...        the Python to use; default: the first of python3, python3.11 ... that is new enough
#   TML_VENV=...          where the environment goes; default: .venv
#   TML_TORCH_INDEX=...   package index for the CPU build of torch; default: what pip is configured with, if it has such a build,
#                         otherwise the public PyTorch index
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

device=$(choose_device)
venv=${TML_VENV:-.venv}
lock=requirements/$device.txt
stamp=$venv/.tml-stamp
part=${1:-all}

stamp_text() { # what the environment was made from
  echo "$device $PWD $(cat "$lock" scripts/setup.sh scripts/lib.sh "${@:-pyproject.toml}" | sha256)"
}

wanted=$(if [ "$part" = packages ]; then stamp_text /dev/null; else stamp_text; fi)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  echo "$venv is up to date ($device)"
  exit 0
fi
if [ -e "$venv" ] && [ ! -w "$venv" ]; then
  die "$venv was made from another lock, pyproject.toml or folder, and cannot be changed" \
    "fix: in Docker, scripts/build_images.sh; elsewhere, set TML_VENV to a folder of your own"
fi

# Without following requirements: the lock is complete, and torchrec's own would pull in CUDA.
options=(--no-deps --no-compile)

check_build() { # a CUDA torch under the CPU lock (or the other way round) makes fbgemm fail at import in words nobody understands
  local built
  built=$("$venv/bin/python" -c 'import torch.version; print("cuda" if torch.version.cuda else "cpu")')
  [ "$built" = "$device" ] || die "the installed torch is a $built build" "limit: $lock needs a $device build" \
    "fix: delete $venv and run scripts/setup.sh again; for a CPU build set TML_TORCH_INDEX"
}

[ "$(uname -s)" = Linux ] || die "fbgemm has no wheels for $(uname -s)" "limit: Linux, x86_64 or aarch64" \
  "fix: run inside Docker instead: scripts/docker_run.sh"

if [ -f "$stamp" ] && [ "$(cut -d ' ' -f 1 "$stamp")" != "$device" ]; then
  rm -rf "${venv:?}"/* # the two devices' packages overwrite each other's files
fi
make_venv "$venv"
echo "$device unfinished" >"$stamp"
echo "installing $(grep -c == "$lock") packages from $lock (the first time takes some minutes)"
if [ "$device" = cpu ]; then install_cpu_torch "$venv" "$(sed -n 's/^torch==//p' "$lock")" "${options[@]}"; fi
pip_install "$venv" "${options[@]}" -r "$lock" ||
  die "pip could not install $lock" "fix: see pip's message above; the packages come from pip's configured index"
check_build
if [ "$part" = all ]; then
  pip_install "$venv" "${options[@]}" --no-build-isolation --editable .
  echo "$venv is ready ($device); try: $venv/bin/tml doctor"
fi
echo "$wanted" >"$stamp"
