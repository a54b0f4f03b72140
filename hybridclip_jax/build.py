"""From a validated config to everything a run needs: data, model, mesh, optimiser, step, evaluators.

Each fault of data, weights or devices is raised here, as a UserError, before the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from hybridclip_jax import held_out, logs, modelfolder, models, objectives, optim, selection, sharding, state, step
from hybridclip_jax.data import stage
from hybridclip_jax.data.loader import TrainStream
from hybridclip_jax.data.sentences import names_sides
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import Evaluator, Preparation
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.models.layers import l2_normalize
from hybridclip_jax.state import Params, TrainState

# Below this compute capability NVIDIA devices have no bfloat16 (Volta is 7.0, Turing 7.5).
BFLOAT16_FROM = 8.0


@dataclasses.dataclass(frozen=True)
class Model:
    """The model of a config without its arrays: graph, shapes of parameters and statistics, and what trains."""

    spec: models.DualSpec
    static: state.Static
    shapes: Params
    stats: Params
    objective: objectives.Objective
    optimizer: optim.Optimizer
    numerics: models.Numerics

    @property
    def arrays(self) -> Params:
        """Parameters and statistics, as a model folder holds them."""
        return {**self.shapes, **self.stats}


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a run needs that is not its state.

    store: what is trained on. stores: that and every other that the evaluators read. rule: how the checkpoint is
    chosen, None without evaluators. notes: what has to be said of an evaluator's values, by its name.
    """

    config: Any
    model: Model
    mesh: Mesh
    tokenizer: Tokenizer
    store: Store
    stores: tuple[Store, ...]
    stream: TrainStream
    evaluators: dict[str, Evaluator]
    rule: selection.Rule | None
    notes: dict[str, list[str]]
    encode: Encode
    abstract: TrainState
    placement: TrainState
    step: step.Step
    loaded: dict[str, np.ndarray]
    weights: dict[str, modelfolder.Tower]
    warnings: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        return any(store.synthetic for store in self.stores)


def spec_of(config: Any) -> models.DualSpec:
    """The model specification a config asks for."""
    return models.DualSpec(
        image=config.model.image.arch,
        text=config.model.text.arch,
        context=config.model.text.context,
        embed_dim=config.model.embed_dim,
        temperature=config.model.temperature,
    )


def model(config: Any) -> Model:
    """The model of a config, as shapes: nothing is allocated and no data is read."""
    spec = spec_of(config)
    numerics = models.Numerics(jax.numpy.dtype(config.compute.dtype), config.compute.attention, config.compute.remat)
    static, shapes, stats = state.abstract(lambda: models.build(spec, numerics, nnx.Rngs(0)))
    objective = objectives.OBJECTIVES[config.objective](tuple(config.model.logit_scale_range))
    return Model(spec, static, shapes, stats, objective, optim.make(config, shapes), numerics)


def check_devices(config: Any, devices: list[jax.Device]) -> None:
    """Raises UserError where the devices cannot compute what the config asks for."""
    for device in devices:
        capability = getattr(device, "compute_capability", None)
        if config.compute.dtype == "bfloat16" and capability and float(capability) < BFLOAT16_FROM:
            raise UserError(
                f"compute.dtype = bfloat16: {device.device_kind} has no bfloat16 (compute capability "
                f"{capability}); use --config.compute.dtype=float32"
            )
    if config.compute.attention == "cudnn" and (devices[0].platform != "gpu" or config.compute.dtype != "bfloat16"):
        raise UserError("compute.attention = cudnn: needs an NVIDIA GPU and compute.dtype = bfloat16; use xla")


def job(config: Any) -> Job:
    """Builds everything but the state. Raises UserError for whatever the config, data or weights get wrong."""
    check_devices(config, jax.devices())
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.batch_size)
    built = model(config)
    tokenizer = Tokenizer(built.spec.text_arch.vocab_size)
    if not config.data.train:
        raise UserError("data.train is empty: name a store, e.g. --config.data.train=STORE:train")
    stores = _Stores(config.data.stage_dir)
    store = stores.open(config.data.train)
    stream = TrainStream(
        store,
        tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        image_size=config.data.image_size,
        crop=config.data.crop,
        flip=config.data.flip,
        context=config.model.text.context,
        sentences=config.data.sentences,
    )
    preparation = Preparation(tokenizer, config.model.text.context, config.data.image_size, stores.open)
    evaluations = held_out.build(config, preparation, store)
    weights = _weights(config, built, tokenizer)
    abstract = jax.eval_shape(lambda: _init(config, built))
    placement = step.state_shardings(abstract, mesh)
    return Job(
        config=config,
        model=built,
        mesh=mesh,
        tokenizer=tokenizer,
        store=store,
        stores=tuple(stores.opened.values()),
        stream=stream,
        evaluators=evaluations.evaluators,
        rule=evaluations.rule,
        notes=evaluations.notes,
        encode=encoders(built, placement.arrays, mesh, config),
        abstract=abstract,
        placement=placement,
        step=step.make_step(
            built.static,
            built.objective,
            built.optimizer,
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            seed=config.seed,
            placement=placement,
            mesh=mesh,
        ),
        loaded={name: value for tower in weights.values() for name, value in tower.params.items()},
        weights=weights,
        warnings=(*_warnings(config, store), *evaluations.warnings),
    )


def _init(config: Any, built: Model) -> TrainState:
    def arrays() -> tuple[Params, Params]:
        rngs = nnx.Rngs(jax.random.key(config.seed))
        _, params, stats = state.split(models.build(built.spec, built.numerics, rngs))
        return params, stats

    return step.init_state(arrays, built.objective, built.optimizer)


def fresh_state(job: Job) -> TrainState:
    """The state before step 0: every array made where it lives, loaded towers laid over the random start."""
    fresh = jax.jit(lambda: _init(job.config, job.model), out_shardings=job.placement)()
    shapes, places = job.abstract.arrays, job.placement.arrays
    placed = {name: jax.device_put(v.astype(shapes[name].dtype), places[name]) for name, v in job.loaded.items()}
    return dataclasses.replace(
        fresh,
        params={name: placed.get(name, value) for name, value in fresh.params.items()},
        stats={name: placed.get(name, value) for name, value in fresh.stats.items()},
    )


def restore_target(job: Job) -> TrainState:
    """Shapes, dtypes and placements to restore a checkpoint into."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        job.abstract,
        job.placement,
    )


def encoders(built: Model, placement: Any, mesh: Mesh, config: Any) -> Encode:
    """Jitted encoders of one fixed batch size for evaluators; embeddings come back L2-normalised.

    They take parameters and statistics in one flat dict (`TrainState.arrays`), placed as `placement` says.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    split_batch, whole = sharding.batch(mesh), sharding.replicated(mesh)

    def images(params: Params, image: jax.Array) -> jax.Array:
        bound = state.bind(built.static, params)
        return l2_normalize(bound.encode_image(step.normalise(image, mean, std)))

    def texts(params: Params, tokens: jax.Array) -> jax.Array:
        return l2_normalize(state.bind(built.static, params).encode_text(tokens))

    def jitted(function: Any) -> Any:
        return jax.jit(function, in_shardings=(placement, split_batch), out_shardings=whole)

    return Encode(jitted(images), jitted(texts), config.batch_size)


class _Stores:
    """Opens each store that a run reads, once."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.opened: dict[str, Store] = {}

    def open(self, spec: str) -> Store:
        if spec not in self.opened:
            with contextlib.closing(logs.Bars("megabyte")) as bars:
                progress = functools.partial(bars, "stage")
                self.opened[spec] = stage.open_staged(spec, self.folder, progress=progress, say=print)
        return self.opened[spec]


def _weights(config: Any, built: Model, tokenizer: Tokenizer) -> dict[str, modelfolder.Tower]:
    """The towers that `model.image.weights` and `model.text.weights` name."""
    return {
        which: modelfolder.tower(
            config.model[which].weights,
            which,
            built.arrays,
            arch=config.model[which].arch,
            preprocessing=preprocessing(config),
            tokenizer=tokenizer.card(),
        )
        for which in ("image", "text")
        if config.model[which].weights
    }


def preprocessing(config: Any) -> dict[str, Any]:
    """The preprocessing card of a model trained with this config."""
    return {
        "image_size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "resize": "bicubic",
        "scale": "uint8 / 255",
    }


def card(job: Job) -> modelfolder.Card:
    """What travels with the weights of this run."""
    spec = job.model.spec
    return modelfolder.Card(
        kind="dual",
        architecture={
            "image": spec.image,
            "text": spec.text,
            "context": spec.context,
            "embed_dim": spec.embed_dim,
        },
        preprocessing={**preprocessing(job.config), "store": job.store.manifest["preprocessing"]},
        tokenizer=job.tokenizer.card(),
        source={
            "trained_by": "hybridclip_jax",
            # by fingerprint: a path says nothing elsewhere, and may be private
            **{
                f"{which}_weights": job.weights[which].fingerprint if which in job.weights else None
                for which in ("image", "text")
            },
            "texts": job.store.manifest.get("text", "report"),
        },
        licence="; ".join(dict.fromkeys(tower.licence for tower in job.weights.values())) or "not stated",
        synthetic=job.synthetic,
    )


def _warnings(config: Any, store: Store) -> list[str]:
    found = [
        f"model.{which}.weights is empty: the {which} tower starts at random, not from a pretrained one"
        for which in ("image", "text")
        if not config.model[which].weights
    ]
    share = names_sides(store.texts)
    if config.data.flip and share > 0:
        found.append(
            f"data.flip is on and {max(share, 0.01):.0%} of the texts name left or right: a flipped image contradicts "
            "them; turn it off with --noconfig.data.flip"
        )
    return found
