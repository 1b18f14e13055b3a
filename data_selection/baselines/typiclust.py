"""TypiClust: the most typical sample of each cluster, the largest clusters first."""

from itertools import islice, zip_longest

import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.pool import Pool, distance
from data_selection.baselines.clusters import clusters_of

MOST_CLUSTERS = 500
NEIGHBOURS = 20
FEW_CLUSTERS = 50  # up to so many, k-means sees all samples at every step
MINIBATCH = 5000
TINY_CLUSTER = 5  # what is no larger is left out, as long as there are others
CHUNK_ELEMENTS = 1 << 22


def typiclust_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """TypiClust (Hacohen et al., ICML 2022, algorithm 1), with the settings of its published code.

    K-means gives as many clusters as samples will be labelled, at most 500. Those with the fewest labelled samples come
    first, and of these the largest; each in turn gives its most typical sample, round after round. (departure) The
    published code ranks a cluster anew, without what it has given, in each round; here it is ranked once, by all of it.

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
    """The inverse of the mean distance to the 20 nearest others, in small clusters to half of them (paper, eq. 1).

    Args:
        members: unit rows of one cluster (c, d).
    Returns: (c,)
    """
    neighbours = min(NEIGHBOURS, len(members) // 2)
    if neighbours < 1:
        return torch.ones(len(members), device=members.device)
    chunk = max(1, CHUNK_ELEMENTS // len(members))
    nearest = [
        (rows @ members.T).topk(neighbours + 1, dim=1).values[:, 1:]  # (chunk, d) x (d, c) -> (chunk, 20); not itself
        for rows in members.split(chunk)
    ]
    return 1 / (distance(torch.cat(nearest)).mean(dim=1) + 1e-5)
