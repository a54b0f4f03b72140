"""What is true of a chest phantom before it is drawn or written up: patient, findings, difficulty."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

VERSION = "2"
RATE = 0.25  # of each finding; seven of them leave 0.75**7 = 0.13 of the phantoms without any
FINDINGS = (
    "Cardiomegaly",
    "Left Pleural Effusion",
    "Right Pleural Effusion",
    "Consolidation",
    "Pneumothorax",
    "Nodule",
    "Support Device",
)
NO_FINDING = "No Finding"
LABELS = (*FINDINGS, NO_FINDING)
ZONES = ("upper", "mid", "lower")

_STUDIES_OF_BLOCK = (1, 2, 3)  # patients come in threes that have so many studies, in some order

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """How far phantoms vary and how plainly findings show. Ranges are uniform.

    Lengths are in units of half the image's side unless said. Densities are grey levels before exposure: lung
    is about 0.16, soft tissue 0.52.
    """

    name: str
    rotation: float  # degrees, up to this much either way; so are the next five
    shift: float
    scale: float
    gain: float
    gamma: float
    habitus: float
    noise: float  # standard deviation, grey levels
    texture: float  # lung vessels, grey levels
    heart_normal: Range  # cardiothoracic ratio
    heart_large: Range
    effusion: Range  # share of the lung's height below the fluid
    spread: float  # of consolidations and nodules about the centre of their zone, either way
    consolidation_radius: Range
    consolidation_density: Range  # share of the air replaced
    pneumothorax: Range  # width of the rim of free air at the side of the lung
    nodule_radius: Range  # pixels of the 320
    nodule_density: Range
    device_density: Range
    device_line: float  # radius of leads and tubes, pixels of the 320
    negated: float  # share of absent findings that the report mentions


EASY = Difficulty(
    name="easy",
    rotation=2.0,
    shift=0.03,
    scale=0.03,
    gain=0.05,
    gamma=0.08,
    habitus=0.5,
    noise=0.02,
    texture=0.05,
    heart_normal=(0.40, 0.46),
    heart_large=(0.60, 0.70),
    effusion=(0.27, 0.45),
    spread=0.04,
    consolidation_radius=(0.22, 0.28),
    consolidation_density=(0.75, 0.95),
    pneumothorax=(0.12, 0.18),
    nodule_radius=(16.0, 24.0),
    nodule_density=(0.42, 0.55),
    device_density=(0.5, 0.6),
    device_line=2.5,
    negated=0.35,
)
HARD = Difficulty(
    name="hard",
    rotation=6.0,
    shift=0.07,
    scale=0.08,
    gain=0.12,
    gamma=0.25,
    habitus=1.0,
    noise=0.05,
    texture=0.08,
    heart_normal=(0.40, 0.49),
    heart_large=(0.53, 0.62),
    effusion=(0.14, 0.32),
    spread=0.08,
    consolidation_radius=(0.12, 0.20),
    consolidation_density=(0.45, 0.75),
    pneumothorax=(0.06, 0.12),
    nodule_radius=(7.0, 13.0),
    nodule_density=(0.22, 0.35),
    device_density=(0.25, 0.4),
    device_line=1.6,
    negated=0.7,
)
DIFFICULTIES = {"easy": EASY, "hard": HARD}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding that is present: the patient's side ("left", "right"), the zone, the kind of device."""

    side: str = ""
    zone: str = ""
    kind: str = ""


class Draws:
    """Random numbers, the same under every numpy: raw Philox bits keyed by a purpose and integers."""

    def __init__(self, purpose: str, *numbers: int) -> None:
        text = "/".join((f"phantom-{VERSION}", purpose, *map(str, numbers)))
        key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
        self._bits = np.random.Philox(key=key)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def around(self, spread: float) -> float:
        return self.uniform(-spread, spread)

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        keyed = sorted((self.uniform(), i) for i in range(len(items)))
        return [items[i] for _, i in keyed]

    def octets(self, n: int) -> np.ndarray:
        """n bytes, uint8 [n]."""
        return self._bits.random_raw((n + 7) // 8).astype("<u8").view(np.uint8)[:n]


def patient_of(seed: int, index: int) -> int:
    """The number of the patient whose study `index` is: patients have 1, 2 or 3 consecutive studies."""
    block, place = divmod(index, sum(_STUDIES_OF_BLOCK))
    sizes = Draws("block", seed, block).shuffled(_STUDIES_OF_BLOCK)
    slot = 0
    while place >= sizes[slot]:
        place -= sizes[slot]
        slot += 1
    return block * len(sizes) + slot


def draw_findings(seed: int, index: int) -> dict[str, Finding]:
    """The findings that are present: each with probability RATE, independently. In the order of FINDINGS.

    Only where they lie depends on the others: nothing is put where fluid or a large heart would hide it.
    """
    draws = Draws("findings", seed, index)
    present = {name for name in FINDINGS if draws.chance(RATE)}
    findings: dict[str, Finding] = {}
    for name in FINDINGS:
        side, order = draws.choice(("left", "right")), draws.shuffled(ZONES)
        kind = draws.choice(("pacemaker", "pacemaker", "pacemaker", "port", "tubes"))
        if name not in present:
            continue
        if name == "Cardiomegaly":
            findings[name] = Finding()
        elif name.endswith("Pleural Effusion"):
            findings[name] = Finding(side=name.split()[0].lower())
        elif name == "Pneumothorax":
            findings[name] = Finding(side=side)
        elif name == "Support Device":
            findings[name] = Finding(kind=kind, side={"port": "right"}.get(kind, "left"))
        else:
            fluid = f"{side.title()} Pleural Effusion" in present
            taken = {other.zone for other in findings.values() if other.side == side}
            if fluid or (side == "left" and "Cardiomegaly" in present):
                taken.add("lower")
            findings[name] = Finding(side=side, zone=next(zone for zone in order if zone not in taken))
    return findings


def labels(findings: Mapping[str, Finding]) -> dict[str, float]:
    """1.0 or 0.0 for each of LABELS; "No Finding" is 1.0 when nothing else is."""
    known = {name: float(name in findings) for name in FINDINGS}
    return {**known, NO_FINDING: float(not findings)}
