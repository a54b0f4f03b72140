"""A real model folder that knows every pair and label of a small store by heart, found by algebra instead of training.

The towers are the tiny ones with random weights. With fewer images than the width of the tower, a projection exists
that puts each image anywhere; it is solved for the places where the image scores 1 with its own text and 0 with the
others, and leans to the right statement of each label. So whatever is then planted in the model is all that is wrong.
"""

# N images, K labels, E embedding, D tower width

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cards import small_card
from pair_stores import unit
from small_models import SPEC, weights

import hybridclip_jax as hc
from hybridclip_jax import modelfolder
from hybridclip_jax.data.loader import eval_images
from hybridclip_jax.data.store import Store
from hybridclip_jax.evals import prompt_file
from hybridclip_jax.inference import LoadedModel
from hybridclip_jax.modelfolder import Card

EMBED, CONTEXT = 96, 77
IMAGE_PROJECTION, TEXT_PROJECTION = "image_projection/kernel", "text_projection/kernel"


def statements(store: Store) -> tuple[list[str], list[str]]:
    """The bare statements that each label is present, and that it is absent."""
    pairs = [prompt_file.load("chexzero").pair(label) for label in store.label_names]
    return [pair.positive[0] for pair in pairs], [pair.negative[0] for pair in pairs]


def text_features(texts: Sequence[str], model: LoadedModel) -> np.ndarray:
    """What the text tower makes of texts before projection, float64 [N, D]."""
    return model.text_features(model.tokenizer(list(texts), CONTEXT).ids).astype(np.float64)


def image_features(store: Store, model: LoadedModel) -> np.ndarray:
    """What the image tower makes of the store's images before projection, float64 [N, D]."""
    preparation, parts = model.preprocessing, []
    for image_BxSxSxC, valid in eval_images(store, preparation.size, model.batch_size):
        x = (np.repeat(image_BxSxSxC, 3, axis=-1) / 255 - preparation.mean) / preparation.std
        parts.append(model.image_features(x.astype(np.float32))[:valid])
    return np.concatenate(parts).astype(np.float64)


def make(folder: Path, store: Store) -> tuple[dict[str, np.ndarray], Card]:
    """Writes the model folder; returns its arrays and card, from which broken ones are made."""
    spec = dataclasses.replace(SPEC, context=CONTEXT, embed_dim=EMBED)
    card = small_card("dual", context=CONTEXT, embed_dim=EMBED, store=store.manifest["preprocessing"])
    arrays = weights(spec)
    modelfolder.save(folder, arrays, card)
    model = hc.load(folder)
    present_KxE, absent_KxE, told_NxE = (
        unit(text_features(texts, model) @ arrays[TEXT_PROJECTION]) for texts in (*statements(store), store.texts)
    )
    told = np.concatenate([present_KxE - absent_KxE, told_NxE])
    leaning = [np.where(store.labels[label] == 1, 0.5, -0.5) for label in store.label_names]
    wanted = np.concatenate([np.stack(leaning), np.eye(len(store))])
    place_NxE = np.linalg.lstsq(told, wanted, rcond=None)[0].T
    place_NxE /= np.linalg.norm(place_NxE, axis=1, keepdims=True)
    projection = np.linalg.lstsq(image_features(store, model), place_NxE, rcond=None)[0]
    arrays[IMAGE_PROJECTION] = projection.astype(np.float32)
    modelfolder.save(folder, arrays, card)
    return arrays, card
