"""The command line of the selection scripts: they differ in a few defaults, and in what they can leave unsaid."""

import argparse
from pathlib import Path

import numpy as np

from common.command_line import ArgumentParser, number
from common.files import atomic_file
from common.processes import launched
from common.subset_file import losses_file
from data_selection.activeft.known_samples import KnownSamples
from data_selection.activeft.selection import select
from data_selection.sample_tools.subset_command import add_pool_options, choose_subsets

PUBLISHED_BATCH_SIZE = 100_000  # of the ImageNet script


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
    parser.set_defaults(batch_size=None, slice=None)  # the whole pool at every iteration
    return parser


def subset_name(args: argparse.Namespace, budget: int) -> str:
    """The published name. (departure) A value it leaves out or rounds away is appended when it is no default."""
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
    return published + "".join(f"_{key}_{value}" for key, value in also.items() if value is not None)


def choose(args: argparse.Namespace) -> Path:
    """Run the selection that the options describe, alone or among the processes of torchrun.

    Returns: the path of the JSON of chosen indices, of the largest budget. The loss of every iteration is beside it.
    """
    with launched(args.device) as processes:

        def choose_one(features: np.ndarray, budget: int, known: KnownSamples, path: Path) -> list[int]:
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
                labeled=known.labeled,
                excluded=known.excluded,
                processes=processes,
                progress=True,
            )
            if processes.is_main:
                first, last = result.losses[0], result.losses[-1]
                print(f"loss {first:.6f} at the start, {last:.6f} at iteration {args.max_iter}")
                with atomic_file(losses_file(path)) as temporary:
                    temporary.write_text("".join(f"{loss:.6f}\n" for loss in result.losses))
            return result.indices

        return choose_subsets(args, choose_one, lambda budget: subset_name(args, budget), processes)
