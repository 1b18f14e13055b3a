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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.feature_file import read_features
from common.processes import launched
from data_selection.activeft.initialisation import farthest_points, random_samples
from data_selection.activeft.pool import Pool
from data_selection.activeft.settings import Selection
from data_selection.sample_tools.subset_command import add_pool_options, read_request, select_subsets

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


def select_indices(args: argparse.Namespace, pool: Pool, k: int) -> list[int]:
    """k distinct indices by the method that the options name. What it needs is imported here: scikit-learn is slow."""
    if args.method == "random":
        return random_samples(pool.candidates, k, args.seed)
    if args.method in ("fds", "coreset"):
        return farthest_points(pool, k, args.seed, progress=True)
    if args.method == "herding":
        from data_selection.baselines.herding import herding_samples as method
    elif args.method == "kmeans":
        from data_selection.baselines.clusters import kmeans_samples as method
    elif args.method == "typiclust":
        from data_selection.baselines.typiclust import typiclust_samples as method
    else:
        from data_selection.baselines.probcover import probcover_samples, purest_radius

        classes = args.num_classes or (0 if args.delta else classes_labelled(args.feature_path))
        method = partial(probcover_samples, radius=args.delta or purest_radius(pool.rows, classes, args.seed))
    return method(pool, k, args.seed)


def classes_labelled(feature_path: str) -> int:
    """How many classes the labels of a feature file have. Raises InputError when it has no labels."""
    _, labels = read_features(feature_path)
    classes = len({*labels[labels >= 0].tolist()})
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
        raise InputError(f"{given[0]} only applies to --method probcover: leave it out with --method {args.method}")
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
        request = read_request(args, partial(subset_name, args), processes)
        method = lambda pool, k: Selection(select_indices(args, pool, k))  # noqa: E731
        return select_subsets(request, method, processes, unit=args.method != "coreset")


def subset_name(args: argparse.Namespace, budget: int) -> str:
    name = Path(args.feature_path).name.removesuffix(".npy")
    also = {"delta": args.delta, "classes": args.num_classes, "seed": args.seed or None}
    told_apart = "".join(f"_{key}_{value}" for key, value in also.items() if value is not None)
    return f"{name}_{args.method}_sampleNum_{budget}{told_apart}"


if __name__ == "__main__":
    run(main)
