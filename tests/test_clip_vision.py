"""CLIP's image towers: the ViT against transformers, the ResNet against torch; frozen statistics all the way round."""

# B batch, S image side, C channels, L tokens, D width

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch
import torch_resnet
from cards import small_card
from flax import nnx
from parity import TOLERANCE, Flat, fresh, images, towers, worst
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import hybridclip_jax as hc
from hybridclip_jax import build, config, logs, modelfolder, models, sharding, state, train
from hybridclip_jax.checkpoint import Checkpoints
from hybridclip_jax.errors import UserError
from hybridclip_jax.models import ClipResNetConfig, ClipVitConfig, clip_resnet, layers
from hybridclip_jax.models.clip_resnet import ModifiedResNet
from hybridclip_jax.models.clip_vit import ClipVit

VIT = ClipVitConfig(width=64, depth=2, heads=2, mlp_hidden=256, patch=16, image_size=64)
RESNET = ClipResNetConfig(width=8, depths=(2, 1, 1, 2), heads=4, image_size=96)
# What has to be compiled anew for each question is asked of the least ResNet that has all parts.
SMALL = dataclasses.replace(RESNET, depths=(1, 1, 1, 1), image_size=64)
DOUBLE = 1e-10


@pytest.fixture(autouse=True)
def highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


# --- the references


@functools.cache
def torch_vit(sizes: ClipVitConfig, init: str, embed: int = 64) -> CLIPVisionModelWithProjection:
    made = CLIPVisionConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_hidden,
        patch_size=sizes.patch,
        image_size=sizes.image_size,
        projection_dim=embed,
        attn_implementation="eager",
    )
    model = CLIPVisionModelWithProjection(made)
    parity.randomise(model, init, parity.mild_std(sizes.width))
    return model.eval()


def vit_params(model: CLIPVisionModelWithProjection) -> tuple[Flat, np.ndarray]:
    """(the tower's parameters, the projection's kernel)."""
    source = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    projection = source.pop("visual_projection.weight").T.numpy()
    found = {
        "class_embedding": source.pop("embeddings.class_embedding"),
        "pos_embedding": source.pop("embeddings.position_embedding.weight"),
        **parity.conv("patch_embed", "embeddings.patch_embedding", source),
        **parity.norm("norm_pre", "pre_layrnorm", source),
        **parity.norm("norm", "post_layernorm", source),
        **parity.clip_blocks(model.config.num_hidden_layers, source),
    }
    return parity.arrays(found, source), projection


def vit_reference(model: CLIPVisionModelWithProjection, image_BSSC: np.ndarray) -> list[np.ndarray]:
    """[after the first norm, after each block, tokens after the last norm, projected embedding]."""
    with torch.no_grad():
        out = model(torch.from_numpy(image_BSSC).permute(0, 3, 1, 2), output_hidden_states=True)
        tokens = model.vision_model.post_layernorm(out.last_hidden_state)
    return [x.numpy() for x in (*out.hidden_states, tokens, out.image_embeds)]


@functools.cache
def torch_rn(sizes: ClipResNetConfig, init: str, embed: int = 64) -> torch_resnet.ModifiedResNet:
    model = torch_resnet.ModifiedResNet(sizes, out=embed)
    torch_resnet.randomise(model, init, sizes.image_size)
    return model


def batch_norm(ours: str, theirs: str, source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    del source[f"{theirs}.num_batches_tracked"]
    statistics = {"mean": source.pop(f"{theirs}.running_mean"), "var": source.pop(f"{theirs}.running_var")}
    return {**parity.norm(ours, theirs, source), **{f"{ours}/{name}": value for name, value in statistics.items()}}


def rn_arrays(model: torch_resnet.ModifiedResNet) -> tuple[Flat, Flat]:
    """(the tower's parameters and statistics, the projection's kernel and bias)."""
    source = dict(model.state_dict())
    projection = parity.linear("image_projection", "attnpool.c_proj", source)
    found = {"attn_pool/pos_embedding": source.pop("attnpool.positional_embedding")}
    for part in ("q", "k", "v"):
        found |= parity.linear(f"attn_pool/{part}", f"attnpool.{part}_proj", source)
    theirs = [("stem", "")]
    depths = [len(getattr(model, f"layer{n}")) for n in (1, 2, 3, 4)]
    places = [f"layer{n + 1}.{place}." for n, depth in enumerate(depths) for place in range(depth)]
    theirs += [(f"blocks/{i}", place) for i, place in enumerate(places)]
    for ours, prefix in theirs:
        for n in (1, 2, 3):
            found |= parity.conv(f"{ours}/conv{n}", f"{prefix}conv{n}", source)
            found |= batch_norm(f"{ours}/norm{n}", f"{prefix}bn{n}", source)
        if f"{prefix}downsample.0.weight" in source:
            found |= parity.conv(f"{ours}/downsample/conv", f"{prefix}downsample.0", source)
            found |= batch_norm(f"{ours}/downsample/norm", f"{prefix}downsample.1", source)
    return parity.arrays(found, source), {name: value.numpy() for name, value in projection.items()}


def rn_reference(model: torch_resnet.ModifiedResNet, image_BSSC: np.ndarray) -> list[np.ndarray]:
    """[stem, after each block, tokens, pooled, embedding], in float64: their rounding would be half the difference."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        x = torch.from_numpy(image_BSSC).double().permute(0, 3, 1, 2)
        return [value.numpy() for value in (*exact.values(x), exact(x))]


@functools.cache
def vit(sizes: ClipVitConfig, numerics: models.Numerics = models.Numerics()) -> Callable[..., Any]:  # noqa: B008
    return towers(lambda: ClipVit(sizes, numerics, nnx.Rngs(0)))


@functools.cache
def rn(sizes: ClipResNetConfig, numerics: models.Numerics = models.Numerics()) -> Callable[..., Any]:  # noqa: B008
    return towers(lambda: ModifiedResNet(sizes, numerics, nnx.Rngs(0)))


def vit_differences(ours: Callable[..., Any], model: Any, x: np.ndarray, held: Any = None) -> list[float]:
    """`held`: parameters and projection of ours, if they are not `model`'s own."""
    params, projection = held or vit_params(model)
    *found, pooled = ours(params, x)
    return worst([*found, pooled @ projection], vit_reference(model, x))


def rn_differences(ours: Callable[..., Any], model: Any, x: np.ndarray, held: Any = None) -> list[float]:
    params, head = held or rn_arrays(model)
    found = ours(params, x)
    embedding = found[-1] @ head["image_projection/kernel"] + head["image_projection/bias"]
    return worst([*found, embedding], rn_reference(model, x))


def told(what: str, differences: list[float]) -> float:
    print(f"{what}: {', '.join(f'{d:.1e}' for d in differences)}")
    return max(differences)


# --- parity; that of small towers in float32 goes through their files, in test_converters_parity


@pytest.mark.slow
@pytest.mark.parametrize("init", TOLERANCE)
def test_a_clip_vit_of_full_size_equals_transformers(init: str) -> None:
    """Each layer on what theirs gave it: twelve of peaked attention part torch's own float32 from float64 by 2e-3."""
    sizes = models.IMAGE_ENCODERS["clip_vitb32"][1]
    model, x = torch_vit(sizes, init), images(224, 224)
    params, projection = vit_params(model)
    *theirs, tokens, embedding = vit_reference(model, x)
    static, _, _ = state.abstract(lambda: ClipVit(sizes, models.Numerics(), nnx.Rngs(0)))

    @jax.jit
    def outputs(params: Any, x: Any, given: Any) -> tuple[list[Any], Any]:
        tower = state.bind(static, params)
        blocks = [block(hidden) for block, hidden in zip(tower.blocks, given[:-1], strict=True)]
        return [tower.embed(x), *blocks, tower.norm(given[-1])], tower(x).pooled

    ours, pooled = outputs(params, x, theirs)
    differences = worst([*ours, pooled @ projection], [*theirs, tokens, embedding])
    assert told(f"clip vit, B/32, {init}", differences) < TOLERANCE[init]


@pytest.mark.slow
@pytest.mark.parametrize("init", TOLERANCE)
def test_a_modified_resnet_of_full_size_equals_torch(init: str) -> None:
    sizes = models.IMAGE_ENCODERS["clip_rn50"][1]
    differences = rn_differences(rn(sizes), torch_rn(sizes, init), images(224, 224))
    assert told(f"clip resnet, RN50, {init}", differences) < TOLERANCE[init]


def double_differences() -> dict[str, float]:
    vit_model, rn_model = (
        copy.deepcopy(torch_vit(VIT, "mild")).double(),
        copy.deepcopy(torch_rn(SMALL, "mild")).double(),
    )
    vit_model.set_attn_implementation("sdpa")  # the other rounds its softmax to float32
    with jax.enable_x64(True):
        return {
            "vit": max(vit_differences(fresh64(vit, VIT), vit_model, images(64, 64).astype(np.float64))),
            "resnet": max(rn_differences(fresh64(rn, SMALL), rn_model, images(64, 64).astype(np.float64))),
        }


def fresh64(make: Any, sizes: Any) -> Callable[..., Any]:
    return make.__wrapped__(sizes, parity.double())


def test_double_precision_leaves_nothing() -> None:
    found = double_differences()
    print(f"float64: {found}")
    assert max(found.values()) < DOUBLE


def test_a_softmax_in_float32_is_seen_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(q: Any, k: Any, v: Any, *, causal: bool, kernel: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=kernel)

    monkeypatch.setattr(layers, "attend", narrow)
    found = double_differences()
    print(f"float64 with a softmax in float32: {found}")
    assert min(found.values()) > 2 * DOUBLE


@pytest.mark.parametrize(("init", "least"), [("mild", 0.999), ("stress", 0.99)])
def test_bfloat16_stays_close(init: str, least: float) -> None:
    half = models.Numerics(jnp.dtype("bfloat16"))
    cases = (
        (vit, VIT, vit_params(torch_vit(VIT, init))[0], images(64, 64)),
        (rn, SMALL, rn_arrays(torch_rn(SMALL, init))[0], images(64, 64)),
    )
    for make, sizes, held, x in cases:
        pooled = make(sizes, half)(held, x)[-1]
        assert pooled.dtype == jnp.bfloat16
        low, full = np.asarray(pooled, np.float64), np.asarray(make(sizes)(held, x)[-1], np.float64)
        cosine = np.sum(low * full, 1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
        print(f"bfloat16 {make.__name__} {init}: cosine {cosine.min():.6f}")
        assert cosine.min() > least


# --- mistakes that must not pass


def no_norm_first(tower: ClipVit, x: Any) -> Any:
    tower.norm_pre = lambda tokens: tokens
    return RIGHT_EMBED(tower, x)


def class_token_last(tower: ClipVit, x: Any) -> Any:
    patches = tower.patch_embed(x)
    last = jnp.broadcast_to(tower.class_embedding[...], (len(x), 1, patches.shape[2]))
    return tower.norm_pre(jnp.concatenate([patches, last], axis=1) + tower.pos_embedding[...])


RIGHT_EMBED, RIGHT_ATTENTION = ClipVit.embed, layers.Attention
VIT_MISTAKES: dict[str, tuple[object, str, object]] = {
    "erf GELU": (layers, "quick_gelu", layers.gelu_exact),
    "LayerNorm eps 1e-6": (layers, "LAYER_NORM_EPS", 1e-6),
    "no norm before the blocks": (ClipVit, "embed", no_norm_first),
    "class token last": (ClipVit, "embed", class_token_last),
    "causal": (layers, "Attention", lambda *a, causal, **o: RIGHT_ATTENTION(*a, causal=True, **o)),
}


@pytest.mark.parametrize("mistake", VIT_MISTAKES)
def test_a_wrong_vit_fails(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*VIT_MISTAKES[mistake])
    differences = vit_differences(fresh(vit, VIT), torch_vit(VIT, "mild"), images(64, 64))
    assert told(f"wrong vit, {mistake}", differences) > 2 * TOLERANCE["mild"]


def test_a_transposed_projection_fails() -> None:
    """Of a square one the shapes say nothing."""
    model, x = torch_vit(VIT, "mild"), images(64, 64)
    params, projection = vit_params(model)
    wanted, pooled = vit_reference(model, x)[-1], vit(VIT)(params, x)[-1]
    assert projection.shape == projection.T.shape
    assert (
        worst([pooled @ projection], [wanted])[0] < TOLERANCE["mild"] < 1 < worst([pooled @ projection.T], [wanted])[0]
    )


def strided_convolution(x: Any, stride: int) -> Any:
    """What is left of a convolution's result when the stride is its own: every other place."""
    return x[:, ::stride, ::stride]


def strided_shortcut(block: Any, x: Any) -> Any:
    return block.norm(block.conv(strided_convolution(x, block.stride)))


def maximum(x: Any, stride: int) -> Any:
    B, H, W, C = x.shape
    return x.reshape(B, H // stride, stride, W // stride, stride, C).max(axis=(2, 4))


def without_mean(x: Any) -> Any:
    return jnp.concatenate([x[:, :1], x], axis=1)


def same_padding(d_in: int, d_out: int, side: int, numerics: Any, rngs: Any, *, stride: int = 1) -> Any:
    made = RIGHT_CONV(d_in, d_out, side, numerics, rngs, stride=stride)
    made.padding = "SAME"
    return made


def of_the_batch(norm: Any, x: Any) -> Any:
    spread = jax.lax.rsqrt(x.var((0, 1, 2)) + clip_resnet.BATCH_NORM_EPS)
    return (x - x.mean((0, 1, 2))) * spread * norm.scale[...] + norm.bias[...]


RIGHT_CONV = clip_resnet.conv
RN_MISTAKES: dict[str, tuple[object, str, object]] = {
    "BatchNorm eps 1e-3": (clip_resnet, "BATCH_NORM_EPS", 1e-3),
    "statistics of the batch": (clip_resnet.BatchNorm, "__call__", of_the_batch),
    "stride in the convolution": (clip_resnet, "average_pool", strided_convolution),
    "stride in the shortcut's convolution": (clip_resnet.Downsample, "__call__", strided_shortcut),
    "maximum of each square": (clip_resnet, "average_pool", maximum),
    "Flax's SAME padding": (clip_resnet, "conv", same_padding),
    "no mean token": (clip_resnet, "with_mean", without_mean),
}


@pytest.mark.parametrize("mistake", RN_MISTAKES)
def test_a_wrong_resnet_fails(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*RN_MISTAKES[mistake])
    differences = rn_differences(fresh(rn, SMALL), torch_rn(SMALL, "mild"), images(64, 64))
    assert told(f"wrong resnet, {mistake}", differences) > 2 * TOLERANCE["mild"]


# --- sizes

# image, text, embedding -> millions of parameters of the image tower with its projection, and of the whole.
PUBLISHED = {
    ("clip_vitb32", "clip_text_b", 512): ("87.8", "151.28"),
    ("clip_vitb16", "clip_text_b", 512): ("86.19", "149.62"),
    ("clip_vitl14_336", "clip_text_l", 768): ("304.29", "427.94"),
    ("clip_rn50", "clip_text_b", 1024): ("38.32", "102.01"),
    ("clip_rn50x4", "clip_text_rn50x4", 640): ("87.14", "178.30"),
}


@functools.cache
def text_numbers(name: str) -> int:
    sizes = dataclasses.replace(models.TEXT_ENCODERS[name][1], context=77)
    _, shapes, _ = state.abstract(lambda: models.TEXT_ENCODERS[name][0](sizes, models.Numerics(), nnx.Rngs(0)))
    return parity.count(shapes)


@pytest.mark.parametrize("names", PUBLISHED, ids=lambda names: names[0])
def test_every_published_model_has_its_number_of_parameters(names: tuple[str, str, int]) -> None:
    """Beside a small text tower, which costs less to trace; the published one's numbers are added by hand."""
    image, text, embed_dim = names
    spec = models.DualSpec(image, "clip_text_tiny", context=77, embed_dim=embed_dim)
    _, shapes, stats = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    visual = {name: leaf for name, leaf in shapes.items() if name.startswith("image")}
    projection = models.TEXT_ENCODERS[text][1].width * embed_dim
    whole = parity.count(visual) + text_numbers(text) + projection + 1  # the logit scale
    for found, published in zip((parity.count(visual), whole), PUBLISHED[names], strict=True):
        places = len(published.split(".")[1])
        assert f"{found / 1e6:.{places}f}" == published
    assert ("image_projection/bias" in shapes) == image.startswith("clip_rn")
    assert bool(stats) == image.startswith("clip_rn")
    assert not stats.keys() & shapes.keys(), "a model folder holds both in one dict"
    assert all(name.endswith(("/mean", "/var")) for name in stats)


def test_a_resnet_of_rn50s_size_has_the_arrays_of_the_reference() -> None:
    sizes = models.IMAGE_ENCODERS["clip_rn50"][1]
    _, shapes, stats = state.abstract(lambda: ModifiedResNet(sizes, models.Numerics(), nnx.Rngs(0)))
    with torch.device("meta"):
        reference = torch_resnet.ModifiedResNet(sizes, out=1024)
    their_parameters = sum(value.numel() for name, value in reference.named_parameters() if "c_proj" not in name)
    their_statistics = sum(value.numel() for name, value in reference.named_buffers() if "running" in name)
    assert (parity.count(shapes), parity.count(stats)) == (their_parameters, their_statistics)


# --- the size of the images


WRONG_SIZES = {
    ("clip_vitl14_336", 224): 336,
    ("clip_rn50x4", 224): 288,
    ("clip_vitb32", 256): 224,
    ("clip_rn50", 96): 224,
}


@pytest.mark.parametrize("case", WRONG_SIZES, ids=str)
def test_images_of_another_size_are_refused_by_the_config(case: tuple[str, int], tmp_path: Path) -> None:
    arch, size = case
    path = tmp_path / "run.py"
    path.write_text("from hybridclip_jax.config import default as get_config\n")
    chosen = [f"--config.model.image.arch={arch}", f"--config.data.image_size={size}"]
    with pytest.raises(UserError) as caught:
        config.load(str(path), chosen)
    wanted = WRONG_SIZES[case]
    says = f"data.image_size = {size}: must be {wanted}, the size that the tower's positions are for"
    assert str(caught.value) == f"{path}: {says}"
    config.load(str(path), [*chosen, f"--config.data.image_size={wanted}"])


@pytest.mark.parametrize(("kind", "sizes"), [(ClipVit, VIT), (ModifiedResNet, RESNET)])
@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (128, 128)])
def test_a_tower_itself_refuses_them_too(kind: Any, sizes: Any, shape: tuple[int, int]) -> None:
    static, shapes, stats = state.abstract(lambda: kind(sizes, models.Numerics(), nnx.Rngs(0)))
    own = sizes.image_size
    with pytest.raises(ValueError, match=f"images of {shape[0]} x {shape[1]} pixels; this tower takes {own} x {own}"):
        jax.eval_shape(lambda held: state.bind(static, held)(jnp.zeros((1, *shape, 3))), {**shapes, **stats})


# --- frozen statistics through training, checkpoint, folder and load

SPEC = models.DualSpec("clip_rn50", "clip_text_tiny", context=96, embed_dim=32)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small ResNet under the name of a published one, so that every table and list knows it."""
    monkeypatch.setitem(models.IMAGE_ENCODERS, "clip_rn50", (ModifiedResNet, SMALL))


def random_arrays(spec: models.DualSpec) -> Flat:
    _, shapes, stats = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    held: Flat = {}
    for name, leaf in {**shapes, **stats}.items():
        if name.endswith("/var"):
            held[name] = rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        else:
            std = math.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.1
            held[name] = np.asarray(rng.normal(float(name.endswith("scale")), std, leaf.shape), np.float32)
    return held


def small_config(store: Path, weights: Path) -> Any:
    made = config.default()
    made.steps, made.batch_size, made.data.image_size, made.data.flip = 2, 8, SMALL.image_size, False
    made.model.image.arch, made.model.text.arch = SPEC.image, SPEC.text
    made.model.text.context, made.model.embed_dim = SPEC.context, SPEC.embed_dim
    made.model.image.weights, made.data.train = str(weights), f"{store}:train"
    made.optim.learning_rate, made.checkpoint.every = 1e-2, 1
    made.mesh.data = 1
    config.add_eval(made, "bare", data=f"{store}:val")
    made.select.metric = "bare/auroc/mean"
    assert not list(config.validate(made))
    return made


def card_of(kind: str) -> modelfolder.Card:
    whole = {"image": SPEC.image, "text": SPEC.text, "context": SPEC.context, "embed_dim": SPEC.embed_dim}
    card = small_card(kind, context=SPEC.context, embed_dim=SPEC.embed_dim, image_size=SMALL.image_size)
    architecture = {name: whole[name] for name in card.architecture}
    preprocessing = {**card.preprocessing, "store": {"resize": "pad", "colour": False}}
    return dataclasses.replace(card, architecture=architecture, preprocessing=preprocessing)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes(), name


@pytest.mark.slow
def test_statistics_stay_as_loaded_through_a_run_its_checkpoints_and_its_model(
    tiny: None, phantom_store: Path, tmp_path: Path
) -> None:
    given = random_arrays(SPEC)
    loaded = {name: value for name, value in given.items() if name.startswith("image/")}
    statistics = {name: value for name, value in loaded.items() if name.endswith(("/mean", "/var"))}
    modelfolder.save(tmp_path / "tower", given, card_of("image"))
    made, workdir = small_config(phantom_store, tmp_path / "tower"), tmp_path / "run"
    train.run(made, workdir, "command")

    job = build.job(made)
    fresh_start = build.fresh_state(job)
    same({name: fresh_start.arrays[name] for name in loaded}, loaded)
    assert fresh_start.stats.keys() == statistics.keys()

    def saved() -> state.TrainState:
        return Checkpoints(workdir / "checkpoints", keep=2).restore(2, build.restore_target(job))[0]

    ended = saved()
    same(ended.stats, statistics)
    moved = {name for name in ended.params if np.any(ended.params[name] != fresh_start.params[name])}
    assert {"image/stem/conv1/kernel", "image/blocks/0/norm1/scale", "image_projection/bias"} <= moved
    same(modelfolder.load(workdir / "best")[0], ended.arrays)

    shutil.rmtree(workdir / "checkpoints" / "2")
    train.run(made, workdir, "command")
    same(saved().arrays, ended.arrays)

    store = job.evaluators["bare"].store
    z = job.encode.of_store(ended.arrays, store, SMALL.image_size)
    again = hc.load(workdir, batch_size=8).encode_image(list(store.images(np.arange(len(store)))))
    np.testing.assert_allclose(again, z, atol=1e-5)
    plain = ended.arrays | {name: jnp.ones_like(value) for name, value in ended.stats.items()}
    assert np.abs(job.encode.of_store(plain, store, SMALL.image_size) - z).max() > 1e-2, "statistics are not used"


def test_a_loaded_resnet_encodes_as_the_module(tiny: None, tmp_path: Path) -> None:
    held = random_arrays(SPEC)
    modelfolder.save(tmp_path / "dual", held, card_of("dual"))
    modelfolder.save(tmp_path / "image", held, card_of("image"))
    tower = {name.removeprefix("image/"): value for name, value in held.items() if name.startswith("image/")}

    def pooled(x: np.ndarray) -> np.ndarray:
        return np.asarray(rn(SMALL)(tower, x.astype(np.float32))[-1])

    x = images(SMALL.image_size, SMALL.image_size)
    model = hc.load(tmp_path / "dual", batch_size=2)
    for loaded in (model, hc.load(tmp_path / "image", batch_size=2)):
        np.testing.assert_allclose(loaded.image_features(x), pooled(x), rtol=1e-5, atol=1e-5)

    stored = np.random.default_rng(0).integers(0, 256, (2, 320, 320), np.uint8)
    small = [np.asarray(Image.fromarray(one).resize(x.shape[1:3], Image.Resampling.BICUBIC)) for one in stored]
    grey = (np.stack(small)[..., None] / 255 - config.CLIP_MEAN) / config.CLIP_STD
    wanted = pooled(grey) @ held["image_projection/kernel"] + held["image_projection/bias"]
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_image(list(stored)), wanted, atol=1e-5)


def test_a_folder_whose_statistics_or_size_are_not_the_towers_is_refused(tiny: None, tmp_path: Path) -> None:
    held = random_arrays(SPEC)
    lost = {name: value for name, value in held.items() if name != "image/stem/norm2/var"}
    modelfolder.save(tmp_path / "lost", lost, card_of("dual"))
    with pytest.raises(
        UserError, match=r"image/stem/norm2/var is nothing in the folder and \(4,\) in the architecture"
    ):
        hc.load(tmp_path / "lost")
    card = card_of("dual")
    other = dataclasses.replace(card, preprocessing={**card.preprocessing, "image_size": 96})
    modelfolder.save(tmp_path / "other", held, other)
    with pytest.raises(
        UserError, match=r"model\.json: image_size = 96: must be 64, the size that the tower's positions"
    ):
        hc.load(tmp_path / "other")
    modelfolder.save(tmp_path / "dual", held, card)
    with pytest.raises(UserError, match="image_features: images of 96 px a side: must be 64"):
        hc.load(tmp_path / "dual").image_features(images(96, 96))


# --- what is generic works for these names too


@pytest.mark.parametrize("arch", ["clip_vitb32", "clip_rn50"])
def test_groups_placement_and_tables_know_the_new_names(arch: str, tiny: None) -> None:
    made = config.default()
    made.model.image.arch, made.model.text.arch = arch, "clip_text_tiny"
    made.optim.groups = ((r"image/blocks/0/.*|image/(stem|patch_embed|pos_embedding).*", 0.0, 1.0), (".*", 1.0, 1.0))
    model = build.model(made)
    frozen = model.shapes.keys() - model.optimizer.trainable
    assert frozen and all(name.startswith(("image/blocks/0", "image/stem", "image/p")) for name in frozen)
    said = logs.parameter_table(model.shapes, model.optimizer.trainable.__contains__)
    last = {"clip_vitb32": 11, "clip_rn50": SMALL.depth - 1}[arch]
    assert f"image trains in part (blocks 1-{last}" in said and "blocks 0" in said
    mesh = sharding.make_mesh(2, 4, 64)
    placed = sharding.of_params(model.shapes, mesh)
    assert placed.keys() == model.shapes.keys()
    assert any("fsdp" in place.spec for name, place in placed.items() if name.startswith("image/"))


def test_remat_recomputes_each_block_and_changes_no_gradient() -> None:
    x = images(SMALL.image_size, SMALL.image_size)
    held, _ = rn_arrays(torch_rn(SMALL, "mild"))
    gradients = []
    for remat in (False, True):
        static, shapes, _ = state.abstract(lambda: ModifiedResNet(SMALL, models.Numerics(remat=remat), nnx.Rngs(0)))  # noqa: B023
        params = {name: held[name] for name in shapes}
        stats = {name: held[name] for name in held.keys() - shapes.keys()}
        loss = lambda params, static=static, stats=stats: jnp.sum(jnp.sin(state.bind(static, params, stats)(x).pooled))  # noqa: E731
        assert str(jax.make_jaxpr(jax.grad(loss))(params)).count("remat2[") == remat * SMALL.depth
        gradients.append(jax.jit(jax.grad(loss))(params))
    largest = max(float(jnp.abs(value).max()) for value in gradients[0].values())
    for name, value in gradients[0].items():  # a key bias has none but rounding: it shifts all logits of a query alike
        np.testing.assert_allclose(gradients[1][name], value, rtol=1e-4, atol=1e-6 * largest, err_msg=name)
