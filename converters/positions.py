"""More positions for a CLIP text tower than it was trained with. T positions, D width."""

from __future__ import annotations

import numpy as np

from hybridclip_jax.errors import UserError

# Long-CLIP (arXiv 2403.15378): the first positions are trained well and are kept, those after them hold little and are
# spread out. It stretched 77 to 248; 512 is further than has been published.
KEPT = 20
LONGEST = 512
METHOD = f"the first {KEPT} kept, the others spread by linear interpolation, as Long-CLIP does"


def check(positions: int, context: int) -> None:
    """Raises UserError where a table of so many positions cannot be stretched to `context`."""
    if context <= positions:
        raise UserError(
            f"--context {context}: the source has {positions} positions, which shorter texts use in part; a table is "
            "only made longer: leave the flag out"
        )
    if context > LONGEST:
        raise UserError(f"--context {context}: must be at most {LONGEST}")
    if positions < KEPT + 2:
        raise UserError(f"--context {context}: of {positions} positions none is left to stretch after the first {KEPT}")


def stretch(table_TD: np.ndarray, context: int) -> np.ndarray:
    """`table_TD` stretched to [context, D], in its own dtype.

    Rows before KEPT keep every bit, so a text of at most KEPT tokens, start and end included, has the embedding it had.
    Row j >= KEPT is the old row KEPT + (j - KEPT) (T - 1 - KEPT) / (context - 1 - KEPT), interpolated between its two
    neighbours: the last row stays the last. Raises UserError as `check` does.
    """
    positions = len(table_TD)
    check(positions, context)
    places = np.linspace(KEPT, positions - 1, context - KEPT)
    before = np.minimum(places.astype(np.int64), positions - 2)
    share = (places - before)[:, None]
    old = table_TD.astype(np.float64)
    spread = (1 - share) * old[before] + share * old[before + 1]
    return np.concatenate([table_TD[:KEPT], spread.astype(table_TD.dtype)])
