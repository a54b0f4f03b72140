#!/usr/bin/env bash
# Every check of the project: ruff, formatting, mypy, pytest. Makes its own virtual environment; see launch/venv.sh.
#
#   bash launch/test.sh [--slow] [pytest arguments...]
#
# --slow also runs the tests marked slow. Exits with 1 when any check fails, after running all of them. As root on
# Debian it installs chromium, which shows the report to its tests; elsewhere they skip when there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

which_tests=(-m "not slow")
arguments=()
for argument in "$@"; do
  if [[ "$argument" == --slow ]]; then which_tests=(); else arguments+=("$argument"); fi
done

if ((EUID == 0)) && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then
  echo "installing chromium"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } \
    >/dev/null 2>&1 || echo "chromium could not be installed: its tests will be skipped"
fi

use_python "[dev]"
failed=()
check() {
  echo "== $1"
  "$PYTHON" -m "${@:2}" || failed+=("$1")
}
check "ruff" ruff check .
check "formatting" ruff format --check .
check "mypy" mypy
# Two workers, as a worker takes up to 4 GB; a file's tests stay together, for what they share is dear to make.
check "pytest" pytest -n 2 --dist loadfile ${which_tests[@]+"${which_tests[@]}"} ${arguments[@]+"${arguments[@]}"}
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
