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

from hybridclip_jax import logs, modelfolder, models, objectives, optim, selection, sharding, state, step
from hybridclip_jax.data import audit, stage
from hybridclip_jax.data import store as stores
from hybridclip_jax.data.loader import TrainStream
from hybridclip_jax.data.sentences import names_sides
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS, Evaluator, Preparation
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
    """Everything a run needs that is not its state."""

    config: Any
    model: Model
    mesh: Mesh
    tokenizer: Tokenizer
    store: Store
    stream: TrainStream
    evaluators: dict[str, Evaluator]
    encode: Encode
    abstract: TrainState
    placement: TrainState
    step: step.Step
    loaded: dict[str, np.ndarray]
    weights: dict[str, modelfolder.Tower]
    warnings: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        return self.store.synthetic or any(e.store.synthetic for e in self.evaluators.values())


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
    store = _train_store(config)
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
    evaluators = _evaluators(config, tokenizer, store)
    weights = _weights(config, built, tokenizer)
    abstract = jax.eval_shape(lambda: _init(config, built))
    placement = step.state_shardings(abstract, mesh)
    return Job(
        config=config,
        model=built,
        mesh=mesh,
        tokenizer=tokenizer,
        store=store,
        stream=stream,
        evaluators=evaluators,
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
        warnings=tuple(_warnings(config, store, evaluators)),
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


def _open_store(config: Any, spec: str) -> Store:
    with contextlib.closing(logs.Bars("megabyte")) as bars:
        return stage.open_staged(spec, config.data.stage_dir, progress=functools.partial(bars, "stage"), say=print)


def _train_store(config: Any) -> Store:
    if not config.data.train:
        raise UserError("data.train is empty: name a store, e.g. --config.data.train=STORE:train")
    return _open_store(config, config.data.train)


def _evaluators(config: Any, tokenizer: Tokenizer, train: Store) -> dict[str, Evaluator]:
    evaluators: dict[str, Evaluator] = {}
    preparation = Preparation(
        tokenizer, config.model.text.context, config.data.image_size, functools.partial(_open_store, config)
    )
    for name, entry in config.evals.items():
        if not entry.data:
            raise UserError(f"evals.{name}.data is empty: name a store, e.g. --config.evals.{name}.data=STORE:val")
        evaluator = EVALUATORS[entry.protocol](name, entry.to_dict(), preparation)
        _refuse_other_pixels(name, evaluator.store, train)
        if not config.data.allow_overlap:
            _refuse_leak(name, evaluator.store, train)
        evaluators[name] = evaluator
    # Asked now: a misspelt or undefined select.metric must not wait for the first evaluation.
    lines = [{"step": 0, "split": f"eval/{name}", **evaluator.at_chance()} for name, evaluator in evaluators.items()]
    if evaluators and not selection.history(lines, config.select.metric):
        raise UserError(
            f"select.metric = {config.select.metric}: undefined on that store (a label needs records that have it "
            "and records that do not); use another metric or another store"
        )
    return evaluators


def _refuse_other_pixels(name: str, held_out: Store, train: Store) -> None:
    ours, theirs = train.manifest["preprocessing"], held_out.manifest["preprocessing"]
    for rule in sorted(ours.keys() | theirs.keys()):
        if ours.get(rule) != theirs.get(rule):
            raise UserError(
                f"evals.{name}.data = {held_out.spec}: prepared with {rule} = {theirs.get(rule)}, but {train.spec} "
                f"with {ours.get(rule)}; prepare both alike"
            )


def _refuse_leak(name: str, held_out: Store, train: Store) -> None:
    if shared := _shared(held_out, train):
        raise UserError(
            f"evals.{name}.data = {held_out.spec}: {shared} are in {train.spec} as well; evaluate on patients that are "
            "not trained on (stores of different sources need different --namespace), or, where it is meant, give "
            "--config.data.allow_overlap=True"
        )


def _shared(held_out: Store, train: Store) -> str:
    """What of an evaluation is trained on, in words; empty where nothing is known to be."""
    images, patients = audit.shared_images(held_out, train), 0
    comparable = stores.check_comparable(held_out, train) == "comparable"
    if comparable and audit.knows_patients(held_out) and audit.knows_patients(train):
        patients = stores.patient_overlap(held_out, train)
    return " and ".join(f"{n} of its {what}" for n, what in ((patients, "patients"), (images, "images")) if n)


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


def _warnings(config: Any, store: Store, evaluators: dict[str, Evaluator]) -> list[str]:
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
    for name, evaluator in evaluators.items():
        if config.data.allow_overlap and (shared := _shared(evaluator.store, store)):
            found.append(
                f"evals.{name}.data = {evaluator.store.spec}: {shared} are trained on (data.allow_overlap is on): its "
                "values say nothing about other patients"
            )
        if evaluator.store.namespace != store.namespace:
            found.append(
                f"evals.{name}.data = {evaluator.store.spec}: not comparable by id with {store.spec} (their "
                "namespaces differ): whether they share patients could not be checked; if they come from one source, "
                "prepare both with one --namespace"
            )
        elif unknown := [s.spec for s in (evaluator.store, store) if not audit.knows_patients(s)]:
            found.append(
                f"evals.{name}.data = {evaluator.store.spec}: not comparable by id with {store.spec} (no patients are "
                f"known of {' and '.join(dict.fromkeys(unknown))}): whether they share patients could not be checked"
            )
    return found
