#!/usr/bin/env bash
# scripts/test.sh inside the image (scripts/build_images.sh makes it). DRY_RUN=1 prints the docker command.
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"
in_image scripts/test.sh "$@"
