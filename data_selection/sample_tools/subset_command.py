"""What every way of choosing a subset shares: the pool, budgets, what is known before, and the files that come out."""

import argparse
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np

from common.command_line import seed_number
from common.errors import InputError
from common.feature_file import read_features, read_image_paths
from common.files import atomic_file, make_output_dir, write_json
from common.processes import Processes
from common.subset_file import read_subset_ids
from data_selection.activeft.known_samples import KnownSamples

# (features (n, d), budget, what is known, path of the JSON to come) -> indices, ascending
Choose = Callable[[np.ndarray, int, KnownSamples, Path], list[int]]


def add_pool_options(parser: argparse.ArgumentParser, feature_path: str, percent: str) -> None:
    """The options that every way of choosing a subset has."""
    add = parser.add_argument
    add("--feature_path", default=feature_path, help=".npy of (n, d + 1), the label in the last column")
    add("--output_dir", default="features")
    add("--filename", help="name of the JSON of chosen indices; derived from the options when not given")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--percent", default=percent, type=percentage, help="budget in percent of the pool, rounded down"
    )
    budget.add_argument(
        "--nested",
        type=percentages,
        metavar="P,P,...",
        help="several budgets, as in 1,2,5: a subset for each, the smaller ones inside the larger",
    )
    add("--labeled_ids", help="JSON list of samples that have labels: they count as chosen, beside the budget")
    add("--exclude_ids", help="JSON list of samples never to choose; they still belong to the pool that is covered")
    add("--seed", default=0, type=seed_number)
    add("--export_paths", action="store_true", help="write the chosen images' paths beside the JSON, one a line")
    add("--device", default="auto", help="auto is cuda, then mps, then cpu")


def percentage(text: str) -> Fraction:
    """An exact percentage in (0, 100]: as floats, 50000 * 2.3 * 0.01 would give 1149 samples."""
    try:
        percent = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 100]")
    return percent


def percentages(text: str) -> list[Fraction]:
    """Ascending percentages, separated by commas."""
    percents = [percentage(part.strip()) for part in text.split(",")]
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise argparse.ArgumentTypeError(f"{text} is not in ascending order")
    return percents


def budget_of(n: int, percent: Fraction) -> int:
    """k = n * percent / 100 rounded down. Raises InputError when nothing is left."""
    budget = int(n * percent / 100)
    if budget < 1:
        raise InputError(
            f"a budget of {float(percent):g}% of {n} samples is less than one: at least {100 / n:.3g}% is needed"
        )
    return budget


def nested_budgets(n: int, percents: Sequence[Fraction]) -> list[int]:
    """The sizes of the subsets, ascending. Raises InputError where two percentages are the same number of samples."""
    budgets = [budget_of(n, percent) for percent in percents]
    for smaller, larger in pairwise(budgets):
        if smaller == larger:
            raise InputError(f"--nested: two of the budgets are {larger} of {n} samples: leave one of them out")
    return budgets


def read_known_samples(args: argparse.Namespace, n: int) -> KnownSamples:
    # An empty name, of a shell variable that is not set, is an error and not "none".
    labeled = read_subset_ids(args.labeled_ids, n, "--labeled_ids") if args.labeled_ids is not None else []
    excluded = read_subset_ids(args.exclude_ids, n, "--exclude_ids") if args.exclude_ids is not None else []
    return KnownSamples(tuple(labeled), tuple(excluded))


def choose_subsets(
    args: argparse.Namespace,
    choose: Choose,
    filename: Callable[[int], str],
    processes: Processes,
) -> Path:
    """Choose and write a subset for each budget that the options ask for.

    Args:
        choose: called in every process; all get the same indices.
        filename: the JSON's name for a budget, without its ending, when the options give none.
    Returns: the path of the JSON of chosen indices, of the largest budget.
    """
    if args.filename and args.nested:
        raise InputError("--filename names one file, and --nested writes several: leave one of them out")
    features, _ = read_features(args.feature_path)
    n = len(features)
    budgets = nested_budgets(n, args.nested or [args.percent])
    known = read_known_samples(args, n)
    known.check(n, budgets[-1])
    names = [
        args.filename or f"{filename(budget)}{suffix(known, budgets[:position])}.json"
        for position, budget in enumerate(budgets)
    ]
    paths = [Path(args.output_dir, name) for name in names]
    make_output_dir(paths[-1].parent)  # --filename may name a folder as well
    images = read_image_paths(args.feature_path, n) if args.export_paths else None
    chosen: list[int] = []
    for budget, path in zip(budgets, paths, strict=True):
        more = choose(features, budget - len(chosen), known.and_labeled(chosen), path)
        chosen = sorted(chosen + more)
        if processes.is_main:
            write_subset(path, chosen, n, images)
    return paths[-1]


def suffix(known: KnownSamples, smaller_budgets: Sequence[int]) -> str:
    """What tells apart subsets that were chosen with other samples known, or around other smaller ones."""
    listed = {"labeled": known.labeled, "excluded": known.excluded, "around": smaller_budgets}
    return "".join(
        f"_{name}_{len(indices)}_{crc32(str(sorted(indices)).encode()):08x}"
        for name, indices in listed.items()
        if indices
    )


def write_subset(path: Path, indices: list[int], n: int, images: Sequence[Path] | None) -> None:
    """Write the chosen indices as one JSON list, and their images' paths when those of the pool are given."""
    write_json(path, indices)
    print(f"wrote {len(indices)} of {n} indices to {path}")
    if images:
        listing = path.with_name(f"{path.stem}_paths.txt")
        with atomic_file(listing) as temporary:
            temporary.write_bytes(b"".join(os.fsencode(images[index]) + b"\n" for index in indices))  # in any encoding
        print(f"wrote the paths of the chosen images to {listing}")
