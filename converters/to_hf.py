"""From a model folder to a folder that Hugging Face's transformers loads strictly, with its text and image rules."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from converters import outputs, to_jax
from converters.layouts import clip, dinov3
from converters.layouts.base import LINEAR, Leaf, leaf
from hybridclip_jax import modelfolder, models
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import StorageError, UserError
from hybridclip_jax.models.clip_vit import ClipVitConfig
from hybridclip_jax.models.dinov3 import DinoV3Config

PROJECTIONS = [
    leaf("visual_projection.weight", "image_projection/kernel", LINEAR),
    leaf("text_projection.weight", "text_projection/kernel", LINEAR),
    leaf("logit_scale", "logit_scale"),
]
BICUBIC = 3  # PIL's number of it, which preprocessor files hold


@dataclasses.dataclass(frozen=True)
class Export:
    """What transformers calls the model, its config, and where each stored array comes from."""

    model_class: str
    config: dict[str, Any]
    leaves: list[Leaf]
    zeros: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def export(folder: Path, out: Path) -> str:
    """Writes `out` from a model folder; returns the name of the class that loads it.

    Raises UserError where `out` exists, the folder is damaged, or transformers has no such model, and StorageError
    where the disk refuses; nothing is left then.
    """
    outputs.check(out, folder)
    params, card = modelfolder.load(folder)
    made, settings = _checked_export(folder, card, params)
    arrays = {item.stored: item.way.join([params[name] for name in item.names]) for item in made.leaves}
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in made.zeros.items()}
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a kill left of an earlier attempt
        partial.mkdir(parents=True)
        held = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(held, partial / "model.safetensors", metadata={"format": "pt"})
        for name, text in settings.items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"{out}: the folder could not be written: {error}") from error
    return made.model_class


def _checked_export(
    folder: Path, card: modelfolder.Card, params: Mapping[str, np.ndarray]
) -> tuple[Export, dict[str, str]]:
    """(what to write of the arrays, the other files by name).

    Raises UserError where the card is not of these parameters: what is written would not load, or compute else."""
    for which, known in (("image", models.IMAGE_ENCODERS), ("text", models.TEXT_ENCODERS)):
        if card.architecture.get(which) not in (None, *known):
            raise UserError(f"{folder}: unknown {which} architecture {card.architecture[which]!r}")
    try:
        wanted = to_jax.targets(card.kind, card.architecture)
        made = _export(folder, card)
        for name in sorted(wanted.keys() | params.keys()):
            have = params[name].shape if name in params else "nothing"
            if have != wanted.get(name, "nothing"):
                need = wanted.get(name, "nothing")
                raise UserError(f"{folder}: {name} is {have} in the folder and {need} in the architecture")
        return made, _settings(made, card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}/{modelfolder.CARD}: damaged card: {error}") from error


def _settings(made: Export, card: modelfolder.Card) -> dict[str, str]:
    found = {"config.json": _json(made.config), "README.md": _model_card(made, card)}
    if card.kind != "image":
        found |= _tokenizer_files(Tokenizer(card.tokenizer["vocab_size"]), card.architecture["context"])
    if card.kind != "text":
        found["preprocessor_config.json"] = _json(_preprocessor(card.preprocessing))
    return found


def _export(folder: Path, card: modelfolder.Card) -> Export:
    image = card.architecture.get("image")
    sizes = models.IMAGE_ENCODERS[image][1] if image else None
    if card.kind == "text":
        config, leaves = _text(card)
        named = [*leaves, PROJECTIONS[1]]
        return Export("CLIPTextModelWithProjection", _named(config, "CLIPTextModelWithProjection"), named)
    if isinstance(sizes, DinoV3Config):
        return _dinov3(sizes) if card.kind == "image" else _hybrid(sizes, card)
    if isinstance(sizes, ClipVitConfig) and card.kind == "dual":
        return _clip(sizes, card)
    raise UserError(
        f"{folder}: transformers has no model for {image} as a {card.kind} folder; it stays with this package"
    )


def _dinov3(sizes: DinoV3Config, prefix: str = "") -> Export:
    from transformers import DINOv3ViTConfig  # its configs need no torch

    config = DINOv3ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_hidden,
        patch_size=sizes.patch,
        num_register_tokens=sizes.registers,
        use_gated_mlp=sizes.gated,
        hidden_act="silu" if sizes.gated else "gelu",
        query_bias=sizes.qv_bias,
        value_bias=sizes.qv_bias,
        rope_theta=sizes.rope_base,
        pos_embed_rescale=None,  # random positions under .train(): not what this tower was trained with here
    )
    zeros = {f"{prefix}embeddings.mask_token": (1, 1, sizes.width)}
    return Export(
        "DINOv3ViTModel",
        _named(config.to_dict(), "DINOv3ViTModel"),
        dinov3.hub_leaves(prefix, sizes),
        zeros,
    )


def _text(card: modelfolder.Card) -> tuple[dict[str, Any], list[Leaf]]:
    from transformers import CLIPTextConfig

    sizes = models.TEXT_ENCODERS[card.architecture["text"]][1]
    config = CLIPTextConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_hidden,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        max_position_embeddings=card.architecture["context"],
        projection_dim=card.architecture["embed_dim"],
        hidden_act=clip.ACTIVATION,
        bos_token_id=sizes.vocab_size - 2,
        eos_token_id=sizes.end_token,
        pad_token_id=sizes.end_token,
    )
    stretched = card.source.get("position_stretch")  # travels along, so that no one stretches twice unawares
    told = config.to_dict() | ({"position_stretch": stretched} if stretched else {})
    return told, clip.hub_text_leaves("text_model.", sizes.depth)


def _hybrid(sizes: DinoV3Config, card: modelfolder.Card) -> Export:
    tower, (text, leaves) = _dinov3(sizes, "vision_model."), _text(card)
    config = {
        "model_type": "vision-text-dual-encoder",
        "projection_dim": card.architecture["embed_dim"],
        "vision_config": tower.config,
        "text_config": text,
    }
    name = "VisionTextDualEncoderModel"
    return Export(name, _named(config, name), [*tower.leaves, *leaves, *PROJECTIONS], tower.zeros)


def _clip(sizes: ClipVitConfig, card: modelfolder.Card) -> Export:
    from transformers import CLIPVisionConfig

    text, leaves = _text(card)
    vision = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_hidden,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        projection_dim=card.architecture["embed_dim"],
        hidden_act=clip.ACTIVATION,
    )
    config = {
        "model_type": "clip",
        "projection_dim": card.architecture["embed_dim"],
        "vision_config": vision.to_dict(),
        "text_config": text,
    }
    vision_leaves = clip.hub_vision_leaves("vision_model.", sizes.depth)
    return Export("CLIPModel", _named(config, "CLIPModel"), [*vision_leaves, *leaves, *PROJECTIONS])


def _named(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**config, "architectures": [name], "dtype": "float32"}


def _preprocessor(card: Mapping[str, Any]) -> dict[str, Any]:
    """In CLIPImageProcessor's form, as DINOv3's own needs torchvision."""
    size = {"height": card["image_size"], "width": card["image_size"]}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": BICUBIC,
        "do_center_crop": False,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card["mean"]),
        "image_std": list(card["std"]),
    }


def _tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, str]:
    ids, merges = tokenizer.vocabulary()
    start, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context, "do_lower_case": True, **special}
    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{line}\n" for line in merges),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }


def _json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def _model_card(made: Export, card: modelfolder.Card) -> str:
    lines = [
        f"# {made.model_class} from hybridclip_jax",
        "",
        *(["**Trained on synthetic phantoms: no use on patients.**", ""] if card.synthetic else []),
        f"Load with `transformers.{made.model_class}.from_pretrained(folder)`.",
        "",
        f"Licence: {card.licence}.",
    ]
    if card.kind != "text":
        prepared = card.preprocessing
        lines += [
            "",
            f"Images: padded with zeros to a square, resized to {prepared['image_size']} px by antialiased bicubic,",
            f"/ 255, mean {prepared['mean']}, std {prepared['std']}, grey repeated in three channels.",
            "`preprocessor_config.json` does all but the padding.",
        ]
    if card.kind != "image":
        lines += [
            "",
            f"Texts: at most {card.architecture['context']} tokens. Repair and unescape them first as CLIP did "
            "(`ftfy.fix_text`, `html.unescape` twice): transformers' tokenizer does not, and differs on such texts.",
        ]
        stretched = card.source.get("position_stretch")
        if stretched:
            lines += ["", f"Positions: stretched from {stretched['from']} to {stretched['to']}, {stretched['method']}."]
    return "\n".join(lines) + "\n"
