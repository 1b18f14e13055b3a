"""Code shared by the two ActiveFT scripts: they differ in a few defaults, and in the options for large pools."""

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path

from common.command_line import ArgumentParser, number
from common.processes import launched
from data_selection.activeft import reference, selection
from data_selection.activeft.pool import Pool
from data_selection.activeft.selection import Selection, Settings
from data_selection.sample_tools.subset_command import Request, add_pool_options, read_request, select_subsets

PUBLISHED_BATCH_SIZE = 100_000  # in the ImageNet script


def selection_parser(description: str, feature_path: str, percent: str, max_iter: int) -> argparse.ArgumentParser:
    parser = ArgumentParser(description)
    add_pool_options(parser, feature_path, percent)
    add = parser.add_argument
    add("--temperature", default=0.07, type=number(float, above=0), help="tau")
    add("--threshold", default=0.0001, type=float, help="accepted for compatibility; has no effect")
    add("--max_iter", default=max_iter, type=number(int, 1))
    add("--lr", default=0.001, type=number(float, above=0, maximum=1e6), help="learning rate of Adam")
    add("--init", default="random", choices=["random", "fps"], help="fps is farthest point sampling")
    add("--distance", default="euclidean", choices=["euclidean", "cosine"], help="distance used by --init fps only")
    add("--scheduler", default="none", choices=["none", "cosine"], help="schedule of the learning rate")
    add("--balance", default=1.0, type=number(float, 0, maximum=1e6), help="lambda, weight of the repulsion")
    add("--reference", action="store_true", help="run activeft/reference.py, the paper in plain code, on a small pool")
    parser.set_defaults(batch_size=None, chunk=None)  # the whole pool at every iteration
    return parser


def subset_name(args: argparse.Namespace, n: int, budget: int) -> str:
    """Return the published name. (departure) Values that it omits or rounds are appended unless they are defaults."""
    name = Path(args.feature_path).name.removesuffix(".npy")
    balance = f"_br_{args.balance:.2f}" if args.balance != 1 else ""
    published = (
        f"{name}_ActiveFT_{args.distance}_temp_{args.temperature:.2f}_lr_{args.lr:f}_scheduler_{args.scheduler}"
        f"{balance}_iter_{args.max_iter}_sampleNum_{budget}"
    )
    whole_pool = None if n <= PUBLISHED_BATCH_SIZE else "all"  # from a larger pool, the ImageNet script draws batches
    also = {
        "init": args.init if args.init != "random" else None,
        "seed": args.seed or None,
        "temp": args.temperature if float(f"{args.temperature:.2f}") != args.temperature else None,
        "lr": args.lr if float(f"{args.lr:f}") != args.lr else None,
        "br": args.balance if float(f"{args.balance:.2f}") != args.balance else None,
        "batch": None if args.batch_size == PUBLISHED_BATCH_SIZE else args.batch_size or whole_pool,
        "reference": "loss" if args.reference else None,
    }
    return published + "".join(f"_{key}_{value}" for key, value in also.items() if value is not None)


def select_with_activeft(args: argparse.Namespace) -> Path:
    """Run the selection that the options describe, alone or among the processes of torchrun.

    Returns: the path of the JSON of chosen indices for the largest budget. Beside it is the loss of every iteration.
    """
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})

    def optimise(pool: Pool, budget: int) -> Selection:
        if args.reference:
            result = reference.optimise(pool, budget, settings)
        else:
            result = selection.optimise(pool, budget, settings, progress=True)
        if pool.processes.is_main:
            first, last = result.losses[0], result.losses[-1]
            print(f"loss {first:.6f} at the start, {last:.6f} at iteration {args.max_iter}")
        return result

    with launched(args.device) as processes:
        request = read_request(args, partial(subset_name, args), processes)
        if processes.is_main and not args.reference:  # the estimate does not apply to the reference
            print(estimate(request, settings, processes.size), flush=True)
        return select_subsets(request, optimise, processes)


def estimate(request: Request, settings: Settings, processes: int) -> str:
    """Return the memory that a process will need, in words."""
    n, d = request.features.shape
    rows = -(-n // processes)
    batch_rows = min(rows, -(-(settings.batch_size or n) // processes))
    k = request.budgets[-1]
    needed = selection.memory_bytes(rows, batch_rows, d, k + len(request.candidates.labeled))
    return f"{n} x {d} features, {k} to choose: about {needed / 1e9:.2f} GB of memory"
