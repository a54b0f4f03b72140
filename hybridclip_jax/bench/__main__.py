"""One measurement, for the runner: python -m hybridclip_jax.bench NAME ARM FOLDER SECONDS prints one JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hybridclip_jax.bench import BENCHES

if __name__ == "__main__":
    name, arm, folder, seconds = sys.argv[1:]
    print(json.dumps(BENCHES[name].measure(arm, Path(folder), float(seconds))))
