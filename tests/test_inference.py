"""`hybridclip_jax.load`: equal pixels give equal embeddings, batches do not matter, and misuse is one line."""

# B images or texts, E embedding

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import IMAGE, TEXT, VOCABULARY, small_card
from flax import nnx
from PIL import Image

import hybridclip_jax as hc
from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.inference import LoadedModel
from hybridclip_jax.modelfolder import CARD, Card

SPEC = models.DualSpec(IMAGE, TEXT, context=12, embed_dim=32)
START, END = VOCABULARY - 2, VOCABULARY - 1
SIDE = 64
TEXTS = ["pneumothorax", "no pneumothorax", "the heart is enlarged; " * 20, ""]


def weights(spec: models.DualSpec = SPEC) -> dict[str, np.ndarray]:
    """Random, and large enough that different inputs give clearly different embeddings."""
    _, shapes, _ = state.abstract(lambda: models.build(spec, models.Numerics(), nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(
            rng.normal(float(name.endswith("scale")), (leaf.shape[-2:-1] or (4,))[0] ** -0.5, leaf.shape),
            np.float32,
        )
        for name, leaf in shapes.items()
    }


def card(kind: str = "dual", *, colour: bool = False) -> Card:
    store = {"resize": "pad", "colour": colour}
    return small_card(kind, context=SPEC.context, embed_dim=SPEC.embed_dim, store=store)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dual"
    modelfolder.save(path, weights(), card())
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return hc.load(folder, batch_size=4)


def picture(seed: int = 0, width: int = 90, height: int = 70) -> np.ndarray:
    """uint8 [H, W], not square and not of the store's size."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- images


def test_equal_pixels_give_equal_embeddings_however_they_come(model: LoadedModel, tmp_path: Path) -> None:
    grey = picture()
    Image.fromarray(grey).save(tmp_path / "x.png")
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    forms = [
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        Image.open(tmp_path / "x.png"),
        Image.fromarray(rgb),
        grey,
        grey[..., None],
        rgb,
        np.asfortranarray(grey),
    ]
    z = model.encode_image(forms)
    assert z.shape == (8, SPEC.embed_dim)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(z, np.repeat(z[:1], 8, axis=0))
    for batch in (grey[None], grey[None, ..., None], rgb[None], [grey]):
        np.testing.assert_allclose(model.encode_image(batch), z[:1], atol=1e-6)
    different = model.encode_image([picture(1), grey[:, ::-1]])
    assert np.max(np.abs(different - z[:1]), axis=1).min() > 1e-2


def test_an_image_is_prepared_as_in_a_store_and_normalised(model: LoadedModel) -> None:
    """The whole path again by hand: pad to a square, 320 px, 64 px, three channels, mean and deviation, tower."""
    grey = picture()
    inner = Image.fromarray(grey).resize((320, int(70 * 320 / 90)), Image.Resampling.LANCZOS)
    square = Image.new("L", (320, 320))
    square.paste(inner, (0, (320 - inner.height) // 2))
    small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    x = (np.repeat(small[..., None], 3, axis=-1) / 255 - CLIP_MEAN) / CLIP_STD
    static, _, _ = state.abstract(lambda: models.build(SPEC, models.Numerics(), nnx.Rngs(0)))
    wanted = np.asarray(state.bind(static, weights()).encode_image(x[None].astype(np.float32)))[0]
    np.testing.assert_allclose(model.encode_image([grey])[0], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_an_image_of_a_store_is_taken_as_it_is(model: LoadedModel) -> None:
    stored = picture(width=320, height=320)
    small = np.asarray(Image.fromarray(stored).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    x = (np.repeat(small[..., None], 3, axis=-1) / 255 - CLIP_MEAN) / CLIP_STD
    features = model.image_features(x[None].astype(np.float32))
    z = features @ weights()["image_projection/kernel"]
    np.testing.assert_allclose(model.encode_image([stored]), z / np.linalg.norm(z), atol=1e-5)


def test_a_model_of_colour_images_repeats_grey_ones(folder: Path, tmp_path: Path) -> None:
    modelfolder.save(tmp_path / "colour", weights(), card(colour=True))
    colour, grey_model = hc.load(tmp_path / "colour", batch_size=4), hc.load(folder, batch_size=4)
    grey = picture()
    rgb = np.stack([grey, picture(1), picture(2)], axis=-1)
    z = colour.encode_image([grey, np.repeat(grey[..., None], 3, axis=-1), rgb])
    np.testing.assert_array_equal(z[0], z[1])
    np.testing.assert_allclose(z[0], grey_model.encode_image([grey])[0], atol=1e-6)
    assert np.max(np.abs(z[2] - z[0])) > 1e-2


# --- batches


def test_neither_batch_size_nor_neighbours_matter(folder: Path, model: LoadedModel) -> None:
    images, texts = [picture(seed) for seed in range(5)], [*TEXTS, "opacity"]
    z, t = model.encode_image(images), model.encode_text(texts)
    for size in (1, 3, 64):
        other = hc.load(folder, batch_size=size)
        np.testing.assert_allclose(other.encode_image(images), z, atol=1e-6)
        np.testing.assert_allclose(other.encode_text(texts), t, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(images[::-1])[::-1], z, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([model.encode_text([text]) for text in texts]), t, atol=1e-6)


# --- texts


def test_texts_are_encoded_as_the_tokenizer_and_the_tower_say(model: LoadedModel) -> None:
    t = model.encode_text(TEXTS)
    assert t.shape == (4, SPEC.embed_dim)
    assert t.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(t, axis=1), 1, atol=1e-6)
    tokens = Tokenizer(VOCABULARY)(TEXTS, SPEC.context)
    assert tokens.truncated.tolist() == [False, False, True, False]
    wanted = model.text_features(tokens.ids) @ weights()["text_projection/kernel"]
    np.testing.assert_allclose(t, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    assert np.max(np.abs(t[0] - t[1])) > 1e-2


def test_the_raw_text_entry_takes_fewer_tokens_than_the_context(model: LoadedModel) -> None:
    ids = Tokenizer(VOCABULARY)(["pneumonia"], SPEC.context).ids
    end = int(np.argmax(ids[0] == END)) + 1
    np.testing.assert_allclose(model.text_features(ids[:, :end]), model.text_features(ids), atol=1e-4)


def test_any_sequence_of_texts_will_do(model: LoadedModel) -> None:
    for texts in (tuple(TEXTS), np.asarray(TEXTS), (text for text in TEXTS)):
        np.testing.assert_array_equal(model.encode_text(texts), model.encode_text(TEXTS))


def test_the_scale_and_the_mark_of_phantoms_come_along(model: LoadedModel) -> None:
    assert model.logit_scale == pytest.approx(float(weights()["logit_scale"]))
    assert model.synthetic is True
    assert hc.load(str(model.folder)).card == card()


# --- runs and folders of one tower


def test_a_run_loads_as_its_best_model(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / "best")
    (run / "config.json").write_text("{}")
    found = hc.load(run, batch_size=4)
    assert found.folder == run / "best"
    np.testing.assert_array_equal(found.encode_text(TEXTS), model.encode_text(TEXTS))


def test_one_tower_loads_as_that_tower(model: LoadedModel, tmp_path: Path) -> None:
    for kind in ("image", "text"):
        modelfolder.save(tmp_path / kind, weights(), card(kind))
    image, text = (hc.load(tmp_path / kind, batch_size=4) for kind in ("image", "text"))
    x = np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    np.testing.assert_array_equal(image.image_features(x), model.image_features(x))
    ids = text.tokenizer(TEXTS, SPEC.context).ids
    np.testing.assert_array_equal(text.text_features(ids), model.text_features(ids))
    assert not hasattr(image, "tokenizer")
    for one, missing in ((image, ("encode_image", "encode_text", "text_features")), (text, ("image_features",))):
        for name in missing:
            says = f"{one.folder}: holds the {one.card.kind} tower alone, which has no {name}"
            assert refusal(functools.partial(getattr(one, name), [])) == says
    assert "which has no logit_scale" in refusal(lambda: text.logit_scale)


# --- misuse

MISUSE: dict[str, tuple[Callable[[LoadedModel], object], str]] = {
    "one path": (lambda m: m.encode_image("x.png"), "encode_image takes a list of images, not one image"),
    "one picture": (lambda m: m.encode_image(Image.new("L", (9, 9))), "takes a list of images, not one image"),
    "one grey array": (lambda m: m.encode_image(np.zeros((9, 9), np.uint8)), "takes a list of images, not one"),
    "one colour array": (lambda m: m.encode_image(np.zeros((9, 9, 3), np.uint8)), "takes a list of images, not one"),
    "no image": (lambda m: m.encode_image([]), "encode_image: nothing to encode"),
    "floats": (
        lambda m: m.encode_image(np.zeros((2, 9, 9))),
        "image 0: float64 (9, 9); arrays must be uint8 [H, W] or [H, W, 1 or 3]",
    ),
    "four channels": (lambda m: m.encode_image([np.zeros((9, 9, 4), np.uint8)]), "image 0: uint8 (9, 9, 4); arrays"),
    "no pixels": (lambda m: m.encode_image([picture(), np.zeros((0, 9), np.uint8)]), "image 1: image without pixels"),
    "a missing file": (lambda m: m.encode_image([picture(), "absent.png"]), "image 1: missing image file"),
    "a file that is no image": (lambda m: m.encode_image([__file__]), "image 0: not an image of a known type"),
    "a number": (lambda m: m.encode_image([3]), "image 0: int is neither a path, a PIL image nor an array"),
    "one text": (lambda m: m.encode_text("pneumonia"), "encode_text takes a list of texts, not one text"),
    "no text": (lambda m: m.encode_text([]), "encode_text: nothing to encode"),
    "a missing text": (lambda m: m.encode_text(["x", None]), "text 1: NoneType is not a text"),
    "raw bytes": (
        lambda m: m.image_features(np.zeros((1, 64, 64, 3), np.uint8)),
        "image_features: uint8 (1, 64, 64, 3); needs normalised floats [B, H, W, 3]",
    ),
    "raw grey": (lambda m: m.image_features(np.zeros((1, 64, 64, 1))), "needs normalised floats [B, H, W, 3]"),
    "raw single": (lambda m: m.image_features(np.zeros((64, 64, 3))), "needs normalised floats [B, H, W, 3]"),
    "words as ids": (lambda m: m.text_features(["pneumonia"]), "needs token ids [B, T]"),
    "one row of ids": (lambda m: m.text_features([START, END]), "needs token ids [B, T]"),
    "too many ids": (
        lambda m: m.text_features(np.full((1, 13), END)),
        "text_features: 13 tokens do not fit the context of 12",
    ),
    "no end token": (
        lambda m: m.text_features([[START, 5, END], [START, 5, 0]]),
        f"text_features: every row needs its end token, {END}",
    ),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_is_one_line(misuse: str, model: LoadedModel) -> None:
    action, says = MISUSE[misuse]
    assert says in refusal(lambda: action(model))


def edit(*path: str, value: Any = None) -> Callable[[Path], None]:
    """Sets one field of the card, or takes it away."""

    def change(folder: Path) -> None:
        body = json.loads((folder / CARD).read_text())
        node = body
        for key in path[:-1]:
            node = node[key]
        node.pop(path[-1], None)
        if value is not None:
            node[path[-1]] = value
        (folder / CARD).write_text(json.dumps(body))

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda f: (f / CARD).unlink(), "not a model folder"),
    "nothing": (shutil.rmtree, "not a model folder"),
    "unknown tower": (edit("architecture", "image", value="resnet"), "unknown image architecture 'resnet'"),
    "another tower": (edit("architecture", "image", value="dinov3_vitb16"), "in the architecture"),
    "another context": (
        edit("architecture", "context", value=77),
        "text/pos_embedding is (12, 128) in the folder and (77, 128) in the architecture",
    ),
    "no context": (edit("architecture", "context"), "text/pos_embedding is (12, 128) in the folder"),
    "an unknown size": (edit("architecture", "depth", value=3), "damaged card: "),
    "no preparation": (edit("preprocessing", "store"), "damaged card: 'store'"),
    "no mean": (edit("preprocessing", "mean"), "damaged card: 'mean'"),
    "another cleaning": (
        edit("tokenizer", "clean", value="none"),
        "was made with tokenizer clean = none, this program has ftfy+html2+whitespace+lower",
    ),
    "another vocabulary": (edit("tokenizer", "vocab_size", value=VOCABULARY - 96), "was made with tokenizer "),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_folder_that_cannot_be_right_is_refused(broken: str, folder: Path, tmp_path: Path) -> None:
    change, says = BROKEN[broken]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    message = refusal(lambda: hc.load(copy))
    assert message.startswith(str(copy))
    assert says in message


def test_a_batch_has_at_least_one_row(folder: Path) -> None:
    assert refusal(lambda: hc.load(folder, batch_size=0)) == "batch_size = 0: must be at least 1"


def test_texts_of_any_lengths_come_back_in_order_and_to_the_last_bit(tmp_path: Path) -> None:
    """A text's embedding is the same whatever else is encoded with it: each width has its own program."""
    spec = dataclasses.replace(SPEC, context=96)
    long = small_card("dual", context=96, embed_dim=SPEC.embed_dim, store={"resize": "pad", "colour": False})
    modelfolder.save(tmp_path / "long", weights(spec), long)
    model = hc.load(tmp_path / "long", batch_size=4)
    texts = ["opacity " * n for n in (80, 1, 50, 2, 90, 40, 3)]
    together = model.encode_text(texts)
    np.testing.assert_array_equal(together, model.encode_text(texts[::-1])[::-1])
    np.testing.assert_array_equal(together, np.concatenate([model.encode_text([text]) for text in texts]))
    wanted = model.text_features(model.tokenizer(texts, 96).ids) @ weights(spec)["text_projection/kernel"]
    np.testing.assert_allclose(together, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
