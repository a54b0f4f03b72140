"""FLOPs against the programs that really run, and a run's two books over kills."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybridclip_jax import accounting, peaks
from hybridclip_jax.errors import StorageError
from hybridclip_jax.models import (
    ClipResNetConfig,
    ClipTextConfig,
    ClipVitConfig,
    DinoV3Config,
    DualEncoder,
    DualSpec,
    Numerics,
)
from hybridclip_jax.models.clip_resnet import ModifiedResNet
from hybridclip_jax.models.clip_text import ClipText
from hybridclip_jax.models.clip_vit import ClipVit
from hybridclip_jax.models.dinov3 import DinoV3
from hybridclip_jax.objectives.contrastive import Contrastive
from hybridclip_jax.state import Params, Static, abstract, bind
from hybridclip_jax.tally import Tally

EMBED, BATCH, SIDE, TOKENS = 20, 4, 24, 16
IMAGE = DinoV3Config(width=32, depth=3, heads=2, mlp_hidden=80, patch=8, registers=2)
GATED = DinoV3Config(width=32, depth=2, heads=2, mlp_hidden=72, patch=8, registers=0, gated=True, qv_bias=False)
VIT = ClipVitConfig(width=32, depth=2, heads=2, mlp_hidden=72, patch=8, image_size=SIDE)
RESNET = ClipResNetConfig(width=4, depths=(1, 2, 1, 1), heads=4, image_size=64)
MODULES = {DinoV3Config: DinoV3, ClipVitConfig: ClipVit, ClipResNetConfig: ModifiedResNet}
TEXT = ClipTextConfig(width=24, depth=2, heads=3, mlp_hidden=56, context=TOKENS, vocab_size=64)

Rule = Callable[[str], bool]
# What trains -> rule. Between them every operand of every product is once wanted and once not.
RULES: dict[str, Rule] = {
    "everything": lambda name: True,
    "nothing": lambda name: False,
    "frozen image tower": lambda name: not name.startswith("image/"),
    "frozen image tower and projection": lambda name: not name.startswith("image"),
    "frozen text tower": lambda name: not name.startswith("text/"),
    "frozen first blocks": lambda name: (
        not any(part in name for part in ("blocks/0", "embed", "cls_token", "register"))
    ),
    "projections only": lambda name: "projection" in name,
    "logit scale only": lambda name: name == "logit_scale",
    "norms only": lambda name: "norm" in name,
    "biases only": lambda name: name.endswith("/bias"),
    "value biases of one block": lambda name: "blocks/1/attn/v/bias" in name,
    "queries only": lambda name: "/attn/q/" in name,
    "keys only": lambda name: "/attn/k/" in name,
    "values of one block": lambda name: "blocks/1/attn/v/" in name,
    "outputs of one block": lambda name: "blocks/1/attn/out/" in name,
    "layer scales of one block": lambda name: "blocks/1/ls" in name,
    "second halves of the MLPs": lambda name: "/fc2/" in name or "/down/" in name,
    "gates": lambda name: "/gate/" in name,
    "embeddings": lambda name: "embed" in name,
    "shortcuts of one block": lambda name: "blocks/2/downsample/" in name,
    "norms of shortcuts": lambda name: "downsample/norm" in name,
    "last convolutions": lambda name: "/conv3/" in name,
    "the stem": lambda name: "/stem/" in name,
    "queries of the pooling": lambda name: "/attn_pool/q/" in name,
    "value bias of the pooling": lambda name: "/attn_pool/v/bias" in name,
    "positions of the pooling": lambda name: "/attn_pool/pos" in name,
    "norm before the blocks": lambda name: "/norm_pre/" in name,
}


@functools.cache
def model_of(image: Any, text: Any, embed_dim: int) -> tuple[Static, Params, Params]:
    numerics = Numerics()

    def build() -> DualEncoder:
        rngs = nnx.Rngs(0)
        return DualEncoder(
            MODULES[type(image)](image, numerics, rngs),
            ClipText(text, numerics, rngs),
            image_width=image.pooled_width,
            text_width=text.width,
            embed_dim=embed_dim,
            temperature=0.07,
            image_bias=image.projection_bias,
            numerics=numerics,
            rngs=rngs,
        )

    return abstract(build)


def side(image: Any) -> int:
    return getattr(image, "image_size", SIDE)


def products(jaxpr: Any) -> Iterator[Any]:
    """Every product, also in called functions. A loop's body would count once, so none may hold one."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found = list(products(inner))
                assert not found or name not in ("scan", "while", "cond"), f"products inside {name}"
                yield from found


def counted(jaxpr: Any, tokens: int) -> int:
    """FLOPs of a program's products; those over tokens x tokens keep the causal share (T + 1) / 2T."""
    total = 0
    for eqn in products(jaxpr):
        left, right, out = (value.aval.shape for value in (*eqn.invars, *eqn.outvars))
        if eqn.primitive.name == "conv_general_dilated":
            assert set(eqn.params["lhs_dilation"]) == {1}, "zeros between the rows would be counted as work"
            _, *contracted = eqn.params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(right[axis] for axis in contracted) * math.prod(out)
            continue
        (contracted, _), _ = eqn.params["dimension_numbers"]
        flops = 2 * math.prod(left[axis] for axis in contracted) * math.prod(out)
        shapes = [value.aval.shape for value in (*eqn.invars, *eqn.outvars)]
        if any(len(shape) > 2 and shape.count(tokens) == 2 for shape in shapes):
            flops = flops * (tokens + 1) // (2 * tokens)
        total += flops
    return total


def programs(image: Any, text: Any, trainable: Rule) -> tuple[int, int]:
    """FLOPs of the real loss, and of the real loss with the gradients of what trains."""
    static, params, stats = model_of(image, text, EMBED)
    trained = {name: leaf for name, leaf in params.items() if trainable(name)}
    frozen = {name: leaf for name, leaf in params.items() if not trainable(name)}
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, side(image), side(image), 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32),
    }
    objective = Contrastive((0.0, math.log(100)))

    def loss(trained: Params, frozen: Params, stats: Params, batch: dict[str, jax.Array]) -> jax.Array:
        key = jax.random.key(0)
        return objective.loss(lambda p: bind(static, p, stats), {**frozen, **trained}, {}, batch, key)[0]

    forward = jax.make_jaxpr(loss)(trained, frozen, stats, batch)
    both = jax.make_jaxpr(jax.value_and_grad(loss))(trained, frozen, stats, batch)
    return counted(forward.jaxpr, TOKENS), counted(both.jaxpr, TOKENS)


def analytic(image: Any, text: Any, trainable: Rule) -> tuple[int, int]:
    flops = accounting.step_flops(
        image,
        text,
        embed_dim=EMBED,
        image_size=side(image),
        text_tokens=TOKENS,
        batch_size=BATCH,
        trainable=trainable,
    )
    return flops.forward, flops.total


@pytest.mark.parametrize("image", [IMAGE, VIT, RESNET], ids=lambda image: type(image).__name__)
@pytest.mark.parametrize("rule", RULES)
def test_flops_equal_those_of_the_program_that_runs(rule: str, image: Any) -> None:
    assert analytic(image, TEXT, RULES[rule]) == programs(image, TEXT, RULES[rule])


@pytest.mark.parametrize("rule", ["everything", "frozen first blocks", "gates", "second halves of the MLPs"])
def test_flops_of_a_gated_tower_equal_those_of_the_program(rule: str) -> None:
    assert analytic(GATED, TEXT, RULES[rule]) == programs(GATED, TEXT, RULES[rule])


def pixels_have_gradients(tally: Any, name: str, flops: int, needs: bool, *, bias: bool) -> bool:
    return LINEAR(tally, name, flops, needs or name in ("patch_embed", "stem/conv1"), bias=bias)


def biases_pass_nothing_on(tally: Any, name: str, flops: int, needs: bool, *, bias: bool) -> bool:
    return LINEAR(tally, name, flops, needs, bias=False)


def backward_is_twice_forward(tally: Any, flops: int, left: bool, right: bool) -> bool:
    return PRODUCT(tally, flops, True, True)


def frozen_parts_pass_nothing_on(tally: Any, flops: int, left: bool, right: bool) -> bool:
    return PRODUCT(tally, flops, left, right) and right


def no_pooling_before_the_last_convolution(tally: Any, name: str, flops: int, needs: bool, *, bias: bool) -> bool:
    return LINEAR(tally, name, flops * 4 if name == "blocks/1/conv3" else flops, needs, bias=bias)


def every_token_asks_in_the_pooling(tally: Any, name: str, flops: int, needs: bool, *, bias: bool) -> bool:
    return LINEAR(tally, name, flops * 5 if name == "attn_pool/q" else flops, needs, bias=bias)


LINEAR, PRODUCT = Tally.linear, Tally.product
# wrong count, tower -> what it replaces, and a rule of training that gives it away
MUTATIONS = {
    (pixels_have_gradients, IMAGE): ("linear", "everything"),
    (pixels_have_gradients, RESNET): ("linear", "everything"),
    (biases_pass_nothing_on, IMAGE): ("linear", "value biases of one block"),
    (biases_pass_nothing_on, RESNET): ("linear", "value bias of the pooling"),
    (backward_is_twice_forward, IMAGE): ("product", "frozen image tower"),
    (frozen_parts_pass_nothing_on, IMAGE): ("product", "embeddings"),
    (no_pooling_before_the_last_convolution, RESNET): ("linear", "nothing"),
    (every_token_asks_in_the_pooling, RESNET): ("linear", "nothing"),
}


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda case: f"{case[0].__name__}-{type(case[1]).__name__}")
def test_a_wrong_count_is_noticed(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, image = case
    method, rule = MUTATIONS[case]
    monkeypatch.setattr(Tally, method, wrong)
    assert analytic(image, TEXT, RULES[rule]) != programs(image, TEXT, RULES[rule])


def test_flops_agree_with_xla_on_the_compiled_unrolled_forward_pass() -> None:
    """XLA also counts elementwise work and the masked half of attention: a few percent at these widths."""
    image = DinoV3Config(width=256, depth=1, heads=4, mlp_hidden=1024)
    text = ClipTextConfig(width=256, depth=1, heads=4, mlp_hidden=1024, context=64, vocab_size=64)
    static, params, _ = model_of(image, text, 256)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def forward(params: Params, images: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = bind(static, params)
        return model.encode_image(images), model.encode_text(ids)

    xla = jax.jit(forward).lower(params, images, ids).compile().cost_analysis()["flops"]
    ours = accounting.encode_flops(image, text, embed_dim=256, image_size=64, images=2, texts={64: 2})
    assert 1.0 < xla / ours < 1.05


# T -> (forward, total) TFLOP of the recipe at batch 64 and 224 px, from the hand count of the two towers.
RECIPE = {512: (4.976, 14.91), 256: (None, 10.74), 128: (None, 8.77), 96: (None, 8.29), 77: (None, 8.00)}


@pytest.mark.parametrize("tokens", RECIPE)
def test_flops_of_the_recipe(tokens: int) -> None:
    spec = DualSpec()
    flops = accounting.step_flops(
        spec.image_arch,
        spec.text_arch,
        embed_dim=512,
        image_size=224,
        text_tokens=tokens,
        batch_size=64,
        trainable=RULES["everything"],
    )
    forward, total = RECIPE[tokens]
    assert flops.total / 1e12 == pytest.approx(total, rel=1e-3)
    if forward is not None:
        assert flops.forward / 1e12 == pytest.approx(forward, rel=1e-4)
        assert accounting.pf_days(25_000 * flops.total) == pytest.approx(0.00432, rel=2e-3)


def test_asked_names_exist_in_the_model() -> None:
    """A name that no parameter has would make a rule that matches it change the count."""
    for image in (IMAGE, GATED, VIT, RESNET):
        asked: set[str] = set()

        def note(name: str, asked: set[str] = asked) -> bool:
            asked.add(name)
            return False

        analytic(image, TEXT, note)
        assert asked <= model_of(image, TEXT, EMBED)[1].keys()


def test_eight_v100_are_the_machine_of_the_notes() -> None:
    peak = peaks.peak("v100", "float32").flops
    assert peak is not None
    assert accounting.pf_days(peak * 8 * 86_400) == pytest.approx(0.1256)
    assert accounting.hours(peak * 3600, peak, 2, 0.25) == pytest.approx(2.0)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


H200 = 989.4e12


def meter(clock: Clock, ledger: Path | None = None, kind: str = "NVIDIA H200") -> accounting.Meter:
    return accounting.Meter(kind, 2, "bfloat16", ledger=ledger, clock=clock)


def test_a_window_reports_rates_of_itself_and_totals_of_the_run() -> None:
    clock = Clock()
    book = meter(clock)
    clock.now += 30  # compiling: capacity, no work
    book.add(int(4e15), 10.0)
    clock.now += 10
    first = book.window()
    assert first["tflops"] == pytest.approx(400.0)
    assert first["mfu"] == pytest.approx(400e12 / (2 * H200))
    assert first["pf_days_model"] == 4e15 / 8.64e19
    assert first["pf_days_capacity"] == pytest.approx(H200 * 2 * 40 / 8.64e19)
    book.add_eval(int(1e15), 5.0)
    clock.now += 5
    book.add(int(1e15), 10.0)
    clock.now += 10
    second = book.window()
    assert second["tflops"] == pytest.approx(100.0)
    assert second["pf_days_model"] == 5e15 / 8.64e19
    summary = book.summary()
    assert summary["mfu"] == pytest.approx(5e15 / (H200 * 2 * 55))
    assert summary["pf_days_eval"] == 1e15 / 8.64e19
    assert (summary["train_s"], summary["eval_s"]) == (20.0, 5.0)
    assert summary["device_hours"] == pytest.approx(2 * 55 / 3600)
    assert book.window()["tflops"] is None


def test_a_killed_run_counts_replayed_work_once_and_all_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    work = [int(flops) for flops in rng.integers(1e12, 2e13, 60)]
    straight = meter(Clock())
    expected = []
    for flops in work:
        straight.add(flops, 1.0)
        expected.append(straight.window()["pf_days_model"])

    clock, ledger = Clock(), tmp_path / "attempts.json"
    step, saved, state, seen = 0, 0, straight.state_dict() | {"train_flops": 0}, {}
    for until in (7, 33, 33, 60):  # killed three times, once before any new checkpoint
        book = meter(clock, ledger)
        book.load_state(json.loads(json.dumps(state)))
        step = saved
        while step < until:
            clock.now += 1.0
            book.add(work[step], 1.0)
            step += 1
            seen[step] = book.window()
            if step % 10 == 0:
                saved, state = step, book.state_dict()
    assert [seen[step]["pf_days_model"] for step in range(1, 61)] == expected
    ran = 7 + 33 + 3 + 30
    assert seen[60]["pf_days_capacity"] == pytest.approx(H200 * 2 * ran / 8.64e19)
    assert book.summary()["attempts"] == 4
    assert book.summary()["train_s"] == ran


def test_an_attempt_on_an_unknown_device_leaves_capacity_unknown(tmp_path: Path) -> None:
    ledger = tmp_path / "attempts.json"
    first = meter(Clock(), ledger, "cpu")
    first.add(10**12, 1.0)
    line = first.window()
    assert line["tflops"] == 1.0
    assert line["mfu"] is None
    assert line["pf_days_capacity"] is None
    second = meter(Clock(), ledger)
    second.add(10**12, 1.0)
    line = second.window()
    assert line["mfu"] is not None
    assert line["pf_days_capacity"] is None
    assert second.summary()["why_no_capacity"] == "no peak is known for the device 'cpu'"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempts": [{"seconds": 3}]}', '{"attempts": 3}'])
def test_a_damaged_ledger_is_unknown_time_not_an_end(tmp_path: Path, text: str) -> None:
    ledger = tmp_path / "attempts.json"
    ledger.write_text(text)
    book = meter(Clock(), ledger)
    book.add(10**12, 1.0)
    assert book.window()["pf_days_capacity"] is None
    assert meter(Clock(), ledger).summary()["why_no_capacity"] == "attempts.json is damaged"


def test_a_ledger_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    book = meter(Clock(), tmp_path / "gone" / "attempts.json")
    with pytest.raises(StorageError, match=r"attempts\.json: cannot be written"):
        book.window()
