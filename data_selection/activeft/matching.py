"""From prototypes back to images: each prototype takes the pool sample most similar to it."""

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20  # similarities held at once


def match_prototypes(features: Tensor, centres: Tensor, candidates: int = 8) -> list[int]:
    """For j = 0 .. k-1 in order, the sample most similar to c_j that no earlier prototype took.

    Only each prototype's best few candidates are ranked; a whole row is looked at again where all of them are taken.

    Args:
        features: unit rows (n, d), n >= k.
        centres: unit rows (k, d).
    Returns:
        k distinct indices, in the order of the prototypes.
    """
    n = len(features)
    taken = torch.zeros(n, dtype=torch.bool, device=features.device)
    chosen: list[int] = []
    for some in centres.split(max(1, CHUNK_BYTES // (4 * n))):
        best = (some @ features.T).topk(min(candidates, n), dim=1).indices  # (chunk, d) x (d, n) -> (chunk, candidates)
        for centre, ranked in zip(some, best.tolist(), strict=True):
            free = next((i for i in ranked if not taken[i]), None)
            if free is None:
                free = int((features @ centre).masked_fill(taken, -torch.inf).argmax())
            taken[free] = True
            chosen.append(free)
    return chosen
