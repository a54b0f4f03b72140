"""DINOv3 and CLIP's text tower against Hugging Face's torch models, block by block; mistakes that must not pass."""

# B batch, H W image sides, T tokens, L all tokens of an image, D width

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from parity import (
    TOLERANCE,
    Flat,
    arrays,
    clip_blocks,
    conv,
    count,
    double,
    fresh,
    images,
    linear,
    mild_std,
    norm,
    randomise,
    towers,
    worst,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, DINOv3ViTConfig, DINOv3ViTModel

from hybridclip_jax import models, state
from hybridclip_jax.models import ClipTextConfig, DinoV3Config, dinov3, layers
from hybridclip_jax.models.clip_text import CLIP_TEXT_SIZES, ClipText
from hybridclip_jax.models.dinov3 import DINOV3_SIZES, DinoV3

DINO = DinoV3Config(width=64, depth=2, heads=2, mlp_hidden=128)
DOUBLE = 1e-7
TEXT = ClipTextConfig(width=64, depth=2, heads=2, mlp_hidden=256, context=24, vocab_size=600)
CASES = [("plain", (32, 48)), ("plain", (224, 224)), ("gated", (32, 48)), ("no_bias", (32, 48))]
END = TEXT.end_token
EMBED = 32


@pytest.fixture(autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


# --- the references


@functools.cache
def torch_dino(config: DinoV3Config, init: str) -> DINOv3ViTModel:
    model = DINOv3ViTModel(hf_dino_config(config))
    randomise(model, init, mild_std(config.width))
    return model.eval()


def hf_dino_config(config: DinoV3Config) -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_hidden,
        patch_size=config.patch,
        num_register_tokens=config.registers,
        use_gated_mlp=config.gated,
        hidden_act="silu" if config.gated else "gelu",
        query_bias=config.qv_bias,
        value_bias=config.qv_bias,
        attn_implementation="eager",
    )


@functools.cache
def torch_text(config: ClipTextConfig, init: str) -> CLIPTextModelWithProjection:
    model = CLIPTextModelWithProjection(hf_text_config(config))
    randomise(model, init, mild_std(config.width))
    return model.eval()


def hf_text_config(config: ClipTextConfig) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_hidden,
        max_position_embeddings=config.context,
        vocab_size=config.vocab_size,
        projection_dim=EMBED,
        eos_token_id=config.end_token,
        bos_token_id=config.end_token - 1,
        attn_implementation="eager",
    )


# --- their weights under our names


def dino_params(model: DINOv3ViTModel) -> Flat:
    source = dict(model.state_dict())
    del source["embeddings.mask_token"]  # used in masked pre-training only
    found = {
        "cls_token": source.pop("embeddings.cls_token"),
        "register_tokens": source.pop("embeddings.register_tokens"),
        **conv("patch_embed", "embeddings.patch_embeddings", source),
        "patch_embed/bias": source.pop("embeddings.patch_embeddings.bias"),
        **norm("norm", "norm", source),
    }
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"blocks/{i}", f"model.layer.{i}"
        for part in ("q", "k", "v"):
            found |= linear(f"{ours}/attn/{part}", f"{theirs}.attention.{part}_proj", source)
        found |= linear(f"{ours}/attn/out", f"{theirs}.attention.o_proj", source)
        gated = {"gate": "gate", "up": "up", "down": "down"}
        for part, their_part in (gated if model.config.use_gated_mlp else {"fc1": "up", "fc2": "down"}).items():
            found |= linear(f"{ours}/mlp/{part}", f"{theirs}.mlp.{their_part}_proj", source)
        for n in (1, 2):
            found |= norm(f"{ours}/norm{n}", f"{theirs}.norm{n}", source)
            found[f"{ours}/ls{n}"] = source.pop(f"{theirs}.layer_scale{n}.lambda1")
    return arrays(found, source)


def text_params(model: CLIPTextModelWithProjection) -> tuple[Flat, np.ndarray]:
    """(the tower's parameters, the projection's kernel)."""
    source = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    projection = source.pop("text_projection.weight").T.numpy()
    found = {
        "token_embedding": source.pop("embeddings.token_embedding.weight"),
        "pos_embedding": source.pop("embeddings.position_embedding.weight"),
        **norm("norm", "final_layer_norm", source),
        **clip_blocks(model.config.num_hidden_layers, source),
    }
    return arrays(found, source), projection


# --- one tower's intermediate values, theirs and ours


def dino_reference(config: DinoV3Config, init: str, image_BHWC: np.ndarray) -> list[np.ndarray]:
    """[embedding, after each block, tokens after the last norm, pooled]."""
    with torch.no_grad():
        x = torch.from_numpy(image_BHWC).permute(0, 3, 1, 2)
        out = torch_dino(config, init)(x, output_hidden_states=True)
    return [x.numpy() for x in (*out.hidden_states, out.last_hidden_state, out.pooler_output)]


def text_reference(config: ClipTextConfig, init: str, ids_BT: np.ndarray) -> list[np.ndarray]:
    """[embedding, after each block, tokens after the last norm, projected embedding]."""
    with torch.no_grad():
        out = torch_text(config, init)(torch.from_numpy(ids_BT).long(), output_hidden_states=True)
    return [x.numpy() for x in (*out.hidden_states[: config.depth + 1], out.last_hidden_state, out.text_embeds)]


@functools.cache  # compiled once; a mistake put into the modules has to go round it, by `fresh`
def dino(config: DinoV3Config, numerics: models.Numerics = models.Numerics()) -> Callable[..., Any]:  # noqa: B008
    return towers(lambda: DinoV3(config, numerics, nnx.Rngs(0)))


@functools.cache
def text(config: ClipTextConfig, numerics: models.Numerics = models.Numerics()) -> Callable[..., Any]:  # noqa: B008
    return towers(lambda: ClipText(config, numerics, nnx.Rngs(0)))


# --- parity


@pytest.mark.parametrize(("variant", "sides"), CASES, ids=str)
def test_dinov3_equals_transformers(variant: str, sides: tuple[int, int]) -> None:
    config = dataclasses.replace(DINO, gated=variant != "plain", qv_bias=variant != "no_bias")
    ours = dino(config)
    for init, tolerance in TOLERANCE.items():
        params, x = dino_params(torch_dino(config, init)), images(*sides)
        differences = worst(ours(params, x), dino_reference(config, init, x))
        print(f"dinov3 {variant} {sides} {init}: {', '.join(f'{d:.1e}' for d in differences)}")
        assert max(differences) < tolerance


def ids_of(T: int, end_at: list[tuple[int, ...]], seed: int = 0) -> np.ndarray:
    """int32 [B, T] with end tokens at the places given for each row and ordinary tokens elsewhere."""
    ids = np.random.default_rng(seed).integers(1, END - 1, (len(end_at), T)).astype(np.int32)
    ids[:, 0] = END - 1
    for row, places in enumerate(end_at):
        ids[row, list(places)] = END
    return ids


ENDS = {
    "shorter than the context": (16, [(7,), (0,), (15,), (4, 9)]),
    "as long as the context": (24, [(23,), (0,), (11,), (5, 23)]),
}


@pytest.mark.parametrize("case", ENDS)
def test_clip_text_equals_transformers(case: str) -> None:
    ours, ids = text(TEXT), ids_of(*ENDS[case])
    for init, tolerance in TOLERANCE.items():
        params, projection = text_params(torch_text(TEXT, init))
        *found, pooled = ours(params, ids)
        differences = worst([*found, pooled @ projection], text_reference(TEXT, init, ids))
        print(f"clip text {case} {init}: {', '.join(f'{d:.1e}' for d in differences)}")
        assert max(differences) < tolerance


def test_double_precision_leaves_nothing() -> None:
    """What is left of DINOv3's is theirs: they make the rotary coordinates in float32."""
    x, ids = images(32, 48).astype(np.float64), ids_of(16, [(7,), (15,)])
    dino_model = copy.deepcopy(torch_dino(DINO, "mild")).double()
    text_model = copy.deepcopy(torch_text(TEXT, "mild")).double()
    text_model.set_attn_implementation("sdpa")  # the other rounds its softmax to float32
    with torch.no_grad():
        theirs = [
            dino_model(torch.from_numpy(x).permute(0, 3, 1, 2)).last_hidden_state.numpy(),
            text_model(torch.from_numpy(ids).long()).last_hidden_state.numpy(),
        ]
    params = [dino_params(dino_model), text_params(text_model)[0]]
    with jax.enable_x64(True):
        ours = [dino(DINO, double())(params[0], x)[-2], text(TEXT, double())(params[1], ids)[-2]]
    assert all(value.dtype == jnp.float64 for value in ours)
    differences = worst(ours, theirs)
    print(f"float64: dinov3 {differences[0]:.1e}, clip text {differences[1]:.1e}")
    assert max(differences) < DOUBLE


# --- mistakes that must not pass


def swapped_axes(rows: int, columns: int, head_width: int, base: float) -> np.ndarray:
    h_part, w_part = np.split(RIGHT_ANGLES(rows, columns, head_width, base)[:, : head_width // 2], 2, axis=1)
    return np.tile(np.concatenate([w_part, h_part], axis=1), (1, 2))


def interleaved(rows: int, columns: int, head_width: int, base: float) -> Callable[[Any], Any]:
    """Rotates neighbouring channels instead of halves."""
    angles = np.repeat(RIGHT_ANGLES(rows, columns, head_width, base)[:, : head_width // 2], 2, axis=1)
    cos, sin = (jnp.asarray(f(angles), jnp.float32)[None, :, None, :] for f in (np.cos, np.sin))

    def rotate(x: Any) -> Any:
        first = x.shape[1] - len(angles)
        y = x[:, first:]
        turned = jnp.stack([-y[..., 1::2], y[..., 0::2]], axis=-1).reshape(y.shape)
        return jnp.concatenate([x[:, :first], y * cos + turned * sin], axis=1)

    return rotate


def registers_last(tower: DinoV3, x: Any) -> Any:
    tokens = RIGHT_EMBED(tower, x)
    end = 1 + tower.config.registers
    return jnp.concatenate([tokens[:, :1], tokens[:, end:], tokens[:, 1:end]], axis=1)


def rotate_all(rows: int, columns: int, head_width: int, base: float) -> Callable[[Any], Any]:
    """CLS and registers turned too, as if the patch grid began at token 0."""
    rotate = RIGHT_ROTATION(rows, columns, head_width, base)

    def wrong(x: Any) -> Any:
        return jnp.concatenate([rotate(x[:, : rows * columns]), x[:, rows * columns :]], axis=1)

    return wrong


RIGHT_ANGLES, RIGHT_EMBED, RIGHT_ROTATION = dinov3.rope_angles, DinoV3.embed, dinov3.patch_rotation
IMAGE_MISTAKES: dict[str, tuple[object, str, object]] = {
    "tanh GELU": (layers, "gelu_exact", jax.nn.gelu),
    "eps 1e-6": (layers, "LAYER_NORM_EPS", 1e-6),
    "rotary axes swapped": (dinov3, "rope_angles", swapped_axes),
    "rotary channels interleaved": (dinov3, "patch_rotation", interleaved),
    "rotary positions on every token": (dinov3, "patch_rotation", rotate_all),
    "registers after the patches": (DinoV3, "embed", registers_last),
}


def image_difference(init: str, change: Callable[[Flat], Flat] = lambda params: params) -> float:
    x = images(32, 48)
    found = fresh(dino, DINO)(change(dino_params(torch_dino(DINO, init))), x)
    return max(worst(found, dino_reference(DINO, init, x)))


@pytest.mark.parametrize("mistake", IMAGE_MISTAKES)
def test_a_wrong_image_tower_fails(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*IMAGE_MISTAKES[mistake])
    difference = image_difference("mild")
    print(f"wrong image tower, {mistake}: {difference:.1e}")
    assert difference > 2 * TOLERANCE["mild"]


def test_a_missing_layer_scale_fails() -> None:
    ones = lambda params: {n: np.ones_like(v) if n[-3:] in ("ls1", "ls2") else v for n, v in params.items()}  # noqa: E731
    difference = image_difference("mild", ones)
    print(f"wrong image tower, no LayerScale: {difference:.1e}")
    assert difference > 2 * TOLERANCE["mild"]


def test_a_key_bias_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rotary positions softmax would not see it; with them it changes what a query attends to."""
    monkeypatch.setattr(layers, "Attention", functools.partial(KeyBias))
    bias = np.random.default_rng(0).normal(0, 0.1, DINO.width).astype(np.float32)
    keys = {f"blocks/{i}/attn/k/bias": bias for i in range(DINO.depth)}
    difference = image_difference("mild", lambda params: params | keys)
    print(f"wrong image tower, key bias: {difference:.1e}")
    assert difference > 2 * TOLERANCE["mild"]


class KeyBias(layers.Attention):
    def __init__(self, *arguments: Any, biases: str, **options: Any) -> None:
        super().__init__(*arguments, biases=biases + "k", **options)


TEXT_MISTAKES: dict[str, tuple[object, str, object]] = {
    "erf GELU": (layers, "quick_gelu", layers.gelu_exact),
    "eps 1e-6": (layers, "LAYER_NORM_EPS", 1e-6),
    "not causal": (layers, "Attention", lambda *a, causal, **o: RIGHT_ATTENTION(*a, causal=False, **o)),
}
RIGHT_ATTENTION = layers.Attention


@pytest.mark.parametrize("mistake", TEXT_MISTAKES)
def test_a_wrong_text_tower_fails(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*TEXT_MISTAKES[mistake])
    ids = ids_of(16, [(7,), (15,)])
    params, projection = text_params(torch_text(TEXT, "mild"))
    *found, pooled = fresh(text, TEXT)(params, ids)
    difference = max(worst([*found, pooled @ projection], text_reference(TEXT, "mild", ids)))
    print(f"wrong text tower, {mistake}: {difference:.1e}")
    assert difference > 2 * TOLERANCE["mild"]


# --- sizes


def hf_count(model: torch.nn.Module) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if "mask_token" not in name)


# Parameters in millions as published, by timm's count, without q and v biases. L+/16 is in no table yet.
PUBLISHED = {
    "dinov3_vits16": 21.59,
    "dinov3_vits16plus": 28.68,
    "dinov3_vitb16": 85.64,
    "dinov3_vitl16": 303.1,
    "dinov3_vith16plus": 840.5,
    "dinov3_vit7b16": 6716,
}


def abstract_dino(config: DinoV3Config) -> Any:
    _, shapes, _ = state.abstract(lambda: DinoV3(config, models.Numerics(), nnx.Rngs(0)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values()), "something was allocated"
    return shapes


@pytest.mark.parametrize("name", DINOV3_SIZES)
def test_every_image_size_has_the_parameters_of_the_reference(name: str) -> None:
    config = DINOV3_SIZES[name]
    # Blocks are alike, so two depths tell the count of any: the tallest towers take seconds to build.
    one, two = (count(abstract_dino(dataclasses.replace(config, depth=depth))) for depth in (1, 2))
    found = one + (config.depth - 1) * (two - one)
    with torch.device("meta"):
        reference = DINOv3ViTModel(hf_dino_config(config))
    assert found == hf_count(reference)
    if name in PUBLISHED:
        biases = 2 * config.width * config.depth if config.qv_bias else 0
        assert f"{(found - biases) / 1e6:.4g}" == f"{PUBLISHED[name]:.4g}"


@pytest.mark.slow
@pytest.mark.parametrize("name", DINOV3_SIZES)
def test_every_image_size_builds_at_its_full_depth(name: str) -> None:
    with torch.device("meta"):
        reference = DINOv3ViTModel(hf_dino_config(DINOV3_SIZES[name]))
    assert count(abstract_dino(DINOV3_SIZES[name])) == hf_count(reference)


@pytest.mark.parametrize("name", CLIP_TEXT_SIZES)
def test_every_text_size_has_the_parameters_of_the_reference(name: str) -> None:
    config = CLIP_TEXT_SIZES[name]
    _, shapes, _ = state.abstract(lambda: ClipText(config, models.Numerics(), nnx.Rngs(0)))
    with torch.device("meta"):
        reference = CLIPTextModelWithProjection(hf_text_config(config))
    assert count(shapes) == hf_count(reference) - EMBED * config.width


def test_the_recipe_has_149_703_681_parameters() -> None:
    _, shapes, _ = state.abstract(lambda: models.build(models.DualSpec(), models.Numerics(), nnx.Rngs(0)))
    assert count(shapes) == 149_703_681
    assert shapes["image_projection/kernel"].shape == (768, 512)
    assert shapes["text/pos_embedding"].shape == (512, 512)
    assert "image_projection/bias" not in shapes
    assert not [name for name in shapes if name.startswith("image/") and name.endswith("attn/k/bias")]
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype("float32")}


def shallow(config: Any) -> Any:
    """The least of a tower that still has all its parts."""
    return dataclasses.replace(config, **({"depths": (1, 1, 1, 1)} if hasattr(config, "depths") else {"depth": 1}))


@pytest.mark.parametrize("name", [*models.IMAGE_ENCODERS, *models.TEXT_ENCODERS])
def test_every_tower_of_the_tables_joins_any_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (models.IMAGE_ENCODERS, models.TEXT_ENCODERS):
        for key, (kind, config) in table.items():  # one block of each tells as much about how they join
            monkeypatch.setitem(table, key, (kind, shallow(config)))
    image = name if name in models.IMAGE_ENCODERS else "dinov3_tiny32"
    spec = models.DualSpec(image, name if name != image else "clip_text_tiny", context=77, embed_dim=8)
    static, shapes, stats = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    side = next(n for n in (64, 224, 288, 336) if not spec.image_arch.wrong_size(n))

    def both(arrays: Any) -> Any:
        bound = state.bind(static, arrays)
        return bound.encode_image(jnp.zeros((2, side, side, 3))), bound.encode_text(jnp.zeros((2, 9), jnp.int32))

    assert [z.shape for z in jax.eval_shape(both, {**shapes, **stats})] == [(2, 8), (2, 8)]
    assert shapes["text/pos_embedding"].shape == (77, spec.text_arch.width)
    assert shapes["logit_scale"].shape == ()


# --- the properties that the rest of the program leans on


def test_nothing_after_the_end_token_reaches_the_embedding() -> None:
    """To the last bit at one length. Another length is another compiled program, and differs by rounding."""
    run, (params, _) = text(TEXT), text_params(torch_text(TEXT, "stress"))
    ids = ids_of(24, [(9,), (5,)])
    pooled = np.asarray(run(params, ids)[-1])
    for fill in (0, 17, END - 1, END):
        other = ids.copy()
        other[0, 10:], other[1, 6:] = fill, fill
        np.testing.assert_array_equal(np.asarray(run(params, other)[-1]), pooled)
    for kept in (10, 16, 20):
        trimmed = np.asarray(run(params, ids[:, :kept])[-1])
        print(f"trimmed to {kept} of 24 tokens: {np.max(np.abs(trimmed - pooled)):.1e}")
        np.testing.assert_allclose(trimmed, pooled, rtol=0, atol=TOLERANCE["mild"])
    for row, word in ((0, 8), (1, 4)):
        other = ids.copy()
        other[row, word] = ids[row, word] % 500 + 1
        moved = np.abs(np.asarray(run(params, other)[-1]) - pooled).max(axis=1)
        assert moved[row] > 10 * TOLERANCE["mild"], "the word before the end token has to be seen"
        assert moved[1 - row] == 0, "the other row has nothing to do with it"


def test_more_tokens_than_the_context_are_refused() -> None:
    static, shapes, _ = state.abstract(lambda: ClipText(TEXT, models.Numerics(), nnx.Rngs(0)))
    with pytest.raises(ValueError, match="25 tokens do not fit the context of 24"):
        jax.eval_shape(lambda params: state.bind(static, params)(jnp.zeros((1, 25), jnp.int32)), shapes)


def test_pixels_beyond_the_last_whole_patch_are_cropped() -> None:
    params, x = dino_params(torch_dino(DINO, "mild")), images(40, 60)
    run = dino(DINO)
    np.testing.assert_array_equal(run(params, x)[-1], run(params, x[:, :32, :48])[-1])


def pooled_gradient(numerics: models.Numerics) -> tuple[Callable[..., Any], Flat, np.ndarray]:
    static, _, _ = state.abstract(lambda: DinoV3(DINO, numerics, nnx.Rngs(0)))
    loss = lambda params, x: jnp.sum(jnp.sin(state.bind(static, params)(x).tokens))  # noqa: E731
    return jax.grad(loss), dino_params(torch_dino(DINO, "mild")), images(32, 48)


def test_remat_recomputes_and_changes_no_gradient() -> None:
    plain, params, x = pooled_gradient(models.Numerics())
    remat, _, _ = pooled_gradient(models.Numerics(remat=True))
    # The backward pass holds each block again. Comparing gradients alone would pass with nothing recomputed.
    recomputed = [str(jax.make_jaxpr(f)(params, x)).count("remat2[") for f in (plain, remat)]
    assert recomputed == [0, DINO.depth]
    wanted, found = jax.jit(plain)(params, x), jax.jit(remat)(params, x)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize(("init", "least"), [("mild", 0.9999), ("stress", 0.995)])
def test_bfloat16_stays_close(init: str, least: float) -> None:
    half, x, ids = models.Numerics(jnp.dtype("bfloat16")), images(32, 48), ids_of(16, [(7,), (15,)])
    towers_of = (
        (dino, DINO, dino_params(torch_dino(DINO, init)), x),
        (text, TEXT, text_params(torch_text(TEXT, init))[0], ids),
    )
    for make, config, params, values in towers_of:
        pooled = make(config, half)(params, values)[-1]
        assert pooled.dtype == jnp.bfloat16
        low, full = np.asarray(pooled, np.float64), np.asarray(make(config)(params, values)[-1], np.float64)
        cosine = np.sum(low * full, 1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
        print(f"bfloat16 {make.__name__} {init}: cosine {cosine.min():.6f}")
        assert cosine.min() > least


def test_the_dual_encoder_projects_what_its_towers_give() -> None:
    numerics = models.Numerics()

    def make() -> models.DualEncoder:
        rngs = nnx.Rngs(0)
        image = DinoV3(dataclasses.replace(DINO, depth=1), numerics, rngs)
        words = ClipText(dataclasses.replace(TEXT, depth=1), numerics, rngs)
        return models.DualEncoder(image, words, **HEAD, numerics=numerics, rngs=rngs)

    static, shapes, _ = state.abstract(make)
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}

    @jax.jit
    def outputs(params: Any, x: jax.Array, ids: jax.Array) -> Any:
        model = state.bind(static, params)
        image, words = model.image_features(x).pooled, model.text_features(ids).pooled
        return (model.encode_image(x), image), (model.encode_text(ids), words)

    (z_image, image), (z_text, words) = outputs(params, images(32, 32), ids_of(4, [(1,)]))
    np.testing.assert_allclose(z_image, image @ params["image_projection/kernel"], atol=1e-5)
    np.testing.assert_allclose(z_text, words @ params["text_projection/kernel"], atol=1e-5)


HEAD = {"image_width": 64, "text_width": 64, "embed_dim": EMBED, "temperature": 0.07}


def test_a_fresh_head_starts_at_the_temperature_and_keeps_lengths() -> None:
    head = models.DualEncoder(nnx.Module(), nnx.Module(), **HEAD, numerics=models.Numerics(), rngs=nnx.Rngs(0))
    assert float(head.logit_scale[...]) == pytest.approx(math.log(1 / 0.07))
    for kernel in (head.image_projection.kernel[...], head.text_projection.kernel[...]):
        assert float(jnp.std(kernel)) == pytest.approx(64**-0.5, rel=0.1)
