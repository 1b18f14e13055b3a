"""K-means clusters of a pool, and the baselines that choose from each cluster: K-means itself, TypiClust and USL."""

import warnings
from itertools import islice, zip_longest

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.pool import Pool, chunks, distance, rows_at_a_time
from data_selection.activeft.prototypes import match_prototypes, most_similar_free

ITERATIONS = 100
MOST_CLUSTERS = 500  # for TypiClust
FEW_CLUSTERS = 50  # up to this many, TypiClust's k-means uses all samples at every step
MINIBATCH = 5000
TINY_CLUSTER = 5  # TypiClust chooses from clusters no larger than this only when the others are used up
NEIGHBOURS = 20
ROWS_AT_A_TIME = 512
LEAST_DISTANCE = 1e-3  # between two samples in USL; closer ones, such as duplicates, count as this far apart


def clusters_of(features: Tensor, count: int, seed: int, minibatch: int | None = None) -> tuple[Tensor, Tensor]:
    """Run scikit-learn's k-means on (n, d) from one k-means++ start; return clusters (n,) and centres (count, d).

    minibatch: rows per update; None means Lloyd's algorithm on all rows.
    """
    rows = features.cpu().numpy()
    print(f"k-means: {len(rows)} samples into {count} clusters", flush=True)
    if minibatch:
        kmeans = MiniBatchKMeans(count, n_init=1, batch_size=minibatch, random_state=seed)
    else:
        kmeans = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised if samples are equal
        kmeans.fit(rows)
    cluster = torch.from_numpy(kmeans.labels_.astype(np.int64)).to(features.device)
    return cluster, torch.from_numpy(kmeans.cluster_centers_).to(features)


def unlabelled_clusters(pool: Pool, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run k-means into k + m clusters, m the number of labelled samples, and pick k that are to give a sample each.

    Returns: the cluster of each sample (n,), the centres (k + m, d), and the k clusters picked: the largest without a
    labelled sample.
    """
    labeled = list(pool.candidates.labeled)
    count = k + len(labeled)
    cluster, centres = clusters_of(pool.rows, count, seed)
    size = torch.bincount(cluster, minlength=count)
    size[cluster[labeled]] = -1
    return cluster, centres, size.argsort(descending=True, stable=True)[:k]


def kmeans_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """K-means: choose, for each of k centres, the nearest sample that no other centre took."""
    _, centres, largest = unlabelled_clusters(pool, k, seed)
    return match_prototypes(pool, centres[largest])


def typiclust_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """TypiClust (Hacohen et al., ICML 2022, algorithm 1), with the settings of its published code.

    K-means makes as many clusters as samples will be labelled, at most 500. Clusters with the fewest labelled samples
    come first, larger ones before smaller; each in turn gives its most typical sample, round after round. (departure)
    The published code ranks a cluster anew in each round, without what it has given; here, only once and in full.

    Returns: k distinct indices, in the order chosen.
    """
    features, known = pool.rows, list(pool.candidates.labeled)
    count = min(k + len(known), MOST_CLUSTERS)
    cluster, _ = clusters_of(features, count, seed, MINIBATCH if count > FEW_CLUSTERS else None)
    labeled = torch.bincount(cluster[known], minlength=count).tolist()
    size = torch.bincount(cluster, minlength=count).tolist()
    order = sorted(range(count), key=lambda c: (labeled[c], -size[c]))
    closed = pool.closed()
    open_by_typicality = {}
    for c in progress_bar(order, desc="typicality"):
        members = (cluster == c).nonzero().squeeze(1)
        ranked = members[typicality(features[members]).argsort(descending=True, stable=True)]
        open_by_typicality[c] = ranked[~closed[ranked]].tolist()
    large = [open_by_typicality[c] for c in order if size[c] > TINY_CLUSTER]
    tiny = [open_by_typicality[c] for c in order if size[c] <= TINY_CLUSTER]
    in_turn = (sample for clusters in (large, tiny) for turn in zip_longest(*clusters) for sample in turn)
    return list(islice((sample for sample in in_turn if sample is not None), k))


def typicality(members: Tensor) -> Tensor:
    """Return 1 / mean distance (c,) of a cluster's unit rows (c, d) to their 20 nearest, or half of all (eq. 1)."""
    neighbours = min(NEIGHBOURS, len(members) // 2)
    if neighbours < 1:
        return torch.ones(len(members), device=members.device)
    nearest = [
        (rows @ members.T).topk(neighbours + 1, dim=1).values[:, 1:]  # (chunk, d) x (d, c) -> (chunk, 20); not itself
        for rows in members.split(rows_at_a_time(len(members)))
    ]
    return 1 / (distance(torch.cat(nearest)).mean(dim=1) + 1e-5)


def usl_samples(
    pool: Pool, k: int, seed: int, neighbours: int = 20, repulsion: float = 0.05, alpha: float = 1.0, rounds: int = 2
) -> list[int]:
    """USL (Wang, Lian and Yu, ECCV 2022): in each of k clusters, the sample with the largest density - w * repulsion.

    The density of x is the inverse of the mean distance to its m nearest samples; its repulsion is the sum of
    1 / |x - x_j|^(2 alpha) over the samples x_j chosen in other clusters. The first choice is each cluster's densest
    sample; in each round, all are then chosen anew, together. Labelled samples repel too, and clusters that hold one
    give no sample, as in `kmeans_samples`. If fewer than k clusters hold a sample that can be chosen, the rest are the
    samples with the largest density - w * repulsion in any cluster.

    Args:
        neighbours: m; the paper's 20 for ImageNet (400 for CIFAR10).
        repulsion: w; the smallest of the paper's 0.05 to 1.5 for ImageNet.
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
    """Return the inverse mean distance (n,) of unit rows (n, d) to their `neighbours` nearest others."""
    nobody = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    found = []
    for rows in progress_bar(list(chunks(len(features), ROWS_AT_A_TIME)), desc="densities"):
        nearest, _ = most_similar_free(features, features[rows], nobody, neighbours + 1)
        found.append(distance(nearest[:, 1:]).mean(dim=1))  # the first is the sample itself
    return 1 / torch.cat(found).clamp_min(LEAST_DISTANCE)


def repulsion_by(features: Tensor, cluster: Tensor, chosen: Tensor, alpha: float) -> Tensor:
    """Return the repulsion of each sample (n,) by the chosen samples (c,) of other clusters."""
    found = []
    for rows in chunks(len(features), ROWS_AT_A_TIME):
        apart = distance(features[rows] @ features[chosen].T).clamp_min(LEAST_DISTANCE)  # (chunk, d) x (d, c)
        own = cluster[rows, None] == cluster[chosen]
        found.append(apart.pow(-2 * alpha).masked_fill_(own, 0).sum(dim=1))
    return torch.cat(found)


def best_of_clusters(utility: Tensor, cluster: Tensor, samples: Tensor) -> Tensor:
    """Return, for each cluster that holds some of `samples`, the one with the most utility; the first on ties."""
    ranked = samples[utility[samples].argsort(descending=True, stable=True)]
    ranked = ranked[cluster[ranked].argsort(stable=True)]  # cluster after cluster
    return ranked[cluster[ranked].diff(prepend=cluster.new_tensor([-1])) > 0]  # the first of each
