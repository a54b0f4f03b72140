"""A trained model in a person's hands: `hybridclip_jax.load`. B images or texts, E embedding, D tower width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from hybridclip_jax import modelfolder, models, state, step
from hybridclip_jax.data import pixels, transforms
from hybridclip_jax.data.formats.base import RecordError
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.layers import l2_normalize

ImageLike = str | Path | Image.Image | np.ndarray
DEFAULT_BATCH = 64
STORE_SIDE = 320


def load(folder: str | Path, batch_size: int = DEFAULT_BATCH) -> LoadedModel:
    """A model folder, or a run (its chosen model in `best/`). Raises UserError when it holds neither.

    A folder of one tower loads as that tower: its raw entry and, for text, the tokenizer.
    """
    folder = Path(folder)
    if not (folder / modelfolder.CARD).is_file() and (folder / "best" / modelfolder.CARD).is_file():
        folder = folder / "best"
    return LoadedModel(folder, batch_size)


class LoadedModel:
    """Encoders of one model folder. Work is done in batches of one fixed size, so nothing recompiles."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        params, self.card = modelfolder.load(folder)
        self.folder, self.batch_size = folder, batch_size
        self.synthetic = self.card.synthetic
        self._static, self._params = _rebuild(folder, self.card, params)
        if self.card.kind != "image":
            self.tokenizer = Tokenizer(self.card.tokenizer["vocab_size"])
        self._functions: dict[str, Any] = {}

    def encode_image(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Paths, PIL images or uint8 arrays [B, H, W(, C)] -> float32 [B, E], L2-normalised.

        Files and PIL images go through the store's preparation (its resize to 320 px, its colour rule), then every
        image is resized to the model's size with Pillow's bicubic, as evaluation does.
        """
        self._needs("dual", "encode_image")
        return self._batched("encode_image", _stacked(images, self.card.preprocessing))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [B, E], L2-normalised. Texts beyond the context are cut, keeping the end token."""
        self._needs("dual", "encode_text")
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts, not one text")
        return self._batched("encode_text", self.tokenizer(texts, self.card.architecture["context"]).ids)

    def image_features(self, images: Any) -> np.ndarray:
        """float32 [B, H, W, 3], already normalised -> pooled features [B, D], before projection and L2."""
        self._needs("image", "image_features")
        return self._batched("image_features", np.asarray(images, np.float32))

    def text_features(self, ids: Any) -> np.ndarray:
        """int32 [B, T] token ids -> pooled features [B, D], before projection and L2."""
        self._needs("text", "text_features")
        return self._batched("text_features", np.asarray(ids, np.int32))

    @property
    def logit_scale(self) -> float:
        """ln(1 / temperature)."""
        self._needs("dual", "logit_scale")
        return float(self._params["logit_scale"])

    def _needs(self, part: str, name: str) -> None:
        if self.card.kind not in ("dual", part):
            raise UserError(f"{self.folder}: holds the {self.card.kind} tower alone, which has no {name}")

    def _batched(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) == 0:
            raise UserError(f"{name}: nothing to encode")
        if name not in self._functions:
            self._functions[name] = jax.jit(self._function(name))
        rows = []
        for start in range(0, len(values), self.batch_size):
            part = values[start : start + self.batch_size]
            filled = np.concatenate([part, np.repeat(part[:1], self.batch_size - len(part), axis=0)])
            rows.append(np.asarray(self._functions[name](self._params, filled))[: len(part)])
        return np.concatenate(rows)

    def _function(self, name: str) -> Any:
        mean, std = (tuple(self.card.preprocessing.get(key, ())) for key in ("mean", "std"))

        def features(params: state.Params, values: jax.Array) -> jax.Array:
            model = state.bind(self._static, params)
            if name == "encode_image":
                return l2_normalize(model.encode_image(step.normalise(values, mean, std)))
            if name == "encode_text":
                return l2_normalize(model.encode_text(values))
            tower = getattr(model, name.removesuffix("_features"))
            return tower(values).pooled

        return features


class _OneTower(nnx.Module):
    """A tower under the name it has in a dual encoder."""

    def __init__(self, which: str, tower: nnx.Module) -> None:
        setattr(self, which, tower)


def _rebuild(
    folder: Path, card: modelfolder.Card, params: dict[str, np.ndarray]
) -> tuple[state.Static, dict[str, jax.Array]]:
    numerics = models.Numerics()
    known = {**models.IMAGE_ENCODERS, **models.TEXT_ENCODERS}
    for which in ("image", "text"):
        if which in card.architecture and card.architecture[which] not in known:
            raise UserError(f"{folder}: unknown {which} architecture {card.architecture[which]!r}")
    spec = models.DualSpec(**card.architecture)

    def build() -> nnx.Module:
        whole = models.build(spec, numerics, nnx.Rngs(0))
        return whole if card.kind == "dual" else _OneTower(card.kind, getattr(whole, card.kind))

    static, shapes, _ = state.abstract(build)
    for name, shape in shapes.items():
        found = params[name].shape if name in params else "nothing"
        if found != shape.shape:
            raise UserError(f"{folder}: {name} is {found} in the folder and {shape.shape} in the architecture")
    return static, {name: jnp.asarray(params[name]) for name in shapes}


def _stacked(images: Sequence[ImageLike] | np.ndarray, card: dict[str, Any]) -> np.ndarray:
    if isinstance(images, str | Path | Image.Image):
        raise UserError("encode_image takes a list of images, not one image")
    size = card["image_size"]
    stored = [_stored(image, place, card["store"]) for place, image in enumerate(images)]
    if len({image.shape[-1] for image in stored}) > 1:
        raise UserError("encode_image: grey and colour images in one call; convert them to one kind")
    resized = np.empty((len(stored), size, size, stored[0].shape[-1] if stored else 1), np.uint8)
    for image, out in zip(stored, resized, strict=True):
        transforms.resize(image, out)
    return resized


def _stored(image: ImageLike, place: int, preparation: dict[str, Any]) -> np.ndarray:
    """One image as the store would hold it; an array is taken to be prepared already."""
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            raise UserError(
                f"image {place}: {image.dtype} {image.shape}; arrays must be uint8 [H, W] or [H, W, 1 or 3]"
            )
        return image
    try:
        picture = image if isinstance(image, Image.Image) else pixels.open_image(Path(image))
        channels = 3 if preparation["colour"] else 1
        return pixels.store_pixels(picture, side=STORE_SIDE, channels=channels, resize=preparation["resize"])
    except RecordError as error:
        raise UserError(f"image {place}: {error}") from error
