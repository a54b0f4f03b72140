"""`hybridclip budget` on the recipe, on frozen and sharded runs, and its refusals."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hybridclip_jax import budget, build, cli, config, models, state
from hybridclip_jax.commands import budget as command
from hybridclip_jax.errors import UserError

RECIPE = str(Path(__file__).parents[1] / "configs" / "hybrid_cxr.py")


def arguments(*argv: str) -> argparse.Namespace:
    return cli.parse(["budget", *argv])


def small(**fields: object) -> config.ConfigDict:
    made = config.default()
    made.model.image.arch, made.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    made.batch_size, made.model.text.context = 16, 64
    for name, value in fields.items():
        node, field = made, name.split("__")
        for part in field[:-1]:
            node = node[part]
        node[field[-1]] = value
    return made


def cells(text: str, start: str) -> list[str]:
    """The cells of the one row that starts with `start`."""
    rows = [line for line in text.splitlines() if line.startswith(start + "  ")]
    assert len(rows) == 1, (start, text)
    return re.split(r"\s{2,}", rows[0])


def test_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    command.run(arguments(f"--config={RECIPE}", "--use", "0.4"))
    text = capsys.readouterr().out
    assert "25,000 steps of 64 pairs, 224 px, 512 text tokens" in text
    assert cells(text, "total") == ["total", "149.7 M", "149.7 M"]
    assert cells(text, "forward")[1] == "4.976 TFLOP"
    assert cells(text, "forward and backward")[1:] == ["14.91 TFLOP", "3.73e+17", "0.00432"]
    assert cells(text, "together")[1] == "1.80 GB"
    assert cells(text, "8 x v100") == ["8 x v100", "float32", "0.1256", "2 h 29 min", "2 h 03 min"]
    assert cells(text, "1 x h200")[1] == "float32 in tf32"


def test_one_device() -> None:
    text = render(small(), "Tesla V100-SXM2-32GB", 4)
    assert cells(text, "4 x Tesla V100-SXM2-32GB")[2] == "0.0628"
    assert "h200" not in text
    assert "memory of one device of 4" in text


def render(made: config.ConfigDict, device: str | None = None, devices: int | None = None) -> str:
    return budget.render(made, device=device, devices=devices, use=None)


def test_frozen_towers_cost_and_hold_less() -> None:
    whole = budget.step_flops(small(), build.model(small()))
    made = small(optim__groups=(("(image|text)/.*", 0.0, 1.0), (".*", 1.0, 1.0)))
    frozen = budget.step_flops(made, build.model(made))
    assert frozen.forward == whole.forward
    assert frozen.total < 1.01 * frozen.forward
    text = render(made)
    assert cells(text, "image")[2] == "0"
    assert cells(text, "image_projection")[2] == "65,536"
    activations = budget.activation_bytes(made, build.model(made), 1)
    assert activations < 0.01 * budget.activation_bytes(small(), build.model(small()), 1)


def test_activations_are_what_the_compiled_step_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA on CPU reports its temporary memory; in a small model other things weigh in too."""
    module, sizes = models.IMAGE_ENCODERS["dinov3_tiny32"]
    monkeypatch.setitem(models.IMAGE_ENCODERS, "dinov3_tiny32", (module, dataclasses.replace(sizes, depth=2)))
    made = small()
    model = build.model(made)
    inputs = {
        "image": jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((16, 64), jnp.int32),
    }

    def loss(params: state.Params, inputs: dict[str, jax.Array]) -> jax.Array:
        bound = lambda p: state.bind(model.static, p)  # noqa: E731
        return model.objective.loss(bound, params, {}, inputs, jax.random.key(0))[0]

    compiled = jax.jit(jax.value_and_grad(loss)).lower(model.shapes, inputs).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert budget.activation_bytes(made, model, 1) == pytest.approx(held, rel=0.1)
    assert budget.activation_bytes(made, model, 2) == pytest.approx(held / 2, rel=0.15)
    made = small(compute__remat=True)
    assert budget.activation_bytes(made, build.model(made), 1) < 0.5 * held


# name, side -> the image tower's parameters: those of the published models without their projections.
TOWERS = {("clip_vitb32", 224): "87.5 M", ("clip_rn50", 224): "36.2 M"}


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: tower[0])
def test_towers_of_other_kinds_have_a_budget(tower: tuple[str, int]) -> None:
    name, side = tower
    made = small(model__image__arch=name, data__image_size=side)
    assert not list(config.validate(made))
    text = render(made, "v100", 1)
    assert cells(text, "image")[1] == TOWERS[tower]
    model = build.model(made)
    kept = budget.activation_bytes(made, model, 1)
    remat = small(model__image__arch=name, data__image_size=side, compute__remat=True)
    assert budget.activation_bytes(remat, build.model(remat), 1) < 0.5 * kept
    frozen = small(
        model__image__arch=name, data__image_size=side, optim__groups=(("image/.*", 0.0, 1.0), (".*", 1.0, 1.0))
    )
    assert budget.activation_bytes(frozen, build.model(frozen), 1) < 0.1 * kept


def test_adam_holds_two_moments_and_fsdp_divides() -> None:
    made = config.load(RECIPE)
    made.optim.name = "adamw"
    model = build.model(made)
    one = budget.state_bytes(made, model, 1)
    assert one["parameters"] == one["gradients"] == 4 * 149_703_681
    assert one["optimiser state"] == pytest.approx(2 * one["parameters"], rel=1e-6)
    made.mesh.fsdp = 4
    # Small arrays lie on every device; the kernels, nearly all of it, are divided.
    for name, size in budget.state_bytes(made, model, 8).items():
        assert size == pytest.approx(one[name] / 4, rel=0.01)


def test_a_format_that_the_device_lacks_is_said() -> None:
    text = render(small(compute__dtype="bfloat16"), "v100", 8)
    assert cells(text, "8 x v100")[1:3] == ["float32 (has no bfloat16)", "0.1256"]


def test_an_unknown_device_has_no_hours() -> None:
    row = cells(render(small(), "unknown"), "1 x unknown")
    assert row[1:] == ["no peak is known for the device 'unknown'", "-", "-"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--device", "k80"), "--device k80: not in the table of peaks; one of v100-pcie, v100, a100"),
        (("--devices", "0"), "--devices 0: must be at least 1"),
        (("--devices", "7"), "--devices 7: batch_size = 64 does not divide"),
        (("--use", "33"), "--use 33: a share of the peak"),
        (("--use", "nan"), "--use nan: a share of the peak"),
    ],
)
def test_refusals_are_one_line(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        command.run(arguments(f"--config={RECIPE}", *argv))
    assert "\n" not in str(caught.value)


def test_a_mesh_that_the_devices_do_not_make_is_refused() -> None:
    with pytest.raises(UserError, match="the config's mesh asks for any x 4 devices"):
        render(small(mesh__fsdp=4), "v100", 2)
    with pytest.raises(UserError, match="the config's mesh asks for 2 x 1 devices"):
        render(small(mesh__data=2), "v100", 4)


def test_no_device_is_touched() -> None:
    """A budget asked for on a busy GPU must not claim its memory."""
    script = (
        "from hybridclip_jax import budget, config\n"
        "made = config.default()\n"
        "made.model.image.arch, made.model.text.arch = 'dinov3_tiny32', 'clip_text_tiny'\n"
        "budget.render(made, device=None, devices=None, use=None)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, xla_bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
