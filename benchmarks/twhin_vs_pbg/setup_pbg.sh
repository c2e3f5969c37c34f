#!/usr/bin/env bash
# Makes .venv-pbg: PyTorch-BigGraph and what it needs, apart from tml's own environment. Does nothing when that is done.
#
#   TML_PYTHON=...        the Python to use; see scripts/lib.sh
#   TML_VENV_PBG=...      where the environment goes; default: .venv-pbg
#   TML_TORCH_INDEX=...   package index for the CPU build of torch, as for scripts/setup.sh
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/../../scripts/lib.sh"
cd "$(repo_root)"

# torchbiggraph imports pkg_resources, which setuptools 81 no longer has.
peer_venv "${TML_VENV_PBG:-.venv-pbg}" "h5py, pyarrow, torchbiggraph.train" \
  torchbiggraph==1.0.0 torch==2.13.0 "setuptools<81" h5py==3.16.0 pyarrow==26.0.1 "numpy<3"
