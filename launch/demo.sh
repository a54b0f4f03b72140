#!/usr/bin/env bash
# The whole product on drawn chest phantoms: prepares a store, trains on it, evaluates the chosen model once on patients
# that neither trained it nor chose it, writes the reports. Makes its own virtual environment; see launch/venv.sh.
# Running it again goes on where it was stopped, or says that it is done.
#
#   bash launch/demo.sh [--short] [--config.a.b=V ...]
#
# --short takes a minute and a small store: it shows that everything works, not that the model learns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

store=stores/demo workdir=runs/demo count=4000 overrides=()
if [[ "${1:-}" == --short ]]; then
  shift
  store=stores/demo_short workdir=runs/demo_short count=400
  overrides=(
    --config.steps=12 --config.eval_every=6 --config.checkpoint.every=6 --config.log_every=3
    --config.data.train="$store:train"
    --config.evals.templated.data="$store:val" --config.evals.bare.data="$store:val"
  )
fi

use_python ""
if [[ ! -f "$store/manifest.json" ]]; then
  mkdir -p stores
  "$PYTHON" -m hybridclip_jax.cli prepare --format phantom --seed 1 --count "$count" --out "$store"
fi
"$PYTHON" -m hybridclip_jax.main --config=configs/demo.py --workdir="$workdir" \
  ${overrides[@]+"${overrides[@]}"} "$@"

test="$workdir/test"
if [[ ! -f "$test/report.html" ]]; then
  echo
  "$PYTHON" -m hybridclip_jax.cli evaluate --model "$workdir" --data "$store:test" --protocol chexzero \
    --prompts templated --examples 4 --out "$test"
fi
"$PYTHON" -m hybridclip_jax.cli report "$workdir" >/dev/null # its page lists what evaluated it

echo
echo "report: $workdir/report.html (open it in a browser)   curves: $workdir/tb   model: $workdir/best"
echo "test patients: $test/report.html"
echo "your own data next: $PYTHON -m hybridclip_jax.cli prepare --help"
