"""ProbCover: balls around the chosen samples that cover as much of the pool as possible."""

import random

import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.pool import Pool, chunks, distance, rows_at_a_time
from data_selection.baselines.clusters import clusters_of

PURITY = 0.95
PURITY_SAMPLES = 10_000  # centres of the balls that the radius is estimated from


def probcover_samples(pool: Pool, k: int, seed: int, radius: float) -> list[int]:
    """ProbCover (Yehuda et al., NeurIPS 2022, algorithm 1): always the sample whose ball covers most of what is left.

    Labelled samples cover their balls first. Once all is covered, the rest is drawn at random. The graph is not stored.

    Args:
        radius: delta, the Euclidean radius of the balls.
    Returns: k distinct indices, in the order chosen.
    """
    features, n = pool.rows, pool.n
    least = 1 - radius**2 / 2  # |a - b| <= delta is a . b >= 1 - delta^2 / 2
    covered = torch.zeros(n, dtype=torch.bool, device=features.device)
    closed = pool.closed()
    gain = torch.zeros(n, dtype=torch.int64, device=features.device)  # uncovered samples in each ball
    buffer = features.new_empty(rows_at_a_time(n), n)  # a new one per chunk would fragment memory

    def in_balls_of(rows: Tensor) -> Tensor:
        """Count how many of these samples are in the ball of each sample (n,)."""
        return (torch.mm(features[rows], features.T, out=buffer[: len(rows)]) >= least).sum(dim=0)

    for rows in progress_bar(torch.arange(n, device=features.device).split(rows_at_a_time(n)), desc="balls"):
        gain += in_balls_of(rows)

    def cover(centre: int) -> None:
        newly = ((features @ features[centre] >= least) & ~covered).nonzero().squeeze(1)
        covered[newly] = True
        for rows in newly.split(rows_at_a_time(n)):
            gain.sub_(in_balls_of(rows))

    for labeled in pool.candidates.labeled:
        cover(labeled)
    chosen: list[int] = []
    for _ in progress_bar(range(k), desc="covering"):
        best = int(gain.masked_fill(closed, -1).argmax())
        if closed[best] or gain[best] <= 0:
            break
        chosen.append(best)
        closed[best] = True
        cover(best)
    print(f"balls of radius {radius:.4f} cover {100 * covered.float().mean():.1f}% of the pool")
    left = (~closed).nonzero().squeeze(1).tolist()
    return chosen + random.Random(seed).sample(left, k - len(chosen))


def purest_radius(features: Tensor, classes: int, seed: int) -> float:
    """Return delta: the largest radius with 95% of the balls pure; classes are k-means clusters, as in the paper.

    A ball is pure as long as it is smaller than the distance from its centre to the nearest sample of another cluster.
    The centres are at most 10,000 of the unit rows (n, d), drawn at random.
    """
    n = len(features)
    cluster, _ = clusters_of(features, classes, seed)
    drawn = random.Random(seed).sample(range(n), min(n, PURITY_SAMPLES))
    nearest = features.new_empty(len(drawn))
    buffer = features.new_empty(rows_at_a_time(n), n)
    for piece in chunks(len(drawn), rows_at_a_time(n)):
        rows = torch.tensor(drawn[piece], device=features.device)
        similarity = torch.mm(features[rows], features.T, out=buffer[: len(rows)])  # (chunk, d) x (d, n) -> (chunk, n)
        nearest[piece] = similarity.masked_fill_(cluster[rows, None] == cluster, -torch.inf).amax(dim=1)
    reach = distance(nearest).sort().values
    # Just below the first distance at which more than 5% of the balls would reach another cluster.
    impure = int((1 - PURITY) * len(reach))
    return min(float(reach[impure]), 2.0) * (1 - 1e-6)  # infinite if all samples are in one cluster
