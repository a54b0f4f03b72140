"""Model folders: what is written is what is read, and whatever does not match is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cards import VOCABULARY, small_card
from safetensors.numpy import save_file

from hybridclip_jax import modelfolder
from hybridclip_jax.config import CLIP_MEAN, CLIP_STD
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import StorageError, UserError
from hybridclip_jax.modelfolder import CARD, WEIGHTS, Card

SHAPES = {
    "image/blocks/0/attn/q/kernel": (6, 6),
    "image/cls_token": (1, 1, 6),
    "image_projection/kernel": (6, 4),
    "text/token_embedding": (20, 6),
    "text/norm/scale": (6,),
    "text_projection/kernel": (6, 4),
    "logit_scale": (),
}
HELD = {
    "dual": set(SHAPES),
    "image": {"image/blocks/0/attn/q/kernel", "image/cls_token"},
    "text": {"text/token_embedding", "text/norm/scale", "text_projection/kernel"},
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def card(kind: str = "dual") -> Card:
    return small_card(kind, context=16, embed_dim=4, resize="bicubic")


PREPROCESSING, TOKENIZER = card().preprocessing, card().tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modelfolder.save(tmp_path / "model", weights(), card())
    return tmp_path / "model"


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- there and back


@pytest.mark.parametrize("kind", ["dual", "image", "text"])
def test_a_folder_holds_the_towers_of_its_kind_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    mark = modelfolder.save(tmp_path / "deep" / "model", weights(), card(kind))
    found, read = modelfolder.load(tmp_path / "deep" / "model")
    assert read == card(kind)
    assert set(found) == HELD[kind]
    for name, value in found.items():
        assert value.dtype == np.float32
        assert value.shape == SHAPES[name]
        assert value.tobytes() == weights()[name].tobytes()
    assert mark == modelfolder.fingerprint(found)
    assert json.loads((tmp_path / "deep" / "model" / CARD).read_text())["fingerprint"] == mark
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["model"]


def test_arrays_of_jax_and_transposed_arrays_are_written_as_they_read(tmp_path: Path) -> None:
    """A transposed view written by its memory would come back scrambled, with a fingerprint that agrees."""
    plain = weights()
    odd: Any = {name: jnp.asarray(value) for name, value in plain.items()}
    odd["image/blocks/0/attn/q/kernel"] = np.ascontiguousarray(plain["image/blocks/0/attn/q/kernel"].T).T
    odd["text/token_embedding"] = np.repeat(plain["text/token_embedding"], 2, axis=0)[::2]
    assert modelfolder.save(tmp_path / "model", odd, card()) == modelfolder.fingerprint(plain)
    found, _ = modelfolder.load(tmp_path / "model")
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_fingerprint_tells_every_bit_name_shape_and_type() -> None:
    mark = modelfolder.fingerprint(weights())
    assert mark == modelfolder.fingerprint(dict(reversed(weights().items()))), "order is not content"
    seen = {mark}
    for name, value in weights().items():
        content = bytearray(value.tobytes())
        for bit in (0, 8 * len(content) - 1):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            other = np.frombuffer(bytes(changed), np.float32).reshape(value.shape)
            seen.add(modelfolder.fingerprint(weights() | {name: other}))
    assert len(seen) == 1 + 2 * len(SHAPES)
    plain = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    others: list[dict[str, np.ndarray]] = [
        {"a": plain["a"].reshape(3, 2), "b": plain["b"]},
        {"a": plain["a"].view(np.int32), "b": plain["b"]},
        {"c": plain["a"], "b": plain["b"]},
        {"a": plain["a"]},
        {"b": plain["a"], "a": plain["b"]},
    ]
    assert len({modelfolder.fingerprint(other) for other in [plain, *others]}) == 6


# --- what does not read


def altered(folder: Path) -> None:
    save_file(weights() | {"text/norm/scale": np.ones(6, np.float32)}, folder / WEIGHTS)


def one_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 4
    (folder / WEIGHTS).write_bytes(content)


def edit(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        body = json.loads((folder / CARD).read_text()) | fields
        (folder / CARD).write_text(json.dumps({name: value for name, value in body.items() if value is not None}))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other weights": (altered, "the weights are not those of the card (fingerprint differs)"),
    "one bit": (one_bit, "the weights are not those of the card (fingerprint differs)"),
    "truncated weights": (lambda f: os.truncate(f / WEIGHTS, 500), "damaged model folder: "),
    "empty weights": (lambda f: os.truncate(f / WEIGHTS, 0), "damaged model folder: "),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "damaged model folder: No such file or directory: "),
    "no card": (lambda f: (f / CARD).unlink(), f"not a model folder (no {CARD}); name one, such as"),
    "nothing at all": (shutil.rmtree, f"not a model folder (no {CARD})"),
    "a newer format": (edit(format_version=2), "format version 2, this program reads 1; "),
    "no format": (edit(format_version=None), "damaged model folder: 'format_version' is missing"),
    "an unknown kind": (edit(kind="triple"), "damaged model folder: kind is 'triple', not one of dual, image, text"),
    "a field missing": (edit(licence=None), "damaged model folder: "),
    "a field too many": (edit(colour="blue"), "damaged model folder: "),
    "a cut card": (lambda f: os.truncate(f / CARD, 40), "damaged model folder: "),
    "a card of something else": (lambda f: (f / CARD).write_text("[]"), "damaged model folder: "),
    "an empty value": (lambda f: (f / CARD).write_text("null"), "damaged model folder: "),
    "a card nested without end": (lambda f: (f / CARD).write_text("[" * 100_000), "damaged model folder: "),
    "a card that is no text": (lambda f: (f / CARD).write_bytes(b"\xff\xfe"), "damaged model folder: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(damage: str, folder: Path) -> None:
    change, says = DAMAGE[damage]
    change(folder)
    message = refusal(lambda: modelfolder.load(folder))
    assert message.startswith(str(folder))
    assert says in message


# field -> what stands in it, and what it has to be
NONSENSE: list[tuple[str, Any, str]] = [
    ("kind", ["dual"], "text"),
    ("architecture", [1], "an object"),
    ("architecture.image", [], "text"),
    ("architecture.text", 5, "text"),
    ("architecture.context", 0, "a whole number above 0"),
    ("architecture.context", "x", "a whole number above 0"),
    ("architecture.embed_dim", -1, "a whole number above 0"),
    ("preprocessing", [], "an object"),
    *(("preprocessing.image_size", size, "a whole number from 1 to 2048") for size in (0, 64.0, "64", True, 32000)),
    ("preprocessing.mean", "abc", "three numbers"),
    ("preprocessing.mean", [0.5, 0.1], "three numbers"),
    ("preprocessing.mean", [None, None, None], "three numbers"),
    ("preprocessing.mean", [0.5, 0.5, float("nan")], "three numbers"),
    ("preprocessing.mean", [0.5, 0.5, 10**400], "three numbers"),
    ("preprocessing.mean", [0.5, 0.5, float("-inf")], "three numbers"),
    ("preprocessing.std", [0.2, 0.2, 0], "three numbers above 0"),
    ("preprocessing.std", [0.2, 0.2, -0.2], "three numbers above 0"),
    ("preprocessing.store", None, "an object"),
    ("preprocessing.store.colour", "no", "true or false"),
    ("tokenizer", None, "an object"),
    ("tokenizer.vocab_size", 0, "a whole number above 0"),
    ("tokenizer.vocab_size", "x", "a whole number above 0"),
    ("source", "here", "an object"),
    ("licence", 1, "text"),
    ("synthetic", "no", "true or false"),
    ("synthetic", 0, "true or false"),
]


@pytest.mark.parametrize(("field", "value", "needs"), NONSENSE)
def test_nonsense_in_the_card_is_refused_by_its_field(field: str, value: Any, needs: str, folder: Path) -> None:
    """The fingerprint is of the weights, so an edited card still has the right one."""
    body = json.loads((folder / CARD).read_text())
    node = body
    *above, last = field.split(".")
    for key in above:
        node = node.setdefault(key, {})
    node[last] = value
    (folder / CARD).write_text(json.dumps(body))
    message = refusal(lambda: modelfolder.load(folder))
    assert message.startswith(f"{folder}/{CARD}: {field} = ")
    assert message.endswith(f": must be {needs}")
    assert len(message) < len(str(folder)) + 200


# --- one tower for a run


def targets(**changes: Any) -> dict[str, Any]:
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in (SHAPES | changes).items()
        if shape is not None
    }


def take(folder: Path, which: str, wanted: Any = None, **changes: Any) -> dict[str, np.ndarray]:
    arch = {"image": "dinov3_tiny32", "text": "clip_text_tiny"}[which]
    options: dict[str, Any] = {"arch": arch, "preprocessing": PREPROCESSING, "tokenizer": TOKENIZER} | changes
    return modelfolder.tower(folder, which, wanted or targets(), **options).params


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_dual_folder_gives_either_tower_and_its_own_folder_the_same(which: str, folder: Path) -> None:
    found = take(folder, which)
    assert set(found) == HELD[which]
    alone = folder.with_name(which)
    modelfolder.save(alone, weights(), card(which))
    again = take(alone, which)
    assert set(again) == HELD[which]
    for name in found:
        np.testing.assert_array_equal(found[name], weights()[name])
        np.testing.assert_array_equal(again[name], weights()[name])


def test_the_runs_own_card_may_hold_tuples(folder: Path) -> None:
    assert take(folder, "image", preprocessing={"mean": CLIP_MEAN, "std": CLIP_STD, "image_size": 224})


OTHER_TOKENIZER = Tokenizer(VOCABULARY - 96).card()
MISMATCHES: dict[str, tuple[str, dict[str, Any], str]] = {
    "architecture": (
        "image",
        {"arch": "dinov3_vitb16"},
        "architecture dinov3_tiny32, but model.image.arch = dinov3_vitb16",
    ),
    "text architecture": (
        "text",
        {"arch": "clip_text_b"},
        "architecture clip_text_tiny, but model.text.arch = clip_text_b",
    ),
    "mean": (
        "image",
        {"preprocessing": PREPROCESSING | {"mean": (0.5, 0.5, 0.5)}},
        f"was made with mean = {list(CLIP_MEAN)}, this run has data.mean = [0.5, 0.5, 0.5]{modelfolder.SET_STATISTICS}",
    ),
    "std": (
        "image",
        {"preprocessing": PREPROCESSING | {"std": (0.25, 0.25, 0.25)}},
        f"was made with std = {list(CLIP_STD)}, this run has data.std = [0.25, 0.25, 0.25]{modelfolder.SET_STATISTICS}",
    ),
    "tokenizer": (
        "text",
        {"tokenizer": OTHER_TOKENIZER},
        f"was made with vocab_size = {VOCABULARY}, this run has tokenizer.vocab_size = {VOCABULARY - 96}",
    ),
    "merges": (
        "text",
        {"tokenizer": TOKENIZER | {"merges_sha256": "0"}},
        f"was made with merges_sha256 = {TOKENIZER['merges_sha256']}, this run has tokenizer.merges_sha256 = 0",
    ),
    "width": (
        "image",
        {"wanted": targets(**{"image/cls_token": (1, 1, 8)})},
        "image/cls_token is (1, 1, 6) in the folder and (1, 1, 8) in this model",
    ),
    "embedding": (
        "text",
        {"wanted": targets(**{"text_projection/kernel": (6, 8)})},
        "text_projection/kernel is (6, 4) in the folder and (6, 8) in this model",
    ),
    "a parameter more in the model": (
        "text",
        {"wanted": targets(**{"text/pos_embedding": (16, 6)})},
        "text/pos_embedding is nothing in the folder and (16, 6) in this model",
    ),
    "a parameter less in the model": (
        "text",
        {"wanted": targets(**{"text/norm/scale": None})},
        "text/norm/scale is (6,) in the folder and nothing in this model",
    ),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_tower_that_does_not_fit_is_refused_naming_both_sides(mismatch: str, folder: Path) -> None:
    which, options, says = MISMATCHES[mismatch]
    assert refusal(lambda: take(folder, which, **options)) == f"{folder}: {says}"


@pytest.mark.parametrize(("kind", "which"), [("image", "text"), ("text", "image")])
def test_the_other_tower_is_refused(kind: str, which: str, folder: Path) -> None:
    modelfolder.save(folder, weights(), card(kind))
    says = f"{folder}: holds a {kind} tower, model.{which}.weights needs {which}"
    assert refusal(lambda: take(folder, which)) == says


# --- replaced, or not at all


def test_a_folder_is_replaced_as_a_whole(folder: Path) -> None:
    (folder / "stray").write_text("of the old model")
    modelfolder.save(folder, weights(1), dataclasses.replace(card(), licence="other"))
    found, read = modelfolder.load(folder)
    np.testing.assert_array_equal(found["logit_scale"], weights(1)["logit_scale"])
    assert read.licence == "other"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


class Killed(BaseException):
    """Like a kill: nothing that handles errors sees it, so nothing is tidied up."""


@pytest.mark.parametrize("moment", ["save_file", "os.replace"])
@pytest.mark.parametrize("error", [Killed, OSError], ids=["killed", "disk full"])
def test_a_stop_before_the_end_leaves_the_old_folder(
    moment: str, error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error("No space left on device")

    owner = modelfolder if moment == "save_file" else modelfolder.os
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment.removeprefix("os."), stop)
        with pytest.raises(Killed if error is Killed else StorageError) as caught:
            modelfolder.save(folder, weights(1), card())
    if error is OSError:
        assert str(caught.value) == f"{folder}: the model could not be written: No space left on device"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    found, _ = modelfolder.load(folder)
    np.testing.assert_array_equal(found["logit_scale"], weights(0)["logit_scale"])
    modelfolder.save(folder, weights(1), card())
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    np.testing.assert_array_equal(modelfolder.load(folder)[0]["logit_scale"], weights(1)["logit_scale"])


@pytest.mark.parametrize("which", ["image", "text"])
def test_a_tower_taken_out_of_a_dual_folder_is_a_folder_of_that_tower(which: str, tmp_path: Path) -> None:
    modelfolder.save(tmp_path / "dual", weights(), card())
    mark = modelfolder.extract(tmp_path / "dual", which, tmp_path / which)
    held, taken = modelfolder.load(tmp_path / which)
    assert held.keys() == HELD[which]
    for name, value in held.items():
        np.testing.assert_array_equal(value, weights()[name])
    assert taken.kind == which and taken.synthetic
    assert taken.architecture == card(which).architecture
    assert modelfolder.stated_fingerprint(tmp_path / which) == mark == modelfolder.fingerprint(held)
