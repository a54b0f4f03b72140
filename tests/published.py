"""Files as the owners of published weights write them, from torch models with random weights.

Names are written out here from the layouts' descriptions, not taken from the converters, so each checks the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

DINO = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
VOCABULARY, EMBED = 600, 64  # square projections: a wrong transpose keeps the shape


def randomise(model: torch.nn.Module, seed: int = 0) -> Any:
    """Nothing stays at 0 or 1: norms, biases, LayerScale and tokens are drawn too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.1 * noise)
            elif "layer_scale" in name:
                value.copy_(1 + 0.2 * noise)
            elif name == "logit_scale":
                value.fill_(3.0)
            else:
                value.copy_(0.08 * noise)
    return model.eval()


def dinov3(*, gated: bool = False, biased: bool = True, **sizes: int) -> transformers.DINOv3ViTModel:
    config = transformers.DINOv3ViTConfig(
        **{**DINO, **sizes},
        patch_size=16,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        query_bias=biased,
        value_bias=biased,
        attn_implementation="eager",
    )
    return randomise(transformers.DINOv3ViTModel(config))


def text_config(context: int = 24, **sizes: int) -> transformers.CLIPTextConfig:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    shape |= {"vocab_size": VOCABULARY, "projection_dim": EMBED, **sizes}
    end = shape["vocab_size"] - 1
    return transformers.CLIPTextConfig(
        **shape,
        max_position_embeddings=context,
        eos_token_id=end,
        bos_token_id=end - 1,
        pad_token_id=end,
    )


def clip(context: int = 24) -> transformers.CLIPModel:
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    vision |= {"patch_size": 16, "image_size": 48, "projection_dim": EMBED}
    text = text_config(context).to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED)
    config._attn_implementation = "eager"
    return randomise(transformers.CLIPModel(config))


def dinov3_meta(model: transformers.DINOv3ViTModel) -> dict[str, torch.Tensor]:
    """Meta's names; junk where a key bias would be, which their mask puts out."""
    theirs = _fused(model)
    depth, width = model.config.num_hidden_layers, model.config.hidden_size
    found = {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.rand(8)}
    names = {"gate": "w1", "up": "w2", "down": "w3"} if model.config.use_gated_mlp else {"up": "fc1", "down": "fc2"}
    words = {"registers": "storage_tokens", ".scale1": ".ls1.gamma", ".scale2": ".ls2.gamma"}
    found |= _renamed(theirs, words, names)
    if model.config.query_bias:
        for i in range(depth):
            attention = model.model.layer[i].attention
            junk = torch.full((width,), 7.0)
            biases = [attention.q_proj.bias, junk, attention.v_proj.bias]
            found[f"blocks.{i}.attn.qkv.bias"] = torch.cat(biases).detach()
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            found[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return found


def dinov3_timm(model: transformers.DINOv3ViTModel) -> dict[str, torch.Tensor]:
    gated = {"gate": "fc1_g", "up": "fc1_x", "down": "fc2"}
    names = gated if model.config.use_gated_mlp else {"up": "fc1", "down": "fc2"}
    words = {"registers": "reg_token", ".scale1": ".gamma_1", ".scale2": ".gamma_2"}
    found = _renamed(_fused(model), words, names)
    if model.config.query_bias:
        for i in range(model.config.num_hidden_layers):
            attention = model.model.layer[i].attention
            found[f"blocks.{i}.attn.q_bias"] = attention.q_proj.bias.detach()
            found[f"blocks.{i}.attn.v_bias"] = attention.v_proj.bias.detach()
    return found


def _renamed(state: dict[str, torch.Tensor], words: dict[str, str], mlp: dict[str, str]) -> dict[str, torch.Tensor]:
    found = {}
    for old, value in state.items():
        name = old
        for theirs, new in (words | {f".mlp.{part}.": f".mlp.{new}." for part, new in mlp.items()}).items():
            name = name.replace(theirs, new)
        found[name] = value
    return found


def _fused(model: transformers.DINOv3ViTModel) -> dict[str, torch.Tensor]:
    source = model.state_dict()
    found = {
        "cls_token": source["embeddings.cls_token"],
        "registers": source["embeddings.register_tokens"],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.bias"],
        "norm.weight": source["norm.weight"],
        "norm.bias": source["norm.bias"],
    }
    for i in range(model.config.num_hidden_layers):
        theirs, ours = f"model.layer.{i}", f"blocks.{i}"
        rows = [source[f"{theirs}.attention.{part}_proj.weight"] for part in "qkv"]
        found[f"{ours}.attn.qkv.weight"] = torch.cat(rows)
        for part in ("weight", "bias"):
            found[f"{ours}.attn.proj.{part}"] = source[f"{theirs}.attention.o_proj.{part}"]
            for n in (1, 2):
                found[f"{ours}.norm{n}.{part}"] = source[f"{theirs}.norm{n}.{part}"]
            for mlp in ("gate", "up", "down") if model.config.use_gated_mlp else ("up", "down"):
                found[f"{ours}.mlp.{mlp}.{part}"] = source[f"{theirs}.mlp.{mlp}_proj.{part}"]
        for n in (1, 2):
            found[f"{ours}.scale{n}"] = source[f"{theirs}.layer_scale{n}.lambda1"]
    return found


def openai(model: transformers.CLIPModel) -> dict[str, torch.Tensor]:
    """OpenAI's names; linear layers in float16 like theirs. `model` is rounded alike."""
    source = model.state_dict()
    found = {
        "positional_embedding": source["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": source["text_model.embeddings.token_embedding.weight"],
        "text_projection": source["text_projection.weight"].T,
        "logit_scale": source["logit_scale"],
        "visual.class_embedding": source["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": source["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": source["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": source["visual_projection.weight"].T,
    }
    for part in ("weight", "bias"):
        found[f"ln_final.{part}"] = source[f"text_model.final_layer_norm.{part}"]
        found[f"visual.ln_pre.{part}"] = source[f"vision_model.pre_layrnorm.{part}"]
        found[f"visual.ln_post.{part}"] = source[f"vision_model.post_layernorm.{part}"]
        for side, prefix in (("text", "transformer"), ("vision", "visual.transformer")):
            for i in range(getattr(model.config, f"{side}_config").num_hidden_layers):
                theirs, ours = f"{side}_model.encoder.layers.{i}", f"{prefix}.resblocks.{i}"
                rows = [source[f"{theirs}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                found[f"{ours}.attn.in_proj_{part}"] = torch.cat(rows)
                found[f"{ours}.attn.out_proj.{part}"] = source[f"{theirs}.self_attn.out_proj.{part}"]
                found[f"{ours}.mlp.c_fc.{part}"] = source[f"{theirs}.mlp.fc1.{part}"]
                found[f"{ours}.mlp.c_proj.{part}"] = source[f"{theirs}.mlp.fc2.{part}"]
                for n in (1, 2):
                    found[f"{ours}.ln_{n}.{part}"] = source[f"{theirs}.layer_norm{n}.{part}"]
    return found


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Linear layers, convolutions and projections in float16, as OpenAI's convert_weights leaves them."""
    half = ("in_proj_weight", "in_proj_bias", "out_proj", "c_fc", "c_proj", "conv1", "text_projection", "visual.proj")
    return {name: value.half() if any(part in name for part in half) else value for name, value in state.items()}


class _Named(torch.nn.Module):
    """Parameters of given dotted names, in modules of modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def as_module(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    root = _Named()
    for name, value in state.items():
        module: torch.nn.Module = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, _Named())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(value.clone(), requires_grad=False))
    return root


def torchscript(state: dict[str, torch.Tensor], path: Path) -> Path:
    """An archive like OpenAI's, with its three constants beside the weights."""
    module = as_module(state)
    for name, value in (("input_resolution", 48), ("context_length", 24), ("vocab_size", VOCABULARY)):
        module.register_buffer(name, torch.tensor(value))
    torch.jit.trace(module, torch.zeros(1)).save(str(path))
    return path


def safetensors(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in state.items()}, str(path))
    return path
