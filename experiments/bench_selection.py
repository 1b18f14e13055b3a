"""What a selection costs: the fast form of ActiveFT, its plain autograd reference, and k-means.

    python experiments/bench_selection.py --feature_path data_selection/features/CIFAR10_train.npy

Every method runs in its own process, in turn. A dense run is timed over a few iterations and scaled to all of them
unless --whole is given. Without a feature file the pool is generated: Gaussian clusters with a decaying spectrum,
d = 384. The memory is what a method adds to the features it is given; ours holds a copy of them with unit rows.

Measured on 2 cores of an Intel server CPU with AMX, torch 2.15, with OMP_WAIT_POLICY=passive and 384 features of the
50,000 CIFAR-10 training images from a small ViT, --n 50000 --k 1000 --repeats 3 (medians), in 13 minutes:

       n      k               ours              dense  ratio      faiss k-means       scikit-learn
   50000   1000     20.0 s   214 MB    237.9 s   930 MB  11.7x      7.0 s     0 MB      8.1 s    92 MB

300 iterations and the matching of ours and dense, 100 iterations of k-means. Of the memory of ours, 73 MB are the copy
of the features with unit rows. In a run of an earlier version with --whole: loss 3.52875 and 3.52917, 94.5% of the
indices shared.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError

METHODS = ("ours", "dense", "faiss", "sklearn")


def generated_features(n: int, d: int = 384, clusters: int = 500, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spectrum = (1 + np.arange(d, dtype=np.float32)) ** -0.5
    centres = random.standard_normal((clusters, d), dtype=np.float32) * spectrum
    which = random.integers(clusters, size=n)
    features = random.standard_normal((n, d), dtype=np.float32)
    features *= 0.8 * spectrum
    features += centres[which]
    return features


def peak_memory() -> float:
    """MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure(method: str, features: np.ndarray, k: int, iterations: int) -> dict:
    """Run one method in this process. Returns: seconds, peak memory, and what the method found."""
    import torch
    import torch.nn.functional as F

    from data_selection.activeft import reference, select
    from data_selection.activeft.pool import Candidates, read_pool
    from data_selection.activeft.settings import Settings

    if method in ("faiss", "sklearn"):  # k-means sees the same unit rows
        features = F.normalize(torch.from_numpy(features), dim=1).numpy()
    run_method = {
        "ours": lambda: select(features, k, max_iter=iterations, device="cpu"),
        "dense": lambda: reference.optimise(
            read_pool(features, Candidates(len(features))), k, Settings(max_iter=iterations)
        ),
        "faiss": lambda: faiss_kmeans(features, k, iterations),
        "sklearn": lambda: sklearn_kmeans(features, k, iterations),
    }[method]
    before, start = peak_memory(), time.perf_counter()
    found = run_method()
    measured = {"seconds": time.perf_counter() - start, "megabytes": peak_memory() - before}
    if method in ("ours", "dense"):
        measured |= {"indices": found.indices, "loss": found.losses[-1]}
    return measured


def faiss_kmeans(features: np.ndarray, k: int, iterations: int) -> None:
    import faiss

    faiss.Kmeans(features.shape[1], k, niter=iterations, max_points_per_centroid=len(features)).train(features)


def sklearn_kmeans(features: np.ndarray, k: int, iterations: int) -> None:
    from sklearn.cluster import KMeans

    KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0).fit(features)


def child(args: argparse.Namespace) -> None:
    """Measure one method and print it as JSON."""
    import torch

    torch.set_num_threads(args.threads)
    print(json.dumps(measure(args.child, load(args.feature_path, args.n[0]), args.k[0], args.iterations)))


def load(feature_path: str | None, n: int) -> np.ndarray:
    if feature_path is None:
        return generated_features(n)
    from common.feature_file import read_features

    features, _ = read_features(feature_path)
    if n > len(features):
        raise InputError(f"{feature_path} has {len(features)} rows, fewer than --n {n}")
    rows = np.linspace(0, len(features) - 1, n).astype(int)  # of all classes, in order
    return np.array(features[rows], dtype=np.float32)


def run_child(args: argparse.Namespace, method: str, n: int, k: int, iterations: int) -> dict | None:
    """One method in a fresh process; None where it is not installed."""
    options = f"--child {method} --n {n} --k {k} --threads {args.threads} --iterations {iterations}"
    command = [sys.executable, __file__, *options.split()]
    command += ["--feature_path", args.feature_path] if args.feature_path else []
    done = subprocess.run(command, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise InputError(f"{method} failed at n = {n}, k = {k}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def dense_seconds(args: argparse.Namespace, n: int, k: int) -> tuple[float, float]:
    """Seconds of a whole dense run, from two short ones that differ in --dense_iterations, and its peak MB."""
    one = run_child(args, "dense", n, k, 1)
    more = run_child(args, "dense", n, k, 1 + args.dense_iterations)
    per_iteration = (more["seconds"] - one["seconds"]) / args.dense_iterations
    return one["seconds"] + (args.iterations - 1) * per_iteration, more["megabytes"]


def compare(args: argparse.Namespace, n: int, k: int) -> dict:
    """Medians over --repeats rounds, each of which runs every method once."""
    rounds: dict[str, list[float]] = {method: [] for method in METHODS}
    memory: dict[str, float] = {}
    row = {"n": n, "k": k}
    for _ in range(args.repeats):
        for method in METHODS:
            if method == "dense" and not args.whole:
                seconds, megabytes = dense_seconds(args, n, k)
            else:
                clustering = method in ("faiss", "sklearn")
                found = run_child(args, method, n, k, args.kmeans_iterations if clustering else args.iterations)
                if found is None:
                    continue
                seconds, megabytes = found["seconds"], found["megabytes"]
                if not clustering:
                    row[f"{method}_loss"], row[f"{method}_indices"] = found["loss"], found["indices"]
            rounds[method].append(seconds)
            memory[method] = max(megabytes, memory.get(method, 0))
    for method, seconds in rounds.items():
        if seconds:
            row[f"{method}_s"], row[f"{method}_MB"] = statistics.median(seconds), memory[method]
    row["ratio"] = statistics.median(d / o for d, o in zip(rounds["dense"], rounds["ours"], strict=True))
    return row


def print_table(rows: list[dict], args: argparse.Namespace) -> None:
    def cell(row: dict, method: str) -> str:
        if f"{method}_s" not in row:
            return f"{'-':>18}"
        return f"{row[f'{method}_s']:8.1f} s {row[f'{method}_MB']:5.0f} MB"

    print(f"{'n':>8} {'k':>6} {'ours':>18} {'dense':>18} {'ratio':>6} {'faiss k-means':>18} {'scikit-learn':>18}")
    for row in rows:
        cells = " ".join([cell(row, "ours"), cell(row, "dense"), f"{row['ratio']:5.1f}x"])
        print(f"{row['n']:8} {row['k']:6} {cells} {cell(row, 'faiss')} {cell(row, 'sklearn')}")
        if args.whole:
            shared = len(set(row["ours_indices"]) & set(row["dense_indices"])) / row["k"]
            print(
                f"{'':15} loss {row['ours_loss']:.5f} and {row['dense_loss']:.5f}, {shared:.1%} of the indices shared"
            )


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Measure time and peak memory of the selection beside a dense implementation and k-means.")
    parser.add_argument("--feature_path", help="feature file; not given: generated clusters")
    parser.add_argument("--n", nargs="+", type=number(int, 1), default=[12500, 25000, 50000], help="pool sizes")
    parser.add_argument("--k", nargs="+", type=number(int, 1), default=[250, 500, 1000], help="budgets")
    parser.add_argument("--iterations", type=number(int, 1), default=300, help="of the selection")
    parser.add_argument("--kmeans_iterations", type=number(int, 1), default=100, help="of k-means")
    parser.add_argument("--dense_iterations", type=number(int, 1), default=10, help="timed of a dense run")
    parser.add_argument("--whole", action="store_true", help="time whole dense runs, and compare what they choose")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--threads", type=number(int, 1), default=2)
    parser.add_argument("--child", choices=METHODS, help="run one method alone and print it as JSON")
    args = parser.parse_args(argv)
    if args.child:
        child(args)
        return
    # n varies at the largest k, k at the largest n
    sizes = sorted({(n, max(args.k)) for n in args.n} | {(max(args.n), k) for k in args.k})
    rows = [compare(args, n, k) for n, k in sizes]
    print_table(rows, args)


if __name__ == "__main__":
    run(main)
