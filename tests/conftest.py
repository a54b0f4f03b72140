"""Eight CPU devices for every test, one compilation cache for the session, one fixed patient key."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Eight CPU devices that meet in a collective deadlock on a pool of two threads; XLA sizes its pool by this.
os.environ.setdefault("NPROC", "16")
os.environ["HYBRIDCLIP_PATIENT_KEY"] = "for the tests alone"

import jax
import pytest

from hybridclip_jax import cli


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests share compiled programs; subprocesses they start read the same folder, and so do pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla-cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of 240 phantoms with splits train, val and test."""
    out = tmp_path_factory.mktemp("stores") / "phantoms"
    arguments = ["prepare", "--format", "phantom", "--seed", "5", "--count", "240", "--val-share", "0.2"]
    parsed = cli.parse([*arguments, "--out", str(out)])
    assert not parsed.run(parsed)
    return out
