"""CLIP's layouts: OpenAI's (also CheXzero's, PubMedCLIP's and others') and Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.layouts.base import CONV, LINEAR, QKV, Leaf, Plan, leaf, linear, norm
from converters.sizes import count, match
from converters.sources import Source
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.clip_resnet import CLIP_RESNET_SIZES, ClipResNetConfig
from hybridclip_jax.models.clip_text import CLIP_TEXT_SIZES
from hybridclip_jax.models.clip_vit import CLIP_VIT_SIZES

LICENCE = "as its publisher states it (OpenAI's CLIP, CheXzero and PubMedCLIP: MIT)"
BUFFER = "a table of position numbers, 0, 1, 2, ..."
CONSTANT = "a number that the shapes tell too"
COUNTED = "batches seen in training, which running statistics do not need"
ACTIVATION = "quick_gelu"


def hub_text_leaves(prefix: str, depth: int) -> list[Leaf]:
    """Hugging Face's names of a text tower, without its projection."""
    found = [
        leaf(f"{prefix}embeddings.token_embedding.weight", "text/token_embedding"),
        leaf(f"{prefix}embeddings.position_embedding.weight", "text/pos_embedding"),
        *norm(f"{prefix}final_layer_norm", "text/norm"),
    ]
    return found + _hub_blocks(prefix, "text", depth)


def hub_vision_leaves(prefix: str, depth: int) -> list[Leaf]:
    """Hugging Face's names of CLIP's own image tower, without its projection. `pre_layrnorm` is their spelling."""
    found = [
        leaf(f"{prefix}embeddings.class_embedding", "image/class_embedding"),
        leaf(f"{prefix}embeddings.patch_embedding.weight", "image/patch_embed/kernel", CONV),
        leaf(f"{prefix}embeddings.position_embedding.weight", "image/pos_embedding"),
        *norm(f"{prefix}pre_layrnorm", "image/norm_pre"),
        *norm(f"{prefix}post_layernorm", "image/norm"),
    ]
    return found + _hub_blocks(prefix, "image", depth)


def _hub_blocks(prefix: str, tower: str, depth: int) -> list[Leaf]:
    found = []
    for i in range(depth):
        stored, name = f"{prefix}encoder.layers.{i}", f"{tower}/blocks/{i}"
        found += [*norm(f"{stored}.layer_norm1", f"{name}/norm1"), *norm(f"{stored}.layer_norm2", f"{name}/norm2")]
        for theirs, ours in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}.items():
            found += linear(f"{stored}.self_attn.{theirs}", f"{name}/attn/{ours}")
        for part in ("fc1", "fc2"):
            found += linear(f"{stored}.mlp.{part}", f"{name}/mlp/{part}")
    return found


def _openai_blocks(prefix: str, tower: str, depth: int) -> list[Leaf]:
    found = []
    for i in range(depth):
        stored, name = f"{prefix}resblocks.{i}", f"{tower}/blocks/{i}"
        found += [*norm(f"{stored}.ln_1", f"{name}/norm1"), *norm(f"{stored}.ln_2", f"{name}/norm2")]
        for theirs, ours in {"weight": "kernel", "bias": "bias"}.items():
            names = tuple(f"{name}/attn/{part}/{ours}" for part in "qkv")
            found.append(Leaf(f"{stored}.attn.in_proj_{theirs}", names, QKV))
        found += linear(f"{stored}.attn.out_proj", f"{name}/attn/out")
        found += linear(f"{stored}.mlp.c_fc", f"{name}/mlp/fc1") + linear(f"{stored}.mlp.c_proj", f"{name}/mlp/fc2")
    return found


def plan_hub(source: Source) -> Plan:
    """A whole CLIPModel (PLIP's too)."""
    keys = source.tensors
    image, arch = match(source, "CLIP image tower", CLIP_VIT_SIZES, _hub_vision_sizes(keys))
    source.agrees("hidden_act", ACTIVATION, "vision_config")
    source.agrees("num_attention_heads", arch.heads, "vision_config")
    text, spec = _hub_text(source, "text_model.")
    leaves = hub_vision_leaves("vision_model.", arch.depth) + hub_text_leaves("text_model.", spec["depth"])
    leaves += [leaf("visual_projection.weight", "image_projection/kernel", LINEAR)]
    leaves += [leaf("text_projection.weight", "text_projection/kernel", LINEAR), leaf("logit_scale", "logit_scale")]
    left_out = dict.fromkeys((f"{side}_model.embeddings.position_ids" for side in ("text", "vision")), BUFFER)
    return Plan("dual", {"image": image, **text}, leaves, left_out, licence=LICENCE)


def plan_hub_text(source: Source) -> Plan:
    """CLIPTextModelWithProjection, with or without the `text_model.` before its names."""
    prefix = "text_model." if "text_model.final_layer_norm.weight" in source.tensors else ""
    text, spec = _hub_text(source, prefix)
    leaves = [
        *hub_text_leaves(prefix, spec["depth"]),
        leaf("text_projection.weight", "text_projection/kernel", LINEAR),
    ]
    return Plan("text", text, leaves, {f"{prefix}embeddings.position_ids": BUFFER}, licence=LICENCE)


def _hub_text(source: Source, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = source.tensors
    if "text_projection.weight" not in keys:
        raise UserError(
            f"{source.name}: a CLIPTextModel without its projection, which the embedding needs; use the files of "
            "CLIPTextModelWithProjection or of the whole CLIPModel"
        )
    vocabulary, width = keys[f"{prefix}embeddings.token_embedding.weight"].shape
    found = {
        "width": width,
        "depth": count(keys, f"{prefix}encoder.layers."),
        "mlp_hidden": keys[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "vocab_size": vocabulary,
    }
    name, arch = match(source, "CLIP text tower", CLIP_TEXT_SIZES, found)
    source.agrees("hidden_act", ACTIVATION, "text_config")
    source.agrees("num_attention_heads", arch.heads, "text_config")
    source.agrees("layer_norm_eps", 1e-5, "text_config")
    end = source.part("text_config").get("eos_token_id", 2)
    if end not in (2, vocabulary - 1):  # configs of before 2023 say 2 and mean the largest id
        raise UserError(f"{source.name}: config.json says eos_token_id = {end}; CLIP ends a text with {vocabulary - 1}")
    context = keys[f"{prefix}embeddings.position_embedding.weight"].shape[0]
    return {"text": name, "context": context, "embed_dim": keys["text_projection.weight"].shape[0]}, found


def _hub_vision_sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = keys["vision_model.embeddings.patch_embedding.weight"].shape
    positions = keys["vision_model.embeddings.position_embedding.weight"].shape[0]
    return {
        "width": width,
        "depth": count(keys, "vision_model.encoder.layers."),
        "mlp_hidden": keys["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "patch": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
    }


def plan_openai(source: Source) -> Plan:
    """OpenAI's names: their own archives, CheXzero, PubMedCLIP and other state dicts; ViT or ModifiedResNet."""
    keys = source.tensors
    text, depth = _openai_text(source)
    image, leaves, left_out = _openai_vit(source) if "visual.proj" in keys else _openai_resnet(source)
    leaves += _openai_blocks("transformer.", "text", depth)
    leaves += [
        leaf("token_embedding.weight", "text/token_embedding"),
        leaf("positional_embedding", "text/pos_embedding"),
        *norm("ln_final", "text/norm"),
        leaf("text_projection", "text_projection/kernel"),
        leaf("logit_scale", "logit_scale"),
    ]
    left_out |= dict.fromkeys(("input_resolution", "context_length", "vocab_size"), CONSTANT)
    return Plan("dual", {"image": image, **text}, leaves, left_out, licence=LICENCE)


def _openai_text(source: Source) -> tuple[dict[str, Any], int]:
    keys = source.tensors
    vocabulary, width = keys["token_embedding.weight"].shape
    depth = count(keys, "transformer.resblocks.")
    found = {
        "width": width,
        "depth": depth,
        "mlp_hidden": keys["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "vocab_size": vocabulary,
    }
    name, _ = match(source, "CLIP text tower", CLIP_TEXT_SIZES, found)
    context = keys["positional_embedding"].shape[0]
    return {"text": name, "context": context, "embed_dim": keys["text_projection"].shape[1]}, depth


def _openai_vit(source: Source) -> tuple[str, list[Leaf], dict[str, str]]:
    keys = source.tensors
    width, _, patch, _ = keys["visual.conv1.weight"].shape
    depth = count(keys, "visual.transformer.resblocks.")
    found = {
        "width": width,
        "depth": depth,
        "mlp_hidden": keys["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "patch": patch,
        "image_size": round((keys["visual.positional_embedding"].shape[0] - 1) ** 0.5) * patch,
    }
    name, _ = match(source, "CLIP image tower", CLIP_VIT_SIZES, found)
    leaves = [
        leaf("visual.class_embedding", "image/class_embedding"),
        leaf("visual.positional_embedding", "image/pos_embedding"),
        leaf("visual.conv1.weight", "image/patch_embed/kernel", CONV),
        *norm("visual.ln_pre", "image/norm_pre"),
        *norm("visual.ln_post", "image/norm"),
        leaf("visual.proj", "image_projection/kernel"),
        *_openai_blocks("visual.transformer.", "image", depth),
    ]
    return name, leaves, {}


def _openai_resnet(source: Source) -> tuple[str, list[Leaf], dict[str, str]]:
    keys = source.tensors
    positions = keys["visual.attnpool.positional_embedding"].shape[0]
    found = {
        "width": keys["visual.layer1.0.conv1.weight"].shape[0],
        "depths": tuple(count(keys, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
        "image_size": round((positions - 1) ** 0.5) * 32,
    }
    name, arch = match(source, "CLIP ModifiedResNet", CLIP_RESNET_SIZES, found)
    leaves = _resnet_leaves(arch)
    norms = [item.stored.removesuffix(".running_mean") for item in leaves if item.stored.endswith(".running_mean")]
    return name, leaves, dict.fromkeys((f"{stored}.num_batches_tracked" for stored in norms), COUNTED)


def _batch_norm(stored: str, name: str) -> list[Leaf]:
    statistics = [leaf(f"{stored}.running_mean", f"{name}/mean"), leaf(f"{stored}.running_var", f"{name}/var")]
    return [*norm(stored, name), *statistics]


def _resnet_leaves(arch: ClipResNetConfig) -> list[Leaf]:
    found = [leaf("visual.attnpool.positional_embedding", "image/attn_pool/pos_embedding")]
    for part in "qkv":
        found += linear(f"visual.attnpool.{part}_proj", f"image/attn_pool/{part}")
    found += linear("visual.attnpool.c_proj", "image_projection")
    for n in (1, 2, 3):
        found += _normed_conv(f"visual.conv{n}", f"visual.bn{n}", f"image/stem/conv{n}", f"image/stem/norm{n}")
    for i, block in enumerate(arch.blocks()):
        stored, name = f"visual.layer{block.stage + 1}.{block.place}", f"image/blocks/{i}"
        for n in (1, 2, 3):
            found += _normed_conv(f"{stored}.conv{n}", f"{stored}.bn{n}", f"{name}/conv{n}", f"{name}/norm{n}")
        if block.downsamples:
            shortcut, ours = f"{stored}.downsample", f"{name}/downsample"
            found += _normed_conv(f"{shortcut}.0", f"{shortcut}.1", f"{ours}/conv", f"{ours}/norm")
    return found


def _normed_conv(conv: str, batch_norm: str, our_conv: str, our_norm: str) -> list[Leaf]:
    return [leaf(f"{conv}.weight", f"{our_conv}/kernel", CONV), *_batch_norm(batch_norm, our_norm)]
