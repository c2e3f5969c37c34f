#!/usr/bin/env bash
# Makes .venv-fuxictr: FuxiCTR and what it needs, apart from tml's own environment. Does nothing when that is done.
#
#   TML_PYTHON=...         the Python to use; see scripts/lib.sh
#   TML_VENV_FUXICTR=...   where the environment goes; default: .venv-fuxictr
#   TML_TORCH_INDEX=...    package index for the CPU build of torch, as for scripts/setup.sh
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
cd "$(repo_root)"

# Its data loaders rest on Ray, which its layers import too.
peer_venv "${TML_VENV_FUXICTR:-.venv-fuxictr}" "fuxictr.pytorch.layers, fuxictr.pytorch.models, pyarrow" \
  fuxictr==2.3.10 torch==2.13.0 pyarrow==26.0.1 "numpy<3"
