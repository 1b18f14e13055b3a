"""The baselines: what each does, needs and costs, where its code is, and which options are its own.

Times and memory are those of the whole process, with all defaults, on a small ViT's features of CIFAR-10's images:
OMP_NUM_THREADS=1 /usr/bin/time -f "%U %S %M" python sample_tools/baseline.py --number 1000 --device cpu ...
with torch 2.14.
"""

from dataclasses import dataclass

MEASURED_ON = (
    "measured for 1,000 of 50,000 images, 384 features each: CPU seconds (user and system) of the whole command "
    "with one thread, on a server that was idle or ran one other, and its peak resident memory, of which Python "
    "with torch is 664 MB"
)


@dataclass(frozen=True)
class Baseline:
    """One method.

    idea: with its source. needs: besides the features. scaling: arithmetic, and memory besides the features, for n
    images and k to choose. measured: CPU seconds (user and system) and peak resident memory. function: its import path.
    options: those of baseline.py that only apply to it.
    """

    idea: str
    needs: str
    scaling: str
    measured: str
    function: str
    options: tuple[str, ...] = ()


BASELINES = {
    "random": Baseline(
        "samples drawn uniformly",
        "nothing, not even the features' values",
        "nothing",
        "2.0 s, 712 MB",
        "data_selection.activeft.prototypes:random_samples",
    ),
    "fds": Baseline(
        "farthest point sampling on unit features",
        "nothing",
        "n k similarities; O(n) memory",
        "10 s, 679 MB",
        "data_selection.activeft.prototypes:farthest_points",
    ),
    "kmeans": Baseline(
        "the samples nearest to the centres of k-means",
        "scikit-learn",
        "n k similarities per iteration, at most 100; a copy of the features",
        "59 s, 1,007 MB",
        "data_selection.baselines.clusters:kmeans_samples",
    ),
    "coreset": Baseline(
        "greedy k-centre on the features as extracted (Sener and Savarese, ICLR 2018)",
        "features whose norms mean something",
        "n k similarities; O(n) memory",
        "9.6 s, 683 MB",
        "data_selection.activeft.prototypes:farthest_points",
    ),
    "herding": Baseline(
        "samples whose mean follows the pool's (Welling, ICML 2009)",
        "nothing",
        "n k similarities; O(n) memory",
        "6.9 s, 683 MB",
        "data_selection.baselines.herding:herding_samples",
    ),
    "typiclust": Baseline(
        "the most typical samples of clusters (Hacohen et al., ICML 2022)",
        "scikit-learn; small budgets: it makes at most 500 clusters",
        "n^2 / c similarities for c = min(k, 500) clusters, and k-means; O(n) memory and the rows of a cluster",
        "12 s, 912 MB",
        "data_selection.baselines.clusters:typiclust_samples",
    ),
    "probcover": Baseline(
        "balls that cover most of the pool (Yehuda et al., NeurIPS 2022)",
        "a radius, --delta, or the number of classes to estimate it from (scikit-learn)",
        "up to 2 n^2 similarities, whatever k; O(n) memory",
        "55 s, 1,035 MB",
        "data_selection.baselines.probcover:probcover_samples",
        ("delta", "num_classes"),
    ),
    "maxherding": Baseline(
        "samples that cover most of the pool, the nearer the better (Bae et al., ECCV 2024)",
        "nothing; --sigma (default 1) hardly matters",
        "n^2 / 2 similarities at first, about 7 n^2 for k = n / 50; O(n) memory",
        "220 s, 717 MB",
        "data_selection.baselines.herding:maxherding_samples",
        ("sigma",),
    ),
    "bilaf": Baseline(
        "core samples by ActiveFT, then boundaries of their pseudo-classes (Lu et al., NeurIPS 2024)",
        "a budget well above the number of core samples K (--core_number): with few labels, boundaries mislead",
        "n K similarities per iteration of ActiveFT, at most n (K + k) after it; O(n) memory and the rows of a class",
        "8.3 s, 769 MB",
        "data_selection.baselines.bilaf:bilaf_samples",
        ("core_number", "core_ids", "core_method"),
    ),
    "usl": Baseline(
        "from each k-means cluster, a dense sample far from the other clusters' (Wang et al., ECCV 2022)",
        "scikit-learn; the weight of its repulsion, --repulsion, matters",
        "n^2 similarities and k-means into k clusters; a copy of the features",
        "87 s, 1,008 MB",
        "data_selection.baselines.clusters:usl_samples",
        ("neighbours", "repulsion", "alpha", "rounds"),
    ),
}


def listing() -> str:
    """Return all of it as text."""
    lines = []
    for name, method in BASELINES.items():
        own = "".join(f" --{option}" for option in method.options)
        lines += [f"{name}: {method.idea}", f"    needs    {method.needs}"]
        lines += [f"    options {own}"] if own else []
        lines += [f"    scales   {method.scaling}", f"    took     {method.measured}", ""]
    return "\n".join([*lines, f"took: {MEASURED_ON}."])
