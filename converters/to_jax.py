"""From a published file to a model folder: every array used or left out for a reason, every parameter filled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from converters import published, sources, statistics
from converters.layouts import LAYOUTS, clip, detect
from converters.layouts.base import Plan
from converters.sources import Source
from converters.statistics import STATISTICS, Statistics
from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.data import pixels
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import table

PATCH_KERNEL, PATCH_BIAS = "image/patch_embed/kernel", "image/patch_embed/bias"
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """As the flags of `to-jax`; None where a flag was not given."""

    layout: str | None = None
    activation: str | None = None
    statistics: str | None = None
    input_norm: str | None = None
    colour: bool = False


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was made of a source: flat parameters, the card that travels with them, and what to tell the person."""

    params: dict[str, np.ndarray]
    card: modelfolder.Card
    notes: list[str]


def convert(src: str, options: Options) -> Converted:
    """Reads SRC into flat float32 parameters and a card. Raises UserError for all that is not as it should be."""
    source = sources.open_source(src)
    layout = options.layout or detect(source)
    try:
        plan = LAYOUTS[layout].plan(source)
    except KeyError as error:
        raise UserError(f"{src}: taken as {layout}, but it has no {error.args[0]}") from error
    activation = _activation(source, layout, options.activation)
    _check_coverage(source, plan, targets(plan))
    params = _read(source, plan, targets(plan))
    own, said_by = statistics.of(source, plan.trained_with, options.statistics)
    seen, folded = own, None
    if options.input_norm:
        params, seen = _fold(source, plan, params, own, STATISTICS[options.input_norm])
        folded = {"mean": list(own.mean), "std": list(own.std)}
    notes = [f"layout: {layout}, {LAYOUTS[layout].what}", f"statistics: {said_by}", *_counts(source, plan, params)]
    provenance = {
        "layout": layout,
        "files": {path.name: published.checked_sha256(path) for path in source.files},
        "activation": activation,
        "statistics": options.statistics,
        "statistics_folded_from": folded,
    }
    return Converted(params, _card(plan, params, provenance, seen, options.colour), notes)


def targets(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of every parameter and statistic that a folder of this plan holds."""
    spec = models.DualSpec(**plan.architecture)
    _, params, stats = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    held = modelfolder.TOWERS[plan.kind]
    return {name: leaf.shape for name, leaf in {**params, **stats}.items() if name.startswith(held)}


def _activation(source: Source, layout: str, asked: str | None) -> str:
    """Weights do not tell it: it is the config's word, the release's, or the person's."""
    if layout.startswith("dinov3-"):
        return "as published"
    known = source.part("text_config").get("hidden_act") or (clip.ACTIVATION if source.torchscript else asked)
    if known is None:
        raise UserError(
            f"{source.name}: nothing in it says which activation it was trained with; add --activation quick_gelu "
            "(OpenAI, CheXzero, PubMedCLIP, PLIP) or gelu (most of LAION's)"
        )
    if asked not in (None, known):
        raise UserError(f"{source.name}: its config says {known}, --activation says {asked}; leave the flag out")
    if known != clip.ACTIVATION:
        raise UserError(f"{source.name}: trained with {known}; these towers compute {clip.ACTIVATION} alone")
    return known


def _check_coverage(source: Source, plan: Plan, wanted: dict[str, tuple[int, ...]]) -> None:
    rows: list[list[object]] = []
    for item in plan.leaves:
        found = source.tensors[item.stored].shape if item.stored in source.tensors else "missing"
        expected = item.way.shape([wanted[name] for name in item.names])
        if found != expected:
            rows.append([item.stored, expected, found])
    known = {item.stored for item in plan.leaves} | plan.left_out.keys()
    rows += [[name, "nothing", source.tensors[name].shape] for name in sorted(source.tensors.keys() - known)]
    filled = {name for item in plan.leaves for name in item.names} | plan.zeros.keys()
    rows += [[name, wanted[name], "no source"] for name in sorted(wanted.keys() - filled)]
    if rows:
        more = f"\n... and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        print(table(["name", "expected", "found"], rows[:_SHOWN]) + more)
        raise UserError(
            f"{source.name}: {len(rows)} arrays are not what this layout needs (listed above); nothing was written"
        )


def _read(source: Source, plan: Plan, wanted: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    params = {name: np.zeros(wanted[name], np.float32) for name in plan.zeros}
    for item in plan.leaves:
        stored = source.tensors[item.stored].read().astype(np.float32)
        for name, part in zip(item.names, item.way.split(stored), strict=True):
            if not np.isfinite(part).all():
                raise UserError(f"{source.name}: {item.stored} holds values that are not finite; nothing was written")
            params[name] = np.asarray(part, order="C")  # ascontiguousarray would make a scalar a row
    return params


def _fold(
    source: Source, plan: Plan, params: dict[str, np.ndarray], own: Statistics, given: Statistics
) -> tuple[dict[str, np.ndarray], Statistics]:
    if PATCH_BIAS not in params:
        raise UserError(
            f"{source.name}: --input-norm needs a patch embedding with a bias to take it up, as DINOv3's; "
            f"{plan.architecture.get('image', 'a text tower')} has none"
        )
    if statistics.same(own, given):
        raise UserError(
            f"{source.name}: already takes images of that mean and std (trained with them, or folded before); "
            "leave --input-norm out"
        )
    kernel, bias = statistics.fold(params[PATCH_KERNEL], params[PATCH_BIAS], own, given)
    return {**params, PATCH_KERNEL: kernel, PATCH_BIAS: bias}, given


def _card(
    plan: Plan, params: dict[str, np.ndarray], provenance: dict[str, Any], seen: Statistics, colour: bool
) -> modelfolder.Card:
    preprocessing: dict[str, Any] = {}
    if plan.kind != "text":
        arch = models.IMAGE_ENCODERS[plan.architecture["image"]][1]
        preprocessing = {
            "image_size": getattr(arch, "image_size", 224),
            "mean": list(seen.mean),
            "std": list(seen.std),
            "resize": "bicubic",
            "scale": "uint8 / 255",
            "store": {"resize": "pad", "colour": colour, **pixels.RULES},
        }
    vocabulary = params["text/token_embedding"].shape[0] if plan.kind != "image" else 0
    return modelfolder.Card(
        kind=plan.kind,
        architecture=plan.architecture,
        preprocessing=preprocessing,
        tokenizer=Tokenizer(vocabulary).card() if vocabulary else {},
        source=provenance,
        licence=plan.licence,
    )


def _counts(source: Source, plan: Plan, params: dict[str, np.ndarray]) -> list[str]:
    left = {name: why for name, why in plan.left_out.items() if name in source.tensors}
    said = [f"{len(plan.leaves)} arrays -> {len(params)} parameters, {sum(p.size for p in params.values()):,} numbers"]
    for verb, why_by_name in (("left out", left), ("filled with zeros", plan.zeros)):
        for why in dict.fromkeys(why_by_name.values()):
            names = [name for name, reason in why_by_name.items() if reason == why]
            said.append(f"{verb}: {names[0]}{f' and {len(names) - 1} like it' if len(names) > 1 else ''} ({why})")
    return said


def write(converted: Converted, out: Path) -> str:
    """Writes the model folder; returns its fingerprint. Raises UserError where `out` exists."""
    if out.exists():
        raise UserError(f"{out}: exists already; name another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    return modelfolder.save(out, converted.params, converted.card)
