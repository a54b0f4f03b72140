"""From a published file to a model folder: every array used or left out for a reason, every parameter filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from converters import positions, published, sources, statistics
from converters.layouts import LAYOUTS, clip, detect
from converters.layouts.base import Plan
from converters.sources import Source
from converters.statistics import STATISTICS, Statistics
from converters.torch_zip import shown
from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.data import pixels
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import table

PATCH_KERNEL, PATCH_BIAS = "image/patch_embed/kernel", "image/patch_embed/bias"
POSITIONS = "text/pos_embedding"
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Options:
    """As the flags of `to-jax`; None where a flag was not given."""

    layout: str | None = None
    activation: str | None = None
    statistics: str | None = None
    input_norm: str | None = None
    context: int | None = None
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
    _check_flags(source, plan, options)
    activation = _activation(source, layout, options.activation)
    wanted = targets(plan.kind, plan.architecture)
    _check_coverage(source, plan, wanted)
    params = _read(source, plan, wanted)
    notes = [f"layout: {layout}, {LAYOUTS[layout].what}", *_counts(source, plan, params)]
    provenance: dict[str, Any] = {
        "layout": layout,
        "files": {path.name: published.checked_sha256(path) for path in source.files},
        "activation": activation,
        "statistics": options.statistics,
        "statistics_folded_from": None,
        "context": options.context,
        "position_stretch": None,
        "filled": {**dict.fromkeys(plan.zeros, "zeros"), **dict.fromkeys(plan.identities, "identity")},
    }
    preprocessing: dict[str, Any] = {}
    if plan.kind != "text":
        own, said_by = statistics.of(source, plan.trained_with, options.statistics)
        notes.append(f"statistics: {said_by}")
        if not options.input_norm and PATCH_BIAS in params and not statistics.same(own, STATISTICS["clip"]):
            notes.append("the recipe's statistics are CLIP's: --input-norm clip folds the difference in, exactly")
        if options.input_norm:
            params = _fold(source, plan, params, own, STATISTICS[options.input_norm])
            provenance["statistics_folded_from"] = {"mean": list(own.mean), "std": list(own.std)}
            own = STATISTICS[options.input_norm]
            notes.append(f"folded into the patch embedding: images of the statistics {options.input_norm} fit now")
        preprocessing = _preprocessing(plan, own, options.colour)
    if plan.kind != "image":
        params, provenance["position_stretch"], said = _stretch(source, params, options.context)
        notes.append(said)
    return Converted(params, _card(plan, params, provenance, preprocessing), notes)


def targets(kind: str, architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of every parameter and statistic that a folder of this kind and architecture holds."""
    spec = models.DualSpec(**architecture)
    if kind == "dual":
        return _shapes("", lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    # A tower by itself, as tracing the other would take seconds.
    table, name, sizes = {
        "image": (models.IMAGE_ENCODERS, spec.image, spec.image_arch),
        "text": (models.TEXT_ENCODERS, spec.text, spec.text_arch),
    }[kind]
    found = _shapes(f"{kind}/", lambda: table[name][0](sizes, models.Numerics(), nnx.Rngs(0)))
    projection = {"text_projection/kernel": (sizes.width, spec.embed_dim)} if kind == "text" else {}
    return {**found, **projection}


def _shapes(prefix: str, build: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    _, params, stats = state.abstract(build)
    return {f"{prefix}{name}": leaf.shape for name, leaf in {**params, **stats}.items()}


def _check_flags(source: Source, plan: Plan, options: Options) -> None:
    if options.context is not None:  # asked again by `stretch`, but after reading all arrays
        if plan.kind == "image":
            raise UserError(f"{source.name}: --context {options.context}: it has no text tower; leave the flag out")
        positions.check(plan.architecture["context"], options.context)
    about_pixels = {
        "--statistics": options.statistics,
        "--input-norm": options.input_norm,
        "--colour": options.colour,
    }
    for flag, given in about_pixels.items():
        if plan.kind == "text" and given:
            raise UserError(f"{source.name}: {flag} is about pixels and this is a text tower; leave the flag out")


def _activation(source: Source, layout: str, asked: str | None) -> str:
    """Weights do not tell it: it is the config's word, the release's, or the person's."""
    if layout.startswith("dinov3-"):
        return "as published"
    known = source.part("text_config").get("hidden_act")
    if known is None and (source.torchscript or _is_hub_clip(source)):
        known = clip.ACTIVATION
    known = asked if known is None else known
    if known is None:
        raise UserError(
            f"{source.name}: nothing in it says which activation it was trained with; add --activation quick_gelu if "
            "it is OpenAI's, CheXzero, PubMedCLIP, PLIP or Long-CLIP (most of LAION's have gelu, which is refused)"
        )
    if asked not in (None, known):
        raise UserError(f"{source.name}: its config says {known}, --activation says {asked}; leave the flag out")
    if known != clip.ACTIVATION:
        raise UserError(f"{source.name}: trained with {known}; these towers compute {clip.ACTIVATION} alone")
    return known


def _is_hub_clip(source: Source) -> bool:
    """Whether config.json is of transformers' CLIP, which leaves out what has its default: there, quick_gelu."""
    return str(source.part("text_config").get("model_type", source.config.get("model_type"))).startswith("clip")


def _check_coverage(source: Source, plan: Plan, wanted: dict[str, tuple[int, ...]]) -> None:
    rows: list[list[object]] = []
    for item in plan.leaves:
        found = source.tensors[item.stored].shape if item.stored in source.tensors else "missing"
        expected = item.way.shape([wanted[name] for name in item.names])
        if found != expected:
            rows.append([item.stored, expected, found])
    for name, (stored, _) in plan.tails.items():
        if source.tensors[stored].shape != wanted[name]:
            rows.append([stored, wanted[name], source.tensors[stored].shape])
    known = {item.stored for item in plan.leaves} | plan.left_out.keys() | {stored for stored, _ in plan.tails.values()}
    unknown = sorted(source.tensors.keys() - known)
    rows += [[shown(name), "nothing", source.tensors[name].shape] for name in unknown]
    filled = {name for item in plan.leaves for name in item.names} | plan.zeros.keys() | plan.identities.keys()
    rows += [[name, wanted[name], "no source"] for name in sorted(wanted.keys() - filled)]
    if rows:
        more = f"\n... and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        print(table(["name", "expected", "found"], rows[:_SHOWN]) + more)
        many = "1 array is" if len(rows) == 1 else f"{len(rows)} arrays are"
        raise UserError(f"{source.name}: {many} not what this layout needs (listed above); nothing was written")


def _read(source: Source, plan: Plan, wanted: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    params = {name: np.zeros(wanted[name], np.float32) for name in plan.zeros}
    params |= {name: np.eye(wanted[name][0], dtype=np.float32) for name in plan.identities}
    for item in plan.leaves:
        for name, part in zip(item.names, item.way.split(_floats(source, item.stored)), strict=True):
            params[name] = np.asarray(part, order="C")  # ascontiguousarray would make a scalar a row
    for name, (stored, start) in plan.tails.items():
        params[name] = np.concatenate([params[name][:start], _floats(source, stored)[start:]])
    return params


def _floats(source: Source, name: str) -> np.ndarray:
    """A stored array in float32. Raises UserError for whole numbers, and for values that are not finite."""
    if source.tensors[name].dtype not in sources.FLOATS:
        kind = source.tensors[name].dtype
        raise UserError(f"{source.name}: {name} is stored as {kind}; {sources.FLOATS_ONLY}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which the next line says
        found = source.tensors[name].read().astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"{source.name}: {name} holds values that are not finite; nothing was written")
    return found


def _fold(
    source: Source, plan: Plan, params: dict[str, np.ndarray], own: Statistics, given: Statistics
) -> dict[str, np.ndarray]:
    if PATCH_BIAS not in params:
        raise UserError(
            f"{source.name}: --input-norm needs a patch embedding with a bias to take it up, as DINOv3's; "
            f"{plan.architecture['image']} has none"
        )
    if statistics.same(own, given):
        raise UserError(
            f"{source.name}: already takes images of that mean and std (trained with them, or folded before); "
            "leave --input-norm out"
        )
    kernel, bias = statistics.fold(params[PATCH_KERNEL], params[PATCH_BIAS], own, given)
    return {**params, PATCH_KERNEL: kernel, PATCH_BIAS: bias}


def _stretch(
    source: Source, params: dict[str, np.ndarray], context: int | None
) -> tuple[dict[str, np.ndarray], Any, str]:
    """(parameters, what the card says of a stretch, what to tell the person)."""
    table = params[POSITIONS]
    earlier = source.part("text_config").get("position_stretch")  # to-hf writes it
    if context is None:
        said = f"context: {len(table)} tokens"
        if len(table) < positions.LONGEST and not earlier:
            said += (
                f"; train with --config.model.text.context={len(table)}, or convert with --context {positions.LONGEST}"
            )
        return params, earlier, said
    if earlier:
        raise UserError(
            f"{source.name}: its positions were stretched before, as its config.json says; stretch those of the "
            f"original to {context} instead, or leave --context out"
        )
    done = {"from": len(table), "to": context, "method": positions.METHOD}
    said = (
        f"context: {len(table)} tokens stretched to {context}, {positions.METHOD}: train before longer texts are used"
    )
    return {**params, POSITIONS: positions.stretch(table, context)}, done, said


def _preprocessing(plan: Plan, seen: Statistics, colour: bool) -> dict[str, Any]:
    arch = models.IMAGE_ENCODERS[plan.architecture["image"]][1]
    return {
        "image_size": getattr(arch, "image_size", 224),
        "mean": list(seen.mean),
        "std": list(seen.std),
        "resize": "bicubic",
        "scale": "uint8 / 255",
        "store": {"resize": "pad", "colour": colour, **pixels.RULES},
    }


def _card(
    plan: Plan, params: dict[str, np.ndarray], provenance: dict[str, Any], preprocessing: dict[str, Any]
) -> modelfolder.Card:
    has_text = plan.kind != "image"
    return modelfolder.Card(
        kind=plan.kind,
        architecture={**plan.architecture, **({"context": len(params[POSITIONS])} if has_text else {})},
        preprocessing=preprocessing,
        tokenizer=Tokenizer(params["text/token_embedding"].shape[0]).card() if has_text else {},
        source=provenance,
        licence=plan.licence,
    )


def _counts(source: Source, plan: Plan, params: dict[str, np.ndarray]) -> list[str]:
    left = {name: why for name, why in plan.left_out.items() if name in source.tensors}
    said = [f"{len(plan.leaves)} arrays -> {len(params)} parameters, {sum(p.size for p in params.values()):,} numbers"]
    by_verb = {"left out": left, "filled with zeros": plan.zeros, "filled with an identity matrix": plan.identities}
    for verb, why_by_name in by_verb.items():
        for why in dict.fromkeys(why_by_name.values()):
            names = [name for name, reason in why_by_name.items() if reason == why]
            said.append(f"{verb}: {names[0]}{f' and {len(names) - 1} like it' if len(names) > 1 else ''} ({why})")
    for name, (stored, start) in plan.tails.items():
        said.append(f"{name}: rows from {start} on are {stored}'s")
    return said


def write(converted: Converted, out: Path) -> str:
    """Writes the model folder; returns its fingerprint. `outputs.check` has been asked before."""
    return modelfolder.save(out, converted.params, converted.card)
