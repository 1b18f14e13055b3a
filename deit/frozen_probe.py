"""Cheaper readouts: at the smallest budgets a classifier on frozen features beats finetuning the network."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from torch import nn
from torch.utils.data import Dataset

from common.errors import InputError
from common.image_loader import ImageLoader
from common.processes import Processes, autocast
from common.progress import progress_bar
from common.readouts import as_linear_layer, fit_readout, linear_readout, top_accuracies
from common.training import to_network
from deit.finetuning_data import FinetuningData

FOLDS = 5


def probe(
    kind: str,
    model: nn.Module,
    data: FinetuningData,
    processes: Processes,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Fit a readout on the frozen features of the chosen images, without augmentation, and evaluate it.

    linear: logistic regression on standardised features. knn: nearest neighbours, weighted by similarity.
    Returns: top-1 and top-5 accuracy in percent. Raises: InputError with several processes, or with a single class.
    """
    if processes.size > 1:
        raise InputError(f"--probe {kind} takes seconds: run it in one process, not {processes.size}")
    train, labels = features_of(model, data.train_as_evaluated, processes.device, batch_size, amp_dtype)
    val, val_labels = features_of(model, data.val, processes.device, batch_size, amp_dtype)
    if len(set(labels.tolist())) < 2:
        raise InputError(f"--probe {kind} needs images of at least two classes, and all {len(labels)} are of one")
    return top_accuracies(fit_readout(kind, train, labels, len(data.classes)), val, val_labels)


def cross_validated(
    kind: str,
    model: nn.Module,
    data: FinetuningData,
    device: torch.device,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
) -> dict[str, Any] | None:
    """Accuracy of a readout of the frozen features on labelled images that it has not seen, over 5 folds.

    Folds are stratified as far as the classes allow. Returns: top-1 accuracy in percent, its standard deviation over
    the folds, and their number, which is smaller where no class has 5 images; None where none has two.
    """
    features, labels = features_of(model, data.train_as_evaluated, device, batch_size, amp_dtype)
    folds = min(FOLDS, int(np.bincount(labels).max()))
    if folds < 2:
        return None
    scores = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels))
    for known, unseen in parts:
        readout = fit_readout(kind, features[known], labels[known], len(data.classes))
        scores.append(100 * (readout.predict(features[unseen]) == labels[unseen]).mean().item())
    return {"acc1": float(np.mean(scores)), "std": float(np.std(scores, ddof=1)), "folds": folds}


class LabelledFeatures(NamedTuple):
    """Frozen features (k, d) of the chosen images, their labels (k,), and the linear readout fitted to them."""

    features: np.ndarray
    labels: np.ndarray
    readout: Pipeline


def read_out(
    model: nn.Module,
    data: FinetuningData,
    device: torch.device,
    batch_size: int,
    amp_dtype: torch.dtype | None,
    purpose: str,
) -> LabelledFeatures:
    """Raises InputError, which begins with the purpose, with a single class."""
    features, labels = features_of(model, data.train_as_evaluated, device, batch_size, amp_dtype)
    if len(set(labels.tolist())) < 2:
        raise InputError(f"{purpose} of at least two classes, and all {len(labels)} are of one")
    return LabelledFeatures(features, labels, linear_readout(features, labels).fit(features, labels))


@torch.no_grad()
def start_head(
    head: nn.Linear,
    model: nn.Module,
    data: FinetuningData,
    processes: Processes,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
) -> LabelledFeatures | None:
    """Set the head to the linear readout of the frozen features of the chosen images: it predicts what `probe` does.

    (In mixed precision its logits are rounded, and the readout's are not.) This is the first half of LP-FT (Kumar et
    al., ICLR 2022). One process fits it for all.
    Returns: what it was fitted from, in that process. Raises: InputError with a single class.
    """

    def fit() -> LabelledFeatures | None:
        if not processes.is_main:
            return None
        purpose = "--head-init linear needs images"
        return read_out(model, data, processes.device, batch_size, amp_dtype, purpose)

    known = processes.together(fit)
    zeros = np.zeros(head.weight.shape), np.zeros(head.bias.shape)
    layer = as_linear_layer(known.readout, len(data.classes)) if known else zeros
    for weight, value in zip((head.weight, head.bias), layer, strict=True):
        weight.copy_(torch.from_numpy(value).to(weight.dtype))
        processes.sum(weight.data)
    return known


@torch.inference_mode()
def features_of(
    model: nn.Module,
    images: Dataset,
    device: torch.device,
    batch_size: int,
    amp_dtype: torch.dtype | None,
    workers: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """What the model's head would see (n, d), and the labels (n,)."""
    model.eval()
    features, labels = [], []
    rows = range(len(images))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    loader = ImageLoader(images, batches, batch_size, workers, device.type == "cuda")
    for batch in progress_bar(loader, desc="features", leave=False):
        pixels, targets = to_network(batch, device, model)
        with autocast(device, amp_dtype):
            features.append(model.forward_head(model.forward_features(pixels), pre_logits=True).float().cpu())
        labels.append(targets.cpu())
    return torch.cat(features).numpy(), torch.cat(labels).numpy()
