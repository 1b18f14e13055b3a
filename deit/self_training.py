"""Self-training: unlabelled images of the pool are trained on too, with soft labels that the labelled ones give them.

Pseudo-labels are Lee's (2013); soft ones, of a teacher that sees the images as they are, Noisy Student's (Xie et al.,
CVPR 2020). Here the teacher is no network, but two readouts of the frozen features: common.readouts.soft_labels.
"""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.errors import InputError
from common.processes import Processes
from common.readouts import fit_readout, soft_labels
from deit.finetuning_data import FinetuningData
from deit.frozen_probe import features_of


def fit_soft_labels(
    model: nn.Module,
    data: FinetuningData,
    processes: Processes,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
    workers: int = 0,
    readout: ClassifierMixin | None = None,
) -> Tensor:
    """Probabilities (m, c) of the classes of data.unlabelled, from the frozen features of all and the labels of some.

    One process fits them for all. readout: the linear one of the labelled images, where it is fitted already.
    Raises: InputError with a single class.
    """

    def fit() -> np.ndarray:
        if not processes.is_main:
            return np.zeros((len(data.unlabelled), len(data.classes)))
        labelled, labels = features_of(model, data.train_as_evaluated, processes.device, batch_size, amp_dtype)
        if len(set(labels.tolist())) < 2:
            raise InputError(f"--unlabelled needs labels of at least two classes, and all {len(labels)} are of one")
        others, _ = features_of(model, data.unlabelled_as_evaluated, processes.device, batch_size, amp_dtype, workers)
        fitted = readout or fit_readout("linear", labelled, labels, len(data.classes))
        return soft_labels(fitted, labelled, labels, others, len(data.classes))

    fitted = torch.from_numpy(processes.together(fit)).float().to(processes.device)
    processes.sum(fitted)
    return fitted.cpu()


class WithUnlabelled(Dataset):
    """The images of an epoch with soft targets: the labelled ones, `repeats` times, then the unlabelled ones.

    images: the n labelled ones, then the m others, each once. soft_labels: (m, c), of the others.
    """

    def __init__(self, images: Dataset, n: int, repeats: int, soft_labels: Tensor, smoothing: float):
        self.images, self.n, self.labelled, self.soft_labels = images, n, repeats * n, soft_labels
        self.smoothing = smoothing

    def __len__(self) -> int:
        return self.labelled + len(self.soft_labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if index >= self.labelled:
            other = index - self.labelled
            return self.images[self.n + other][0], self.soft_labels[other]
        image, label = self.images[index % self.n]
        classes = self.soft_labels.shape[1]
        target = torch.full((classes,), self.smoothing / classes)
        target[label] += 1 - self.smoothing
        return image, target
