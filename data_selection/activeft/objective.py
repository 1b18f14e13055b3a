"""The objective of ActiveFT (Xie et al., CVPR 2023, eq. 5 to 7, in the form of the published implementation).

With unit features f_i (n, d), unit prototypes c_j (k, d), temperature tau and balance lambda:

    a_i  = argmax_j f_i . c_j,    s_i = f_i . c_{a_i} / tau          the nearest prototype of each sample
    S_j  = sum_l exp(stopgrad(c_l) . c_j / tau)                      repulsion, l = j included
    J    = - mean_i log( exp(s_i) / (exp(s_i) + lambda S_{a_i}) )

The self term l = j, and the mean over samples rather than prototypes, are the published code's; the paper's text leaves
the first out. (departure) All of it is in log space: exp(1 / tau) overflows float32 below tau = 0.0113.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_repulsion(centres: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """log S_j (k,), and what j is pushed away from, sum_l p_lj c_l with p the softmax of c c^T / tau over l (k, d).

    The latter is tau * d log S_j / d c_j.
    """
    logits = centres @ centres.T / tau  # (k, d) x (d, k) -> (k, k)
    return logits.logsumexp(dim=1), logits.softmax(dim=1) @ centres  # (k,), (k, k) x (k, d) -> (k, d)


def loss_and_gradient(
    features: Tensor, nearest: Tensor, similarity: Tensor, centres: Tensor, tau: float, balance: float
) -> tuple[Tensor, Tensor]:
    """J and dJ/dc in closed form; the argmax makes the gradient a sum over each prototype's own samples.

    With w_i = lambda S_{a_i} / (exp(s_i) + lambda S_{a_i}), the weight of sample i:

        dJ/dc_j = 1/(n tau) [ - sum_{i: a_i = j} w_i f_i  +  (sum_{i: a_i = j} w_i) sum_l p_lj c_l ]

    Args:
        features: unit rows f_i (n, d).
        nearest: a_i (n,).
        similarity: f_i . c_{a_i} (n,).
        centres: unit rows c_j (k, d).
    Returns:
        J (scalar) and dJ/dc (k, d).
    """
    n, k = len(features), len(centres)
    log_s, pushed_from = log_repulsion(centres, tau)
    margin = (math.log(balance) if balance else -math.inf) + log_s[nearest] - similarity / tau  # (n,)
    loss = F.softplus(margin).mean()
    weight = margin.sigmoid()  # (n,)

    attraction = torch.zeros_like(centres).index_add_(0, nearest, features * weight[:, None])  # (k, d)
    total_weight = torch.zeros(k, device=centres.device).index_add_(0, nearest, weight)  # (k,)
    return loss, (total_weight[:, None] * pushed_from - attraction) / (n * tau)


def gradient_through_normalisation(gradient: Tensor, centres: Tensor, norms: Tensor) -> Tensor:
    """dJ/dtheta (k, d) from dJ/dc (k, d), for c = theta / |theta|: its part orthogonal to c, over the norms (k, 1)."""
    along = (gradient * centres).sum(dim=1, keepdim=True)
    return (gradient - along * centres) / norms
