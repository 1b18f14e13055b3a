"""Classifiers on frozen features: what a few labels are worth without training a network."""

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

NEIGHBOURS = 20
NEIGHBOUR_TAU = 0.07


def fit_readout(name: str, features: np.ndarray, labels: np.ndarray, classes: int) -> ClassifierMixin:
    """Fit the readout "linear" or "knn" to the labelled samples, features (k, d) and labels (k,).

    classes: how many the task has. Where all k labels are the same, the readout always predicts that one.
    """
    if len(np.unique(labels)) == 1:
        return DummyClassifier().fit(features, labels)
    readout = linear_readout() if name == "linear" else weighted_neighbours(len(labels), classes)
    return readout.fit(features, labels)


def top_accuracies(readout: ClassifierMixin, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent: {"acc1": ..., "acc5": ...}. On a tie the first class wins."""
    probabilities = readout.predict_proba(features)  # (n, classes among the labelled samples)
    ranked = readout.classes_[np.argsort(-probabilities, axis=1, kind="stable")[:, :5]]
    hits = ranked == labels[:, None]
    return {"acc1": 100 * hits[:, 0].mean().item(), "acc5": 100 * hits.any(axis=1).mean().item()}


def linear_readout() -> Pipeline:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def weighted_neighbours(k: int, classes: int) -> KNeighborsClassifier:
    """20 nearest neighbours by cosine, weighted with exp(cosine / 0.07): DINO's readout (Caron et al., 2021).

    Never more neighbours than a class has on average among the k labelled samples.
    """
    weights = lambda distances: np.exp((1 - distances) / NEIGHBOUR_TAU)  # noqa: E731
    return KNeighborsClassifier(min(NEIGHBOURS, max(1, k // classes)), metric="cosine", weights=weights)
