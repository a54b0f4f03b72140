"""The limits that reports show: whether a model tells sides and order, and what it loses beyond 77 tokens."""

# N units, S of them sampled, P contrasts of texts, U texts, E embedding, R resamples

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hybridclip_jax.data.tokenizer import clean
from hybridclip_jax.evals import rewording
from hybridclip_jax.evals.encode import Encode, Values
from hybridclip_jax.evals.evaluator import Preparation, beside
from hybridclip_jax.evals.pairs import numbered, seeded_order
from hybridclip_jax.evals.preference import found_first, preferred, weighted_mean
from hybridclip_jax.evals.units import normalised

CUT = 77  # tokens: the context of CLIP and of CheXzero's released weights
GROUP = 16  # texts that one is found among, whole and cut: few enough that a small store has some groups
_FOUND = {"found_own": "recall_whole", "found_other": "recall_cut"}


class TextTests:
    """Tests of the units' texts, [N]; their values are those of `Limits` under sides, order, truncation, duplicates.

    Columns of scores: `<test>/own` and `<test>/other`, the image's cosine with its text and with the other one,
    `<test>/between`, the cosine of these two, and `truncation/found_own`, `truncation/found_other`, whether it comes
    first in its group. A unit that a test does not ask about has NaN.
    """

    def __init__(self, texts: Sequence[str], sample: int, preparation: Preparation) -> None:
        self.preparation = preparation
        cleaned = [clean(text) for text in texts]
        self.told_N = np.array([bool(text) for text in cleaned])
        number_N = numbered(cleaned)
        self.copies_N = np.bincount(number_N)[number_N]
        order = seeded_order(len(texts))
        self.sample_S = order[self.told_N[order]][:sample]
        read = [texts[unit] for unit in self.sample_S]
        tokenizer, context = preparation.tokenizer, preparation.context
        self.beyond_S = tokenizer(read, CUT).truncated
        self.contrasts = {
            "sides": rewording.sides(self.sample_S, read, tokenizer, context),
            "order": rewording.order(self.sample_S, read, tokenizer, context),
            "truncation": rewording.cut(self.sample_S, read, tokenizer, context, limit=CUT, group=GROUP),
        }
        self.truth = {
            f"{test}/{what}": self._of_all(contrasts.unit_P, np.ones(len(contrasts)))
            for test, contrasts in self.contrasts.items()
            for what in ("own", "other", "between", *(_FOUND if test == "truncation" else ()))
        }

    def scores(self, encode: Encode, params: Mapping[str, np.ndarray], image_NxE: np.ndarray) -> dict[str, np.ndarray]:
        read = self._reader(encode, params)
        score = dict(self.truth)  # NaN wherever nothing is asked
        for test, contrasts in self.contrasts.items():
            if not len(contrasts):
                continue
            image_PxE, own_PxE = image_NxE[contrasts.unit_P], read(contrasts.own, contrasts.context)
            other_PxE = read(contrasts.other, contrasts.other_context)
            of_P = {
                "own": (image_PxE * own_PxE).sum(axis=1),
                "other": (image_PxE * other_PxE).sum(axis=1),
                "between": (own_PxE * other_PxE).sum(axis=1),
            }
            if test == "truncation":
                of_P["found_own"] = found_first(image_PxE, own_PxE, GROUP)
                of_P["found_other"] = found_first(image_PxE, other_PxE, GROUP)
            score |= {f"{test}/{what}": self._of_all(contrasts.unit_P, value_P) for what, value_P in of_P.items()}
        return score

    def blank(self) -> dict[str, np.ndarray]:
        level = {"own": 0.0, "other": 0.0, "between": 1.0, "found_own": 1 / GROUP, "found_other": 1 / GROUP}
        return {name: level[name.partition("/")[2]] * asked_N for name, asked_N in self.truth.items()}

    def measure(self, score: Mapping[str, np.ndarray], weight_RxN: np.ndarray) -> dict[str, np.ndarray]:
        def mean(test: str, value_N: np.ndarray) -> np.ndarray:
            return weighted_mean(value_N, ~np.isnan(self.truth[f"{test}/own"]), weight_RxN)

        values = {}
        for test in ("sides", "order"):
            values[f"{test}/preferred"] = mean(test, preferred(score[f"{test}/own"] - score[f"{test}/other"]))
            values[f"{test}/cosine"] = mean(test, score[f"{test}/between"])
        own_N, other_N, whole_N, cut_N = (score[f"truncation/{what}"] for what in ("own", "other", *_FOUND))
        read_N, beyond_N = np.zeros((2, len(self.told_N)), bool)
        read_N[self.sample_S], beyond_N[self.sample_S] = True, self.beyond_S
        return values | {
            f"truncation/beyond_{CUT}": weighted_mean(beyond_N, read_N, weight_RxN),
            "truncation/recall_whole": mean("truncation", whole_N),
            "truncation/recall_cut": mean("truncation", cut_N),
            "truncation/recall_gain": mean("truncation", whole_N - cut_N),
            "truncation/cosine_gain": mean("truncation", own_N - other_N),
            "duplicates/share": weighted_mean(self.copies_N > 1, self.told_N, weight_RxN),
            "duplicates/ceiling": weighted_mean(1 / self.copies_N, self.told_N, weight_RxN),
        }

    def reasons(self, score: Mapping[str, np.ndarray]) -> dict[str, str]:
        n, context = len(self.sample_S), self.preparation.context
        longer = int(self.beyond_S.sum())
        none = {
            "sides": f"none of the {n} texts read names left or right within {context} tokens",
            "order": f"none of the {n} texts read has two different sentences within {context} tokens",
            "truncation": f"{longer} of the {n} texts read are longer than {CUT} tokens: a group has {GROUP}",
        }
        if context <= CUT:
            none["truncation"] = f"the model itself reads no more than {context} tokens"
        reasons = {}
        for name in self.measure(score, np.ones((1, len(self.told_N)))):
            test = name.partition("/")[0]
            asked = len(self.contrasts.get(test, ()))
            reasons[name] = "an embedding is not finite" if asked else none.get(test, "") if n else "no unit has a text"
        return reasons

    def constants(self, score: Mapping[str, np.ndarray]) -> Values:
        return {
            **{beside(f"{test}/preferred", "chance"): 0.5 for test in ("sides", "order")},
            **{beside(f"truncation/{name}", "chance"): 1 / GROUP for name in _FOUND.values()},
            **{f"{test}/texts": len(contrasts) for test, contrasts in self.contrasts.items()},
            "duplicates/texts": int(self.told_N.sum()),
            "duplicates_chance/ceiling": 1 / max(int(self.told_N.sum()), 1),
        }

    def _of_all(self, unit_P: np.ndarray, value_P: np.ndarray) -> np.ndarray:
        """Values [N] of all units from those of some; NaN of the others."""
        value_N = np.full(len(self.told_N), np.nan)
        value_N[unit_P] = value_P
        return value_N

    def _reader(self, encode: Encode, params: Mapping[str, np.ndarray]) -> Callable[[Sequence[str], int], np.ndarray]:
        """What gives the unit vectors [P, E] of P texts read at a context. Each text is encoded once."""
        wanted: dict[int, dict[str, None]] = {}
        for contrasts in self.contrasts.values():
            wanted.setdefault(contrasts.context, {}).update(dict.fromkeys(contrasts.own))
            wanted.setdefault(contrasts.other_context, {}).update(dict.fromkeys(contrasts.other))
        vector: dict[tuple[str, int], np.ndarray] = {}
        for context, texts in wanted.items():
            if texts:
                text_UxE = encode.of_texts(params, list(texts), self.preparation.tokenizer, context).astype(np.float64)
                vector |= zip(((text, context) for text in texts), normalised(text_UxE), strict=True)
        return lambda texts, context: np.stack([vector[text, context] for text in texts])
