"""Adds up the matrix products of a tower without running it; each tower's sizes say which there are, in `count`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Trainable = Callable[[str], bool]


class Tally:
    """Adds up matrix products in forward order; each method returns whether its result's gradient is wanted.

    A product costs its FLOPs once forward and once more for each operand whose gradient is wanted: a trained
    operand, or one with something trained upstream. That is what reverse differentiation with respect to the
    trainable parameters alone computes, so a frozen part costs 1, 2 or 3 times its forward pass. `trainable` is
    asked with the names that the parameters have where the tally stands.
    """

    def __init__(self, trainable: Trainable) -> None:
        self.trainable = trainable
        self.forward = self.backward = 0

    def any(self, *names: str) -> bool:
        return any(self.trainable(name) for name in names)

    def product(self, flops: int, left: bool, right: bool) -> bool:
        self.forward += flops
        self.backward += flops * (left + right)
        return left or right

    def linear(self, name: str, flops: int, needs: bool, *, bias: bool) -> bool:
        """A layer of `flops` forward with its kernel under `name`: a linear one or a convolution."""
        needs = self.product(flops, needs, self.any(f"{name}/kernel"))
        return needs or (bias and self.any(f"{name}/bias"))

    def norm(self, name: str, needs: bool) -> bool:
        return needs or self.any(f"{name}/scale", f"{name}/bias")

    def tower(self, name: str, sizes: Any, **shape: int) -> bool:
        """What `sizes.count` adds for inputs of this shape; the tower asks by its own names, under `name` here."""
        inner = Tally(lambda own: self.trainable(f"{name}/{own}"))
        needs = sizes.count(inner, **shape)
        self.forward += inner.forward
        self.backward += inner.backward
        return needs

    def block(
        self,
        name: str,
        *,
        width: int,
        hidden: int,
        rows: int,
        pairs: int,
        needs: bool,
        biases: str,
        gated: bool = False,
        layer_scale: bool = False,
    ) -> bool:
        """One pre-norm transformer block over `rows` = B L tokens.

        pairs: B times the (query, key) pairs attended. biases: which of q, k, v and o (the output) have one.
        """
        square, wide = 2 * rows * width * width, 2 * rows * width * hidden
        x = self.norm(f"{name}/norm1", needs)
        q, k, v = (self.linear(f"{name}/attn/{part}", square, x, bias=part in biases) for part in "qkv")
        scores = self.product(2 * pairs * width, q, k)
        mixed = self.product(2 * pairs * width, scores, v)
        needs |= self.linear(f"{name}/attn/out", square, mixed, bias="o" in biases)
        needs |= layer_scale and self.any(f"{name}/ls1")

        x = self.norm(f"{name}/norm2", needs)
        into, out = (("gate", "up"), "down") if gated else (("fc1",), "fc2")
        inner = [self.linear(f"{name}/mlp/{part}", wide, x, bias=True) for part in into]
        needs |= self.linear(f"{name}/mlp/{out}", wide, any(inner), bias=True)
        return needs or (layer_scale and self.any(f"{name}/ls2"))
