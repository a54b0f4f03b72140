"""What evaluating costs a run: its share of the FLOPs, and that nothing compiles again after the first time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest

from hybridclip_jax import accounting, build, sharding
from hybridclip_jax import config as configs
from hybridclip_jax.data.store_writer import Record, StoreWriter
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.evals import EVALUATORS, Preparation
from hybridclip_jax.evals.encode import Encode

ROOT = Path(__file__).parents[1]
LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Other", "Pneumonia", "Pneumothorax",
    "Support Devices",
)  # fmt: skip
WORDS = "small left effusion. no right pneumothorax. heart is large. clear lungs. stable lines and tubes."
# What a protocol cannot be built without on the store below.
ENTRIES: dict[str, dict[str, Any]] = {
    "linear-probe": {"train": "{store}:train", "validation": "{store}:val", "fractions": "1"},
    "plip-linear": {"train": "{store}:train", "validation": "{store}:val"},
    "loss": {"candidates": 8},
    "chexpert5x200-gloria": {"per_class": 1},
    "chexpert5x200-cxrclip": {"per_class": 1},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three splits of frontal films, each with one finding; texts of many lengths."""
    path = tmp_path_factory.mktemp("stores") / "films"
    with StoreWriter(path, channels=1, labels=LABELS, sections=(), synthetic=True) as writer:
        for i in range(60):
            split = ("train", "val", "test")[i // 20]
            text = f"Film {i}. " + " ".join(WORDS.split()[: 1 + i % 17]) * (1 + i % 3)
            record = Record(
                id=f"i{i}", study=f"s{i}", patient=f"p{i}", split=split, view="PA", text=text, sections={},
                n_tokens=len(Tokenizer().encode(text)) + 2,
                labels={label: float(n == i % 20 % 14) for n, label in enumerate(LABELS)}, source_row=i + 1,
            )  # fmt: skip
            writer.append(record, np.random.default_rng(i).integers(0, 255, (320, 320, 1), np.uint8))
        policy = {"names": list(LABELS), "uncertain": "ignore", "blank": "missing"}
        ids = {"namespace": "films", "key_fingerprint": "0"}
        preprocessing, source = {"resize": "pad"}, {"format": "test"}
        writer.finish({"labels": policy, "ids": ids, "preprocessing": preprocessing, "source": source})
    return path


def entry(protocol: str, store: Path) -> dict[str, Any]:
    fields = {name: v.format(store=store) if isinstance(v, str) else v for name, v in ENTRIES.get(protocol, {}).items()}
    return {"data": f"{store}:test", **fields}


@pytest.fixture(scope="module")
def job(store: Path) -> build.Job:
    """A run of tiny towers that evaluates by every protocol there is."""
    config = configs.default()
    config.batch_size, config.mesh.data = 8, 1
    config.model.image.arch, config.model.text.arch = "dinov3_tiny32", "clip_text_tiny"
    config.model.text.context, config.model.embed_dim, config.data.image_size = 77, 16, 32
    config.data.train, config.select.metric = f"{store}:train", "chexzero/auroc/mean"
    for protocol in EVALUATORS:
        configs.add_eval(config, protocol, protocol, **entry(protocol, store))
    return build.job(config)


class Compiling:
    """Counts what jax traces and compiles from now on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        self.count += event.startswith("/jax/core/compile/")


def test_nothing_compiles_after_the_first_evaluation(job: build.Job) -> None:
    compiling = Compiling()
    state = build.fresh_state(job)
    for evaluator in job.evaluators.values():
        evaluator.run(job.encode, state.arrays)
    assert compiling.count > 0, "the count counts nothing"
    batch = job.stream.batch(0)
    state, _ = job.step(state, sharding.to_global({"image": batch.image, "tokens": batch.tokens}, job.mesh))
    for name, evaluator in job.evaluators.items():
        before = compiling.count
        evaluator.run(job.encode, state.arrays)
        assert compiling.count == before, f"{name} compiles each time"


def test_a_batch_of_another_size_would_compile_again(job: build.Job) -> None:
    """The mutation of the test above."""
    state, compiling = build.fresh_state(job), Compiling()
    whole = job.evaluators["chexzero"]
    other = dataclasses.replace(job.encode, batch_size=4)
    whole.run(other, state.arrays)
    assert compiling.count > 0


# --- the share of FLOPs


@pytest.fixture(scope="module")
def recipe() -> tuple[Any, build.Model]:
    config = configs.load(f"{ROOT}/configs/hybrid_cxr.py")
    return config, build.model(config)


@pytest.mark.parametrize("prompts", ["chexzero", "templated"])
@pytest.mark.parametrize(("tokens", "most"), [(32, 0.0105), (77, 0.0105), (512, 0.005)])
def test_evaluating_1000_images_every_500_steps_of_the_recipe_costs_about_one_percent_at_most(
    recipe: tuple[Any, build.Model], store: Path, tokens: int, most: float, prompts: str
) -> None:
    """With the prompts of 14 labels, where the texts that are trained on fill so many tokens."""
    config, model = recipe
    encode = Encode(
        images=lambda params, image: np.ones((len(image), 4), np.float32),
        texts=lambda params, tokens: np.ones((len(tokens), 4), np.float32),
        batch_size=config.batch_size,
    )
    preparation = Preparation(Tokenizer(), config.model.text.context, config.data.image_size)
    fields = {**entry("chexzero", store), "prompts": prompts}
    EVALUATORS["chexzero"]("external", fields, preparation).predict(encode, {})
    images = -(-1000 // config.batch_size) * config.batch_size
    evaluation = accounting.of_encoding(config, model, images, encode.work.texts)
    step = accounting.of_step(config, model, tokens).total
    assert most / 2 < evaluation / (500 * step + evaluation) <= most


def test_the_shares_are_of_all_attempts_and_nothing_has_none(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        return now[0]

    ledger = tmp_path / "attempts.json"
    first = accounting.Meter("cpu", 1, "float32", ledger=ledger, clock=clock)
    assert first.summary()["eval_share"] == {"flops": None, "wall": None}
    first.add(900, 5.0)
    first.add_eval(100, 2.0)
    now[0] = 10.0
    assert first.summary()["eval_share"] == {"flops": 0.1, "wall": 0.2}
    second = accounting.Meter("cpu", 1, "float32", ledger=ledger, clock=clock)
    second.load_state(first.state_dict())
    second.add_eval(100, 4.0)
    now[0] = 20.0
    assert second.summary()["eval_share"] == {"flops": 200 / 1100, "wall": 6 / 20}
