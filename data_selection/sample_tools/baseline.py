"""Stage 2 by other methods, to compare ActiveFT with: the same options, files and seeds.

    python sample_tools/baseline.py --method kmeans --feature_path features/CIFAR10_train.npy --percent 2

writes features/CIFAR10_train_kmeans_sampleNum_1000.json: the chosen indices, one ascending JSON list.

random      samples drawn uniformly
fds         farthest point sampling on unit features
kmeans      the samples nearest to the centres of k-means
coreset     greedy k-centre on the features as extracted (Sener and Savarese, ICLR 2018)
herding     samples whose mean follows the pool's (Welling, ICML 2009)
typiclust   the most typical samples of clusters (Hacohen et al., ICML 2022)
probcover   balls that cover most of the pool (Yehuda et al., NeurIPS 2022)
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.feature_file import read_features
from common.processes import launched
from data_selection.activeft.initialisation import farthest_points, random_samples
from data_selection.activeft.known_samples import KnownSamples
from data_selection.activeft.selection import rows_on_device
from data_selection.baselines.clusters import kmeans_samples
from data_selection.baselines.herding import herding_samples
from data_selection.baselines.probcover import probcover_samples, purest_radius
from data_selection.baselines.typiclust import typiclust_samples
from data_selection.sample_tools.subset_command import add_pool_options, choose_subsets

METHODS = ("random", "fds", "kmeans", "coreset", "herding", "typiclust", "probcover")
MOST_DISTANT = 2.0  # unit rows


def baseline_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser("Choose the images to label with another method than ActiveFT.")
    parser.add_argument("--method", required=True, choices=METHODS)
    add_pool_options(parser, feature_path="features/CIFAR10_train.npy", percent="2")
    parser.add_argument(
        "--delta",
        type=number(float, above=0, below=MOST_DISTANT),
        help="radius of probcover's balls; when not given, the largest at which 95 percent of them are pure",
    )
    parser.add_argument(
        "--num_classes",
        type=number(int, 2),
        help="classes of the task, from which probcover estimates --delta; when not given, as many as there are labels",
    )
    return parser


def choose_indices(
    args: argparse.Namespace, features: np.ndarray, budget: int, known: KnownSamples, device: torch.device
) -> list[int]:
    """k distinct indices in the order chosen, by the method that the options name."""
    if args.method == "random":
        return random_samples(len(features), budget, args.seed, known)
    pool = rows_on_device(features, device, unit=args.method != "coreset")  # (n, d)
    if args.method in ("fds", "coreset"):
        return farthest_points(pool, budget, args.seed, known=known, progress=True)
    if args.method == "kmeans":
        return kmeans_samples(pool, budget, args.seed, known)
    if args.method == "herding":
        return herding_samples(pool, budget, known)
    if args.method == "typiclust":
        return typiclust_samples(pool, budget, args.seed, known)
    radius = args.delta or purest_radius(pool, args.num_classes or classes_labelled(args.feature_path), args.seed)
    return probcover_samples(pool, budget, radius, args.seed, known)


def classes_labelled(feature_path: str) -> int:
    """How many classes the labels of a feature file have. Raises InputError when it has no labels."""
    _, labels = read_features(feature_path)
    classes = len(np.unique(labels[labels >= 0]))
    if classes < 2:
        raise InputError(
            f"--num_classes is needed: the labels of {feature_path} do not tell how many classes there are"
        )
    return classes


def check(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together, or not with the pool."""
    radius_options = {"--delta": args.delta, "--num_classes": args.num_classes}
    given = [option for option, value in radius_options.items() if value is not None]
    if given and args.method != "probcover":
        raise InputError(f"{given[0]} is of probcover, nothing else: leave it out with --method {args.method}")
    if len(given) == 2:
        raise InputError("--num_classes is for estimating --delta: leave one of them out")
    if args.method == "probcover" and not args.delta:
        classes, n = args.num_classes or classes_labelled(args.feature_path), len(read_features(args.feature_path)[0])
        if classes > n:
            raise InputError(f"--num_classes {classes} is more than the {n} samples of {args.feature_path}")


def main(argv: list[str] | None = None) -> Path:
    """Returns: the path of the JSON of chosen indices, of the largest budget."""
    args = baseline_parser().parse_args(argv)
    check(args)
    with launched(args.device) as processes:
        if processes.size > 1:
            raise InputError(f"baselines run in one process, not in {processes.size}")

        def choose(features: np.ndarray, budget: int, known: KnownSamples, path: Path) -> list[int]:
            return choose_indices(args, features, budget, known, processes.device)

        return choose_subsets(args, choose, lambda budget: subset_name(args, budget), processes)


def subset_name(args: argparse.Namespace, budget: int) -> str:
    name = Path(args.feature_path).name.removesuffix(".npy")
    also = {"delta": args.delta, "classes": args.num_classes, "seed": args.seed or None}
    told_apart = "".join(f"_{key}_{value}" for key, value in also.items() if value is not None)
    return f"{name}_{args.method}_sampleNum_{budget}{told_apart}"


if __name__ == "__main__":
    run(main)
