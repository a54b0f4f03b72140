# Sourced by the scripts beside it: sets PYTHON to an interpreter that has the package and its requirements.
#
#   HYBRIDCLIP_PYTHON  an interpreter to use as it is; nothing is installed
#   HYBRIDCLIP_VENV    where to make the virtual environment otherwise (default: .venv in the checkout)
#
# Installing is skipped when the environment was made from the same requirements before.

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer with venv found; install one (Debian, Ubuntu: python3.11-venv)" >&2
  return 2
}

# use_python EXTRAS: EXTRAS is "" or the extras to install, such as "[dev]"
use_python() {
  if [[ -n "${HYBRIDCLIP_PYTHON:-}" ]]; then
    PYTHON="$HYBRIDCLIP_PYTHON"
    return
  fi
  local venv="${HYBRIDCLIP_VENV:-$PWD/.venv}" python wanted stamp
  PYTHON="$venv/bin/python"
  stamp="$venv/.installed${1//[^a-z]/-}"
  wanted="$(cat requirements.txt pyproject.toml | cksum) $PWD"
  if [[ -x "$PYTHON" && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    return
  fi
  if [[ ! -x "$PYTHON" ]]; then
    python="$(find_python)" || return
    echo "making a virtual environment in $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
  echo "installing hybridclip_jax$1 and what it needs (once; minutes on a slow network)"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --editable ".$1"
  echo "$wanted" >"$stamp"
}
