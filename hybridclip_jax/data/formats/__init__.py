"""The dataset formats `prepare` reads: one file and one line each."""

from __future__ import annotations

from hybridclip_jax.data.formats import csv, phantom
from hybridclip_jax.data.formats.base import Format, RecordError, Skip, Source, Study

FORMATS: dict[str, Format] = {"csv": csv.FORMAT, "phantom": phantom.FORMAT}

__all__ = ["FORMATS", "Format", "RecordError", "Skip", "Source", "Study"]
