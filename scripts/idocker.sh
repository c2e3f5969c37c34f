#!/usr/bin/env bash
# A shell inside the image, on this checkout, with tml and torchrun on the path. DRY_RUN=1 prints the docker command.
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"
in_image -it bash "$@"
