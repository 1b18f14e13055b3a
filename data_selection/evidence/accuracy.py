"""What the labels of a subset are worth to classifiers of held-out samples, on the frozen features."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from common.readouts import linear_readout, weighted_neighbours
from data_selection.activeft.assignment import nearest_of_all


class LabelledRows(NamedTuple):
    """Unit rows (n, d) and their labels (n,), 0 and up."""

    rows: Tensor
    labels: np.ndarray


def accuracies(chosen: LabelledRows, held_out: LabelledRows, classes: int) -> dict[str, float]:
    """Top-1 accuracy in percent of readouts that know the chosen samples only; `classes` is how many the pool has.

    nearest: the label of the most similar chosen sample. neighbours: DINO's weighted neighbours. linear: logistic
    regression; where all chosen samples are of one class, that class.
    """
    nearest, _ = nearest_of_all(held_out.rows, chosen.rows)
    predictions = {"accuracy_nearest": chosen.labels[nearest.cpu().numpy()]}
    one_class = len(np.unique(chosen.labels)) == 1
    readouts = {"neighbours": weighted_neighbours(len(chosen.labels), classes), "linear": linear_readout()}
    known, asked = chosen.rows.cpu().numpy(), held_out.rows.cpu().numpy()
    for name, readout in readouts.items():
        predictions[f"accuracy_{name}"] = (
            chosen.labels[:1] if one_class else readout.fit(known, chosen.labels).predict(asked)
        )
    return {name: 100 * float((guess == held_out.labels).mean()) for name, guess in predictions.items()}
