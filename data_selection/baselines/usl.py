"""USL: from each k-means cluster the densest sample that is far from those of other clusters."""

import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.matching import most_similar_free
from data_selection.activeft.pool import Pool, chunks, distance
from data_selection.baselines.clusters import unlabelled_clusters

ROWS_AT_A_TIME = 512
LEAST_DISTANCE = 1e-3  # of two samples; nearer ones, duplicates say, count as so far apart


def usl_samples(
    pool: Pool,
    k: int,
    seed: int,
    neighbours: int = 20,
    repulsion: float = 0.05,
    alpha: float = 1.0,
    rounds: int = 2,
) -> list[int]:
    """USL (Wang, Lian and Yu, ECCV 2022): in each of k clusters the sample with most density - w * repulsion.

    The density of x is the inverse of the mean distance to its m nearest samples; its repulsion is the sum of
    1 / |x - x_j|^(2 alpha) over the samples x_j chosen in other clusters. The first choice is the densest of each
    cluster; then all are chosen anew, together, in each round. Labelled samples repel too, and the clusters that hold
    some are left to them, as in `kmeans_samples`. Where fewer than k clusters hold a sample that can be chosen, the
    rest are those with most density - w * repulsion, whatever their cluster.

    Args:
        neighbours: m; the paper's 20 for ImageNet (400 for CIFAR10).
        repulsion: w; the least of the paper's 0.05 to 1.5 for ImageNet.
        alpha, rounds: the paper's for ImageNet.
    Returns: k distinct indices.
    """
    features, closed = pool.rows, pool.closed()
    cluster, _, kept = unlabelled_clusters(pool, k, seed)
    density = densities(features, min(neighbours, pool.n - 1))
    open_samples = (~closed & torch.isin(cluster, kept)).nonzero().squeeze(1)
    labeled = torch.tensor(pool.candidates.labeled, dtype=torch.int64, device=features.device)
    utility = density
    chosen = best_of_clusters(utility, cluster, open_samples)
    for _ in range(rounds):
        others = torch.cat([chosen, labeled])
        utility = density - repulsion * repulsion_by(features, cluster, others, alpha)
        chosen = best_of_clusters(utility, cluster, open_samples)
    closed[chosen] = True
    rest = utility.masked_fill(closed, -torch.inf).argsort(descending=True, stable=True)
    return [*chosen.tolist(), *rest[: k - len(chosen)].tolist()]


def densities(features: Tensor, neighbours: int) -> Tensor:
    """The inverse of the mean distance to so many nearest others (n,), of unit rows (n, d)."""
    nobody = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    found = []
    for rows in progress_bar(list(chunks(len(features), ROWS_AT_A_TIME)), desc="densities"):
        nearest, _ = most_similar_free(features, features[rows], nobody, neighbours + 1)
        found.append(distance(nearest[:, 1:]).mean(dim=1))  # the first is the sample itself
    return 1 / torch.cat(found).clamp_min(LEAST_DISTANCE)


def repulsion_by(features: Tensor, cluster: Tensor, chosen: Tensor, alpha: float) -> Tensor:
    """Of each sample (n,), from the chosen samples (c,) of other clusters than its own."""
    found = []
    for rows in chunks(len(features), ROWS_AT_A_TIME):
        apart = distance(features[rows] @ features[chosen].T).clamp_min(LEAST_DISTANCE)  # (chunk, d) x (d, c)
        own = cluster[rows, None] == cluster[chosen]
        found.append(apart.pow(-2 * alpha).masked_fill_(own, 0).sum(dim=1))
    return torch.cat(found)


def best_of_clusters(utility: Tensor, cluster: Tensor, samples: Tensor) -> Tensor:
    """Of each cluster that holds some of these samples, the one of most utility; the first on ties."""
    ranked = samples[utility[samples].argsort(descending=True, stable=True)]
    ranked = ranked[cluster[ranked].argsort(stable=True)]  # cluster after cluster
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[1:] = cluster[ranked[1:]] != cluster[ranked[:-1]]
    return ranked[first]
