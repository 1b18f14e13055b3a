"""The command line of the selection scripts: they differ in a few defaults, and in what they can leave unsaid."""

import argparse
from fractions import Fraction
from pathlib import Path

from activeft.selection import select
from common.command_line import ArgumentParser, InputError, number
from common.output_files import make_output_dir, whole_file, write_json
from common.processes import Processes, launched
from feature_file import read_features, read_image_paths

PUBLISHED_BATCH_SIZE = 100_000  # of the ImageNet script


def add_pool_options(parser: argparse.ArgumentParser, feature_path: str, percent: str) -> None:
    """The options that every way of choosing a subset has."""
    parser.add_argument("--feature_path", default=feature_path, help=".npy of (n, d + 1), the label in the last column")
    parser.add_argument("--output_dir", default="features")
    parser.add_argument(
        "--filename", help="name of the JSON of chosen indices; derived from the options when not given"
    )
    parser.add_argument(
        "--percent", default=percent, type=percentage, help="budget in percent of the pool, rounded down"
    )
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument(
        "--export_paths", action="store_true", help="write the chosen images' paths beside the JSON, one a line"
    )


def selection_parser(description: str, feature_path: str, percent: str, max_iter: int) -> argparse.ArgumentParser:
    parser = ArgumentParser(description)
    add_pool_options(parser, feature_path, percent)
    parser.add_argument("--temperature", default=0.07, type=number(float, above=0), help="tau")
    parser.add_argument(
        "--threshold",
        default=0.0001,
        type=float,
        help="read by nothing, as in the published code: max_iter alone ends it",
    )
    parser.add_argument("--max_iter", default=max_iter, type=number(int, 1))
    parser.add_argument("--lr", default=0.001, type=number(float, above=0), help="learning rate of Adam")
    parser.add_argument("--init", default="random", choices=["random", "fps"], help="fps is farthest point sampling")
    parser.add_argument("--distance", default="euclidean", choices=["euclidean", "cosine"], help="of fps, nothing else")
    parser.add_argument("--scheduler", default="none", choices=["none", "cosine"], help="of the learning rate")
    parser.add_argument("--balance", default=1.0, type=number(float, 0), help="lambda, weight of the repulsion")
    parser.add_argument("--device", default="auto", help="auto is cuda, then mps, then cpu")
    parser.set_defaults(batch_size=None, slice=None)  # the whole pool at every iteration
    return parser


def percentage(text: str) -> Fraction:
    """An exact percentage in (0, 100]: as floats, 50000 * 2.3 * 0.01 would give 1149 samples."""
    try:
        percent = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < percent <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 100]")
    return percent


def budget_of(n: int, percent: Fraction) -> int:
    """k = n * percent / 100 rounded down. Raises InputError when nothing is left."""
    budget = int(n * percent / 100)
    if budget < 1:
        raise InputError(
            f"--percent {float(percent):g} of {n} samples is less than one: at least {100 / n:.3g} is needed"
        )
    return budget


def subset_filename(args: argparse.Namespace, budget: int) -> str:
    """The published file name. (departure) A value it leaves out or rounds away is appended when it is no default."""
    name = Path(args.feature_path).name.removesuffix(".npy")
    balance = f"_br_{args.balance:.2f}" if args.balance != 1 else ""
    published = (
        f"{name}_ActiveFT_{args.distance}_temp_{args.temperature:.2f}_lr_{args.lr:f}_scheduler_{args.scheduler}"
        f"{balance}_iter_{args.max_iter}_sampleNum_{budget}"
    )
    also = {
        "init": args.init if args.init != "random" else None,
        "seed": args.seed or None,
        "temp": args.temperature if float(f"{args.temperature:.2f}") != args.temperature else None,
        "lr": args.lr if float(f"{args.lr:f}") != args.lr else None,
        "br": args.balance if float(f"{args.balance:.2f}") != args.balance else None,
        "batch": args.batch_size if args.batch_size != PUBLISHED_BATCH_SIZE else None,
    }
    return published + "".join(f"_{key}_{value}" for key, value in also.items() if value is not None) + ".json"


def write_subset(args: argparse.Namespace, indices: list[int], filename: str, n: int) -> Path:
    """Write the chosen indices as one JSON list, and their images' paths when asked. Returns the JSON's path."""
    path = Path(args.output_dir) / filename
    write_json(path, indices)
    print(f"wrote {len(indices)} of {n} indices to {path}")
    if args.export_paths:
        images = read_image_paths(args.feature_path, n)
        listing = path.with_name(f"{path.stem}_paths.txt")
        with whole_file(listing) as temporary:
            temporary.write_text("".join(f"{images[index]}\n" for index in indices))
        print(f"wrote the paths of the chosen images to {listing}")
    return path


def choose(args: argparse.Namespace) -> Path:
    """Run the selection that the options describe, alone or among the processes of torchrun.

    Returns: the path of the JSON of chosen indices.
    """
    with launched(args.device) as processes:
        return _choose(args, processes)


def _choose(args: argparse.Namespace, processes: Processes) -> Path:
    features, _ = read_features(args.feature_path)
    n = len(features)
    budget = budget_of(n, args.percent)
    make_output_dir(args.output_dir)
    if args.export_paths:
        read_image_paths(args.feature_path, n)
    result = select(
        features,
        budget,
        temperature=args.temperature,
        balance=args.balance,
        lr=args.lr,
        max_iter=args.max_iter,
        init=args.init,
        distance=args.distance,
        scheduler=args.scheduler,
        batch_size=args.batch_size,
        chunk=args.slice,
        seed=args.seed,
        processes=processes,
        progress=True,
    )
    path = Path(args.output_dir) / (args.filename or subset_filename(args, budget))
    if not processes.is_main:
        return path
    print(f"loss {result.losses[0]:.6f} at the start, {result.losses[-1]:.6f} at iteration {args.max_iter}")
    return write_subset(args, result.indices, path.name, n)
