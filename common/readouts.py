"""Classifiers on frozen features: what a few labels are worth without training a network."""

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

READOUTS = ("linear", "knn")
NEIGHBOURS = 20
NEIGHBOUR_TAU = 0.07


def fit_readout(kind: str, features: np.ndarray, labels: np.ndarray, classes: int) -> ClassifierMixin:
    """A classifier of features (n, d) that knows these samples only; of a single class, it predicts that class.

    linear: logistic regression on standardised features. knn: weighted nearest neighbours, see `weighted_neighbours`.
    Args:
        classes: how many the task has, of which some may be missing among the labels (n,).
    """
    if len(np.unique(labels)) == 1:
        readout = DummyClassifier(strategy="most_frequent")
    else:
        readout = linear_readout() if kind == "linear" else weighted_neighbours(len(labels), classes)
    return readout.fit(features, labels)


def top_accuracies(readout: ClassifierMixin, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent: {"acc1": ..., "acc5": ...}. The first class wins a tie."""
    probabilities = readout.predict_proba(features)  # (n, classes among the known samples)
    ranked = readout.classes_[np.argsort(-probabilities, axis=1, kind="stable")[:, :5]]
    hits = ranked == labels[:, None]
    return {"acc1": 100 * hits[:, 0].mean().item(), "acc5": 100 * hits.any(axis=1).mean().item()}


def linear_readout() -> Pipeline:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def weighted_neighbours(labelled: int, classes: int) -> KNeighborsClassifier:
    """20 nearest neighbours by cosine, weighted with exp(cosine / 0.07): DINO's readout (Caron et al., 2021).

    Never more neighbours than a class has on average among the labelled samples.
    """
    weights = lambda distances: np.exp((1 - distances) / NEIGHBOUR_TAU)  # noqa: E731
    return KNeighborsClassifier(min(NEIGHBOURS, max(1, labelled // classes)), metric="cosine", weights=weights)
