"""Classifiers on frozen features: what a few labels are worth without training a network."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # C of the linear readout
FOLDS = 5
NEIGHBOURS = 20
NEIGHBOUR_TAU = 0.07
PROPAGATION_TAU = 0.2
PROPAGATION_ALPHA = 0.9
PROPAGATION_STEPS = 40  # alpha^40 is 1%
LEAST_PROBABILITY = 1e-6
UNKNOWN_CLASS_LOGIT = -10.0  # at most e^-10 of the most probable class, yet its loss does not dwarf all others


def fit_readout(name: str, features: np.ndarray, labels: np.ndarray, classes: int) -> ClassifierMixin:
    """Fit the readout "linear" or "knn" to the labelled samples, features (k, d) and labels (k,).

    classes: how many the task has. If all k labels are the same, the readout always predicts that one.
    """
    if len(np.unique(labels)) == 1:
        return DummyClassifier().fit(features, labels)
    linear = name == "linear"
    readout = linear_readout(features, labels) if linear else weighted_neighbours(len(labels), classes)
    return readout.fit(features, labels)


def top_accuracies(readout: ClassifierMixin, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent: {"acc1": ..., "acc5": ...}. On a tie the first class wins."""
    probabilities = readout.predict_proba(features)  # (n, classes among the labelled samples)
    ranked = readout.classes_[np.argsort(-probabilities, axis=1, kind="stable")[:, :5]]
    hits = ranked == labels[:, None]
    return {"acc1": 100 * hits[:, 0].mean().item(), "acc5": 100 * hits.any(axis=1).mean().item()}


def linear_readout(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Return an unfitted logistic regression on standardised features; its strength suits these labelled samples."""
    return _logistic_regression(best_strength(features, labels))


def as_linear_layer(readout: Pipeline, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert a fitted linear_readout to one linear layer on unstandardised features, with the same predictions.

    Returns: weight (classes, d) and bias (classes,), float64, with the standardisation folded in. The logits of the
    fitted classes sum to 0 for any features, so the largest is never below 0; all other classes get a constant logit
    of -10, which never wins.
    """
    scaler, regression = readout
    coef, intercept = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
    if len(coef) == 1:  # two classes: the second's logit relative to the first's
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    fitted = coef / scaler.scale_
    offset = intercept - fitted @ scaler.mean_
    weight, bias = np.zeros((classes, fitted.shape[1])), np.full(classes, UNKNOWN_CLASS_LOGIT)
    weight[regression.classes_] = fitted - fitted.mean(axis=0)
    bias[regression.classes_] = offset - offset.mean()
    return weight, bias


def best_strength(features: np.ndarray, labels: np.ndarray) -> float:
    """Choose C, the inverse strength of the regularisation, by cross-validation on the labelled samples alone.

    Take the C of the least log-loss over 5 folds. A sample whose class is in no other fold says nothing about C and
    is left out. With fewer than two samples per class on average, that would be most of them: C is then 1.
    """
    classes = np.unique(labels)
    if len(labels) < 2 * len(classes) or len(classes) < 2:
        return STRENGTHS[0]
    splits = stratified_folds(features, labels)
    return min(STRENGTHS, key=lambda strength: _held_out_loss(strength, features, labels, splits))


def stratified_folds(features: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (fitted, held out) indices of 5 folds, or of fewer if no class has 5 samples; none if none has 2.

    Folds are stratified as far as the classes allow.
    """
    folds = min(FOLDS, int(np.bincount(labels).max()))
    if folds < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        return list(StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels))


def _held_out_loss(strength: float, features: np.ndarray, labels: np.ndarray, splits: Sequence[tuple]) -> float:
    losses = []
    for fitted, held_out in splits:
        if len(np.unique(labels[fitted])) < 2:
            continue
        readout = _logistic_regression(strength).fit(features[fitted], labels[fitted])
        held_out = held_out[np.isin(labels[held_out], readout.classes_)]
        if len(held_out):
            column = np.searchsorted(readout.classes_, labels[held_out])
            losses += [*-readout.predict_log_proba(features[held_out])[range(len(held_out)), column]]
    return float(np.mean(losses)) if losses else 0.0


def _logistic_regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))


def weighted_neighbours(labelled: int, classes: int) -> KNeighborsClassifier:
    """Return DINO's readout (Caron et al., 2021): 20 nearest neighbours by cosine, weighted with exp(cosine / 0.07).

    It never takes more neighbours than a class has labelled samples on average.
    Both numbers are fixed, not cross-validated like the linear readout's strength: they are those of published kNN
    readouts, for comparison; and neighbours should show the features as they are, with nothing fitted.
    """
    weights = lambda distances: np.exp((1 - distances) / NEIGHBOUR_TAU)  # noqa: E731
    return KNeighborsClassifier(min(NEIGHBOURS, max(1, labelled // classes)), metric="cosine", weights=weights)


def soft_labels(
    readout: ClassifierMixin, features: np.ndarray, labels: np.ndarray, unlabelled: np.ndarray, classes: int
) -> np.ndarray:
    """Estimate the classes of unlabelled samples: a readout's probabilities times those of label propagation.

    readout: fitted to features (k, d) and labels (k,). unlabelled (m, d) -> probabilities (m, classes).
    With many labels the linear readout is the better of the two, with few the propagation; their product is about as
    good as the better one, or better.
    """
    by_readout = np.zeros((len(unlabelled), classes))
    by_readout[:, readout.classes_] = readout.predict_proba(unlabelled)
    by_neighbours = propagate_labels(np.concatenate([features, unlabelled]), labels, classes)[len(labels) :]
    product = by_readout.clip(LEAST_PROBABILITY) * by_neighbours.clip(LEAST_PROBABILITY)
    return product / product.sum(axis=1, keepdims=True)


def propagate_labels(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return probabilities (n, classes) for all samples, by label propagation from the labels (k,) of the first k.

    F <- alpha S F + (1 - alpha) Y, with S = D^-1/2 W D^-1/2 over the graph of 20 nearest neighbours (Zhou et al.,
    Learning with local and global consistency, NeurIPS 2003). Its edges weigh exp(cosine / tau), and every class has
    the same weight in Y however many labels it has. (scikit-learn's LabelSpreading does neither: in trials it was 2 to
    9 points worse.) A sample that no label reaches gets the same probability for every class.
    """
    neighbours = min(NEIGHBOURS, len(features) - 1)
    graph = kneighbors_graph(features, neighbours, mode="distance", metric="cosine")
    graph.data = np.exp(-graph.data / PROPAGATION_TAU)
    graph = graph + graph.T
    root = sparse.diags(np.asarray(graph.sum(axis=1)).ravel() ** -0.5)
    graph = root @ graph @ root
    known = np.zeros((len(features), classes))
    known[np.arange(len(labels)), labels] = 1
    known /= known.sum(axis=0).clip(1)
    mass = known
    for _ in range(PROPAGATION_STEPS):
        mass = PROPAGATION_ALPHA * (graph @ mass) + (1 - PROPAGATION_ALPHA) * known
    total = mass.sum(axis=1, keepdims=True)
    return np.divide(mass, total, out=np.full_like(mass, 1 / classes), where=total > 0)
