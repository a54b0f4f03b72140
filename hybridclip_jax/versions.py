"""What the numbers were computed with."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scikit-learn",
    "pillow",
    "pyarrow",
)


def installed() -> dict[str, str]:
    """Version by name: of Python, and of the packages here that a run or an evaluation depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
