"""The regex tables, and the optimisers against torch's own over several steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from hybridclip_jax import optim, rules
from hybridclip_jax.config import default
from hybridclip_jax.errors import UserError

NAMES = ("image/blocks/0/attn/q/kernel", "image/blocks/10/norm1/scale", "text/norm/scale", "logit_scale")


def match(*table: tuple[str, Any]) -> dict[str, Any]:
    return rules.match(table, NAMES, what="table")


def test_the_first_match_wins() -> None:
    assert match(("image/.*/kernel", 1), ("image/.*", 2), (".*scale", 3)) == dict(zip(NAMES, (1, 2, 3, 3), strict=True))
    assert match(("image/.*", 2), (".*", 3)) == dict(zip(NAMES, (2, 2, 3, 3), strict=True))


def test_a_rule_matches_whole_names() -> None:
    assert match(("image/blocks/1/.*|.*", 0))
    with pytest.raises(UserError, match=r"the rule 'image/blocks/1/\.\*' matches no parameter"):
        match(("image/blocks/1/.*", 1), (".*", 2))


def test_a_value_may_be_anything() -> None:
    assert set(match((".*", None)).values()) == {None}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([("image/.*", 1)], "table: no rule covers the parameter text/norm/scale; end the table with '.*'"),
        ([], "table: no rule covers the parameter image/blocks/0/attn/q/kernel"),
        ([("visual/.*", 1), (".*", 2)], "table: the rule 'visual/.*' matches no parameter; correct or remove it"),
        ([(".*", 2), ("text/.*", 1)], "table: the rule 'text/.*' decides nothing: rules before it take all it matches"),
        ([("text/.*", 2), ("text/.*", 1), (".*", 2)], "table: the rule 'text/.*' decides nothing"),
        ([("image/(", 1), (".*", 2)], "table: 'image/(' is not a regular expression: missing )"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(table: list[tuple[str, int]], says: str) -> None:
    with pytest.raises(UserError) as caught:
        match(*table)
    assert str(caught.value).startswith(says)


def test_the_rest_may_be_empty() -> None:
    """'.*' at the end is what the error for an uncovered parameter advises; it need not be left with anything."""
    assert match((".*(kernel|scale)", 1), (".*", 2)) == dict.fromkeys(NAMES, 1)


# --- optimisers


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


SHAPES = {"image/fc/kernel": (3, 4), "image/fc/bias": (4,), "text/fc/kernel": (2, 2), "logit_scale": ()}
GROUPS = (("text/.*", 0.1, 1.0), (".*/bias", 1.0, 0.0), ("logit_scale", 2.0, 0.0), (".*", 1.0, 1.0))
STEPS = 6


def config_of(**fields: Any) -> Any:
    config = default()
    config.steps = 10
    config.optim.update(fields)
    return config


def numbers(seed: int) -> dict[str, np.ndarray]:
    """Double precision: in float32 the rounding of a parameter hides a step of Adam to four digits."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def ours(config: Any) -> dict[str, np.ndarray]:
    """The parameters after STEPS updates with gradients that depend on the step alone."""
    made = optim.make(config, SHAPES)
    params: Any = {name: jnp.asarray(value) for name, value in numbers(0).items()}
    trained, frozen = optim.partition(params, made.trainable)
    opt = made.transform.init(trained)

    @jax.jit
    def step(trained: Any, opt: Any, grads: Any) -> Any:
        updates, opt = made.transform.update(grads, opt, trained)
        return optax.apply_updates(trained, updates), opt

    for k in range(STEPS):
        grads, _ = optim.partition(numbers(k + 1), made.trainable)
        trained, opt = step(trained, opt, grads)
    return {name: np.asarray(value) for name, value in {**frozen, **trained}.items()}


def theirs(config: Any, groups: Any = ((".*", 1.0, 1.0),), **options: Any) -> dict[str, np.ndarray]:
    """The same by torch.optim, one parameter group for each parameter, the learning rate set at every step."""
    rate = optim.schedule(config)
    factors = rules.match([(pattern, rest) for pattern, *rest in groups], SHAPES, what="")
    params = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in numbers(0).items()}
    parts = [
        {"params": [params[name]], "weight_decay": config.optim.weight_decay * decay, "factor": factor}
        for name, (factor, decay) in factors.items()
    ]
    if config.optim.name == "sgd":
        made: Any = torch.optim.SGD(parts, lr=1.0, momentum=config.optim.momentum, **options)
    else:
        made = torch.optim.AdamW(parts, lr=1.0, betas=(config.optim.momentum, 0.999), eps=1e-8, **options)
    for k in range(STEPS):
        for name, value in numbers(k + 1).items():
            params[name].grad = torch.from_numpy(np.array(value))
        for part in made.param_groups:
            part["lr"] = float(rate(k)) * part["factor"]
        made.step()
    return {name: value.detach().numpy() for name, value in params.items()}


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference relative to how far a parameter moved."""
    start = numbers(0)
    moved = {name: np.max(np.abs(b[name] - start[name])) for name in b}
    return max(float(np.max(np.abs(a[name] - b[name])) / moved[name]) for name in b)


RUNS = {
    "sgd": {"name": "sgd", "learning_rate": 0.1},
    "sgd with decay": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.3},
    "sgd in groups": {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.3, "groups": GROUPS},
    "sgd without momentum": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0},
    "sgd warming up": {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 3, "schedule": "cosine"},
    "adamw": {"name": "adamw", "learning_rate": 0.01},
    "adamw with decay": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.3},
    "adamw in groups": {
        "name": "adamw",
        "learning_rate": 0.01,
        "weight_decay": 0.3,
        "groups": GROUPS,
        "warmup_steps": 2,
    },
}


@pytest.mark.parametrize("run", RUNS)
def test_equals_torch(run: str) -> None:
    config = config_of(**RUNS[run])
    found = difference(ours(config), theirs(config, config.optim.groups))
    print(f"{run}: {found:.1e}")
    assert found < 1e-6


MISTAKES = {
    "nesterov": ("sgd", {"nesterov": True}),
    "dampening": ("sgd", {"dampening": 0.9}),
    "decay beside the momentum": ("sgd with decay", None),
    "adam, whose decay joins the gradient": ("adamw with decay", None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_another_rule_of_the_same_name_fails(mistake: str) -> None:
    run, options = MISTAKES[mistake]
    config = config_of(**RUNS[run])
    if options is not None:
        wrong = theirs(config, **options)
    elif config.optim.name == "sgd":
        wrong = decoupled_sgd(config)
    else:
        wrong = coupled_adam(config)
    found = difference(ours(config), wrong)
    print(f"{mistake}: {found:.1e}")
    assert found > 1e-2


def decoupled_sgd(config: Any) -> dict[str, np.ndarray]:
    params, trace = numbers(0), dict.fromkeys(SHAPES, 0.0)
    for k in range(STEPS):
        for name, grad in numbers(k + 1).items():
            trace[name] = grad + config.optim.momentum * trace[name]
            params[name] -= config.optim.learning_rate * (trace[name] + config.optim.weight_decay * params[name])
    return params


def coupled_adam(config: Any) -> dict[str, np.ndarray]:
    params = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in numbers(0).items()}
    made = torch.optim.Adam(params.values(), lr=config.optim.learning_rate, weight_decay=config.optim.weight_decay)
    for k in range(STEPS):
        for name, value in numbers(k + 1).items():
            params[name].grad = torch.from_numpy(np.array(value))
        made.step()
    return {name: value.detach().numpy() for name, value in params.items()}


def lion(config: Any, sign: Any = np.sign) -> dict[str, np.ndarray]:
    """Chen et al. 2023, algorithm 2, which torch does not have."""
    params, mean = numbers(0), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    rate, decay, beta = config.optim.learning_rate, config.optim.weight_decay, config.optim.momentum
    for k in range(STEPS):
        for name, g in numbers(k + 1).items():
            step = sign(beta * mean[name] + (1 - beta) * g)
            mean[name] = 0.99 * mean[name] + 0.01 * g
            params[name] = params[name] - rate * (step + decay * params[name])
    return params


def test_lion_equals_the_algorithm_written_out() -> None:
    config = config_of(name="lion", learning_rate=0.01, weight_decay=0.3)
    assert difference(ours(config), lion(config)) < 1e-6
    assert difference(ours(config), lion(config, sign=lambda x: x)) > 1e-2


def test_what_is_frozen_neither_moves_nor_costs_memory() -> None:
    config = config_of(name="adamw", learning_rate=0.1, groups=(("image/.*", 0.0, 1.0), (".*", 1.0, 1.0)))
    made = optim.make(config, SHAPES)
    assert made.trainable == {"text/fc/kernel", "logit_scale"}
    on = optim.trainable(config, SHAPES)
    assert [name for name in SHAPES if on(name)] == ["text/fc/kernel", "logit_scale"]
    trained, frozen = optim.partition({name: jnp.asarray(v) for name, v in numbers(0).items()}, made.trainable)
    assert trained.keys() | frozen.keys() == SHAPES.keys()
    held = jax.tree_util.tree_leaves_with_path(made.transform.init(trained))
    named = [jax.tree_util.keystr(path) for path, leaf in held if leaf.ndim or "logit" in str(path)]
    assert len(named) == 4, "two moments of two parameters"
    assert not [path for path in named if "image" in path]
    moved = {name for name, value in ours(config).items() if not np.array_equal(value, numbers(0)[name])}
    assert moved == made.trainable


def test_a_model_of_frozen_parameters_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.groups freezes every parameter"):
        optim.make(config_of(groups=((".*", 0.0, 1.0),)), SHAPES)


def test_a_factor_scales_the_step_of_its_group_alone() -> None:
    plain = ours(config_of(name="sgd", learning_rate=0.1))
    tenth = ours(config_of(name="sgd", learning_rate=0.1, groups=(("text/.*", 0.1, 1.0), (".*", 1.0, 1.0))))
    start = numbers(0)
    for name in SHAPES:
        factor = 0.1 if name.startswith("text/") else 1.0
        np.testing.assert_allclose(
            tenth[name] - start[name], factor * (plain[name] - start[name]), rtol=1e-3, atol=1e-6
        )


def test_momentum_is_kept_under_the_parameters_names() -> None:
    """Sharding places each momentum like its parameter by this name."""
    made = optim.make(config_of(name="sgd"), SHAPES)
    held = jax.tree_util.tree_leaves_with_path(made.transform.init(numbers(0)))
    named = {path[-1].key: leaf.shape for path, leaf in held if isinstance(path[-1], jax.tree_util.DictKey)}
    assert named == SHAPES


# --- schedules


def rates(**fields: Any) -> list[float]:
    config = config_of(learning_rate=0.5, **fields)
    return [float(optim.schedule(config)(step)) for step in range(config.steps + 1)]


def test_constant() -> None:
    assert rates() == [0.5] * 11


def test_warmup_then_constant() -> None:
    np.testing.assert_allclose(rates(warmup_steps=4), [0, 0.125, 0.25, 0.375, *[0.5] * 7])


def test_cosine_from_the_peak_to_zero() -> None:
    found = rates(schedule="cosine")
    np.testing.assert_allclose(found, 0.25 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-7)
    assert found[0] == 0.5
    assert found[10] == pytest.approx(0, abs=1e-7)


def test_cosine_after_a_warmup() -> None:
    found = rates(schedule="cosine", warmup_steps=4)
    np.testing.assert_allclose(found[:5], [0, 0.125, 0.25, 0.375, 0.5], atol=1e-7)
    np.testing.assert_allclose(found[4:], 0.25 * (1 + np.cos(np.pi * np.arange(7) / 6)), atol=1e-7)
    assert found[7] == pytest.approx(0.25)


def test_the_step_uses_the_rate_of_its_own_0_based_number() -> None:
    """The first update of a warm-up moves nothing; the second moves by the schedule's value at 1."""
    config = config_of(name="sgd", learning_rate=0.5, warmup_steps=4, momentum=0.0)
    made = optim.make(config, SHAPES)
    params, grads = numbers(0), numbers(1)
    opt = made.transform.init(params)
    for step in range(6):
        updates, opt = made.transform.update(grads, opt, params)
        for name in SHAPES:
            np.testing.assert_allclose(updates[name], -float(made.schedule(step)) * grads[name], rtol=1e-6)


def test_global_norm_is_that_of_the_whole_tree() -> None:
    tree = {"a": jnp.asarray([3.0, 0.0]), "b": {"c": jnp.asarray(4.0)}}
    assert float(optim.global_norm(tree)) == pytest.approx(5.0)
