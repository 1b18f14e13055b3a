"""Readouts of frozen features, and how strongly the linear one is regularised."""

import numpy as np
import pytest

from common.readouts import STRENGTHS, best_strength, fit_readout, top_accuracies


def noisy_classes(per_class: int, noise: float, d: int = 20, classes: int = 3, seed: int = 0):
    """(k, d) and (k,): classes that differ in one of many directions."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    return np.eye(classes, d)[labels] + noise * random.standard_normal((len(labels), d)), labels


def test_noise_asks_for_a_stronger_regularisation_than_clean_classes():
    assert best_strength(*noisy_classes(10, noise=1.0)) < best_strength(*noisy_classes(10, noise=0.01))


def test_the_strength_found_on_the_labels_is_near_the_best_on_held_out_samples(monkeypatch):
    features, labels = noisy_classes(40, noise=0.6, d=60)
    asked, answers = noisy_classes(300, noise=0.6, d=60, seed=1)

    def accuracy() -> float:
        return top_accuracies(fit_readout("linear", features, labels, 3), asked, answers)["acc1"]

    found, each = accuracy(), []
    for strength in (0.001, 0.01, 0.1, 1.0, 1000.0):
        monkeypatch.setattr("common.readouts.best_strength", lambda *_, strength=strength: strength)
        each.append(accuracy())
    assert found > max(each) - 2 > min(each)


@pytest.mark.parametrize("per_class", [1, (1, 1, 9), (2, 1, 1)])
def test_classes_with_too_few_samples_for_folds_are_no_error(per_class):
    counts = [per_class] * 3 if isinstance(per_class, int) else per_class
    labels = np.repeat(np.arange(3), counts)
    features = np.eye(3, 8)[labels] + 0.1 * np.random.default_rng(0).standard_normal((len(labels), 8))
    readout = fit_readout("linear", features, labels, 3)
    assert (readout.predict(np.eye(3, 8)) == [0, 1, 2]).all()


def test_with_fewer_than_two_samples_per_class_nothing_is_cross_validated():
    assert best_strength(np.eye(4), np.array([0, 1, 2, 2])) == STRENGTHS[0]
