"""CLIP's ModifiedResNet in torch under the names of OpenAI's files, as the reference of ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from hybridclip_jax.models import ClipResNetConfig


class Bottleneck(nn.Module):
    """A ResNet's bottleneck whose stride is an average pooling: before the last convolution, and in the shortcut."""

    def __init__(self, channels: int, inner: int, stride: int, *, downsample: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.pool = nn.AvgPool2d(stride)
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            convolution, norm = nn.Conv2d(channels, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
            self.downsample = nn.Sequential(OrderedDict({"-1": nn.AvgPool2d(stride), "0": convolution, "1": norm}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = self.pool(functional.relu(self.bn2(self.conv2(branch))))
        return functional.relu(self.bn3(self.conv3(branch)) + self.downsample(x))


class AttentionPool(nn.Module):
    """The mean of the map asks, the mean and all places of the map answer; torch's own attention does the work."""

    def __init__(self, side: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [1 + H W, B, C]."""
        places = x.flatten(2).permute(2, 0, 1)
        return torch.cat([places.mean(0, keepdim=True), places])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C], before c_proj."""
        tokens = self.tokens(x) + self.positional_embedding[:, None]
        width = tokens.shape[-1]
        mixed, _ = functional.multi_head_attention_forward(
            tokens[:1],
            tokens,
            tokens,
            width,
            self.heads,
            None,
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            None,
            None,
            False,
            0.0,
            torch.eye(width, dtype=x.dtype),  # the output projection, which comes after
            None,
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return mixed[0]


class ModifiedResNet(nn.Module):
    """The tower of OpenAI's `visual.` names; `out` is the width of the embedding."""

    def __init__(self, config: ClipResNetConfig, out: int) -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, depth in enumerate(config.depths):
            blocks, inner = [], width * 2**stage
            for place in range(depth):
                stride = 2 if stage and not place else 1
                blocks.append(Bottleneck(channels, inner, stride, downsample=place == 0))
                channels = 4 * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(config.image_size // 32, channels, config.heads, out)

    def blocks(self) -> list[nn.Module]:
        return [block for n in (1, 2, 3, 4) for block in getattr(self, f"layer{n}")]

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        for n in (1, 2, 3):
            x = functional.relu(getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x)))
        return functional.avg_pool2d(x, 2)

    def values(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, S, S] -> [stem, after each block, tokens, pooled], maps as [B, H, W, C]."""
        x = self.stem(x)
        found = [x]
        for block in self.blocks():
            x = block(x)
            found.append(x)
        maps = [value.permute(0, 2, 3, 1) for value in found]
        return [*maps, self.attnpool.tokens(x).transpose(0, 1), self.attnpool(x)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> the embedding [B, out]."""
        return self.attnpool.c_proj(self.values(x)[-1])


def randomise(model: ModifiedResNet, init: str, side: int) -> None:
    """Nothing is left at 0 or 1; `stress`: a peaked attention pooling.

    Each norm's statistics are those of what reaches it from a batch of noise, moved by a good part of each channel's
    deviation: drawn alone they would let sixteen blocks grow out of all bounds.
    """
    draw = torch.Generator().manual_seed(0)

    def noise(value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=draw)

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 4:
                value.copy_(value[0].numel() ** -0.5 * noise(value))
            elif name.endswith("_proj.weight"):
                value.copy_(value.shape[1] ** -0.5 * noise(value))
            elif name.endswith("bn3.weight") and name.startswith("layer"):
                value.copy_(0.1 + 0.01 * noise(value))
            elif name.endswith("weight"):
                value.copy_(1 + 0.1 * noise(value))
            else:
                value.copy_(0.1 * noise(value))
            if init == "stress" and name.endswith(("q_proj.weight", "k_proj.weight")):
                value.mul_(6)
            elif init == "stress" and name.endswith(("v_proj.weight", "c_proj.weight")):
                value.mul_(2)
        hooks = [
            module.register_forward_pre_hook(lambda norm, given: _measure(norm, given[0], noise))
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        model.eval()(torch.randn((8, 3, side, side), generator=draw))
        for hook in hooks:
            hook.remove()


def _measure(norm: nn.Module, x: torch.Tensor, noise: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    norm.running_mean.copy_(mean + 0.3 * var.sqrt() * noise(mean))
    norm.running_var.copy_(var * torch.exp(0.2 * noise(var)))
