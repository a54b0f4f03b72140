"""Which split a record goes to: one for all, the source's own, or by patient; never one patient in two."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

from hybridclip_jax.data.private_ids import IdHasher
from hybridclip_jax.data.study import Study
from hybridclip_jax.errors import UserError

DEFAULT_SPLIT = "all"
_MAX_SPLITS = 20
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def parse_shares(text: str) -> dict[str, float]:
    """{"train": 0.8, ...} of "train=0.8,val=0.1,test=0.1"; UserError unless names are proper and shares add
    up to 1.
    """
    remedy = "write it as train=0.8,val=0.1,test=0.1"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        try:
            value = float(share)
        except ValueError as error:
            raise UserError(f"--split-by-patient: {part.strip()!r} is not NAME=SHARE: {remedy}") from error
        if name in shares or not 0 < value <= 1:
            raise UserError(f"--split-by-patient: {part.strip()!r} repeats a name or is no share of 1: {remedy}")
        _check_split_name(name, "--split-by-patient")
        shares[name] = value
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(f"--split-by-patient: the shares add up to {sum(shares.values()):g}, not 1: {remedy}")
    return shares


def assign_splits(
    studies: Sequence[Study], hasher: IdHasher, name: str | None, shares: Mapping[str, float] | None
) -> list[str]:
    """The split of each study, in order: `name` for all, else by patient in `shares`, else as the source
    says, else "all".

    By patient, a split depends on nothing but the patient's hash and the shares, so rows added later move
    nobody.

    Raises:
        UserError: a patient in two splits of the source, a split named for some rows only, an improper name,
            or so many splits that another column must have been taken.
    """
    if name is not None:
        _check_split_name(name, "--split")
        return [name] * len(studies)
    if shares is not None:
        return [_split_of(hasher("patient", study.patient), shares) for study in studies]
    blank = [study.source_row for study in studies if not study.split]
    if len(blank) == len(studies):
        return [DEFAULT_SPLIT] * len(studies)
    if blank:
        raise UserError(
            f"row {blank[0]} names no split while others do ({len(blank)} such rows): fill it, or give --split NAME"
        )
    splits_of: dict[str, set[str]] = collections.defaultdict(set)
    names: set[str] = set()
    for study in studies:
        if study.split not in names:
            names.add(study.split)
            _check_split_name(study.split, f"row {study.source_row}")
        splits_of[study.patient].add(study.split)
    if len(names) > _MAX_SPLITS:
        raise UserError(f"{len(names)} different splits: is that the split column? Name it, or give --split NAME")
    torn = sum(len(found) > 1 for found in splits_of.values())
    if torn:
        raise UserError(
            f"{torn} of {len(splits_of)} patients are in more than one split: mend the split column, or give"
            " --split-by-patient"
        )
    return [study.split for study in studies]


def _split_of(patient_hash: str, shares: Mapping[str, float]) -> str:
    point = int(patient_hash[:13], 16) / 16**13  # 52 bits: exact in a double
    end = 0.0
    for name, share in shares.items():
        end += share
        if point < end:
            return name
    return name  # the shares' sum may round to just below 1


def _check_split_name(name: str, where: str) -> None:
    # The cell is not repeated: of a wrongly chosen column it could be a patient's name.
    if not _SPLIT_NAME.fullmatch(name):
        raise UserError(f"{where}: a split's name is made of letters, digits, '_', '-' and '.', at least one")
