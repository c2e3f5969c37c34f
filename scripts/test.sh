#!/usr/bin/env bash
# Sets up and runs every check, stopping at the first that fails. Arguments go to pytest: scripts/test.sh -k reader
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

heading "set-up"
scripts/setup.sh
use_venv

heading "ruff: lint"
ruff check .
heading "ruff: format"
ruff format --check .

heading "import contracts"
lint-imports

heading "mypy"
# An editable install maps the name tml to this folder with an import hook, which mypy does not run; a link shows it the same.
mkdir -p .import_root
ln -sfn .. .import_root/tml
MYPYPATH=.import_root mypy -p tml.projects -p tml.core -p tml.common -p tml.machines -p tml.ml_logging

heading "shellcheck"
shellcheck scripts/*.sh projects/*/scripts/*.sh benchmarks/*/*.sh .ci/run

heading "pytest"
exec python -m pytest "$@"
