#!/usr/bin/env bash
# Makes .venv-lightgbm: LightGBM, apart from tml's own environment. Does nothing when that is done.
#
#   TML_PYTHON=...          the Python to use; see scripts/lib.sh
#   TML_VENV_LIGHTGBM=...   where the environment goes; default: .venv-lightgbm
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
cd "$(repo_root)"

peer_venv "${TML_VENV_LIGHTGBM:-.venv-lightgbm}" "lightgbm, pyarrow" lightgbm==4.7.0 pyarrow==26.0.1 "numpy<3"
