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

packages=(tensorflow-cpu==2.21.0 keras==3.15.1 pyarrow==26.0.1 "numpy<3")
venv=${TML_VENV_KERAS:-.venv-keras}
stamp=$venv/.keras-stamp
wanted="${packages[*]}"

if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

if [ ! -x "$venv/bin/python" ]; then "$(find_python)" -m venv "$venv"; fi
echo "installing tensorflow-cpu into $venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check "${packages[@]}" ||
  die "tensorflow-cpu cannot be installed" "fix: see pip's message above"
TF_CPP_MIN_LOG_LEVEL=2 "$venv/bin/python" -c 'import keras, pyarrow, tensorflow' ||
  die "tensorflow does not import in $venv" "fix: delete $venv and try again"
echo "$wanted" >"$stamp"
