"""When a contrastive loss says that nothing has been learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence

# The public run of this recipe stayed within 0.005 of ln(batch) for 25,000 steps; one batch's loss alone scatters
# by several hundredths, so judge a mean of many.
MARGIN = 0.04


def loss(batch_size: int) -> float:
    """InfoNCE of a model that cannot tell the pairs of a batch apart: ln(batch), in nats."""
    return math.log(batch_size)


def reached(losses: Sequence[float], batch_size: int) -> bool:
    """Whether the mean of these losses is at chance, or worse."""
    return bool(losses) and sum(losses) / len(losses) > loss(batch_size) - MARGIN
