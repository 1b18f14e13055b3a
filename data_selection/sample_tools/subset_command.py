"""Code shared by all selection scripts: options for pool and budget, the loop over budgets, and the files written."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.command_line import number, seed_number
from common.errors import InputError
from common.feature_file import description_file, in_words, read_description, read_features
from common.files import check_spares, make_output_dir
from common.pool_paths import PoolPaths, paths_file
from common.processes import Processes
from common.subset_file import (
    indices_checksum,
    losses_file,
    note_on_pool,
    provenance_file,
    provenance_of,
    read_labeled_ids,
    read_subset_ids,
    write_subset,
)
from data_selection.activeft.pool import Candidates, Pool, read_pool, read_rows
from data_selection.activeft.selection import Selection
from data_selection.evidence.duplicates import duplicate_of
from data_selection.sample_tools.subset_export import (
    add_export_options,
    check_exports,
    export,
    remove_stale_exports,
    represented,
)

Method = Callable[[Pool, int], Selection]
LONGEST_NAME = 230  # bytes; file systems allow 255, but the files beside it have longer names


def add_pool_options(parser: argparse.ArgumentParser, feature_path: str, percent: str) -> None:
    """Add the options of every selection script."""
    add = parser.add_argument
    add("--feature_path", default=feature_path, help=".npy of (n, d + 1), the label in the last column")
    add("--no-labels", action="store_true", help="--feature_path has no label column: (n, d)")
    add("--output_dir", default="features")
    add("--filename", help="name of the JSON of chosen indices; derived from the options when not given")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--percent", default=percent, type=percentage, help="budget, percent of the pool, rounded down")
    budget.add_argument("--number", type=number(int, 1), help="budget in images")
    nested = "several budgets in percent, as in 1,2,5: a subset for each, the smaller ones inside the larger"
    budget.add_argument("--nested", type=percentages, metavar="P,P,...", help=nested)
    add("--labeled_ids", nargs="+", help="labelled samples, JSON lists or CSVs (path,label), besides the budget")
    add("--exclude_ids", help="JSON list of samples never to choose; they still belong to the pool that is covered")
    alike = "choose at most one of images this similar, and none this similar to a labelled one; all stay covered"
    add("--drop_duplicates", type=number(float, above=0, maximum=1), metavar="COSINE", help=alike)
    add("--seed", default=0, type=seed_number)
    add_export_options(parser)
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")


def percentage(text: str) -> Fraction:
    """Parse an exact percentage in (0, 100]: as floats, 50000 * 2.3 * 0.01 would give 1149 samples."""
    try:
        # Check the size first: the fraction of 1e99999999 would take hours.
        percent = Fraction(text if "/" in text or 0 < float(text) <= 100 else 0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 100]")
    return percent


def percentages(text: str) -> list[Fraction]:
    """Parse ascending percentages separated by commas."""
    percents = [percentage(part.strip()) for part in text.split(",")]
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise argparse.ArgumentTypeError(f"{text} is not in ascending order")
    return percents


def budget_of(n: int, percent: Fraction) -> int:
    """Return k = n * percent / 100, rounded down. Raises InputError if that is 0."""
    budget = int(n * percent / 100)
    if budget < 1:
        raise InputError(
            f"a budget of {float(percent):g}% of {n} samples is less than one sample: at least {100 / n:.3g}% is needed"
        )
    return budget


def nested_budgets(n: int, percents: Sequence[Fraction]) -> list[int]:
    """Return the subsets' sizes, ascending. Raises InputError if two percentages are the same number of samples."""
    budgets = [budget_of(n, percent) for percent in percents]
    for smaller, larger in pairwise(budgets):
        if smaller == larger:
            raise InputError(f"--nested: two budgets are both {larger} of {n} samples: leave one of them out")
    return budgets


@dataclass(frozen=True)
class Request:
    """A selection to make: what to choose from, how many, and where to write them.

    features: (n, d), mapped from the file. budgets: ascending; each subset holds the smaller ones. paths: one JSON per
    budget. images: the pool's, if some are exported. provenance: the subsets', in the main process only.
    """

    args: argparse.Namespace
    features: np.ndarray
    candidates: Candidates
    budgets: list[int]
    paths: list[Path]
    images: PoolPaths | None
    provenance: dict[str, Any]


def read_request(args: argparse.Namespace, name: Callable[[int, int], str], processes: Processes) -> Request:
    """Read and check all that the options say about pool and budget.

    name: maps n and k to the name of the JSON of k of n samples, without its ending.
    Raises: InputError, before anything is written, if something is missing or does not fit together.
    """
    if args.filename and args.nested:
        raise InputError("--filename names one file, and --nested writes several: leave one of them out")
    features, _ = read_features(args.feature_path, labels=not args.no_labels)
    n, d = features.shape
    if description := read_description(args.feature_path):
        if args.no_labels and description["d"] != d:
            raise InputError(f"{args.feature_path} has {description['d']} features and a label: leave out --no-labels")
        processes.report(f"features of {in_words(description)}")
    budgets = [args.number] if args.number else nested_budgets(n, args.nested or [args.percent])
    # An empty name (from an unset shell variable) is an error, not "none".
    labeled, notes = read_labeled_ids(args.labeled_ids or (), args.feature_path, n, features)
    excluded = [] if args.exclude_ids is None else read_subset_ids(args.exclude_ids, n, "--exclude_ids")
    Candidates(n, tuple(labeled), tuple(excluded)).check(budgets[-1])
    if excluded:
        notes.append(note_on_pool(args.exclude_ids, excluded, n, features=features))
    for note in filter(None, notes):
        processes.report(note)
    if args.drop_duplicates:
        dropped = processes.from_main(
            lambda: near_duplicates(features, args.drop_duplicates, labeled, processes.device)
        )
        excluded = sorted({*excluded, *dropped})
        processes.report(f"--drop_duplicates {args.drop_duplicates}: {len(dropped)} of {n} images resemble others")
    candidates = Candidates(n, tuple(labeled), tuple(excluded))
    candidates.check(budgets[-1])
    names = [f"{name(n, k)}{suffix(candidates, budgets[:position])}.json" for position, k in enumerate(budgets)]
    paths = [Path(args.output_dir, own) for own in (names if args.filename is None else [args.filename])]
    check_names(args, paths)
    make_output_dir(paths[-1].parent)  # --filename may include a folder
    images = check_exports(args, n, paths)
    provenance = provenance_of(args, features) if processes.is_main else {}
    return Request(args, features, candidates, budgets, paths, images, provenance)


def check_names(args: argparse.Namespace, subsets: Sequence[Path]) -> None:
    """Raise InputError if a file to be written has an impossible name, or is one that is read."""
    for subset in subsets:
        if args.filename is not None and Path(args.filename).name in ("", ".."):
            raise InputError(f"--filename {args.filename!r} is not a file name")
        if len(os.fsencode(subset.name)) > LONGEST_NAME:
            remedy = "fewer budgets" if args.nested else "a shorter one with --filename"
            raise InputError(f"the file name {subset.name} is too long: give {remedy}")
    feature_file = Path(args.feature_path)
    lists = [*(args.labeled_ids or ()), args.exclude_ids, getattr(args, "core_ids", None)]
    check_spares(
        [file for subset in subsets for file in (subset, losses_file(subset), provenance_file(subset))],
        [feature_file, description_file(feature_file), paths_file(feature_file), *filter(None, lists)],
    )


def near_duplicates(features: np.ndarray, similarity: float, labeled: Sequence[int], device: torch.device) -> list[int]:
    """Return the samples at least this similar to a labelled or an earlier one."""
    group = duplicate_of(read_rows(features, device), similarity, labeled).cpu()
    return (group != torch.arange(len(group))).nonzero().squeeze(1).tolist()


def suffix(candidates: Candidates, smaller_budgets: Sequence[int]) -> str:
    """Return a suffix that tells apart subsets with other labelled or excluded samples, or other smaller budgets."""
    listed = {"labeled": candidates.labeled, "excluded": candidates.excluded, "around": smaller_budgets}
    return "".join(f"_{name}_{named(indices)}" for name, indices in listed.items() if indices)


def named(indices: Sequence[int]) -> str:
    """Return the part of a file name that stands for samples: how many they are, and a checksum."""
    return f"{len(indices)}_{indices_checksum(indices)}"


def select_subsets(request: Request, method: Method, processes: Processes, unit: bool = True) -> Path:
    """Choose and write the subset of each budget.

    Args:
        method: called in every process; all get the same indices. unit: whether it takes L2-normalised features.
    Returns: the path of the JSON of chosen indices for the largest budget.
    """
    pool = read_pool(request.features, request.candidates, processes, unit)
    chosen: list[int] = []
    for budget, path in zip(request.budgets, request.paths, strict=True):
        selection = method(Pool(pool.rows, pool.candidates.beside(chosen), processes), budget - len(chosen))
        chosen = sorted(chosen + selection.indices)
        represents: dict[int, int] = {}
        if request.args.export_csv or request.args.export_tasks:
            represents = represented(pool, [*request.candidates.labeled, *chosen], unit)
        if processes.is_main:
            remove_stale_exports(path, chosen)
            write_subset(path, chosen, selection.losses, request.provenance)
            print(f"wrote {len(chosen)} of {pool.n} indices to {path}")
            if request.images:
                export(request.args, request.images, path, chosen, represents)
    return request.paths[-1]
