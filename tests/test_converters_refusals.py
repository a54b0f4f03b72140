"""What people and strangers may hand to the converters: each ends in one line, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published as owners
import pytest
import torch
import transformers
from PIL import Image
from test_converters import QUICK, convert, refused, rounded_clip, run, small_sizes
from test_to_hf import folder as model_folder

from converters import verify
from hybridclip_jax import modelfolder

__all__ = ["small_sizes"]  # the fixture that puts the small towers into the tables

Made = Callable[[Path], Path]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return owners.dinov3_meta(owners.dinov3())


@pytest.fixture(scope="module")
def clip() -> dict[str, torch.Tensor]:
    return owners.openai(rounded_clip())


def hub(path: Path, **config: Any) -> Path:
    """A CLIPModel's folder; `config` is laid over its config.json."""
    rounded_clip().save_pretrained(path)
    stated = json.loads((path / "config.json").read_text())
    for name, value in config.items():
        stated[name] = {**stated[name], **value} if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(stated))
    return path


def indexed(path: Path, body: Any) -> Path:
    """A folder of two shards under the index `body`."""
    path.mkdir()
    for shard in ("a.safetensors", "b.safetensors"):
        owners.safetensors({"x": torch.zeros(2)}, path / shard)
    (path / INDEX).write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def linked_config(path: Path) -> Path:
    hub(path)
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(path / "blobs" / "gone")
    return path


FOLDERS: dict[str, tuple[Made, str]] = {
    "an index that points elsewhere": (
        lambda path: indexed(path, {"weight_map": {"x": "../../secret.safetensors"}}),
        "names ../../secret.safetensors, which is no file beside it",
    ),
    "an index that points to the root": (
        lambda path: indexed(path, {"weight_map": {"x": "/etc/passwd"}}),
        "names /etc/passwd, which is no file beside it",
    ),
    "an index of numbers": (lambda path: indexed(path, {"weight_map": {"x": 5}}), "names 5, which is no file"),
    "an index of lists": (lambda path: indexed(path, {"weight_map": {"x": ["a.safetensors"]}}), "which is no file"),
    "an index without a map": (lambda path: indexed(path, {"weight_map": ["a.safetensors"]}), "has no weight_map"),
    "an empty index": (lambda path: indexed(path, {}), "has no weight_map"),
    "an index that is a list": (lambda path: indexed(path, []), "holds no JSON object"),
    "an index cut short": (lambda path: indexed(path, '{"weight_map": {'), "not JSON"),
    "an index nested without end": (lambda path: indexed(path, "[" * 200_000), "not JSON"),
    "an index of 17 MB": (lambda path: indexed(path, " " * (17 << 20)), "such a file at most"),
    "a shard that is not there": (
        lambda path: indexed(path, {"weight_map": {"x": "c.safetensors"}}),
        f"c.safetensors: is missing, which {INDEX} names",
    ),
    "an array in two shards": (
        lambda path: indexed(path, {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}),
        "b.safetensors: holds x, which another file beside it holds too",
    ),
    "a link to itself": (loop, "no such file or folder"),
    "a config that is a dangling link": (linked_config, "config.json: is a folder, or a link to nothing"),
    "a part of the config that is none": (lambda path: hub(path, text_config=[1]), "text_config is no JSON object"),
    "heads that are not the tower's": (
        lambda path: hub(path, vision_config={"num_attention_heads": 16}),
        "num_attention_heads = 16; this layout needs 1",
    ),
    "an epsilon that is not the tower's": (
        lambda path: hub(path, vision_config={"layer_norm_eps": 1e-6}),
        "layer_norm_eps = 1e-06",
    ),
    "a size that is not the positions'": (
        lambda path: hub(path, vision_config={"image_size": 32}),
        "image_size = 32; this layout needs 48",
    ),
    "another end token": (lambda path: hub(path, text_config={"eos_token_id": 7}), "eos_token_id = 7"),
    "an activation that is a number": (lambda path: hub(path, text_config={"hidden_act": 3}), "hidden_act = 3"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_lies_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = FOLDERS[kind]
    source = make(tmp_path / "source")
    assert words in refused(capsys, "to-jax", source, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_names_from_before_the_release_get_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = owners.dinov3().state_dict()
    old = {name.replace("attention.q_proj", "attention.query"): value for name, value in state.items()}
    path = owners.safetensors(old, tmp_path / "model.safetensors")
    assert "before the release of DINOv3 in transformers" in refused(capsys, "to-jax", path, "--out", tmp_path / "out")
    owners.safetensors({"norm.weight": torch.zeros(64)}, path)
    words = ("to-jax", path, "--out", tmp_path / "out", "--layout", "dinov3-hf")
    assert "taken as dinov3-hf, but it has no embeddings.cls_token" in refused(capsys, *words)


def big(name: str) -> str:
    return f"blocks.{'9' * 5000}.{name}"


DINO: dict[str, tuple[dict[str, Any], str]] = {
    "a patch kernel of two sizes": (
        {"patch_embed.proj.weight": torch.zeros(64, 768)},
        "patch_embed.proj.weight has shape (64, 768); this layout needs 4 sizes above 0",
    ),
    "a number for a norm": ({"norm.weight": torch.tensor(1.0)}, "norm.weight has shape ()"),
    "registers of nothing": ({"storage_tokens": torch.zeros(1, 0, 64)}, "storage_tokens has shape (1, 0, 64)"),
    "whole numbers": (
        {"blocks.1.attn.proj.weight": torch.ones(64, 64, dtype=torch.int8)},
        "blocks.1.attn.proj.weight is stored as int8; weights are read in float32",
    ),
    "beyond float32": ({"norm.bias": torch.full((64,), 1e300, dtype=torch.float64)}, "values that are not finite"),
    "infinite in float16": ({"norm.bias": torch.full((64,), 1e5).half()}, "values that are not finite"),
    "a block of a huge number": ({"blocks.999999.norm1.weight": torch.zeros(64)}, "depth 1000000"),
}


@pytest.mark.parametrize("kind", DINO)
def test_arrays_that_cannot_be_are_refused(
    kind: str, dino: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, words = DINO[kind]
    torch.save({**dino, **changed}, tmp_path / "weights.pth")
    assert words in refused(capsys, "to-jax", tmp_path / "weights.pth", "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_names_cannot_break_the_line_or_the_terminal(
    dino: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("norm\x1b[31m\nerror: ", big("weight"), "x" * 100_000):
        for state in ({**dino, name: torch.zeros(1)}, {name: torch.zeros(1)}):
            path = owners.safetensors(state, tmp_path / "weights.safetensors")
            capsys.readouterr()
            assert run("to-jax", path, "--out", tmp_path / "out") == 2
            shown = capsys.readouterr()
            assert shown.err.count("\n") == 1
            assert "\x1b" not in shown.out + shown.err
            assert len(shown.out + shown.err) < 2000


CLIP: dict[str, tuple[dict[str, Any], str]] = {
    "a 336 px tower that says 224": ({"input_resolution": torch.tensor(224)}, "input_resolution is 224"),
    "a context it has not": ({"context_length": torch.tensor(77)}, "context_length is 77, but its arrays are for 24"),
    "a size that is none": ({"vocab_size": torch.zeros(3)}, "vocab_size is (3,)"),
    "a table of no positions": ({"visual.positional_embedding": torch.zeros(1, 64)}, "image_size 0"),
    "an embedding of one size": ({"token_embedding.weight": torch.zeros(600)}, "needs 2 sizes"),
}


@pytest.mark.parametrize("kind", CLIP)
def test_a_clip_that_contradicts_itself_is_refused(
    kind: str, clip: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, words = CLIP[kind]
    torch.save({**clip, **changed}, tmp_path / "weights.pt")
    assert words in refused(capsys, "to-jax", tmp_path / "weights.pt", "--out", tmp_path / "out", *QUICK)
    assert not list(tmp_path.glob("out*"))


def test_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in ("weights/none.pt", "weights/none.safetensors"):
        assert "no such file or folder" in refused(capsys, "to-jax", source, "--out", tmp_path / "out")
    for source in ("../x", "a--b/..", "-/-", "ä/ö"):
        assert "no such folder here, and not fetched" in refused(
            capsys, "to-jax", "--out", tmp_path / "out", "--", source
        )
    for source in ("a/b/c", "https://huggingface.co/a/b", "a/b@main", ""):
        assert "not a hub id" in refused(capsys, "to-jax", "--out", tmp_path / "out", "--", source) or source == ""


# --- where it is to go


def test_an_out_that_cannot_be_made_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder(tmp_path / "x.partial", kind="text")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for words in (("to-jax", tmp_path / "never read"), ("to-hf", source)):
        error = refused(capsys, *words, "--out", tmp_path / "file" / "out")
        assert f"{tmp_path}/file is not a folder" in error
        assert "exists already" in refused(capsys, *words, "--out", tmp_path / "link")
        assert "exists already" in refused(capsys, *words, "--out", tmp_path)
    assert "is a model folder already" in refused(capsys, "to-jax", source, "--out", tmp_path / "out")
    assert "would clear" in refused(capsys, "to-hf", source, "--out", tmp_path / "x")
    assert "would clear" in refused(capsys, "to-jax", source, "--out", tmp_path / "x")
    assert modelfolder.load(source)


def test_a_disk_that_is_full_leaves_nothing(
    dino: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dino, tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for words in (("to-jax", tmp_path / "weights.pth"), ("to-hf", tmp_path / "model")):
        capsys.readouterr()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            code = run(*words, "--out", tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = capsys.readouterr().err
        assert code == 4 and error.count("\n") == 1 and "could not be written" in error
        assert sorted(tmp_path.iterdir()) == before


# --- model folders that were tampered with


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    body = json.loads((path / modelfolder.CARD).read_text())
    change(body)
    (path / modelfolder.CARD).write_text(json.dumps(body))
    return path


def without_a_parameter(path: Path) -> Path:
    params, card = modelfolder.load(path)
    shutil.rmtree(path)
    modelfolder.save(path, {name: value for name, value in params.items() if name != "text/norm/bias"}, card)
    return path


def of_another_shape(path: Path) -> Path:
    params, card = modelfolder.load(path)
    shutil.rmtree(path)
    modelfolder.save(path, {**params, "text/norm/bias": np.zeros(3, np.float32)}, card)
    return path


def edit(**changes: Any) -> Made:
    def change(body: dict[str, Any]) -> None:
        for name, value in changes.items():
            body[name] = {**body[name], **value} if isinstance(body.get(name), dict) else value

    return lambda path: rewritten(path, change)


def drop(*names: str) -> Made:
    def change(body: dict[str, Any]) -> None:
        inner = body
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]

    return lambda path: rewritten(path, change)


FOLDS: dict[str, tuple[Made, str]] = {
    "a parameter lost": (without_a_parameter, "text/norm/bias is nothing in the folder and (64,) in the architecture"),
    "a parameter of another shape": (of_another_shape, "text/norm/bias is (3,) in the folder and (64,)"),
    "an unknown tower": (edit(architecture={"text": "bert"}), "unknown text architecture 'bert'"),
    "a tower that is a list": (
        edit(architecture={"text": ["test_text"]}),
        "architecture.text = ['test_text']: must be text",
    ),
    "another context": (
        edit(architecture={"context": 512}),
        "text/pos_embedding is (77, 64) in the folder and (512, 64)",
    ),
    "a context in words": (
        edit(architecture={"context": "long"}),
        "architecture.context = 'long': must be a whole number above 0",
    ),
    "a field no architecture has": (edit(architecture={"layers": 3}), "damaged card"),
    "no tokenizer": (drop("tokenizer", "vocab_size"), "damaged card"),
    "no mean": (drop("preprocessing", "mean"), "damaged card"),
    "no licence": (drop("licence"), "damaged model folder"),
    "a card that is a list": (lambda path: rewritten_whole(path, []), "damaged model folder"),
}


def rewritten_whole(path: Path, body: Any) -> Path:
    (path / modelfolder.CARD).write_text(json.dumps(body))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    small_sizes.__wrapped__(patch)  # type: ignore[attr-defined]
    made = model_folder(tmp_path_factory.mktemp("whole") / "dual")
    patch.undo()
    return made


@pytest.mark.parametrize("kind", FOLDS)
def test_a_folder_that_was_tampered_with_is_not_exported(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = FOLDS[kind]
    source = make(Path(shutil.copytree(whole, tmp_path / "model")))
    assert words in refused(capsys, "to-hf", source, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_card_that_says_too_little_of_its_source_cannot_be_compared(
    dino: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dino, path)
    convert(path, tmp_path / "model")
    params, card = modelfolder.load(tmp_path / "model")
    sources: tuple[Any, ...] = (
        {"layout": "dinov3-meta"},
        {**card.source, "statistics_folded_from": 5},
        {**card.source, "layout": []},
    )
    for place, source in enumerate(sources):
        modelfolder.save(tmp_path / f"{place}", params, dataclasses.replace(card, source=source))
        if place:
            rewritten(tmp_path / f"{place}", lambda body: body["preprocessing"].update(mean=[0.1, 0.2, 0.3]))
        assert "its source says too little" in refused(capsys, "verify", tmp_path / f"{place}", "--source", path)
    made = model_folder(tmp_path / "trained", kind="image")
    assert "was not converted from a file" in refused(capsys, "verify", made, "--source", path)
    assert "no such file" in refused(capsys, "verify", tmp_path / "model", "--source", tmp_path / "none.pth")
    wider = {**params, "image/zzz": np.zeros(3, np.float32)}
    modelfolder.save(tmp_path / "wider", wider, card)
    assert "image/zzz is not what" in refused(capsys, "verify", tmp_path / "wider", "--source", path)


def test_the_known_picture_is_asked_for_by_name(
    dino: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dino, tmp_path / "weights.pth")
    found = convert(tmp_path / "weights.pth", tmp_path / "model")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(picture)
    assert "the published values are of dinov3_vitb16" in refused(
        capsys, "verify", tmp_path / "model", "--image", picture
    )
    monkeypatch.setattr(verify, "KNOWN_ARCH", "test")
    (tmp_path / "no picture").write_text("text")
    assert "name the picture" in refused(capsys, "verify", tmp_path / "model", "--image", tmp_path / "no picture")
    assert "name the picture" in refused(capsys, "verify", tmp_path / "model", "--image", tmp_path / "nowhere")
    capsys.readouterr()
    assert run("verify", tmp_path / "model", "--image", picture) == 2
    shown = capsys.readouterr()
    assert "1.034643" in shown.out and "further than 0.001 from the published ones" in shown.err
    small = np.asarray(Image.open(picture).resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
    mean, std = (np.asarray(found.card.preprocessing[key], np.float32) for key in ("mean", "std"))
    known = found.image_features(((small - mean) / std)[None])[0, :5]
    monkeypatch.setattr(verify, "KNOWN", tuple(float(value) for value in known))
    assert run("verify", tmp_path / "model", "--image", picture) == 0
    assert "within 0.001 of the published values" in capsys.readouterr().out


def test_the_class_named_at_the_end_is_one_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_folder(tmp_path / "model", kind="text")
    assert run("to-hf", tmp_path / "model", "--out", tmp_path / "out") == 0
    name = capsys.readouterr().out.split("transformers.")[1].split(".")[0]
    assert hasattr(transformers, name)
