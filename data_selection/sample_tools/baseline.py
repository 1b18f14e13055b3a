"""Stage 2 with other methods, to compare ActiveFT with: the same options, files and seeds.

    python sample_tools/baseline.py --method kmeans --feature_path features/CIFAR10_train.npy --percent 2

writes features/CIFAR10_train_kmeans_sampleNum_1000.json: the chosen indices, one ascending JSON list.

    python sample_tools/baseline.py --list

prints what each method does, needs and costs: from 2 seconds to minutes on one core of an AMD EPYC.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.feature_file import read_features
from common.processes import launched
from common.subset_file import read_subset_ids
from data_selection.activeft.pool import Pool
from data_selection.activeft.selection import Selection
from data_selection.baselines.methods import BASELINES, listing
from data_selection.sample_tools.subset_command import add_pool_options, named, read_request, select_subsets

METHODS = tuple(BASELINES)
CORE_METHODS = tuple(name for name in METHODS if name not in ("bilaf", "coreset"))  # coreset on unit rows is fds
MOST_DISTANT = 2.0  # largest distance between unit rows
SHORT = {"num_classes": "classes"}  # names of options in file names


class PrintList(argparse.Action):
    """Print the list of methods, and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(listing())
        parser.exit()


def baseline_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser("Choose the images to label with a method other than ActiveFT.")
    parser.add_argument("--method", required=True, choices=METHODS)
    listed = "say what each method does, needs and costs, and exit"
    parser.add_argument("--list", nargs=0, action=PrintList, default=argparse.SUPPRESS, help=listed)
    add_pool_options(parser, feature_path="features/CIFAR10_train.npy", percent="2")
    add = parser.add_argument_group("options of one method").add_argument
    radius = number(float, minimum=0.002, below=MOST_DISTANT)  # a smaller ball may miss its centre by rounding
    add("--delta", type=radius, help="radius of probcover's balls; when not given, the largest with 95 percent pure")
    add("--num_classes", type=number(int, 2), help="classes to estimate --delta from; when not given, as in the labels")
    add("--sigma", type=number(float, minimum=0.01), help="width of maxherding's kernel; when not given, 1")
    core = "core samples of bilaf; when not given, 50 or 0.5 percent of the pool, at most half of the budget"
    add("--core_number", type=number(int, 2), help=core)
    add("--core_ids", help="JSON list of bilaf's core samples")
    add("--core_method", choices=CORE_METHODS, help="method that selects bilaf's core; when not given, ActiveFT")
    add("--neighbours", type=number(int, 1), help="nearest samples for a density in usl; when not given, 20")
    add("--repulsion", type=number(float, 0), help="weight of usl's repulsion; when not given, 0.05")
    add("--alpha", type=number(float, above=0), help="usl's repulsion is 1 / distance^(2 alpha); when not given, 1")
    add("--rounds", type=number(int, 0), help="number of times that usl chooses anew; when not given, 2")
    return parser


def select_indices(args: argparse.Namespace, pool: Pool, k: int, method: str) -> list[int]:
    """Choose k distinct indices by one of the methods. Its module is loaded only here: scikit-learn is slow to load."""
    function = resolve_name(BASELINES[method].function)
    if method == "random":
        return function(pool.candidates, k, args.seed)
    if method in ("fds", "coreset"):
        return function(pool, k, args.seed, progress=True)
    options = {option: getattr(args, option) for option in BASELINES[method].options}
    options = {option: value for option, value in options.items() if value is not None}
    if method == "probcover":
        from data_selection.baselines.probcover import purest_radius

        delta = args.delta or purest_radius(pool.rows, number_of_classes(args), args.seed)
        options = {"radius": delta}
    if core_method := options.pop("core_method", None):
        options["select_core"] = lambda pool, count: select_indices(args, pool, count, core_method)
    if "core_ids" in options:
        options["core_ids"] = read_core_ids(args)
    return function(pool, k, args.seed, **options)


def read_core_ids(args: argparse.Namespace) -> list[int]:
    return read_subset_ids(args.core_ids, len(labels_of(args)), "--core_ids")


def labels_of(args: argparse.Namespace) -> Sequence[int]:
    """Read the label of each sample of the pool (n,), -1 if unknown."""
    return read_features(args.feature_path, labels=not args.no_labels)[1]


def number_of_classes(args: argparse.Namespace) -> int:
    """Return how many classes the task has, as given or as the labels tell. Raises InputError if they do not."""
    labels = labels_of(args)
    classes = args.num_classes or len({*labels[labels >= 0].tolist()})
    if classes < 2:
        raise InputError(
            f"--num_classes is needed: the labels of {args.feature_path} do not tell how many classes there are"
        )
    return classes


def check(args: argparse.Namespace) -> None:
    """Raise InputError if options do not go together, or do not fit the pool."""
    used = {args.method, args.core_method}
    for method, baseline in BASELINES.items():
        given = [option for option in baseline.options if getattr(args, option) is not None]
        if given and method not in used:
            raise InputError(
                f"--{given[0]} only applies to --method {method}: leave it out with --method {args.method}"
            )
    for one, other, why in (
        ("num_classes", "delta", "is for estimating --delta"),
        ("core_ids", "core_number", "is the core itself"),
        ("core_ids", "core_method", "is the core itself"),
    ):
        if getattr(args, one) is not None and getattr(args, other) is not None:
            raise InputError(f"--{one} {why}, and --{other} was given: leave one of them out")
    if args.core_ids is not None:
        read_core_ids(args)
    if "probcover" in used and not args.delta:
        classes, n = number_of_classes(args), len(labels_of(args))
        if classes > n:
            raise InputError(f"--num_classes {classes} is more than the {n} samples of {args.feature_path}")


def main(argv: list[str] | None = None) -> Path:
    """Run the selection; return the path of the JSON of chosen indices for the largest budget."""
    args = baseline_parser().parse_args(argv)
    check(args)
    with launched(args.device) as processes:
        if processes.size > 1:
            raise InputError(f"baselines run in one process, not in {processes.size}")
        request = read_request(args, partial(subset_name, args), processes)
        method = lambda pool, k: Selection(select_indices(args, pool, k, args.method))  # noqa: E731
        return select_subsets(request, method, processes, unit=args.method != "coreset")


def subset_name(args: argparse.Namespace, n: int, budget: int) -> str:
    name = Path(args.feature_path).name.removesuffix(".npy")
    also = {
        SHORT.get(option, option): getattr(args, option) for method in BASELINES.values() for option in method.options
    }
    if args.core_ids is not None:
        also["core_ids"] = named(read_core_ids(args))
    also["seed"] = args.seed or None
    told_apart = "".join(f"_{key}_{value}" for key, value in also.items() if value is not None)
    return f"{name}_{args.method}_sampleNum_{budget}{told_apart}"


if __name__ == "__main__":
    run(main)
