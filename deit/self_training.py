"""Self-training: unlabelled images of the pool are trained on too, with soft labels that the labelled ones give them.

Pseudo-labels are Lee's (2013); soft ones, of a teacher that sees the images as they are, Noisy Student's (Xie et al.,
CVPR 2020). Here the teacher is no network, but two readouts of the frozen features: common.readouts.soft_labels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.processes import Processes
from common.readouts import soft_labels
from deit.finetuning_data import FinetuningData
from deit.frozen_probe import LabelledFeatures, features_of, read_out


def fit_soft_labels(
    model: nn.Module,
    data: FinetuningData,
    processes: Processes,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
    workers: int = 0,
    known: LabelledFeatures | None = None,
) -> Tensor:
    """Probabilities (m, c) of the classes of data.unlabelled, from the frozen features of all and the labels of some.

    One process fits them for all. known: of the labelled images, where that process has it already.
    Raises: InputError with a single class.
    """

    def fit() -> np.ndarray:
        if not processes.is_main:
            return np.zeros((len(data.unlabelled), len(data.classes)))
        device = processes.device
        labelled = known or read_out(model, data, device, batch_size, amp_dtype, "--unlabelled needs labels")
        others, _ = features_of(model, data.unlabelled_as_evaluated, device, batch_size, amp_dtype, workers)
        return soft_labels(labelled.readout, labelled.features, labelled.labels, others, len(data.classes))

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
