"""One self-contained HTML page, and the closing table on the terminal, from a run's files alone."""

from __future__ import annotations

from hybridclip_jax.report.page import render
from hybridclip_jax.report.terminal import end_table

__all__ = ["end_table", "render"]
