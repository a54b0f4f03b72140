"""OpenAI CLIP's ModifiedResNet. B batch, H W C image and its maps, N places of the last map, L = 1 + N tokens.

Written from the published architecture (openai/CLIP): a stem of three convolutions, average pooling wherever a ResNet
has a stride, and attention from the mean of the last map to all of its places instead of a global average.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from hybridclip_jax.models import layers
from hybridclip_jax.models.layers import Array, Encoded, Numerics
from hybridclip_jax.tally import Tally

BATCH_NORM_EPS = 1e-5
# A bottleneck's output over its inner width; the last map's side under the image's.
EXPANSION, REDUCTION = 4, 32


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """Sizes of one block: `channels` in, `inner` inside, EXPANSION times those out; the map's sides over `stride`."""

    stage: int
    place: int
    channels: int
    inner: int
    stride: int

    @property
    def out(self) -> int:
        return EXPANSION * self.inner

    @property
    def downsamples(self) -> bool:
        """Whether the shortcut is a convolution: in the first block of each stage."""
        return self.place == 0

    def count(self, tally: Tally, name: str, places: int, needs: bool) -> bool:
        """`places`: B times the places of the map that comes in."""
        after = places // self.stride**2
        x = _count_conv(tally, name, 1, 2 * places * self.channels * self.inner, needs)
        x = _count_conv(tally, name, 2, 2 * places * 9 * self.inner**2, x)
        x = _count_conv(tally, name, 3, 2 * after * self.inner * self.out, x)
        if self.downsamples:
            flops = 2 * after * self.channels * self.out
            needs = tally.linear(f"{name}/downsample/conv", flops, needs, bias=False)
            needs = tally.norm(f"{name}/downsample/norm", needs)
        return x or needs


def _count_conv(tally: Tally, name: str, number: int, flops: int, needs: bool) -> bool:
    return tally.norm(f"{name}/norm{number}", tally.linear(f"{name}/conv{number}", flops, needs, bias=False))


@dataclasses.dataclass(frozen=True)
class ClipResNetConfig:
    """Sizes of one ModifiedResNet; the defaults are RN50's.

    width: channels after the stem. depths: blocks of each of the four stages. heads: of the attention pooling.
    image_size: the side in pixels that its positions are for.
    """

    width: int = 64
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    heads: int = 32
    image_size: int = 224

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @property
    def pooled_width(self) -> int:
        return self.width * 2 ** (len(self.depths) - 1) * EXPANSION

    @property
    def projection_bias(self) -> bool:
        """The output projection of the attention pooling is the image projection, and has one."""
        return True

    def blocks(self) -> list[Bottleneck]:
        """All blocks in forward order, numbered through: `blocks/i` is the i-th of them."""
        found, channels = [], self.width
        for stage, depth in enumerate(self.depths):
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                found.append(Bottleneck(stage, place, channels, self.width * 2**stage, stride))
                channels = found[-1].out
        return found

    def tokens(self, image_size: int) -> int:
        return 1 + (image_size // REDUCTION) ** 2

    def wrong_size(self, image_size: int) -> str:
        return layers.fixed_size(image_size, self.image_size)

    def count(self, tally: Tally, *, batch: int, image_size: int) -> bool:
        places, half, width = batch * (image_size // 2) ** 2, self.width // 2, self.pooled_width
        needs = _count_conv(tally, "stem", 1, 2 * places * 9 * 3 * half, False)  # pixels are data
        needs = _count_conv(tally, "stem", 2, 2 * places * 9 * half**2, needs)
        needs = _count_conv(tally, "stem", 3, 2 * places * 9 * half * self.width, needs)
        places //= 4
        for i, block in enumerate(self.blocks()):
            needs = block.count(tally, f"blocks/{i}", places, needs)
            places //= block.stride**2
        rows = batch * self.tokens(image_size)
        needs |= tally.any("attn_pool/pos_embedding")
        # One query an image.
        q = tally.linear("attn_pool/q", 2 * batch * width**2, needs, bias=True)
        k, v = (tally.linear(f"attn_pool/{part}", 2 * rows * width**2, needs, bias=True) for part in "kv")
        scores = tally.product(2 * rows * width, q, k)
        return tally.product(2 * rows * width, scores, v)


CLIP_RESNET_SIZES = {
    "clip_rn50": ClipResNetConfig(),
    "clip_rn50x4": ClipResNetConfig(width=80, depths=(4, 6, 10, 6), heads=40, image_size=288),
}


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias per channel, in float32 or wider; mean and var are never updated.

    These towers come with statistics of the many images they were made from; batches of a fine-tuning would blur them.
    """

    def __init__(self, width: int, *, scale: float = 1.0) -> None:
        self.scale, self.bias = nnx.Param(jnp.full((width,), scale)), nnx.Param(jnp.zeros((width,)))
        self.mean, self.var = nnx.BatchStat(jnp.zeros((width,))), nnx.BatchStat(jnp.ones((width,)))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        factor = jax.lax.rsqrt(self.var[...] + BATCH_NORM_EPS) * self.scale[...]
        return ((wide - self.mean[...]) * factor + self.bias[...]).astype(x.dtype)


def conv(d_in: int, d_out: int, side: int, numerics: Numerics, rngs: nnx.Rngs, *, stride: int = 1) -> nnx.Conv:
    """side x side, no bias, `side // 2` zeros on every side: at stride 2 that is not Flax's "SAME"."""
    kernel_init = layers.normal((2 / (side * side * d_in)) ** 0.5)  # He et al. 2015
    return nnx.Conv(
        d_in,
        d_out,
        (side, side),
        strides=stride,
        padding=side // 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=numerics.dtype,
        rngs=rngs,
    )


def average_pool(x_BHWC: Array, stride: int) -> Array:
    """The mean of each stride x stride square."""
    if stride == 1:
        return x_BHWC
    B, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(B, H // stride, stride, W // stride, stride, C).mean(axis=(2, 4))


def with_mean(x_BNC: Array) -> Array:
    """[B, N, C] -> [B, 1 + N, C]: the mean of all places, then the places."""
    return jnp.concatenate([x_BNC.mean(axis=1, keepdims=True), x_BNC], axis=1)


class Stem(nnx.Module):
    """Three 3 x 3 convolutions, the first with stride 2, then average pooling: [B, S, S, 3] -> [B, S/4, S/4, width]."""

    def __init__(self, width: int, numerics: Numerics, rngs: nnx.Rngs) -> None:
        half = width // 2
        self.conv1, self.norm1 = conv(3, half, 3, numerics, rngs, stride=2), BatchNorm(half)
        self.conv2, self.norm2 = conv(half, half, 3, numerics, rngs), BatchNorm(half)
        self.conv3, self.norm3 = conv(half, width, 3, numerics, rngs), BatchNorm(width)

    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        return average_pool(jax.nn.relu(self.norm3(self.conv3(x))), 2)


class Downsample(nnx.Module):
    """The shortcut of a stage's first block: average pooling, then a 1 x 1 convolution."""

    def __init__(self, sizes: Bottleneck, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.stride = sizes.stride
        self.conv, self.norm = conv(sizes.channels, sizes.out, 1, numerics, rngs), BatchNorm(sizes.out)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(average_pool(x, self.stride)))


class Block(nnx.Module):
    """1 x 1, 3 x 3, average pooling by the stride, 1 x 1; then the shortcut is added. Convolutions have stride 1."""

    def __init__(self, sizes: Bottleneck, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.stride = sizes.stride
        self.conv1, self.norm1 = conv(sizes.channels, sizes.inner, 1, numerics, rngs), BatchNorm(sizes.inner)
        self.conv2, self.norm2 = conv(sizes.inner, sizes.inner, 3, numerics, rngs), BatchNorm(sizes.inner)
        # Branches begin closed: nothing else keeps the size of a fresh tower's activations in bounds.
        self.conv3, self.norm3 = conv(sizes.inner, sizes.out, 1, numerics, rngs), BatchNorm(sizes.out, scale=0.0)
        self.downsample = Downsample(sizes, numerics, rngs) if sizes.downsamples else None

    def __call__(self, x: Array) -> Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        x = self.norm3(self.conv3(average_pool(x, self.stride)))
        return jax.nn.relu(x + shortcut)


class AttentionPool(nnx.Module):
    """Attention of the first token to all tokens, with learned positions: [B, L, C] -> [B, C], not yet projected."""

    def __init__(self, config: ClipResNetConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        width, std = config.pooled_width, config.pooled_width**-0.5
        self.heads = config.heads
        shape_LC = (config.tokens(config.image_size), width)
        self.pos_embedding = nnx.Param(layers.normal(std)(rngs.params(), shape_LC))
        self.q = layers.linear(width, width, numerics, rngs, std=std)
        self.k = layers.linear(width, width, numerics, rngs, std=std)
        self.v = layers.linear(width, width, numerics, rngs, std=std)

    def __call__(self, x_BLC: Array) -> Array:
        x = x_BLC + self.pos_embedding[...].astype(x_BLC.dtype)
        q, k, v = (
            layer(part).reshape(*part.shape[:2], self.heads, -1)
            for layer, part in ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        )
        # One query an image: a fused kernel has nothing to save.
        mixed = layers.attend(q, k, v, causal=False, kernel="xla")
        return mixed.reshape(len(x), -1)


class ModifiedResNet(nnx.Module):
    """[B, S, S, 3] normalised images of the config's size -> pooled [B, C] and tokens [B, 1 + N, C].

    `pooled` is the attention pooling before its output projection, which is the dual encoder's image projection.
    `tokens` are the last map's mean and places, before positions join them.
    """

    def __init__(self, config: ClipResNetConfig, numerics: Numerics, rngs: nnx.Rngs) -> None:
        self.config, self.numerics = config, numerics
        self.stem = Stem(config.width, numerics, rngs)
        self.blocks = nnx.List([Block(sizes, numerics, rngs) for sizes in config.blocks()])
        self.attn_pool = AttentionPool(config, numerics, rngs)

    def embed(self, images: Array) -> Array:
        """[B, S, S, 3] -> [B, S/4, S/4, width], what the first block takes."""
        layers.refuse_other_size(images, self.config.image_size)
        return self.stem(images)

    def __call__(self, images: Array) -> Encoded:
        x = self.embed(images)
        for block in self.blocks:
            x = layers.run_block(block, x, remat=self.numerics.remat)
        tokens = with_mean(x.reshape(len(x), -1, x.shape[-1]))
        return Encoded(self.attn_pool(tokens), tokens)
