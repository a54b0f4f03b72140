"""A trained model in a person's hands: `hybridclip_jax.load`. B images or texts, E embedding, D tower width."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from hybridclip_jax import modelfolder, models, sharding, state, step
from hybridclip_jax.data import pixels, transforms
from hybridclip_jax.data.store import SIDE, Store
from hybridclip_jax.data.study import RecordError
from hybridclip_jax.data.tokenizer import Tokenizer
from hybridclip_jax.errors import UserError
from hybridclip_jax.evals import Preparation, prompt_file
from hybridclip_jax.evals.encode import Encode
from hybridclip_jax.evals.prompt_tokens import PromptTokens
from hybridclip_jax.evals.zero_shot import probability
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
    """Encoders of one model folder, their work split over all devices of this process.

    Work is done in batches of one fixed size, `batch_size` rounded up so that it divides among the devices: images
    compile once, texts once by width.
    params: parameters and statistics in one flat dict, a copy on each device. preprocessing: from decoded pixels to
    what the model was trained on (dual folders). tokenizer and context (in tokens): of folders with a text tower.
    """

    def __init__(self, folder: Path, batch_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: must be at least 1")
        params, self.card, self.fingerprint = modelfolder.read(folder)
        self.folder = folder
        self.synthetic = self.card.synthetic
        devices = jax.local_devices()
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self._mesh = sharding.make_mesh(0, 1, self.batch_size, devices)
        try:
            self._static, shapes = _rebuild(folder, self.card, params)
            if self.card.kind != "text":
                self._sizes = models.IMAGE_ENCODERS[self.card.architecture["image"]][1]
            if self.card.kind != "image":
                self.tokenizer = _tokenizer(folder, self.card)
                self.context = int(self.card.architecture["context"])
            if self.card.kind == "dual":
                self.preprocessing = Preprocessing.of(folder, self.card.preprocessing)
                if wrong := self._sizes.wrong_size(self.preprocessing.size):
                    raise UserError(f"{folder}/{modelfolder.CARD}: image_size = {self.preprocessing.size}: {wrong}")
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}/{modelfolder.CARD}: damaged card: {error}") from error
        held = {name: params[name] for name in shapes}
        self.params: dict[str, jax.Array] = jax.device_put(held, sharding.replicated(self._mesh))
        self._functions: dict[str, Any] = {}

    @functools.cached_property
    def encoders(self) -> Encode:
        """What evaluators call: images and texts to L2-normalised float32 embeddings, `batch_size` at a time."""
        self._needs("dual", "encoders")
        return Encode(self._jitted("encode_image"), self._jitted("encode_text"), self.batch_size)

    def preparation(self, open_store: Callable[[str], Store] = Store.open) -> Preparation:
        """What an evaluator needs to know of this model. It opens no store whose pixels were prepared otherwise."""
        self._needs("dual", "preparation")
        # Not a method of this model: an evaluator outlives it, and would keep its arrays.
        opened = functools.partial(_opened, open_store, self.folder, self.preprocessing)
        return Preparation(self.tokenizer, self.context, self.preprocessing.size, opened)

    def encode_image(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Paths, PIL images or uint8 arrays [B, H, W(, C)] -> float32 [B, E], L2-normalised.

        Equal pixels give equal embeddings, however they come: each image goes through the store's preparation (its
        resize to 320 px, its colour rule; an image of a store is left as it is), then is resized to the model's
        size with Pillow's bicubic, as evaluation does. Raises UserError for what is no image, by its place.
        """
        self._needs("dual", "encode_image")
        return self._batched("encode_image", _stacked(images, self.preprocessing))

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
        return self.encoders.of_texts(self.params, texts, self.tokenizer, self.context)

    def zero_shot(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Sequence[str],
        templates: str | Path | tuple[Sequence[str], Sequence[str]] = "chexzero",
    ) -> np.ndarray:
        """Scores float64 [B, K] that each of B images, as encode_image takes them, shows each of K labels.

        templates: a prompt file, shipped (by name) or any (by path), or lists of positive and of negative sentences
        with "{}" for the label. The rule is CheXzero's, as in the protocol `chexzero`: a softmax over the raw cosines
        with the label's two averaged prompts.

        This is no calibrated probability. It lies between 0.119 and 0.881, most often close to 0.5, and 0.5 is no
        threshold: it orders images by one label, and where to cut has to be found on labelled images of other
        patients (`evaluate --protocol chexzero --validation STORE`). Scores of two labels do not compare.

        Raises UserError for what is no image, a bad prompt file, or a prompt longer than the context.
        """
        self._needs("dual", "zero_shot")
        if isinstance(labels, str) or not len(labels) or not all(isinstance(label, str) for label in labels):
            raise UserError("zero_shot takes a list of labels, such as ['Edema', 'Pleural Effusion']")
        if isinstance(templates, str | Path):
            prompts = prompt_file.load(str(templates))
        elif len(templates) == 2:
            prompts = prompt_file.given(*templates)
        else:
            raise UserError("zero_shot: templates are a prompt file, or two lists: (positive, negative)")
        if not prompts.has_negatives:
            raise UserError(f"{prompts.source}: zero_shot needs prompts for the absence of a label too (negative)")
        pairs = [prompts.pair(label) for label in labels]
        groups = [side for pair in pairs for side in (pair.positive, pair.negative)]
        tokens = PromptTokens.of("zero_shot", groups, self.tokenizer, self.context)
        prompt_PxE = tokens.embed(self.encoders, self.params)
        image_BxE = self.encode_image(images).astype(np.float64)
        image_BxE /= np.linalg.norm(image_BxE, axis=1, keepdims=True)  # to float64's last digit, as evaluators do
        sides = zip(prompt_PxE[::2], prompt_PxE[1::2], strict=True)
        return np.stack([probability(image_BxE, positive, negative) for positive, negative in sides], axis=1)

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
        if values.shape[1] > self.context:
            raise UserError(f"text_features: {values.shape[1]} tokens do not fit the context of {self.context}")
        if not (values == self.tokenizer.eot).any(axis=1).all():
            raise UserError(f"text_features: every row needs its end token, {self.tokenizer.eot}")
        return self._batched("text_features", values.astype(np.int32))

    @property
    def logit_scale(self) -> float:
        """ln(1 / temperature)."""
        self._needs("dual", "logit_scale")
        return float(self.params["logit_scale"])

    def _needs(self, part: str, name: str) -> None:
        if self.card.kind not in ("dual", part):
            raise UserError(f"{self.folder}: holds the {self.card.kind} tower alone, which has no {name}")

    def _batched(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) == 0:
            raise UserError(f"{name}: nothing to encode")
        function, rows = self._jitted(name), []
        for start in range(0, len(values), self.batch_size):
            part = values[start : start + self.batch_size]
            filled = np.concatenate([part, np.repeat(part[:1], self.batch_size - len(part), axis=0)])
            rows.append(np.asarray(function(self.params, filled))[: len(part)])
        return np.concatenate(rows)

    def _jitted(self, name: str) -> Any:
        if name not in self._functions:
            whole, split = sharding.replicated(self._mesh), sharding.batch(self._mesh)
            # Rows stay where they were made, so that the devices never wait for each other.
            self._functions[name] = jax.jit(self._function(name), in_shardings=(whole, split), out_shardings=split)
        return self._functions[name]

    def _function(self, name: str) -> Any:
        static, card = self._static, self.preprocessing if self.card.kind == "dual" else None

        # Full float32 on every device: GPUs and TPUs would round products by default, and then what an image is
        # encoded with shows in its embedding.
        @jax.default_matmul_precision("highest")
        def features(params: state.Params, values: jax.Array) -> jax.Array:
            model = state.bind(static, params)
            if name == "encode_image" and card is not None:
                return l2_normalize(model.encode_image(step.normalise(values, card.mean, card.std)))
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
    folder: Path, card: modelfolder.Card, params: Mapping[str, np.ndarray]
) -> tuple[state.Static, state.Params]:
    """The card's model without its arrays, and their shapes, which are those of `params`."""
    numerics = models.Numerics()
    known = {**models.IMAGE_ENCODERS, **models.TEXT_ENCODERS}
    for which in ("image", "text"):
        if which in card.architecture and card.architecture[which] not in known:
            raise UserError(f"{folder}: unknown {which} architecture {card.architecture[which]!r}")
    spec = models.DualSpec(**card.architecture)

    def build() -> nnx.Module:
        if card.kind == "dual":
            return models.build(spec, numerics, nnx.Rngs(0))
        sizes = spec.image_arch if card.kind == "image" else spec.text_arch
        return _OneTower(card.kind, known[card.architecture[card.kind]][0](sizes, numerics, nnx.Rngs(0)))

    static, parameters, stats = state.abstract(build)
    shapes = {**parameters, **stats}
    for name, shape in shapes.items():
        found = params[name].shape if name in params else "nothing"
        if found != shape.shape:
            raise UserError(f"{folder}: {name} is {found} in the folder and {shape.shape} in the architecture")
    return static, shapes


def _opened(open_store: Callable[[str], Store], folder: Path, preprocessing: Preprocessing, spec: str) -> Store:
    """The store, if its pixels were prepared as those that the model of `folder` was trained on; else UserError."""
    store = open_store(spec)
    theirs = store.manifest.get("preprocessing", {})
    for rule, ours in sorted(preprocessing.rules.items()):
        if theirs.get(rule) != ours:
            raise UserError(
                f"{spec}: prepared with {rule} = {theirs.get(rule)}, but {folder} was trained on images with {ours}; "
                "prepare it again alike"
            )
    return store


def _tokenizer(folder: Path, card: modelfolder.Card) -> Tokenizer:
    try:
        tokenizer = Tokenizer(card.tokenizer["vocab_size"])
    except UserError as error:
        raise UserError(f"{folder}/{modelfolder.CARD}: tokenizer: {error}") from error
    for key, ours in tokenizer.card().items():
        if card.tokenizer[key] != ours:
            raise UserError(f"{folder}: was made with tokenizer {key} = {card.tokenizer[key]}, this program has {ours}")
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From decoded pixels to what the model was trained on.

    size: pixels a side of what the tower reads. rules: how the store's 320 px pixels were made, `resize` and
    `channels` (1 or 3) among them.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rules: Mapping[str, Any]
    resize: str
    channels: int

    @classmethod
    def of(cls, folder: Path, card: Mapping[str, Any]) -> Preprocessing:
        """Raises UserError, or KeyError, for a card of `folder` that names no known preparation."""
        rules = card["store"]
        if rules["resize"] not in pixels.RESIZE:
            said = f"preprocessing.store.resize = {rules['resize']!r}: must be one of {', '.join(pixels.RESIZE)}"
            raise UserError(f"{folder}/{modelfolder.CARD}: {said}")
        channels = 3 if rules["colour"] else 1
        return cls(card["image_size"], tuple(card["mean"]), tuple(card["std"]), rules, rules["resize"], channels)


def _stacked(images: Sequence[ImageLike] | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
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
                _picture(image), side=SIDE, channels=preprocessing.channels, resize=preprocessing.resize
            )
        except RecordError as error:
            raise UserError(f"image {place}: {error.reason}") from error
        except TypeError as error:
            raise UserError(f"image {place}: {error}") from error
        out = np.empty((preprocessing.size, preprocessing.size, preprocessing.channels), np.uint8)
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
