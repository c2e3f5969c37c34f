#!/usr/bin/env bash
# Makes .venv-keras: tensorflow-cpu and Keras, apart from tml's own environment. Does nothing when that is done.
#
#   TML_PYTHON=...        the Python to use; see scripts/lib.sh
#   TML_VENV_KERAS=...    where the environment goes; default: .venv-keras
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
cd "$(repo_root)"

TF_CPP_MIN_LOG_LEVEL=2 peer_venv "${TML_VENV_KERAS:-.venv-keras}" "keras, pyarrow, tensorflow" \
  tensorflow-cpu==2.21.0 keras==3.15.1 pyarrow==26.0.1 "numpy<3"
