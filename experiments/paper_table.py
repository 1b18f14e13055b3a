"""The paper's table, measured: methods x budgets x seeds through selection, finetuning and readouts.

    python experiments/paper_table.py --dataset digits      # make table: a quarter of an hour on 2 cores, offline
    python experiments/paper_table.py --dataset CIFAR10     # one GPU per command, as many at a time as there are GPUs
    python experiments/paper_table.py --dataset CIFAR100 --methods activeft random --percents 2 5 --seeds 0 1 2 3 4
    python experiments/paper_table.py --dataset ImageNet --data_path ~/data     # ~/data/ImageNet/{train,val}/<class>/*
    python experiments/paper_table.py --dataset Folder --data_path ~/birds      # ~/birds/{train,val}/<class>/*
    python experiments/paper_table.py --dataset ADE20K                          # segmentation: mean IoU

runs the documented commands, prints each, and writes into --output_dir table.md, table.json (every single accuracy
with its commands) and accuracy.png; for CIFAR, ImageNet and ADE20K the table shows the published numbers beside the
measured ones. --dry_run prints the commands alone. On the digits, ActiveFT's 2% should come to about 77% finetuned.

Each command has a folder with its log. After Ctrl-C, SIGTERM or a kill the same command goes on where it was: what is
finished is not run again, a finetuning is resumed from its checkpoint. What was made with other options is made again.
Of a finished finetuning log and accuracies are kept, its checkpoints are not.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run, seed_number
from common.errors import InputError
from common.files import atomic_file, make_output_dir, scenes_name, write_json
from common.processors import worker_count
from deit.recipe_options import parse_args as parse_finetuning_options
from experiments.cells import Comparison, Result
from experiments.plots import plot_accuracies
from experiments.protocols import METHODS, OUTPUT, PROTOCOLS, READOUTS, Protocol
from experiments.table import columns_of, markdown
from segmenter.recipe_options import parse_args as parse_segmentation_options


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Protocol]:
    """Returns: the options, and the protocol that they make."""
    parser = ArgumentParser("Measure the paper's table.")
    add = parser.add_argument
    add("--dataset", default="digits", choices=PROTOCOLS)
    add("--methods", nargs="+", choices=METHODS, help="the data set's protocol says, when not given; so below")
    add("--percents", nargs="+", type=number(float, above=0, maximum=100), help="budgets in percent of the pool")
    add("--seeds", nargs="+", type=seed_number)
    add("--readouts", nargs="+", choices=READOUTS)
    add(
        "--data_path",
        type=Path,
        help="where CIFAR is downloaded to and ImageNet/ lies; with Folder or ADE20K, the folder",
    )
    add("--output_dir", type=Path)
    add("--arch", help="any timm name, of --pretrained_weights; DINO's ViT-S/16 when not given")
    add("--pretrained_weights", dest="weights", type=Path, help="of the network; DINO's are downloaded when not given")
    add("--model_kwargs", "--model-kwargs", nargs="+", metavar="KEY=VALUE", help="of the network, as in its scripts")
    add(
        "--finetuning_options",
        default="",
        help='more options of main.py, as in --finetuning_options="--epochs 300"',
    )
    add("--jobs", type=number(int, 1), help="commands at a time; the number of GPUs, or of cores, when not given")
    add("--dry_run", action="store_true", help="print the commands, and run nothing")
    args = parser.parse_args(argv)
    return args, protocol_of(args)


def protocol_of(args: argparse.Namespace) -> Protocol:
    """The data set's protocol, changed as the options say. Raises InputError where they cannot be used."""
    if args.weights and not args.weights.is_file():
        raise InputError(f"--pretrained_weights {args.weights} is not there")
    if args.arch and not args.weights:
        raise InputError(f"--arch {args.arch} needs --pretrained_weights, its pretrained backbone")
    protocol = PROTOCOLS[args.dataset]
    changes = {
        name: tuple(dict.fromkeys(getattr(args, name)))
        for name in ("methods", "percents", "seeds", "readouts")
        if getattr(args, name)
    }
    if args.dataset == "Folder":
        if not args.data_path or not (args.data_path / "train").is_dir() or not (args.data_path / "val").is_dir():
            raise InputError(
                f"--dataset Folder needs --data_path with train/<class>/* and val/<class>/*, not {args.data_path}"
            )
        changes["output_dir"] = OUTPUT / args.data_path.resolve().name
    if args.dataset == "ADE20K":
        if "knn" in changes.get("readouts", ()):
            raise InputError("--readouts knn is of images with one label each: for segmentation, finetuned and linear")
        if args.data_path:
            changes["output_dir"] = OUTPUT / scenes_name(args.data_path)
    changes |= {name: getattr(args, name) for name in ("data_path", "output_dir", "weights") if getattr(args, name)}
    if args.arch:
        changes |= {"arch": args.arch, "model": args.arch}
    if args.model_kwargs:
        changes["model_kwargs"] = shlex.join(args.model_kwargs)
    if args.finetuning_options:
        check_finetuning_options(args.finetuning_options, protocol.trainer)
        changes["finetuning"] = f"{protocol.finetuning} {args.finetuning_options}"
    return replace(protocol, **changes)


def check_finetuning_options(options: str, trainer: str) -> None:
    """Raises InputError now, not after features and subsets, for what the trainer's main.py would not take."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--finetuning_options {options!r} cannot be split into words: {error}") from None
    parse_options = {"deit": parse_finetuning_options, "segmenter": parse_segmentation_options}[trainer]
    parse_options(words)


def slots_for(protocol: Protocol, jobs: int | None) -> list[Mapping[str, str]]:
    """The environment of each command that runs at a time: a GPU of its own, or its share of the processor cores."""
    gpus = visible_gpus() if protocol.on_gpus else []
    cores = worker_count(os.cpu_count() or 1)
    count = jobs or len(gpus) or (1 if protocol.on_gpus else cores)
    share = max(1, cores // count)
    # Read when the commands' processes load torch and scikit-learn.
    os.environ["OMP_NUM_THREADS"] = str(min(share, int(os.environ.get("OMP_NUM_THREADS", share))))
    return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {} for slot in range(count)]


def visible_gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*map(str, range(torch.cuda.device_count()))] if given is None else [gpu for gpu in given.split(",") if gpu]


def write_table(protocol: Protocol, results: list[Result]) -> None:
    """Print the table, and write it as text, as numbers and as a picture."""
    output_dir = make_output_dir(protocol.output_dir)
    table = markdown(protocol.pool, results, len(protocol.seeds), protocol.finetuning, protocol.score)
    print(f"\n{table}")
    with atomic_file(output_dir / "table.md") as temporary:
        temporary.write_text(table)
    records = [asdict(result) for result in results]
    table_json = [{**record.pop("cell"), protocol.metric: record.pop("score"), **record} for record in records]
    write_json(output_dir / "table.json", table_json, indent=1)
    plot_accuracies(protocol.pool, columns_of(results), output_dir / "accuracy.png", protocol.score)
    print(f"wrote table.md, table.json and accuracy.png to {output_dir}")


def main(argv: list[str] | None = None) -> None:
    args, protocol = parse_args(argv)
    comparison = Comparison(protocol)
    if args.dry_run:
        print("\n".join(comparison.commands))
        return
    make_output_dir(protocol.output_dir)
    try:
        comparison.run(slots_for(protocol, args.jobs))
    finally:  # a table of what there is, when it is stopped
        if results := comparison.results():
            write_table(protocol, results)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    run(main)
