"""Geometry of unit vectors."""

from torch import Tensor


def distance(similarity: Tensor) -> Tensor:
    """Euclidean distance between unit vectors of this cosine similarity: |a - b| = sqrt(2 - 2 a . b)."""
    return (2 - 2 * similarity).clamp_min(0).sqrt()
