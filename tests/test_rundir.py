"""A run's small JSON files: what is damaged is never taken for what it was, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridclip_jax import rundir
from hybridclip_jax.errors import UserError

DAMAGED = {"cut": b'{"a": ', "empty": b"", "no text": b"\xff\xfe", "nested without end": b"[" * 100_000}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_reads_as_nothing(damage: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(DAMAGED[damage])
    assert rundir.read_json(tmp_path / "x.json") is None


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_run_with_a_damaged_config_is_not_gone_on_with(damage: str, tmp_path: Path) -> None:
    (tmp_path / rundir.METRICS).write_text("{}\n")
    (tmp_path / rundir.CONFIG).write_bytes(DAMAGED[damage])
    with pytest.raises(UserError) as caught:
        rundir.refuse_another(tmp_path, "{}")
    assert str(caught.value).startswith(f"{tmp_path / rundir.CONFIG}: damaged (")
    assert str(caught.value).endswith("); use another --workdir")
