"""Model folders in transformers: they load strictly, compute the same, and come back to the last bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import published as owners
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image
from test_converters import DINOS, convert, ids, images, refused, run, small_sizes, to_torch, worst

import hybridclip_jax as hc
from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.data.tokenizer import Tokenizer

__all__ = ["small_sizes"]  # the fixture that puts the small towers into the tables

WITHIN = 1e-5


def folder(
    path: Path, kind: str = "dual", image: str = "test", context: int = 77, text: str = "test_text", size: int = 224
) -> Path:
    """A model folder with random weights."""
    spec = models.DualSpec(image, text, context=context, embed_dim=48)
    _, params, stats = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    values = {
        name: np.asarray(float(name.endswith("scale")) + 0.1 * rng.normal(size=leaf.shape), np.float32)
        for name, leaf in {**params, **stats}.items()
    }
    whole = {"image": image, "text": text, "context": context, "embed_dim": 48}
    held = {"dual": tuple(whole), "image": ("image",), "text": ("text", "context", "embed_dim")}[kind]
    card = modelfolder.Card(
        kind=kind,
        architecture={key: whole[key] for key in held},
        preprocessing={
            "image_size": size,
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
            "resize": "bicubic",
            "scale": "uint8 / 255",
            "store": {"resize": "pad", "colour": False},
        },
        tokenizer=Tokenizer(models.TEXT_ENCODERS[text][1].vocab_size).card(),
        source={},
        licence="MIT",
    )
    modelfolder.save(path, values, card)
    return path


def exported(source: Path, out: Path, name: str) -> Any:
    """The torch model of an exported folder, loaded strictly."""
    assert run("to-hf", source, "--out", out) == 0
    model, found = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def assert_alike(source: Path, image: Any, text: Any, side: int = 64) -> None:
    """`image` and `text` give the projected embeddings of torch tensors."""
    ours, (params, _) = hc.load(source, batch_size=2), modelfolder.load(source)
    x, tokens = images(side, side), ids(24)
    with torch.no_grad():
        theirs = [image(to_torch(x)).numpy(), text(torch.from_numpy(tokens).long()).numpy()]
    found = ours.image_features(x) @ params["image_projection/kernel"]
    assert worst(found, theirs[0]) < WITHIN * max(1.0, float(np.abs(found).max()))
    found = ours.text_features(tokens) @ params["text_projection/kernel"]
    assert worst(found, theirs[1]) < WITHIN * max(1.0, float(np.abs(found).max()))


def assert_comes_back(source: Path, out: Path, back: Path) -> None:
    convert(out, back)
    (params, card), (again, card_again) = modelfolder.load(source), modelfolder.load(back)
    assert params.keys() == again.keys()
    assert all(np.array_equal(params[name], again[name]) for name in params)
    assert card.architecture == card_again.architecture
    assert card.kind == "text" or card.preprocessing["mean"] == card_again.preprocessing["mean"]


@pytest.mark.parametrize("context", [77, 512])
@pytest.mark.parametrize("image", DINOS)
def test_the_hybrid_goes_and_comes_back(image: str, context: int, tmp_path: Path) -> None:
    source = folder(tmp_path / "ours", image=image, context=context)
    model = exported(source, tmp_path / "theirs", "VisionTextDualEncoderModel")
    assert model.config.text_config.max_position_embeddings == context
    assert_alike(
        source,
        lambda x: model.visual_projection(model.vision_model(x).pooler_output),
        lambda tokens: model.text_projection(model.text_model(tokens).pooler_output),
    )
    assert_comes_back(source, tmp_path / "theirs", tmp_path / "back")


def joined(image: Path, text: Path, out: Path) -> Path:
    """A hybrid of two converted towers with projections of its own, as a run writes it."""
    (seen, image_card), (read, text_card) = modelfolder.load(image), modelfolder.load(text)
    rng = np.random.default_rng(0)
    size = text_card.architecture["embed_dim"]
    head = {"image_projection/kernel": np.asarray(0.1 * rng.normal(size=(64, size)), np.float32)}
    params = {**seen, **read, **head, "logit_scale": np.float32(2.0)}
    architecture = {**image_card.architecture, **text_card.architecture}
    card = dataclasses.replace(
        text_card, kind="dual", architecture=architecture, preprocessing=image_card.preprocessing
    )
    modelfolder.save(out, params, card)
    return out


@pytest.mark.parametrize("context", [77, 512])
def test_a_hybrid_of_converted_towers_sees_and_reads_the_same_in_transformers(context: int, tmp_path: Path) -> None:
    """With the fold and without: the same pixels, prepared as each folder's own files say, are the same embedding."""
    owners.dinov3().save_pretrained(tmp_path / "dino")
    owners.randomise(transformers.CLIPTextModelWithProjection(owners.text_config(77))).save_pretrained(
        tmp_path / "read"
    )
    flags = () if context == 77 else ("--context", str(context))
    assert run("to-jax", tmp_path / "read", "--out", tmp_path / "text", *flags) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    tokens = np.concatenate([ids(24), ids(24)[:, ::-1]], axis=1)
    found = []
    for fold in ((), ("--input-norm", "clip")):
        name = "folded" if fold else "plain"
        assert run("to-jax", tmp_path / "dino", "--out", tmp_path / f"{name} image", *fold) == 0
        source = joined(tmp_path / f"{name} image", tmp_path / "text", tmp_path / name)
        model = exported(source, tmp_path / f"{name} theirs", "VisionTextDualEncoderModel")
        processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / f"{name} theirs")
        x = processor(list(pixels), return_tensors="pt", do_resize=False)["pixel_values"]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(x).pooler_output).numpy()
            text = model.text_projection(model.text_model(torch.from_numpy(tokens).long()).pooler_output).numpy()
        params, card = modelfolder.load(source)
        ours = hc.load(source, batch_size=2)
        shown = (pixels / 255 - np.array(card.preprocessing["mean"])) / np.array(card.preprocessing["std"])
        assert worst(ours.image_features(shown) @ params["image_projection/kernel"], image) < WITHIN
        assert worst(ours.text_features(tokens) @ params["text_projection/kernel"], text) < WITHIN
        assert model.config.text_config.max_position_embeddings == context
        assert list(processor.image_mean) == card.preprocessing["mean"]
        found.append((card.preprocessing["mean"], image))
    (plain_mean, plain), (folded_mean, folded) = found
    assert plain_mean != folded_mean
    assert worst(plain, folded) < WITHIN


def test_a_clip_goes_and_comes_back(tmp_path: Path) -> None:
    source = folder(tmp_path / "ours", image="test_vit", size=48)
    model = exported(source, tmp_path / "theirs", "CLIPModel")
    assert_alike(
        source,
        lambda x: model.visual_projection(model.vision_model(x).pooler_output),
        lambda tokens: model.text_projection(model.text_model(tokens).pooler_output),
        side=48,
    )
    assert_comes_back(source, tmp_path / "theirs", tmp_path / "back")


@pytest.mark.parametrize(("kind", "name"), [("image", "DINOv3ViTModel"), ("text", "CLIPTextModelWithProjection")])
def test_a_tower_alone_goes_and_comes_back(kind: str, name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "ours", kind=kind)
    exported(source, tmp_path / "theirs", name)
    assert_comes_back(source, tmp_path / "theirs", tmp_path / "back")


def test_what_transformers_has_no_model_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "ours", kind="image", image="test_vit", size=48)
    assert "transformers has no model for test_vit" in refused(capsys, "to-hf", source, "--out", tmp_path / "out")
    source = folder(tmp_path / "text", kind="text")
    (tmp_path / "out.partial").mkdir()
    assert run("to-hf", source, "--out", tmp_path / "out") == 0
    assert "exists already" in refused(capsys, "to-hf", source, "--out", tmp_path / "out")
    assert "not a model folder" in refused(capsys, "to-hf", tmp_path, "--out", tmp_path / "other")


def test_the_tokenizer_and_the_image_rules_come_along(tmp_path: Path) -> None:
    source = folder(tmp_path / "ours", text="clip_text_tiny")
    assert run("to-hf", source, "--out", tmp_path / "theirs") == 0
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "theirs")
    ours = Tokenizer(4000)
    for text in ("no acute cardiopulmonary process", "2.5 cm nodule, right-upper lobe!", "", "ümlaut µm"):
        wanted = [ours.sot, *ours.encode(text), ours.eot]
        assert tokenizer(text)["input_ids"] == wanted
    assert tokenizer.model_max_length == 77
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 320), np.uint8))
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "theirs")
    theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
    small = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    assert worst(theirs, (small - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)) < 2e-6
