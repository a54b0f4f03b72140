#!/usr/bin/env bash
# Makes the two small towers that ship in configs/towers: each from its own run on phantoms of its own, about
# fifteen minutes on two CPU cores. Needed only to make them anew; configs/towers/README.md has the fingerprints of those shipped.
#
#   bash launch/demo_towers.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

use_python ""
prepare() {
  [[ -f "$1/manifest.json" ]] ||
    "$PYTHON" -m hybridclip_jax.cli prepare --format phantom --seed "$2" --count 8000 --text impression --out "$1"
}
train() {
  "$PYTHON" -m hybridclip_jax.main --config="configs/demo_towers.py:$1" --workdir="runs/towers_$1"
}
extract() {
  "$PYTHON" -c "
import pathlib, sys
from hybridclip_jax import modelfolder
tower, run = sys.argv[1], pathlib.Path('runs') / f'towers_{sys.argv[1]}'
print(tower, modelfolder.extract(run / 'best', tower, pathlib.Path('configs/towers') / tower, 'Apache-2.0'))
" "$1"
}

prepare stores/towers_image 101
train image
extract image
prepare stores/towers_text 202
train text
extract text
