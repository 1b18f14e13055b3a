"""K-means clusters of a pool, and the baseline that takes the sample nearest to each centre."""

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from data_selection.activeft.matching import match_prototypes
from data_selection.activeft.pool import Pool

ITERATIONS = 100


def clusters_of(features: Tensor, count: int, seed: int, minibatch: int | None = None) -> tuple[Tensor, Tensor]:
    """K-means by scikit-learn, from one k-means++ start.

    Args:
        features: (n, d).
        minibatch: rows an update is made from; None is Lloyd's algorithm on all of them.
    Returns: the cluster of each sample (n,), int64, and the centres (count, d).
    """
    rows = features.cpu().numpy()
    print(f"k-means: {len(rows)} samples into {count} clusters", flush=True)
    if minibatch:
        kmeans = MiniBatchKMeans(count, n_init=1, batch_size=minibatch, random_state=seed)
    else:
        kmeans = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
    kmeans.fit(rows)
    cluster = torch.from_numpy(kmeans.labels_.astype(np.int64)).to(features.device)
    return cluster, torch.from_numpy(kmeans.cluster_centers_).to(features)


def unlabelled_clusters(pool: Pool, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """K-means into k + m clusters, with m labelled samples, of which k are to give a sample each.

    Returns: the cluster of each sample (n,), the centres (k + m, d), and those k clusters: the largest that hold no
    labelled sample.
    """
    labeled = list(pool.candidates.labeled)
    count = k + len(labeled)
    cluster, centres = clusters_of(pool.rows, count, seed)
    size = torch.bincount(cluster, minlength=count)
    size[cluster[labeled]] = -1
    return cluster, centres, size.argsort(descending=True, stable=True)[:k]


def kmeans_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """K-means: the sample nearest to each of k centres that no other centre took."""
    _, centres, largest = unlabelled_clusters(pool, k, seed)
    return match_prototypes(pool, centres[largest])
