"""The objective of ActiveFT (Xie et al., CVPR 2023, eq. 5 to 7, in the form of the published implementation).

With unit features f_i (n, d), unit prototypes c_j (k, d), temperature tau and balance lambda:

    a_i  = argmax_j f_i . c_j,    s_i = f_i . c_{a_i} / tau          the nearest prototype of each sample
    S_j  = sum_l exp(stopgrad(c_l) . c_j / tau)                      repulsion, l = j included
    J    = - mean_i log( exp(s_i) / (exp(s_i) + lambda S_{a_i}) )

The self term l = j and the mean over samples rather than prototypes follow the published code; the paper's text leaves
the self term out. (departure) All of it is in log space: exp(1 / tau) overflows float32 below tau = 0.0113.

Memory is O(n + k d) plus a block of the similarities between prototypes.
"""

import math
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor

from common.processes import ALONE, Processes
from data_selection.activeft.pool import chunks

BLOCK, GPU_BLOCK = 512, 4096  # prototypes whose similarities are held at once; on a CPU they stay in its cache


def log_repulsion(centres: Tensor, tau: float, processes: Processes = ALONE) -> tuple[Tensor, Tensor]:
    """Return log S_j (k,), and sum_l p_lj c_l (k, d), which j is pushed away from; p: softmax of c c^T / tau over l.

    The latter is tau * d log S_j / d c_j. Similarities are symmetric, so each block serves the prototypes of both its
    rows and its columns. Several processes divide the blocks among themselves.
    """
    total, pushed_from = torch.zeros_like(centres[:, 0]), torch.zeros_like(centres)
    size = BLOCK if centres.device.type == "cpu" else GPU_BLOCK
    blocks = [*combinations_with_replacement(chunks(len(centres), size), 2)]
    for a, b in blocks[processes.rank :: processes.size]:
        # The largest term is l = j, exp(1 / tau): with it factored out of the sum, nothing overflows.
        terms = (centres[a] @ centres[b].T).sub_(1).div_(tau).exp_()  # (a, d) x (d, b) -> (a, b)
        total[a] += terms.sum(dim=1)
        pushed_from[a].addmm_(terms, centres[b])  # (a, b) x (b, d) -> (a, d)
        if a != b:
            total[b] += terms.sum(dim=0)
            pushed_from[b].addmm_(terms.T, centres[a])  # (b, a) x (a, d) -> (b, d)
    processes.sum(total, pushed_from)
    return total.log() + 1 / tau, pushed_from / total[:, None]


def loss_and_gradient(
    features: Tensor,
    nearest: Tensor,
    similarity: Tensor,
    centres: Tensor,
    tau: float,
    balance: float,
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    """Return J and dJ/dc in closed form; the argmax makes the gradient a sum over each prototype's own samples.

    With w_i = lambda S_{a_i} / (exp(s_i) + lambda S_{a_i}), the weight of sample i:

        dJ/dc_j = 1/(n tau) * [ - sum_{i: a_i = j} w_i f_i  +  (sum_{i: a_i = j} w_i) * sum_l p_lj c_l ]

    features: this process's unit rows f_i (n, d). nearest: a_i (n,). similarity: f_i . c_{a_i} (n,). centres: unit rows
    c_j (k, d).
    Returns: J (scalar) and dJ/dc (k, d), the same in all processes.
    """
    log_s, pushed_from = log_repulsion(centres, tau, processes)
    margin = (math.log(balance) if balance else -math.inf) + log_s[nearest] - similarity / tau  # (n,)
    loss = F.softplus(margin).sum()
    weight = margin.sigmoid()  # (n,)

    attraction = weighted_sums(features, weight, nearest, len(centres))  # (k, d)
    total_weight = torch.zeros_like(log_s).index_add_(0, nearest, weight)  # (k,)
    n = torch.full_like(loss, len(features))
    processes.sum(loss, n, attraction, total_weight)
    return loss / n, (total_weight[:, None] * pushed_from - attraction) / (n * tau)


def weighted_sums(features: Tensor, weight: Tensor, nearest: Tensor, k: int) -> Tensor:
    """Return sum_{i: a_i = j} w_i f_i for every j (k, d), read straight from the pool's rows: no w_i f_i is stored."""
    by_prototype = nearest.int().argsort(stable=True)  # (n,); int32 sorts in half the time
    starts = F.pad(torch.bincount(nearest, minlength=k).cumsum(0), (1, -1))  # (k,)
    return F.embedding_bag(by_prototype, features, starts, mode="sum", per_sample_weights=weight[by_prototype])


def gradient_through_normalisation(gradient: Tensor, centres: Tensor, norms: Tensor) -> Tensor:
    """Turn dJ/dc (k, d) into dJ/dtheta (k, d), c = theta / |theta|: its part orthogonal to c, over the norms (k, 1)."""
    along = (gradient * centres).sum(dim=1, keepdim=True)
    return (gradient - along * centres) / norms
