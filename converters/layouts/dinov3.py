"""DINOv3's three published layouts: Hugging Face's, Meta's own and timm's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from converters.layouts.base import CONV, QKV, QV_BIAS, Leaf, Plan, leaf, linear, norm
from converters.sizes import count, match
from converters.sources import Source
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.dinov3 import DINOV3_SIZES, DinoV3Config

LICENCE = (
    "DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license), which follows the weights"
)
MASK_TOKEN = "stands for hidden patches in pre-training; no image is encoded with it"
PERIODS = "the rotary periods, computed from their formula in float32 instead"
LOCAL_NORM = "the second norm for local crops in pre-training"


def hub_leaves(prefix: str, arch: DinoV3Config, blocks: str | None = None) -> list[Leaf]:
    """Hugging Face's names for a tower of these sizes; `blocks` where those of its blocks begin otherwise."""
    found = [
        leaf(f"{prefix}embeddings.cls_token", "image/cls_token"),
        leaf(f"{prefix}embeddings.register_tokens", "image/register_tokens"),
        leaf(f"{prefix}embeddings.patch_embeddings.weight", "image/patch_embed/kernel", CONV),
        leaf(f"{prefix}embeddings.patch_embeddings.bias", "image/patch_embed/bias"),
        *norm(f"{prefix}norm", "image/norm"),
    ]
    mlp = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"} if arch.gated else None
    for i in range(arch.depth):
        stored, name = f"{prefix if blocks is None else blocks}layer.{i}", f"image/blocks/{i}"
        found += [*norm(f"{stored}.norm1", f"{name}/norm1"), *norm(f"{stored}.norm2", f"{name}/norm2")]
        for part, bias in {"q": arch.qv_bias, "k": False, "v": arch.qv_bias}.items():
            found += linear(f"{stored}.attention.{part}_proj", f"{name}/attn/{part}", bias=bias)
        found += linear(f"{stored}.attention.o_proj", f"{name}/attn/out")
        found += [leaf(f"{stored}.layer_scale{n}.lambda1", f"{name}/ls{n}") for n in (1, 2)]
        for theirs, ours in (mlp or {"up_proj": "fc1", "down_proj": "fc2"}).items():
            found += linear(f"{stored}.mlp.{theirs}", f"{name}/mlp/{ours}")
    return found


def _fused_leaves(arch: DinoV3Config, names: Mapping[str, str], mlp: Mapping[str, str]) -> list[Leaf]:
    """What Meta's and timm's names share: queries, keys and values in one array."""
    found = [
        leaf("cls_token", "image/cls_token"),
        leaf(names["registers"], "image/register_tokens"),
        leaf("patch_embed.proj.weight", "image/patch_embed/kernel", CONV),
        leaf("patch_embed.proj.bias", "image/patch_embed/bias"),
        *norm("norm", "image/norm"),
    ]
    for i in range(arch.depth):
        stored, name = f"blocks.{i}", f"image/blocks/{i}"
        found += [*norm(f"{stored}.norm1", f"{name}/norm1"), *norm(f"{stored}.norm2", f"{name}/norm2")]
        found.append(Leaf(f"{stored}.attn.qkv.weight", tuple(f"{name}/attn/{part}/kernel" for part in "qkv"), QKV))
        found += linear(f"{stored}.attn.proj", f"{name}/attn/out")
        found += [leaf(f"{stored}.{names['scale'].format(n=n)}", f"{name}/ls{n}") for n in (1, 2)]
        for theirs, ours in mlp.items():
            found += linear(f"{stored}.mlp.{theirs}", f"{name}/mlp/{ours}")
    return found


def _qv_bias_names(i: int) -> tuple[str, str]:
    return f"image/blocks/{i}/attn/q/bias", f"image/blocks/{i}/attn/v/bias"


def _size(source: Source, found: dict[str, Any]) -> tuple[str, DinoV3Config]:
    return match(source, "DINOv3", DINOV3_SIZES, found)


def plan_hub(source: Source) -> Plan:
    """Files of `DINOv3ViTModel`, on disk (`layer.0...`) or saved from memory (`model.layer.0...`)."""
    keys = source.tensors
    prefix, blocks = (_before(keys, name) for name in ("embeddings.cls_token", "layer.0.norm1.weight"))
    if any(".attention.query." in name or "patch_embeddings.proj." in name for name in keys):
        raise UserError(
            f"{source.name}: names as of before the release of DINOv3 in transformers; download the files anew"
        )
    if prefix is None or blocks is None:
        raise KeyError("embeddings.cls_token" if prefix is None else "layer.0.norm1.weight")
    first = f"{blocks}layer.0"
    (width,), (hidden, _) = source.shape(f"{prefix}norm.weight", 1), source.shape(f"{first}.mlp.up_proj.weight", 2)
    name, arch = _size(
        source,
        {
            "width": width,
            "depth": count(keys, f"{blocks}layer."),
            "mlp_hidden": hidden,
            "patch": source.shape(f"{prefix}embeddings.patch_embeddings.weight", 4)[-1],
            "registers": source.shape(f"{prefix}embeddings.register_tokens", 3)[1],
            "gated": f"{first}.mlp.gate_proj.weight" in keys,
            "qv_bias": f"{first}.attention.q_proj.bias" in keys,
        },
    )
    source.agrees("num_attention_heads", arch.heads)
    source.agrees("hidden_act", "silu" if arch.gated else "gelu")
    source.agrees("layer_norm_eps", 1e-5)
    source.agrees("rope_theta", arch.rope_base)
    return _plan(name, hub_leaves(prefix, arch, blocks), {f"{prefix}embeddings.mask_token": MASK_TOKEN})


def _before(names: Iterable[str], ending: str) -> str | None:
    """What stands before `ending` in the one name that ends so; None where there is none."""
    return next((name.removesuffix(ending) for name in names if name == ending or name.endswith(f".{ending}")), None)


def plan_meta(source: Source) -> Plan:
    """Meta's own files (`storage_tokens`, fused queries, keys and values with a `bias_mask`)."""
    keys = source.tensors
    gated = "blocks.0.mlp.w1.weight" in keys
    mlp = {"w1": "gate", "w2": "up", "w3": "down"} if gated else {"fc1": "fc1", "fc2": "fc2"}
    biased = "blocks.0.attn.qkv.bias" in keys
    found = _fused_sizes(source, "storage_tokens", "w1" if gated else "fc1", gated)
    name, arch = _size(source, found | {"qv_bias": biased})
    leaves = _fused_leaves(arch, {"registers": "storage_tokens", "scale": "ls{n}.gamma"}, mlp)
    left_out = {"mask_token": MASK_TOKEN, "rope_embed.periods": PERIODS}
    left_out |= {f"local_cls_norm.{part}": LOCAL_NORM for part in ("weight", "bias")}
    for i in range(arch.depth if biased else 0):
        leaves.append(Leaf(f"blocks.{i}.attn.qkv.bias", _qv_bias_names(i), QV_BIAS))
        left_out[f"blocks.{i}.attn.qkv.bias_mask"] = "puts out the key bias, which no parameter here holds"
    return _plan(name, leaves, left_out)


def plan_timm(source: Source) -> Plan:
    """timm's files; those without query and value biases had zeros there."""
    keys = source.tensors
    gated = "blocks.0.mlp.fc1_g.weight" in keys
    mlp = {"fc1_g": "gate", "fc1_x": "up", "fc2": "down"} if gated else {"fc1": "fc1", "fc2": "fc2"}
    found = _fused_sizes(source, "reg_token", "fc1_g" if gated else "fc1", gated)
    biased = "blocks.0.attn.q_bias" in keys
    name, arch = _size(source, found | ({"qv_bias": True} if biased else {}))
    leaves = _fused_leaves(arch, {"registers": "reg_token", "scale": "gamma_{n}"}, mlp)
    zeros: dict[str, str] = {}
    for i in range(arch.depth):
        query, value = _qv_bias_names(i)
        if biased:
            leaves += [leaf(f"blocks.{i}.attn.q_bias", query), leaf(f"blocks.{i}.attn.v_bias", value)]
        elif arch.qv_bias:
            zeros |= dict.fromkeys((query, value), "timm leaves out biases that are all zero")
    return _plan(name, leaves, {}, zeros)


def _fused_sizes(source: Source, registers: str, hidden: str, gated: bool) -> dict[str, Any]:
    return {
        "width": source.shape("norm.weight", 1)[0],
        "depth": count(source.tensors, "blocks."),
        "mlp_hidden": source.shape(f"blocks.0.mlp.{hidden}.weight", 2)[0],
        "patch": source.shape("patch_embed.proj.weight", 4)[-1],
        "registers": source.shape(registers, 3)[1],
        "gated": gated,
    }


def _plan(name: str, leaves: list[Leaf], left_out: Mapping[str, str], zeros: Mapping[str, str] | None = None) -> Plan:
    return Plan("image", {"image": name}, leaves, left_out, zeros or {}, trained_with="imagenet", licence=LICENCE)
