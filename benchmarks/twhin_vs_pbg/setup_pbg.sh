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

torch=2.13.0
# torchbiggraph imports pkg_resources, which setuptools 81 no longer has.
packages=(torchbiggraph==1.0.0 "setuptools<81" h5py==3.16.0 pyarrow==26.0.1 "numpy<3")
venv=${TML_VENV_PBG:-.venv-pbg}
stamp=$venv/.pbg-stamp
wanted="$torch ${packages[*]}"

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

install() { "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

install_cpu_torch() { # pip's own sources may have the CPU build under its own version; the index of CPU builds has no other
  if [ -z "${TML_TORCH_INDEX:-}" ] && install "torch==$torch+cpu" 2>/dev/null; then return; fi
  install --index-url "${TML_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "torch==$torch" ||
    die "the CPU build of torch $torch cannot be fetched" "fix: set TML_TORCH_INDEX to an index that has it"
}

if [ ! -x "$venv/bin/python" ]; then "$(find_python)" -m venv "$venv"; fi
echo "installing PyTorch-BigGraph into $venv"
install_cpu_torch
install "${packages[@]}" || die "PyTorch-BigGraph cannot be installed" "fix: see pip's message above"
"$venv/bin/python" -c 'import h5py, pyarrow, torchbiggraph.train' ||
  die "PyTorch-BigGraph does not import in $venv" "fix: delete $venv and try again"
echo "$wanted" >"$stamp"
