# shellcheck shell=bash
# Shared by the scripts beside it: where the repository is, which Python, which device.

repo_root() { # the absolute path of the repository
  cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd
}

die() { # die MESSAGE...: says what is wrong, one line an argument, and ends the script
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

heading() { printf '\n== %s\n' "$*"; }

find_python() { # the first Python that is new enough; TML_PYTHON overrides
  local candidate
  for candidate in ${TML_PYTHON:-python3 python3.11 python3.12 python3.13 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no usable Python found" "limit: 3.11 <= Python < 3.15 (tried: ${TML_PYTHON:-python3, python3.11, python3.12, python3.13})" \
    "fix: install Python 3.11, or name one with TML_PYTHON=/path/to/python3.11"
}

make_venv() { # make_venv FOLDER: an empty environment, unless there is one
  local python
  if [ -x "$1/bin/python" ]; then return; fi
  python=$(find_python)
  echo "making $1 with $("$python" --version)"
  "$python" -m venv "$1" || die "python cannot make a virtual environment" "fix: install its venv module (Debian: apt install python3-venv)"
}

pip_install() { # pip_install VENV ARGUMENT...
  local venv=$1
  shift
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
}

install_cpu_torch() { # install_cpu_torch VENV VERSION [OPTION...]: the index that pip uses by default has the CUDA build on Linux
  local venv=$1 version=$2 index=${TML_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
  shift 2
  if [ -z "${TML_TORCH_INDEX:-}" ] && pip_install "$venv" "$@" "torch==$version+cpu" 2>/dev/null; then return; fi
  pip_install "$venv" "$@" --index-url "$index" "torch==$version" ||
    die "the CPU build of torch $version cannot be fetched" "where: $index" \
      "fix: set TML_TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with its wheel"
}

peer_venv() { # peer_venv VENV MODULES PACKAGE...: the environment of what a benchmark compares tml with; does nothing when that is done
  local venv=$1 modules=$2 stamp=$1/.stamp package
  shift 2
  if [ "$(cat "$stamp" 2>/dev/null)" = "$*" ]; then return; fi
  make_venv "$venv"
  echo "installing $1 into $venv"
  for package in "$@"; do
    case $package in torch==*) install_cpu_torch "$venv" "${package#torch==}" ;; esac
  done
  pip_install "$venv" "$@" || die "$1 cannot be installed" "fix: see pip's message above"
  "$venv/bin/python" -c "import $modules" || die "$modules: cannot be imported in $venv" "fix: delete $venv and try again"
  echo "$*" >"$stamp"
}

choose_device() { # cpu or cuda: TML_DEVICE, or what the machine has
  case "${TML_DEVICE:-}" in
  cpu | cuda) echo "$TML_DEVICE" ;;
  '') if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cuda; else echo cpu; fi ;;
  *) die "TML_DEVICE is not a known device" "value: $TML_DEVICE" "limit: cpu or cuda" ;;
  esac
}

use_venv() { # puts the environment's commands first on the path
  local folder
  folder=$(cd -- "${TML_VENV:-.venv}" && pwd)
  export PATH="$folder/bin:$PATH"
}

sha256() { # of standard input
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

in_image() { # in_image [-it] COMMAND...: runs a command in the image, on this checkout; DRY_RUN=1 only prints the docker command
  local device options=()
  device=$(choose_device)
  if [ "$1" = -it ]; then
    options+=(-it)
    shift
  fi
  if [ "$device" = cuda ]; then options+=(--gpus all); fi
  if [ -n "${TML_DATA:-}" ]; then options+=(--volume "$TML_DATA:/data:ro" --env TML_DATA=/data); fi
  # The caller's own user, so that what is written into the checkout belongs to them. The image does not know their name, and
  # torch asks for it.
  docker_command run --rm --init --shm-size=8g --user "$(id -u):$(id -g)" --env HOME=/tmp --env USER=tml \
    --volume "$PWD:/app" ${options[@]+"${options[@]}"} "$(image_name "$device")" "$@"
}

image_name() { # image_name DEVICE
  echo "${TML_IMAGE:-tml:$1}"
}

docker_command() { # runs docker, or prints its command line when DRY_RUN=1
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf 'docker %s\n' "$*"
  else
    command -v docker >/dev/null || die "docker is not installed" "fix: install it, or use the script without docker_ in its name"
    docker "$@"
  fi
}
