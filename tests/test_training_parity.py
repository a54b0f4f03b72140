"""Twenty training steps in float64 equal PyTorch's, from weights that went through the converter."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from test_converters import ids, small_sizes, to_torch
from test_to_hf import exported, folder

from converters.to_hf import _export
from hybridclip_jax import modelfolder, models, optim, sharding, state, step
from hybridclip_jax.config import default
from hybridclip_jax.objectives.contrastive import Contrastive

__all__ = ["small_sizes"]

STEPS, BATCH, RATE = 20, 4, 0.05
LOSS_WITHIN, PARAMETER_WITHIN = 1e-9, 1e-8
SIDES = (32, 64)
# A narrow clamp, so that it comes into play.
FIRST_SCALE, CLAMP = 2.0, (1.999, 2.001)


def batches() -> list[dict[str, np.ndarray]]:
    """Black and white pixels: in float32, which images are normalised in, 0 and 1 leave nothing to round."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(STEPS):
        pixels = 255 * rng.integers(0, 2, (BATCH, *SIDES, 3), np.uint8)
        found.append({"image": pixels, "tokens": np.roll(ids(24), int(rng.integers(4)), axis=0)})
    return found


@dataclasses.dataclass
class Course:
    """Loss and all parameters, by our names, after each step."""

    losses: list[float]
    params: list[dict[str, np.ndarray]]


def ours(source: Path) -> Course:
    params, card = modelfolder.load(source)
    params = {**params, "logit_scale": np.float32(FIRST_SCALE)}
    spec = models.DualSpec(**card.architecture)
    config = default()
    config.optim.learning_rate = RATE
    mesh = sharding.make_mesh(1, 1, BATCH)
    static, shapes, _ = state.abstract(lambda: models.build(spec, models.Numerics(jnp.dtype("float64")), nnx.Rngs(0)))
    tx, objective = optim.make(config, shapes), Contrastive(CLAMP)
    wide = {name: jnp.asarray(value, jnp.float64) for name, value in params.items()}
    current = step.init_state(lambda: (wide, {}), objective, tx)
    placement = step.state_shardings(current, mesh)
    run = step.make_step(static, objective, tx, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0, placement=placement, mesh=mesh)
    course = Course([], [])
    for batch in batches():
        current, metrics = run(current, sharding.to_global(batch, mesh))
        course.losses.append(float(metrics["loss"]))
        course.params.append({name: np.array(value) for name, value in current.params.items()})
    return course


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def both_ways(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits, labels = scale.exp() * image @ text.T, torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def theirs(model: Any, source: Path, loss_of: Loss = both_ways, clamp: bool = True, **options: Any) -> Course:
    model = copy.deepcopy(model).double().train()
    model.logit_scale.data.fill_(FIRST_SCALE)
    model.text_model.config._attn_implementation = "sdpa"  # the eager one takes its softmax in float32
    rope = model.vision_model.rope_embeddings
    quarter = rope.head_dim // 4
    rope.inv_freq = torch.nn.Buffer(1 / rope.base ** (torch.arange(quarter, dtype=torch.float64) / quarter))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **{"momentum": 0.9, **options})
    leaves = _export(source, modelfolder.load(source)[1]).leaves
    course = Course([], [])
    for batch in batches():
        pixels = to_torch(batch["image"] / 255.0)
        tokens = torch.from_numpy(batch["tokens"]).long()
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = model.text_projection(model.text_model(tokens).pooler_output)
        image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        loss = loss_of(image, text, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if clamp:
            model.logit_scale.data.clamp_(*CLAMP)
        held = model.state_dict()
        found = {}
        for leaf in leaves:
            # Files say layer.0, modules in memory model.layer.0.
            stored = leaf.stored.replace("vision_model.layer.", "vision_model.model.layer.")
            found |= dict(zip(leaf.names, leaf.way.split(held[stored].numpy().copy()), strict=True))
        course.losses.append(loss.item())
        course.params.append(found)
    return course


def differences(a: Course, b: Course) -> list[tuple[float, float, str]]:
    """(of the loss, largest of a parameter, its name) at each step."""
    found = []
    for k in range(STEPS):
        assert a.params[k].keys() == b.params[k].keys()
        far = {name: float(np.max(np.abs(value - b.params[k][name]))) for name, value in a.params[k].items()}
        name = max(far, key=far.__getitem__)
        found.append((abs(a.losses[k] - b.losses[k]), far[name], name))
    return found


@pytest.fixture(scope="module")
def small_towers() -> Any:
    """The small sizes for the whole module: the courses are made once."""
    patch = pytest.MonkeyPatch()
    small_sizes.__wrapped__(patch)  # type: ignore[attr-defined]
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def patch_centres_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes the rotary angles from float32 centres: that alone is 1e-9 of the loss."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as theirs

    centres = theirs.get_patches_center_coordinates

    def double(*sides: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return centres(*sides, dtype=torch.float64, device=device)

    monkeypatch.setattr(theirs, "get_patches_center_coordinates", double)


@pytest.fixture(scope="module")
def source(small_towers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("parity") / "ours", context=24)


@pytest.fixture(scope="module")
def model(source: Path) -> Any:
    return exported(source, source.with_name("theirs"), "VisionTextDualEncoderModel")


@pytest.fixture(scope="module")
def course(source: Path) -> Course:
    with jax.enable_x64(True):
        return ours(source)


def test_twenty_steps_equal_torch(source: Path, model: Any, course: Course) -> None:
    found = differences(course, theirs(model, source))
    print("\nstep  loss        difference  largest of a parameter")
    for k, (loss, far, name) in enumerate(found):
        print(f"{k + 1:4}  {course.losses[k]:.8f}  {loss:.1e}     {far:.1e}  {name}")
    assert max(loss for loss, _, _ in found) < LOSS_WITHIN
    assert max(far for _, far, _ in found) < PARAMETER_WITHIN
    assert course.losses[-1] != course.losses[0]
    assert any(float(params["logit_scale"]) in CLAMP for params in course.params), "the clamp never came into play"


def one_way(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(scale.exp() * image @ text.T, torch.arange(len(image)))


def local(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The mean over two halves of the batch, each with its own negatives alone."""
    halves = zip(image.chunk(2), text.chunk(2), strict=True)
    return sum((both_ways(i, t, scale) for i, t in halves), torch.tensor(0.0)) / 2


MISTAKES: dict[str, dict[str, Any]] = {
    "detached scale": {"loss_of": lambda image, text, scale: both_ways(image, text, scale.detach())},
    "missing clamp": {"clamp": False},
    "Nesterov momentum": {"nesterov": True},
    "one-way loss": {"loss_of": one_way},
    "mean over local batches": {"loss_of": local},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_another_training_step_is_seen(mistake: str, source: Path, model: Any, course: Course) -> None:
    found = differences(course, theirs(model, source, **MISTAKES[mistake]))
    far = max(far for _, far, _ in found)
    print(f"{mistake}: {far:.1e}")
    assert far > 100 * PARAMETER_WITHIN
