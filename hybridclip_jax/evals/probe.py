"""Linear probes of frozen features, from arrays alone: what the features hold that a straight cut can tell.

The strength of the regularisation is the one that does best on validation data, over a fixed grid; of equals the
strongest. Everything is deterministic.
"""

# N rows that are fitted, M rows of validation, E features, K classes, S seeds

from __future__ import annotations

import dataclasses

import numpy as np

from hybridclip_jax.evals import metrics

# scikit-learn's C, from strong to weak regularisation.
STRENGTHS = tuple(10.0**power for power in range(-3, 5))
# PLIP's grid and number of repetitions, from weak to strong.
ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1)
SEEDS = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted logistic regression. strength: the C of STRENGTHS that validation chose."""

    weight_E: np.ndarray
    intercept: float
    strength: float

    def predict(self, feature_NxE: np.ndarray) -> np.ndarray:
        """Probability [N] of the label."""
        return 1 / (1 + np.exp(-(feature_NxE @ self.weight_E + self.intercept)))


def why_unfit(label_N: np.ndarray) -> str | None:
    """Why no probe can be fitted to, or chosen by, these labels of 1, 0 and NaN."""
    known_N = label_N[~np.isnan(label_N)]
    if not len(known_N):
        return "no row has a known label"
    if known_N.min() == known_N.max():
        return f"all {len(known_N)} known labels are {'positive' if known_N[0] else 'negative'}"
    return None


def fit(
    feature_NxE: np.ndarray, label_N: np.ndarray, validation_MxE: np.ndarray, validation_label_M: np.ndarray
) -> Probe:
    """L2-penalised logistic regression, its strength chosen by AUROC on validation.

    Labels are 1, 0 or NaN (not known, left out). Minimises |w|^2 / 2 + C * (sum of the log losses), the intercept
    free. Raises ValueError where `why_unfit` of either labels has a reason, or a feature is not finite.
    """
    if why := why_unfit(label_N) or why_unfit(validation_label_M):
        raise ValueError(why)
    from sklearn.linear_model import LogisticRegression  # here, because it takes seconds to import

    known_N = ~np.isnan(label_N)
    feature_NxE, label_N = feature_NxE[known_N], label_N[known_N]
    model = LogisticRegression(max_iter=10_000, warm_start=True)  # a minimum is a good start for the next one
    best, best_auroc = None, -1.0
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(feature_NxE, label_N)
        probe = Probe(model.coef_[0].copy(), float(model.intercept_[0]), strength)
        auroc, _ = metrics.auroc(validation_MxE @ probe.weight_E, validation_label_M)
        if auroc is not None and auroc > best_auroc:
            best, best_auroc = probe, auroc
    if best is None:
        raise ValueError("the validation features are not finite")
    return best


@dataclasses.dataclass(frozen=True)
class ClassProbe:
    """A fitted linear classifier of K classes. alpha: the one of ALPHAS that validation chose."""

    weight_KxE: np.ndarray
    intercept_K: np.ndarray
    alpha: float

    def predict(self, feature_NxE: np.ndarray) -> np.ndarray:
        """Margins [N, K]; the highest names the class."""
        return np.asarray(feature_NxE @ self.weight_KxE.T + self.intercept_K)


def fit_classes(
    feature_NxE: np.ndarray, class_N: np.ndarray, validation_MxE: np.ndarray, validation_class_M: np.ndarray
) -> list[ClassProbe]:
    """PLIP's linear classifier, once for each of SEEDS; one alpha for all, by mean macro F1 on validation.

    Logistic loss against all other classes, L2 penalty, classes weighted to balance, stochastic gradient descent of
    up to 10,000 epochs (Huang et al. 2023, `linear_classifier.py`, which takes alpha and seed from the command line).
    Classes are 0 to K-1 and each must occur in class_N; raises ValueError otherwise.
    """
    from sklearn.linear_model import SGDClassifier  # here, because it takes seconds to import

    classes = int(max(class_N.max(), validation_class_M.max())) + 1
    if classes < 2 or len(np.unique(class_N)) < classes:
        raise ValueError(f"{len(np.unique(class_N))} of {classes} classes have rows to fit: all are needed, and two")
    truth_MxK = np.eye(classes)[validation_class_M]
    best, best_f1 = [], -1.0
    for alpha in reversed(ALPHAS):  # strongest first, which equals do not replace
        probes = []
        for seed in SEEDS:
            model = SGDClassifier(
                loss="log_loss", penalty="l2", alpha=alpha, max_iter=10_000, class_weight="balanced", random_state=seed
            ).fit(feature_NxE, class_N)
            # Of two classes only the second has a row of its own.
            two_sided = model.coef_ if classes > 2 else np.concatenate([-model.coef_, model.coef_])
            intercept = model.intercept_ if classes > 2 else np.concatenate([-model.intercept_, model.intercept_])
            probes.append(ClassProbe(two_sided, intercept, alpha))
        value = float(np.mean([macro_f1(probe.predict(validation_MxE), truth_MxK) for probe in probes]))
        if value > best_f1:
            best, best_f1 = probes, value
    return best


def macro_f1(margin_NxK: np.ndarray, truth_NxK: np.ndarray) -> float:
    """Mean F1 over the classes that a row has or is given."""
    chosen_NxK = np.eye(truth_NxK.shape[1])[margin_NxK.argmax(axis=1)]
    [value] = metrics.macro_f1(metrics.confusion(truth_NxK, chosen_NxK, np.ones((1, len(truth_NxK)))))
    return float(value)
