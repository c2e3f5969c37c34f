#!/usr/bin/env bash
# run_in_docker.sh, beside it, inside the image (scripts/build_images.sh makes it). Arguments go to run.py.
# DRY_RUN=1 prints the docker command.
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/../../../scripts/lib.sh"
cd "$(repo_root)"
in_image projects/light_ranker/scripts/run_in_docker.sh "$@"
