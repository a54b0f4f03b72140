"""Chest phantoms: frontal radiographs drawn from anatomy, with independent findings whose truth is known.

Nothing here is a patient. A phantom is a pure function of (seed, index, difficulty), to the last bit.

Frame: u to the right of the image, v down, both about -1..1, after the pose is undone. The patient's left is
on the image's right, u > 0, as radiologists hang a film. Grey levels before exposure: lung 0.16, tissue 0.52.
"""

# H half-size side (160), S full side (320)

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hybridclip_jax.data.phantom_canvas import Pose, add_strokes, expose, soft, textures, twice
from hybridclip_jax.data.phantom_findings import Difficulty, Draws, Finding, draw_findings, patient_of

ZONES = {"upper": (0.38, -0.32), "mid": (0.45, -0.06), "lower": (0.46, 0.17)}  # centre in the left lung, u v
_SIGN = {"right": -1.0, "left": 1.0}
_AIR = 0.16
_EDGE = 0.035  # width of the soft border of the lungs

# Courses of leads and catheters. The ends move a little from film to film.
_LINES = {
    "pacemaker": (
        (
            (0.50, -0.56), (0.40, -0.70), (0.22, -0.68), (0.04, -0.56), (-0.11, -0.40), (-0.13, -0.10),
            (-0.12, 0.12), (0.04, 0.30), (0.26, 0.36),
        ),
        (
            (0.52, -0.54), (0.42, -0.65), (0.24, -0.63), (0.05, -0.52), (-0.13, -0.38), (-0.16, -0.05),
            (-0.20, 0.12), (-0.12, 0.04),
        ),
    ),
    "port": (
        (
            (-0.46, -0.44), (-0.44, -0.60), (-0.34, -0.72), (-0.22, -0.68), (-0.13, -0.48), (-0.12, -0.10),
            (-0.12, 0.06),
        ),
    ),
    "tubes": (
        ((-0.02, -0.98), (-0.02, -0.60), (-0.01, -0.34)),
        ((0.03, -0.98), (0.03, -0.30), (0.04, 0.20), (0.12, 0.48), (0.34, 0.64)),
        ((-0.30, -0.94), (-0.24, -0.74), (-0.13, -0.52), (-0.12, 0.00)),
    ),
}  # fmt: skip
# Centre and half-size, u v.
_BOXES = {"pacemaker": ((0.55, -0.50), (0.17, 0.14)), "port": ((-0.48, -0.42), (0.09, 0.09))}


@dataclasses.dataclass(frozen=True)
class _Body:
    """What a patient's studies share, in frame units and grey levels."""

    width: float  # half-width of the thoracic cage
    apex: float
    dome: float  # of the right diaphragm
    heart: float  # where in its range the cardiothoracic ratio lies
    tissue: float
    rib_gap: float
    rib_phase: float
    bone: float


def _body(seed: int, patient: int, spread: float) -> _Body:
    draws = Draws("habitus", seed, patient)
    return _Body(
        width=0.73 + draws.around(0.05) * spread,
        apex=-0.77 + draws.around(0.05) * spread,
        dome=0.40 + draws.around(0.05) * spread,
        heart=0.5 + draws.around(0.5),
        tissue=0.52 + draws.around(0.06) * spread,
        rib_gap=0.165 + draws.around(0.015) * spread,
        rib_phase=draws.uniform(),
        bone=0.075 + draws.around(0.03) * spread,
    )


class _Chest:
    """A chest on its way to the film: float32 maps [H, H] that each finding changes in turn.

    air: share of lung that holds air. extra: grey level added to tissue and air.
    """

    def __init__(self, body: _Body, large_heart: bool, pose: Pose, draws: Draws, difficulty: Difficulty) -> None:
        self.body, self.draws, self.difficulty = body, draws, difficulty
        self.u, self.v = pose.frame()
        self.across = np.abs(self.u)
        self.on_left = self.u > 0
        vessels, self.clouds = textures(draws)

        down = np.minimum(self.v - 0.45, 0.0) * np.float32(1.0 / ((0.45 - body.apex) * 1.015))
        cage = np.sqrt(np.maximum(1.0 - down * down, 0.0)) * np.float32(body.width)
        self.from_cage = cage - self.across
        self.heart, self.knob = self._heart(large_heart)

        beside = (self.across - 0.40) * np.float32(1.0 / 0.40)
        left_lower = np.where(self.on_left, np.float32(0.05), np.float32(0.0))
        sag = np.where(beside < 0, np.float32(0.07), np.float32(0.17)) * beside * beside
        self.above = np.float32(body.dome) + left_lower + sag - self.v  # the diaphragm
        middle = 0.13 + 0.05 * np.clip(self.v + 0.2, 0.0, 1.0)
        room = np.minimum(np.minimum(self.from_cage, self.above), self.across - middle)
        self.lung = soft(room, _EDGE)
        self.air = self.lung * (1.0 - self.heart) * (1.0 - self.knob)

        hu, hv = self.across - 0.17, self.v + 0.08
        hilum = np.clip(1.0 - (hu * hu * 45.0 + hv * hv * 18.0), 0.0, 1.0)
        fading = np.clip(1.25 - self.across - 0.4 * np.abs(hv), 0.2, 1.0)
        markings = np.clip(1.0 - 1.6 * np.abs(vessels), 0.0, 1.0) * fading
        self.extra = markings * self.lung * np.float32(1.6 * difficulty.texture) + hilum * np.float32(0.14)

    def _heart(self, large: bool) -> tuple[np.ndarray, np.ndarray]:
        """The heart, its width given by the cardiothoracic ratio, and the aortic knob: shares [H, H]."""
        low, high = self.difficulty.heart_large if large else self.difficulty.heart_normal
        half_width = (low + (high - low) * self.body.heart) * self.body.width
        half_height = 0.28 + 0.35 * (half_width - 0.31)
        cu, cv = (0.30 if large else 0.33) * half_width, 0.27
        hu = (self.u - cu - 0.22 * (self.v - cv)) * np.float32(1.0 / half_width)
        hv = (self.v - cv) * np.float32(1.0 / half_height)
        heart = soft((1.0 - np.sqrt(hu * hu + hv * hv)) * np.float32(half_height), 0.04)
        ku, kv = self.u - 0.10, self.v + 0.36
        return heart, soft(0.085 - np.sqrt(ku * ku + kv * kv), 0.04)

    def pleura(self, side: str, effusion: bool, pneumothorax: bool) -> None:
        half = (self.on_left if side == "left" else ~self.on_left).astype(np.float32)
        if effusion:
            depth = self.draws.uniform(*self.difficulty.effusion) * (self.body.dome - self.body.apex)
            level = self.body.dome - depth + (0.05 if side == "left" else 0.0)
            climb = np.maximum(self.across - 0.25, 0.0)
            fluid = soft(self.v - (np.float32(level + 0.05) - 0.45 * climb * climb), 0.06) * half
            fluid = fluid * soft(self.from_cage, _EDGE)
            self.extra = self.extra * (1.0 - fluid) + fluid * self.lung * np.float32(0.10)
            self.air = self.air * (1.0 - fluid)
            half = half * (1.0 - fluid)
        if pneumothorax:
            rim = self.draws.uniform(*self.difficulty.pneumothorax)
            wider_at_apex = 1.0 + np.clip(-0.1 - self.v, 0.0, 0.7)
            edge = self.from_cage - np.float32(rim) * wider_at_apex
            empty = soft(-edge, 0.02) * self.lung * half
            line = np.clip(1.0 - np.abs(edge) * np.float32(1.0 / 0.016), 0.0, 1.0) * self.lung * half
            self.extra = self.extra * (1.0 - empty) - empty * np.float32(0.11) + line * np.float32(0.26)
            self.extra = self.extra + (self.lung * half - empty) * np.float32(0.04)

    def _about(self, finding: Finding) -> tuple[np.ndarray, np.ndarray]:
        cu, cv = ZONES[finding.zone]
        cu = _SIGN[finding.side] * (cu + self.draws.around(self.difficulty.spread))
        cv = cv + self.draws.around(self.difficulty.spread)
        return self.u - np.float32(cu), self.v - np.float32(cv)

    def consolidation(self, finding: Finding) -> None:
        du, dv = self._about(finding)
        radius = self.draws.uniform(*self.difficulty.consolidation_radius)
        distance = np.sqrt(du * du * 1.25 + dv * dv) - 0.055 * self.clouds
        cloud = soft(radius - distance, 0.12) * np.clip(0.92 + 0.10 * self.clouds, 0.6, 1.0)
        density = self.draws.uniform(*self.difficulty.consolidation_density)
        self.air = self.air * (1.0 - cloud * np.float32(density))
        self.extra = self.extra * (1.0 - 0.6 * cloud)

    def nodule(self, finding: Finding) -> None:
        du, dv = self._about(finding)
        radius = self.draws.uniform(*self.difficulty.nodule_radius) / 160.0  # pixels to frame units
        ball = soft(radius - np.sqrt(du * du + dv * dv), 0.025)
        self.extra = self.extra + ball * np.float32(self.draws.uniform(*self.difficulty.nodule_density))

    def box(self, kind: str) -> None:
        """The body of a pacemaker or port, corners rounded."""
        (cu, cv), (wide, high) = _BOXES[kind]
        du = np.abs(self.u - np.float32(cu + self.draws.around(0.03)))
        dv = np.abs(self.v - np.float32(cv + self.draws.around(0.03)))
        du, dv = np.maximum(du - (wide - 0.04), 0.0), np.maximum(dv - (high - 0.04), 0.0)
        box = soft(0.04 - np.sqrt(du * du + dv * dv), 0.015)
        self.extra = self.extra + box * np.float32(self.draws.uniform(*self.difficulty.device_density))

    def _bones(self) -> np.ndarray:
        """Grey levels added by ribs behind and in front, clavicles and spine."""
        a, v = self.across, self.v
        bone = np.float32(self.body.bone)

        def bands(height: np.ndarray, share: float) -> np.ndarray:
            phase = (height * np.float32(1.0 / self.body.rib_gap)) + np.float32(self.body.rib_phase)
            return soft(np.float32(share / 2) - np.abs(phase - np.floor(phase) - 0.5), 0.16)

        a2 = a * a
        thorax = soft(self.from_cage + 0.02, 0.04) * soft(0.72 - v, 0.2)
        behind = bands(v - 0.06 * a - 0.55 * a2 * a2, 0.42)
        front = bands(v + 0.62 * a - 0.1, 0.34) * np.clip(4.0 * (a - 0.28), 0.0, 1.0)
        rim = np.clip(1.0 - np.abs(self.from_cage) * np.float32(1.0 / 0.03), 0.0, 1.0)
        ribs = (behind + 0.55 * front + 0.5 * rim) * thorax

        s = (a - 0.42) * np.float32(1.0 / 0.36)
        course = -0.70 - 0.075 * s + 0.05 * s * s * s
        clavicle = soft(0.032 - np.abs(v - course), 0.02) * soft(0.36 - np.abs(a - 0.42), 0.06)
        phase = v * np.float32(1.0 / 0.13)
        discs = soft(np.float32(0.40) - np.abs(phase - np.floor(phase) - 0.5), 0.12)
        spine = soft(0.085 - a, 0.03) * (0.07 + 0.05 * discs)
        return bone * ribs + (bone * 1.5) * clavicle + spine

    def grey(self, left_effusion: bool) -> np.ndarray:
        """Grey levels before exposure of everything but thin lines, float32 [H, H]."""
        u, v, a = self.u, self.v, self.across
        shoulder = np.clip((v + 1.02) * np.float32(1.0 / 0.34), 0.0, 1.0)
        outline = 0.24 + 0.74 * shoulder * (2.0 - shoulder) - 0.05 * np.clip(v - 0.1, 0.0, 1.0)
        skin = soft(outline - a, 0.05)
        trachea = soft(0.045 - np.abs(u + 0.01), 0.03) * soft(-0.26 - v, 0.08)
        belly = soft(-self.above, 0.05) * soft(self.from_cage + 0.12, 0.2)
        bu = (u - 0.36) * np.float32(1.0 / 0.16)
        bv = (v - np.float32(self.body.dome + 0.22)) * np.float32(1.0 / 0.075)
        bubble = soft(1.0 - np.sqrt(bu * bu + bv * bv), 0.3)
        tissue = np.float32(self.body.tissue)
        grey = tissue - (tissue - _AIR) * self.air + 0.10 * self.heart + 0.06 * self.knob
        grey = grey + 0.13 * belly * (1.0 - 0.5 * self.heart)
        grey = grey + self.extra + self._bones() - 0.09 * trachea
        grey = grey - 0.28 * bubble * (1.0 - 0.8 * (0.5 if left_effusion else 0.0))
        return 0.03 + skin * (grey - 0.03)


def _add_lines(film_SS: np.ndarray, kind: str, pose: Pose, draws: Draws, difficulty: Difficulty) -> None:
    density = draws.uniform(*difficulty.device_density)
    du, dv = draws.around(0.03), draws.around(0.03)
    lines = []
    for (u, v), *middle, (u_end, v_end) in _LINES[kind]:
        if kind != "tubes":  # leads start at the box; tubes come in from outside the film
            u, v = u + du, v + dv
        if u_end > -0.1:  # a tip in the vena cava has no room to move sideways
            u_end = u_end + du
        lines.append(pose.pixels([(u, v), *middle, (u_end, v_end + dv)]))
    add_strokes(film_SS, lines, difficulty.device_line, density)


def phantom(seed: int, index: int, difficulty: Difficulty) -> tuple[np.ndarray, dict[str, Finding]]:
    """Draws one study.

    Returns the grey image, uint8 [320, 320], and the findings that are present, as by `draw_findings`.
    """
    findings = draw_findings(seed, index)
    body = _body(seed, patient_of(seed, index), difficulty.habitus)
    draws = Draws("drawing", seed, index)
    pose = Pose(
        math.radians(draws.around(difficulty.rotation)),
        1.0 + draws.around(difficulty.scale),
        draws.around(difficulty.shift),
        draws.around(difficulty.shift),
    )
    chest = _Chest(body, "Cardiomegaly" in findings, pose, draws, difficulty)
    free_air = findings.get("Pneumothorax", Finding()).side
    for side in ("left", "right"):
        chest.pleura(side, f"{side.title()} Pleural Effusion" in findings, free_air == side)
    if "Consolidation" in findings:
        chest.consolidation(findings["Consolidation"])
    if "Nodule" in findings:
        chest.nodule(findings["Nodule"])
    device = findings.get("Support Device", Finding()).kind
    if device in _BOXES:
        chest.box(device)
    film_SS = twice(chest.grey("Left Pleural Effusion" in findings))
    if device:
        _add_lines(film_SS, device, pose, draws, difficulty)
    return expose(film_SS, draws, difficulty), findings
