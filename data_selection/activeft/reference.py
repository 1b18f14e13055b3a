"""The formulas of ActiveFT written out naively: all n x k similarities, autograd, whole rows sorted.

What the fast implementation is compared with, in the tests and in benchmarks/selection.py. It computes what the
published code computes, in its steps and at its cost; in float64 it is the yardstick for rounding.
"""

import random

import torch
from torch import Tensor


def dense_loss(features: Tensor, theta: Tensor, tau: float, balance: float) -> Tensor:
    """J for unit features (n, d) and prototypes of any norm (k, d). Overflows for small tau, as the published code."""
    centres = torch.nn.functional.normalize(theta, dim=1)
    attraction = (features @ centres.T / tau).exp().max(dim=1)  # (n, k) -> (n,)
    repulsion = (centres @ centres.detach().T / tau).exp().sum(dim=1)  # (k, k) -> (k,)
    s_nearest = repulsion[attraction.indices]  # (n,)
    return -(attraction.values / (attraction.values + balance * s_nearest)).log().mean()


def dense_match(features: Tensor, centres: Tensor) -> list[int]:
    """For each prototype in order, the most similar sample that none before it took, from fully sorted rows."""
    ranked = (centres @ features.T).argsort(dim=1, descending=True, stable=True)  # (k, n)
    chosen: list[int] = []
    taken = set()
    for row in ranked:
        for index in row:
            if int(index) not in taken:
                taken.add(int(index))
                chosen.append(int(index))
                break
    return chosen


def dense_farthest_points(features: Tensor, k: int, seed: int, distance: str) -> list[int]:
    """Farthest point sampling with every difference materialised."""
    chosen = random.Random(seed).sample(range(len(features)), 1)
    to_chosen = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < k:
        newest = features[chosen[-1]]
        to_newest = (features - newest).norm(dim=1) if distance == "euclidean" else 1 - (features * newest).sum(dim=1)
        to_chosen = torch.minimum(to_chosen, to_newest)
        to_chosen[chosen] = -torch.inf
        chosen.append(int(to_chosen.argmax()))
    return chosen


def dense_select(
    features: Tensor,
    k: int,
    seed: int = 0,
    tau: float = 0.07,
    balance: float = 1.0,
    lr: float = 0.001,
    max_iter: int = 300,
) -> tuple[list[int], list[float]]:
    """The whole selection from random samples. Returns: the chosen indices, ascending, and J at every iteration."""
    features = torch.nn.functional.normalize(features, dim=1)
    theta = features[random.Random(seed).sample(range(len(features)), k)].clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=lr)
    losses = []
    for _ in range(max_iter):
        loss = dense_loss(features, theta, tau, balance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sorted(dense_match(features, torch.nn.functional.normalize(theta.detach(), dim=1))), losses
