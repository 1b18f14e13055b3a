"""The nearest prototype of every sample."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20  # similarities held at once


def nearest_prototypes(features: Tensor, centres: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The argmax over prototypes of f_i . c_j, a chunk of rows at a time.

    Args:
        features: unit rows (n, d).
        centres: unit rows (k, d).
        chunk: rows per matrix product; it bounds memory and never changes the result.
    Returns:
        a_i (n,) and f_i . c_{a_i} (n,).
    """
    chunk = chunk or max(1, CHUNK_BYTES // (4 * len(centres)))
    best = [(rows @ centres.T).max(dim=1) for rows in features.split(chunk)]  # (chunk, d) x (d, k) -> (chunk, k)
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])
