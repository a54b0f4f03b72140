"""What can be checked of a model folder after the fact."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import hybridclip_jax as hc
from converters import statistics, to_jax
from converters.layouts import LAYOUTS
from converters.statistics import STATISTICS, Statistics
from hybridclip_jax import modelfolder
from hybridclip_jax.data import pixels
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.errors import UserError
from hybridclip_jax.logs import table

# DINOv3 ViT-B/16 (LVD-1689M) of COCO val2017 000000039769, first values of the pooled output, as published in
# transformers' converter; bilinear to 224 px, so only to about 1e-3.
KNOWN_ARCH = "dinov3_vitb16"
KNOWN = (1.034643, -0.180609, -0.341018, -0.066376, -0.011383)
KNOWN_WITHIN = 1e-3


def verify(folder: Path, *, source: str | None = None, image: str | None = None) -> list[str]:
    """Lines of what holds. Raises UserError for the first thing that does not.

    source: what the folder was converted from, converted again in the same way and compared bit by bit.
    image: the picture of the published values of DINOv3 ViT-B/16.
    """
    params, card = modelfolder.load(folder)  # the card's shape, and the fingerprint over every byte
    said = [f"card and fingerprint: {modelfolder.stated_fingerprint(folder)}"]
    for name, value in params.items():
        if not np.isfinite(value).all():
            raise UserError(f"{folder}: {name} holds values that are not finite; convert or train it again")
    said.append(f"values: {sum(value.size for value in params.values()):,}, all finite")
    hc.load(folder)  # architecture and shapes, the tokenizer's own card
    said.append(f"architecture: {', '.join(f'{key} {value}' for key, value in card.architecture.items())}")
    if source is not None:
        said.append(_same_as(folder, params, card, source))
    if image is not None:
        said += _known_values(folder, card, Path(image))
    return said


def _same_as(folder: Path, params: dict[str, np.ndarray], card: modelfolder.Card, source: str) -> str:
    if "layout" not in card.source:
        raise UserError(f"{folder}: was not converted from a file; leave --source out")
    again = to_jax.convert(source, options_of(folder, card))
    for name in sorted(params.keys() | again.params.keys()):
        here, there = params.get(name), again.params.get(name)
        if here is None or there is None or not np.array_equal(here, there):
            raise UserError(f"{folder}: {name} is not what {source} gives; convert it again")
    return f"source: {source} gives every one of them again, to the last bit"


def options_of(folder: Path, card: modelfolder.Card) -> to_jax.Options:
    """The flags that made a converted folder. Raises UserError where its card does not tell them."""
    made = card.source
    try:
        norm = None
        if made["statistics_folded_from"]:
            seen = Statistics(tuple(card.preprocessing["mean"]), tuple(card.preprocessing["std"]))
            norm = next(name for name, known in STATISTICS.items() if statistics.same(known, seen))
        return to_jax.Options(
            layout=made["layout"] if made["layout"] in LAYOUTS else None,
            activation=made["activation"] if made["layout"] == "clip-openai" else None,
            statistics=made["statistics"] if made["statistics"] in STATISTICS else None,
            input_norm=norm,
            context=made.get("context"),
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise UserError(f"{folder}/{modelfolder.CARD}: damaged card: its source says too little ({error!r})") from error


def _known_values(folder: Path, card: modelfolder.Card, image: Path) -> list[str]:
    if card.architecture.get("image") != KNOWN_ARCH:
        raise UserError(f"{folder}: the published values are of {KNOWN_ARCH}; leave --image out")
    import PIL.Image

    try:
        picture = pixels.open_image(image)
    except RecordError as error:
        raise UserError(f"{image}: {error.reason}; name the picture 000000039769.jpg of COCO val2017") from error
    small = picture.convert("RGB").resize((224, 224), PIL.Image.Resampling.BILINEAR)
    values = np.asarray(small, np.float32) / 255
    mean, std = (np.asarray(card.preprocessing[key], np.float32) for key in ("mean", "std"))
    found = hc.load(folder, batch_size=1).image_features(((values - mean) / std)[None])[0, : len(KNOWN)]
    rows = [
        [place, f"{known:.6f}", f"{ours:.6f}", f"{abs(known - ours):.1e}"]
        for place, (known, ours) in enumerate(zip(KNOWN, found, strict=True))
    ]
    shown = table(["value", "published", "ours", "difference"], rows)
    if np.max(np.abs(found - np.array(KNOWN))) > KNOWN_WITHIN:
        print(shown)
        raise UserError(
            f"{folder}: its values are further than {KNOWN_WITHIN:g} from the published ones (listed above): other "
            f"weights than {KNOWN_ARCH}'s of LVD-1689M, trained on, or another picture"
        )
    return [shown, f"within {KNOWN_WITHIN:g} of the published values"]
