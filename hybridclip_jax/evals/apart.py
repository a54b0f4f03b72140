"""Whether two stores of one evaluation may stand side by side."""

from __future__ import annotations

from hybridclip_jax.data import audit
from hybridclip_jax.data.store import Store
from hybridclip_jax.errors import UserError


def check(where: str, other: Store, tested: Store) -> list[str]:
    """Notes on what could not be compared of `tested` and of another store that the evaluation fits something on.

    `where` names the other store's field in the error. Raises UserError where they share patients or images, where
    their patient keys differ, and where their images were prepared differently.
    """
    shared = audit.overlap(other, tested)
    if str(shared):
        raise UserError(
            f"{where} = {other.spec}: shares {shared} with {tested.spec}; what is fitted on patients must not be "
            "measured on them: name a store of other patients"
        )
    audit.refuse_unlike(f"{where} = {other.spec}", other, tested)
    return [f"{other.spec} and {tested.spec}: {gap}" for gap in shared.gaps]
