"""`hybridclip_jax.load`: equal pixels give equal embeddings, batches do not matter, and misuse is one line."""

# B images or texts, E embedding

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import IMAGE, TEXT, VOCABULARY, small_card
from flax import nnx
from PIL import Image
from small_models import SPEC, card, weights

import hybridclip_jax as hc
from hybridclip_jax import modelfolder, models, state
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.data.store import Store
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import EVALUATORS
from hybridclip_jax.inference import LoadedModel
from hybridclip_jax.modelfolder import CARD

START, END = VOCABULARY - 2, VOCABULARY - 1
SIDE = 64
TEXTS = ["pneumothorax", "no pneumothorax", "the heart is enlarged; " * 20, ""]


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


# --- what evaluators are given


def test_evaluators_and_encode_see_the_same_embeddings(model: LoadedModel, phantom_store: Path) -> None:
    store, encode = Store.open(f"{phantom_store}:val"), model.encoders
    assert encode.batch_size == model.batch_size == 8, "4, rounded up to eight devices"
    preparation = model.preparation()
    assert (preparation.context, preparation.image_size) == (SPEC.context, SIDE)
    z = encode.of_store(model.params, preparation.open_store(store.spec), preparation.image_size)
    np.testing.assert_allclose(z, model.encode_image(store.images(np.arange(len(store)))), atol=1e-6)
    t = encode.of_texts(model.params, TEXTS, preparation.tokenizer, preparation.context)
    np.testing.assert_array_equal(t, model.encode_text(TEXTS))
    assert model.encoders is encode, "one compilation serves all"
    assert all(len(value.sharding.device_set) == 8 for value in model.params.values())


def test_the_whole_batch_is_split_over_the_devices_in_full_float32(model: LoadedModel) -> None:
    images, ids = np.zeros((8, SIDE, SIDE, 1), np.uint8), np.full((8, 12), END)
    for function, values in ((model.encoders.images, images), (model.encoders.texts, ids)):
        lowered = function.lower(model.params, values)
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line or "convolution" in line]
        assert len(products) > 5
        assert all("HIGHEST" in line for line in products)
        compiled = lowered.compile()
        (_, batch), _ = compiled.input_shardings
        assert batch.shard_shape(values.shape)[0] == 1
        assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())


def test_a_store_of_other_pixels_is_not_opened(folder: Path, phantom_store: Path, tmp_path: Path) -> None:
    modelfolder.save(tmp_path / "colour", weights(), card(colour=True))
    colour, spec = hc.load(tmp_path / "colour"), f"{phantom_store}:val"
    message = refusal(lambda: colour.preparation().open_store(spec))
    says = f"{spec}: prepared with colour = False, but {tmp_path / 'colour'} was trained on images with True"
    assert message == f"{says}; prepare it again alike"


def test_what_evaluators_are_given_lets_the_model_go(folder: Path, phantom_store: Path) -> None:
    """An ensemble is evaluated one model at a time; each must leave the memory when it is done."""
    model = hc.load(folder)
    preparation, alive = model.preparation(), weakref.ref(model)
    model.encode_text(TEXTS)
    del model
    assert alive() is None
    assert len(preparation.open_store(f"{phantom_store}:val")) > 0


# --- zero-shot


def softmax_of(image: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The rule again: prompts normalised, averaged, normalised; a softmax over the two cosines."""
    sides = []
    for prompts in (positive, negative):
        mean = np.mean([prompt / np.sqrt(prompt @ prompt) for prompt in prompts.astype(np.float64)], axis=0)
        sides.append(image.astype(np.float64) @ (mean / np.sqrt(mean @ mean)))
    return np.exp(sides[0]) / (np.exp(sides[0]) + np.exp(sides[1]))


def test_zero_shot_is_the_rule_of_chexzero(model: LoadedModel) -> None:
    images, labels = [picture(seed) for seed in range(3)], ["Edema", "Pleural_Effusion"]
    templates = (["{}", "has {}", "a {}"], ["no {}", "not {}"])
    scores = model.zero_shot(images, labels, templates)
    assert (scores.shape, scores.dtype) == ((3, 2), np.float64)
    z = model.encode_image(images)
    for k, label in enumerate(["edema", "pleural effusion"]):
        positive, negative = ([text.replace("{}", label) for text in side] for side in templates)
        wanted = softmax_of(z, model.encode_text(positive), model.encode_text(negative))
        np.testing.assert_allclose(scores[:, k], wanted, atol=1e-6)
    assert np.ptp(scores) > 1e-2
    np.testing.assert_allclose(model.zero_shot(images, labels, templates[::-1]), 1 - scores, atol=1e-12)


def test_zero_shot_gives_the_scores_that_evaluate_measures(tmp_path: Path, phantom_store: Path) -> None:
    spec = dataclasses.replace(SPEC, context=24)  # templates need more than twelve tokens
    long = small_card("dual", context=24, embed_dim=SPEC.embed_dim, store={"resize": "pad", "colour": False})
    modelfolder.save(tmp_path / "long", weights(spec), long)
    model, store = hc.load(tmp_path / "long"), Store.open(f"{phantom_store}:val")
    for prompts in ("chexzero", "templated"):
        entry = {"protocol": "chexzero", "data": store.spec, "prompts": prompts}
        measured = EVALUATORS["chexzero"]("e", entry, model.preparation()).predict(model.encoders, model.params)
        scores = model.zero_shot(store.images(np.arange(len(store))), measured.columns, prompts)
        np.testing.assert_allclose(scores, measured.score_NxK, atol=1e-6)
        assert np.ptp(scores, axis=0).min() > 1e-4


# --- runs and folders of one tower


def test_a_run_loads_as_its_best_model(folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / "best")
    (run / "config.json").write_text("{}")
    found = hc.load(run, batch_size=4)
    assert found.folder == run / "best"
    np.testing.assert_array_equal(found.encode_text(TEXTS), model.encode_text(TEXTS))


def test_the_fingerprint_is_of_what_was_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on puts another best/ in place the moment after the weights were read."""
    best = Path(shutil.copytree(folder, tmp_path / "best"))
    load_file = modelfolder.load_file

    def read_and_replaced(path: Path) -> dict[str, np.ndarray]:
        found = load_file(path)
        modelfolder.save(best, {name: value + 1 for name, value in weights().items()}, card())
        return found

    monkeypatch.setattr(modelfolder, "load_file", read_and_replaced)
    assert hc.load(best).fingerprint == modelfolder.stated_fingerprint(folder)
    assert modelfolder.stated_fingerprint(best) != modelfolder.stated_fingerprint(folder)


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


def test_one_tower_is_all_that_is_built_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (models.IMAGE_ENCODERS, models.TEXT_ENCODERS):
        for name, (build, sizes) in list(table.items()):
            monkeypatch.setitem(table, name, (functools.partial(noted, name, build), sizes))
    for kind, tower in (("image", IMAGE), ("text", TEXT)):
        modelfolder.save(tmp_path / kind, weights(), card(kind))
        BUILT.clear()
        hc.load(tmp_path / kind)
        assert [tower] == BUILT


BUILT: list[str] = []


def noted(name: str, build: Callable[..., Any], *arguments: Any) -> Any:
    BUILT.append(name)
    return build(*arguments)


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
    "one label": (lambda m: m.zero_shot([picture()], "Edema"), "zero_shot takes a list of labels, such as ['Edema'"),
    "no label": (lambda m: m.zero_shot([picture()], []), "zero_shot takes a list of labels"),
    "no image for a label": (lambda m: m.zero_shot([], ["Edema"]), "encode_image: nothing to encode"),
    "unknown prompts": (lambda m: m.zero_shot([picture()], ["Edema"], "chexzeroo"), "neither a file nor one of the sh"),
    "one list of prompts": (lambda m: m.zero_shot([picture()], ["Edema"], (["{}"],)), "two lists: (positive, negative"),
    "texts for lists": (lambda m: m.zero_shot([picture()], ["Edema"], ("{}", "no {}")), "must be a list of one or mo"),
    "no negatives": (lambda m: m.zero_shot([picture()], ["Edema"], (["{}"], [])), "prompts for the absence of a label"),
    "a bare prompt": (lambda m: m.zero_shot([picture()], ["x"], (["a"], ["no {}"])), "template 'a' has no \"{}\" for"),
    "a long prompt": (
        lambda m: m.zero_shot([picture()], ["Edema"], (["{}"], ["no {} " * 9])),
        "does not fit into the context of 12 tokens",
    ),
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
    "an impossible vocabulary": (
        edit("tokenizer", "vocab_size", value=1),
        f"/{CARD}: tokenizer: vocab_size 1 is outside 514..49408",
    ),
    "an unknown preparation": (
        edit("preprocessing", "store", "resize", value="squeeze"),
        f"/{CARD}: preprocessing.store.resize = 'squeeze': must be one of pad, crop, stretch",
    ),
    "a mean of two": (edit("preprocessing", "mean", value=[0.5, 0.1]), "preprocessing.mean = [0.5, 0.1]: must be"),
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


def test_a_store_that_says_nothing_of_its_pixels_is_not_opened(
    model: LoadedModel, phantom_store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(phantom_store, copy)
    body = json.loads((copy / "manifest.json").read_text())
    del body["preprocessing"]
    (copy / "manifest.json").write_text(json.dumps(body))
    message = refusal(lambda: model.preparation().open_store(f"{copy}:val"))
    assert message.startswith(f"{copy}:val: prepared with colour = None, but ")
