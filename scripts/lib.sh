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

run_or_show() { # runs a command, or only prints it when DRY_RUN=1
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%s\n' "$*"
  else
    "$@"
  fi
}

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

choose_device() { # cpu or cuda: TML_DEVICE, or what the machine has
  case "${TML_DEVICE:-}" in
  cpu | cuda) echo "$TML_DEVICE" ;;
  '') if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cuda; else echo cpu; fi ;;
  *) die "TML_DEVICE is not a known device" "value: $TML_DEVICE" "limit: cpu or cuda" ;;
  esac
}

sha256() { # of standard input
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}
