"""A trained model in a person's hands: `hybridclip_jax.load`. B images or texts, E embedding, D tower width."""

from __future__ import annotations

import dataclasses
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
from hybridclip_jax.data.loader import width_for
from hybridclip_jax.data.store import SIDE
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.models.layers import l2_normalize

ImageLike = str | Path | Image.Image | np.ndarray
DEFAULT_BATCH = 64


def load(folder: str | Path, batch_size: int = DEFAULT_BATCH) -> LoadedModel:
    """A model folder, or a run (its chosen model in `best/`). Raises UserError when it holds neither.

    A folder of one tower loads as that tower: its raw entry and, for text, the tokenizer.
    """
    folder = Path(folder)
    if not (folder / modelfolder.CARD).is_file() and (folder / "best" / modelfolder.CARD).is_file():
        folder = folder / "best"
    return LoadedModel(folder, batch_size)


class LoadedModel:
    """Encoders of one model folder. Work is done in batches of one fixed size: images compile once, texts by width."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: must be at least 1")
        params, self.card = modelfolder.load(folder)
        self.folder, self.batch_size = folder, batch_size
        self.synthetic = self.card.synthetic
        try:
            self._static, self._params = _rebuild(folder, self.card, params)
            if self.card.kind != "text":
                self._sizes = models.IMAGE_ENCODERS[self.card.architecture["image"]][1]
            if self.card.kind != "image":
                self.tokenizer = _tokenizer(folder, self.card)
                self._context = int(self.card.architecture["context"])
            if self.card.kind == "dual":
                self._preparation = _Preparation.of(self.card.preprocessing)
                wrong = self._sizes.wrong_size(self._preparation.size)
                if wrong:
                    raise UserError(f"{folder}/{modelfolder.CARD}: image_size = {self._preparation.size}: {wrong}")
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}/{modelfolder.CARD}: damaged card: {error}") from error
        self._functions: dict[str, Any] = {}

    def encode_image(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Paths, PIL images or uint8 arrays [B, H, W(, C)] -> float32 [B, E], L2-normalised.

        Equal pixels give equal embeddings, however they come: each image goes through the store's preparation (its
        resize to 320 px, its colour rule; an image of a store is left as it is), then is resized to the model's
        size with Pillow's bicubic, as evaluation does. Raises UserError for what is no image, by its place.
        """
        self._needs("dual", "encode_image")
        return self._batched("encode_image", _stacked(images, self._preparation))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> float32 [B, E], L2-normalised. Texts beyond the context are cut, keeping the end token."""
        self._needs("dual", "encode_text")
        if isinstance(texts, str):
            raise UserError("encode_text takes a list of texts, not one text")
        texts = list(texts)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"text {place}: {type(text).__name__} is not a text")
        if not texts:
            raise UserError("encode_text: nothing to encode")
        tokens = self.tokenizer(texts, self._context)
        # By each text's own length: what a text is encoded with must not change the last digits of its embedding.
        widths = np.array([width_for(int(eot) + 1, self._context) for eot in tokens.eot], int)
        embedding_BxE = np.empty((len(texts), self.card.architecture["embed_dim"]), np.float32)
        for width in np.unique(widths):
            embedding_BxE[widths == width] = self._batched("encode_text", tokens.ids[widths == width, :width])
        return embedding_BxE

    def image_features(self, images: Any) -> np.ndarray:
        """float32 [B, H, W, 3], already normalised -> pooled features [B, D], before projection and L2."""
        self._needs("image", "image_features")
        values = np.asarray(images)
        if values.ndim != 4 or values.shape[-1] != 3 or not np.issubdtype(values.dtype, np.floating):
            raise UserError(f"image_features: {values.dtype} {values.shape}; needs normalised floats [B, H, W, 3]")
        for side in values.shape[1:3]:
            if wrong := self._sizes.wrong_size(side):
                raise UserError(f"image_features: images of {side} px a side: {wrong}")
        return self._batched("image_features", values.astype(np.float32))

    def text_features(self, ids: Any) -> np.ndarray:
        """int32 [B, T] token ids -> pooled features [B, D], before projection and L2."""
        self._needs("text", "text_features")
        values = np.asarray(ids)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise UserError(f"text_features: {values.dtype} {values.shape}; needs token ids [B, T]")
        if values.shape[1] > self._context:
            raise UserError(f"text_features: {values.shape[1]} tokens do not fit the context of {self._context}")
        if not (values == self.tokenizer.eot).any(axis=1).all():
            raise UserError(f"text_features: every row needs its end token, {self.tokenizer.eot}")
        return self._batched("text_features", values.astype(np.int32))

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
        def features(params: state.Params, values: jax.Array) -> jax.Array:
            model = state.bind(self._static, params)
            if name == "encode_image":
                x = step.normalise(values, self._preparation.mean, self._preparation.std)
                return l2_normalize(model.encode_image(x))
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

    static, parameters, stats = state.abstract(build)
    shapes = {**parameters, **stats}
    for name, shape in shapes.items():
        found = params[name].shape if name in params else "nothing"
        if found != shape.shape:
            raise UserError(f"{folder}: {name} is {found} in the folder and {shape.shape} in the architecture")
    return static, {name: jnp.asarray(params[name]) for name in shapes}


def _tokenizer(folder: Path, card: modelfolder.Card) -> Tokenizer:
    tokenizer = Tokenizer(card.tokenizer["vocab_size"])
    for key, ours in tokenizer.card().items():
        if card.tokenizer[key] != ours:
            raise UserError(f"{folder}: was made with tokenizer {key} = {card.tokenizer[key]}, this program has {ours}")
    return tokenizer


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """From decoded pixels to what the model was trained on."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    channels: int

    @classmethod
    def of(cls, card: dict[str, Any]) -> _Preparation:
        store = card["store"]
        channels = 3 if store["colour"] else 1
        return cls(card["image_size"], tuple(card["mean"]), tuple(card["std"]), store["resize"], channels)


def _stacked(images: Sequence[ImageLike] | np.ndarray, preparation: _Preparation) -> np.ndarray:
    """uint8 [B, S, S, C] of images that come in any form."""
    single = isinstance(images, str | Path | Image.Image) or (
        isinstance(images, np.ndarray) and (images.ndim < 3 or (images.ndim == 3 and images.shape[-1] in (1, 3)))
    )
    if single:
        raise UserError("encode_image takes a list of images, not one image")
    prepared = []
    for place, image in enumerate(images):
        try:
            stored = pixels.store_pixels(
                _picture(image), side=SIDE, channels=preparation.channels, resize=preparation.resize
            )
        except RecordError as error:
            raise UserError(f"image {place}: {error.reason}") from error
        except TypeError as error:
            raise UserError(f"image {place}: {error}") from error
        out = np.empty((preparation.size, preparation.size, preparation.channels), np.uint8)
        transforms.resize(stored, out)
        prepared.append(out)
    return np.stack(prepared) if prepared else np.empty((0,), np.uint8)


def _picture(image: Any) -> Image.Image:
    """Raises RecordError or TypeError, in words, for what is no image."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        return pixels.open_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{type(image).__name__} is neither a path, a PIL image nor an array")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3)):
        raise TypeError(f"{image.dtype} {image.shape}; arrays must be uint8 [H, W] or [H, W, 1 or 3]")
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
