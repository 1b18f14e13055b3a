"""Readouts, an initial head and soft labels, all from the features of the pretrained network before it is finetuned.

At the smallest budgets, a classifier on frozen features beats the published finetuning. Finetuning that starts from it
(LP-FT: Kumar et al., ICLR 2022) and also trains on the rest of the pool beats both. This is self-training, with
pseudo-labels (Lee, 2013) that are soft and from a teacher that sees the images without augmentation (Noisy Student:
Xie et al., CVPR 2020). Here the teacher is not a network but two readouts: common.readouts.soft_labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset

from common.errors import InputError
from common.image_loader import ImageLoader
from common.processes import Processes, autocast
from common.progress import progress_bar
from common.readouts import as_linear_layer, fit_readout, linear_readout, soft_labels, stratified_folds, top_accuracies
from common.training import to_network
from deit.datasets import FinetuningData


@dataclass(frozen=True)
class FrozenFeatures:
    """Run images through a network without its head."""

    model: nn.Module
    device: torch.device
    batch_size: int
    amp_dtype: torch.dtype | None = None
    workers: int = 0

    @torch.inference_mode()
    def __call__(self, images: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the input of the head (n, d), and the labels (n,)."""
        self.model.eval()
        features, labels = [], []
        batches = BatchSampler(range(len(images)), self.batch_size, drop_last=False)
        loader = ImageLoader(images, batches, self.batch_size, self.workers, self.device.type == "cuda")
        for batch in progress_bar(loader, desc="features", leave=False):
            pixels, targets = to_network(batch, self.device, self.model)
            with autocast(self.device, self.amp_dtype):
                tokens = self.model.forward_features(pixels)
                features.append(self.model.forward_head(tokens, pre_logits=True).float().cpu())
            labels.append(targets.cpu())
        return torch.cat(features).numpy(), torch.cat(labels).numpy()


def probe(kind: str, features_of: FrozenFeatures, data: FinetuningData, processes: Processes) -> dict[str, Any]:
    """Fit a readout on the frozen features of the chosen images, without augmentation, and evaluate it.

    Returns: top-1 and top-5 accuracy in percent. Raises: InputError with several processes or a single class.
    """
    if processes.size > 1:
        raise InputError(f"--probe {kind} takes seconds: run it in one process, not {processes.size}")
    train, labels = labelled_features(features_of, data, f"--probe {kind} needs images")
    return top_accuracies(fit_readout(kind, train, labels, len(data.classes)), *features_of(data.val))


def cross_validated(kind: str, features_of: FrozenFeatures, data: FinetuningData) -> dict[str, Any] | None:
    """Cross-validate a readout of the frozen features on the labelled images, with 5 folds.

    Returns: mean top-1 accuracy in percent, its standard deviation over the folds, and their number, which is smaller
    if no class has 5 images; None if no class has two.
    """
    features, labels = features_of(data.as_evaluated(data.train))
    scores = []
    for known, unseen in stratified_folds(features, labels):
        readout = fit_readout(kind, features[known], labels[known], len(data.classes))
        scores.append(100 * (readout.predict(features[unseen]) == labels[unseen]).mean().item())
    if not scores:
        return None
    return {"acc1": float(np.mean(scores)), "std": float(np.std(scores, ddof=1)), "folds": len(scores)}


def head_and_soft_labels(
    features_of: FrozenFeatures, data: FinetuningData, purpose: str
) -> tuple[tuple[np.ndarray, np.ndarray], Tensor | None]:
    """Fit the linear readout to the labelled images; return it as a layer, with soft labels of the unlabelled images.

    As a head it predicts what `probe` does. (In mixed precision its logits are rounded; the readout's are not.)
    Returns: weight (c, d) and bias (c,), and class probabilities (m, c) of data.unlabelled, None if that is empty.
    Raises: InputError, starting with `purpose`, with a single class.
    """
    features, labels = labelled_features(features_of, data, purpose)
    readout, classes = linear_readout(features, labels).fit(features, labels), len(data.classes)
    soft = None
    if len(data.unlabelled):
        others, _ = features_of(data.as_evaluated(data.unlabelled))
        soft = torch.from_numpy(soft_labels(readout, features, labels, others, classes)).float()
    return as_linear_layer(readout, classes), soft


def labelled_features(features_of: FrozenFeatures, data: FinetuningData, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, d) and labels (n,) of the chosen images. Raises InputError with a single class."""
    features, labels = features_of(data.as_evaluated(data.train))
    if len(set(labels.tolist())) < 2:
        raise InputError(f"{purpose} of at least two classes, but all {len(labels)} are of one")
    return features, labels
