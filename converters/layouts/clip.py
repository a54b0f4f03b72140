"""CLIP's layouts: OpenAI's (also CheXzero's, PubMedCLIP's and others') and Hugging Face's."""

from __future__ import annotations

from typing import Any

from converters.layouts.base import CONV, LINEAR, QKV, Leaf, Plan, leaf, linear, norm
from converters.sizes import count, match, side
from converters.sources import Source
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.clip_resnet import CLIP_RESNET_SIZES, ClipResNetConfig
from hybridclip_jax.models.clip_text import CLIP_TEXT_SIZES
from hybridclip_jax.models.clip_vit import CLIP_VIT_SIZES

LICENCE = "as its publisher states it (OpenAI's CLIP, CheXzero and PubMedCLIP: MIT)"
BUFFER = "a table of position numbers, 0, 1, 2, ..."
CONSTANT = "a number that the shapes tell too"
COUNTED = "batches seen in training, which running statistics do not need"
ACTIVATION, EPSILON = "quick_gelu", 1e-5
PROJECTION = "text_projection.weight"
# Long-CLIP keeps two tables of positions and adds the first rows of one to the later rows of the other.
LONG_TABLE, LONG_FROM = "positional_embedding_res", 20


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
    sizes = _hub_vision_sizes(source)
    image, arch = match(source, "CLIP image tower", CLIP_VIT_SIZES, sizes)
    stated = {"hidden_act": ACTIVATION, "num_attention_heads": arch.heads, "layer_norm_eps": EPSILON}
    for field, value in {**stated, "patch_size": arch.patch, "image_size": arch.image_size}.items():
        source.agrees(field, value, "vision_config")
    text, depth = _hub_text(source, "text_model.")
    leaves = hub_vision_leaves("vision_model.", arch.depth) + hub_text_leaves("text_model.", depth)
    leaves += [
        leaf("visual_projection.weight", "image_projection/kernel", LINEAR),
        leaf("text_projection.weight", "text_projection/kernel", LINEAR),
        leaf("logit_scale", "logit_scale"),
    ]
    left_out = dict.fromkeys((f"{part}_model.embeddings.position_ids" for part in ("text", "vision")), BUFFER)
    return Plan("dual", {"image": image, **text}, leaves, left_out, licence=LICENCE)


def plan_hub_text(source: Source) -> Plan:
    """CLIPTextModelWithProjection or CLIPTextModel, with or without the `text_model.` before its names."""
    prefix = "text_model." if "text_model.final_layer_norm.weight" in source.tensors else ""
    text, depth = _hub_text(source, prefix)
    leaves, identities = hub_text_leaves(prefix, depth), {}
    if PROJECTION in source.tensors:
        leaves.append(leaf(PROJECTION, "text_projection/kernel", LINEAR))
    elif "CLIPTextModelWithProjection" in str(source.config.get("architectures")):
        raise UserError(
            f"{source.name}: config.json says CLIPTextModelWithProjection, but {PROJECTION} is missing; fetch it anew"
        )
    else:
        identities = {"text_projection/kernel": "a CLIPTextModel has none: embeddings are the features themselves"}
    left_out = {f"{prefix}embeddings.position_ids": BUFFER}
    return Plan("text", text, leaves, left_out, identities=identities, licence=LICENCE)


def _hub_text(source: Source, prefix: str) -> tuple[dict[str, Any], int]:
    """(architecture, blocks). Without a projection the embedding has the tower's own width."""
    keys = source.tensors
    vocabulary, width = source.shape(f"{prefix}embeddings.token_embedding.weight", 2)
    found = {
        "width": width,
        "depth": count(keys, f"{prefix}encoder.layers."),
        "mlp_hidden": source.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)[0],
        "vocab_size": vocabulary,
    }
    name, arch = match(source, "CLIP text tower", CLIP_TEXT_SIZES, found)
    for field, value in {
        "hidden_act": ACTIVATION,
        "num_attention_heads": arch.heads,
        "layer_norm_eps": EPSILON,
    }.items():
        source.agrees(field, value, "text_config")
    end = source.part("text_config").get("eos_token_id", 2)
    if end not in (2, vocabulary - 1):  # configs of before 2023 say 2 and mean the largest id
        raise UserError(f"{source.name}: config.json says eos_token_id = {end}; CLIP ends a text with {vocabulary - 1}")
    context = source.shape(f"{prefix}embeddings.position_embedding.weight", 2)[0]
    embed_dim = source.shape(PROJECTION, 2)[0] if PROJECTION in keys else width
    return {"text": name, "context": context, "embed_dim": embed_dim}, arch.depth


def _hub_vision_sizes(source: Source) -> dict[str, Any]:
    width, _, patch, _ = source.shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions, _ = source.shape("vision_model.embeddings.position_embedding.weight", 2)
    return {
        "width": width,
        "depth": count(source.tensors, "vision_model.encoder.layers."),
        "mlp_hidden": source.shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "patch": patch,
        "image_size": side(positions) * patch,
    }


def plan_openai(source: Source) -> Plan:
    """OpenAI's names: their own archives, CheXzero, PubMedCLIP, Long-CLIP and others; ViT or ModifiedResNet."""
    text, depth = _openai_text(source)
    resnet = "visual.proj" not in source.tensors
    image, image_size, leaves, left_out = _openai_resnet(source) if resnet else _openai_vit(source)
    leaves += _openai_blocks("transformer.", "text", depth)
    leaves += [
        leaf("token_embedding.weight", "text/token_embedding"),
        leaf("positional_embedding", "text/pos_embedding"),
        *norm("ln_final", "text/norm"),
        leaf("text_projection", "text_projection/kernel"),
        leaf("logit_scale", "logit_scale"),
    ]
    vocabulary = CLIP_TEXT_SIZES[text["text"]].vocab_size
    stated = {"input_resolution": image_size, "context_length": text["context"], "vocab_size": vocabulary}
    for name, value in stated.items():
        _says(source, name, value)
    left_out |= dict.fromkeys(stated, CONSTANT)
    tails = {"text/pos_embedding": (LONG_TABLE, LONG_FROM)} if LONG_TABLE in source.tensors else {}
    return Plan("dual", {"image": image, **text}, leaves, left_out, tails=tails, licence=LICENCE)


def _says(source: Source, name: str, value: int) -> None:
    """OpenAI's archives hold three sizes as numbers. Raises UserError where one is not what the arrays tell."""
    stored = source.tensors.get(name)
    found = value if stored is None else stored.read().item() if stored.shape == () else stored.shape
    if found != value:
        raise UserError(f"{source.name}: {name} is {found}, but its arrays are for {value}")


def _openai_text(source: Source) -> tuple[dict[str, Any], int]:
    vocabulary, width = source.shape("token_embedding.weight", 2)
    depth = count(source.tensors, "transformer.resblocks.")
    found = {
        "width": width,
        "depth": depth,
        "mlp_hidden": source.shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "vocab_size": vocabulary,
    }
    name, _ = match(source, "CLIP text tower", CLIP_TEXT_SIZES, found)
    context, embed_dim = source.shape("positional_embedding", 2)[0], source.shape("text_projection", 2)[1]
    return {"text": name, "context": context, "embed_dim": embed_dim}, depth


def _openai_vit(source: Source) -> tuple[str, int, list[Leaf], dict[str, str]]:
    """(name, image size, leaves, stored arrays left out)."""
    width, _, patch, _ = source.shape("visual.conv1.weight", 4)
    depth = count(source.tensors, "visual.transformer.resblocks.")
    image_size = side(source.shape("visual.positional_embedding", 2)[0]) * patch
    found = {
        "width": width,
        "depth": depth,
        "mlp_hidden": source.shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "patch": patch,
        "image_size": image_size,
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
    return name, image_size, leaves, {}


def _openai_resnet(source: Source) -> tuple[str, int, list[Leaf], dict[str, str]]:
    image_size = side(source.shape("visual.attnpool.positional_embedding", 2)[0]) * 32
    found = {
        "width": source.shape("visual.layer1.0.conv1.weight", 4)[0],
        "depths": tuple(count(source.tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
        "image_size": image_size,
    }
    name, arch = match(source, "CLIP ModifiedResNet", CLIP_RESNET_SIZES, found)
    leaves = _resnet_leaves(arch)
    norms = [item.stored.removesuffix(".running_mean") for item in leaves if item.stored.endswith(".running_mean")]
    return name, image_size, leaves, dict.fromkeys((f"{stored}.num_batches_tracked" for stored in norms), COUNTED)


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
