"""Which of two things a model prefers, counted so that no preference is chance."""

# N units, P contrasts, G groups of I = J contrasts, E embedding, R resamples

from __future__ import annotations

import numpy as np

# Cosines of float32 embeddings differ by rounding up to about this much, which is no preference.
TIE = 1e-6


def preferred(margin: np.ndarray) -> np.ndarray:
    """1 where a margin is above TIE, 0 below -TIE, 1/2 between; NaN where it is."""
    return np.where(np.isnan(margin), np.nan, (np.sign(margin) * (np.abs(margin) > TIE) + 1) / 2)


def found_first(image_PxE: np.ndarray, text_PxE: np.ndarray, group: int) -> np.ndarray:
    """Whether each image's own text is the nearest of its group of `group` [P]: 1/k among k texts at one place.

    Unit vectors; P is a multiple of `group`. A model that tells nothing apart has 1 / group everywhere.
    """
    image_GxIxE, text_GxJxE = (x.reshape(-1, group, x.shape[1]) for x in (image_PxE, text_PxE))
    cosine_GxIxJ = image_GxIxE @ text_GxJxE.swapaxes(1, 2)
    near_GxIxJ = cosine_GxIxJ >= cosine_GxIxJ.max(axis=2, keepdims=True) - TIE
    share_GxI = np.diagonal(near_GxIxJ, axis1=1, axis2=2) / np.maximum(near_GxIxJ.sum(axis=2), 1)
    return np.where(np.isnan(cosine_GxIxJ).any(axis=2), np.nan, share_GxI).ravel()


def weighted_mean(value_N: np.ndarray, which_N: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """Mean [R] of the values that `which_N` (bool) marks, value n counted weight[r, n] times; NaN of none."""
    marked = np.flatnonzero(which_N)
    weight_RxM = weight_RxN[:, marked]
    total = weight_RxM.sum(axis=1)
    return np.divide(weight_RxM @ value_N[marked], total, out=np.full(len(total), np.nan), where=total > 0)


def balanced(chosen_N: np.ndarray, truth_N: np.ndarray, weight_RxN: np.ndarray) -> np.ndarray:
    """Balanced accuracy [R] of choosing "present" (1, or in part) or "absent" (0); NaN where a class is missing."""
    sensitivity = weighted_mean(chosen_N, truth_N == 1, weight_RxN)
    specificity = 1 - weighted_mean(chosen_N, truth_N == 0, weight_RxN)
    return (sensitivity + specificity) / 2
