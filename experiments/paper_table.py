"""The paper's table, measured: methods x budgets x seeds through selection, finetuning and readouts.

    python experiments/paper_table.py --dataset digits      # make table: about an hour on 2 cores, offline
    python experiments/paper_table.py --dataset CIFAR10     # one GPU per command, as many at a time as there are GPUs
    python experiments/paper_table.py --dataset CIFAR100 --methods activeft random --percents 2 5 --seeds 0 1 2 3 4
    python experiments/paper_table.py --dataset ImageNet --data_path ~/data     # ~/data/ImageNet/{train,val}/<class>/*
    python experiments/paper_table.py --dataset Folder --data_path ~/birds      # ~/birds/{train,val}/<class>/*
    python experiments/paper_table.py --dataset Folder --data_path ~/birds --numbers 50 250 1000 --readouts linear knn \
        --methods random kmeans maxherding activeft --arch vit_small_patch14_dinov2.lvd142m
    python experiments/paper_table.py --dataset ADE20K                          # segmentation: mean IoU

prints and runs the documented commands, and writes into --output_dir table.md, table.json (every single accuracy with
its commands) and accuracy.png; for CIFAR, ImageNet and ADE20K the table shows the published numbers beside the measured
ones. --dry_run only prints the commands. On the digits, ActiveFT at 2% should reach about 77% finetuned.

Each command has a folder with its log. After Ctrl-C, SIGTERM or a kill, the same paper_table.py command continues:
finished commands are not run again, and a finetuning resumes from its checkpoint. Results made with other options are
made again. A finished finetuning keeps its log and accuracies, but not its checkpoints.
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run, seed_number
from common.cpus import worker_count
from common.errors import InputError
from common.files import atomic_file, locked, make_output_dir, scenes_name, split_folder, write_json
from deit.recipe_options import parse_args as parse_finetuning_options
from experiments.protocols import METHODS, OUTPUT, PROTOCOLS, READOUTS, Protocol
from segmenter.recipe_options import parse_args as parse_segmentation_options

if TYPE_CHECKING:
    from experiments.results import Result


# Options of main.py that the table sets itself.
SET_BY_THE_TABLE = (
    "--resume", "--subset_ids", "--data-path", "--output_dir", "--seed", "--recipe", "--model", "--model-kwargs",
    "--data-set", "--probe", "--eval", "--auto-resume",
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, Protocol]:
    """Returns: the options, and the protocol that they describe."""
    percent = number(float, above=0, maximum=100)
    parser = ArgumentParser("Measure the paper's table.")
    add = parser.add_argument
    add("--dataset", default="digits", choices=PROTOCOLS)
    add("--methods", nargs="+", choices=METHODS, help="if not given, the data set's protocol decides; likewise below")
    budgets = parser.add_mutually_exclusive_group()
    budgets.add_argument("--percents", nargs="+", type=percent, help="budgets in percent of the pool")
    budgets.add_argument("--numbers", nargs="+", type=number(int, 1), help="budgets in images, instead")
    add("--seeds", nargs="+", type=seed_number)
    add("--readouts", nargs="+", choices=READOUTS, help="finetuned: by the published recipe")
    add("--data_path", type=Path, help="folder of CIFAR (downloaded) or ImageNet/; Folder, ADE20K: the folder itself")
    add("--output_dir", type=Path)
    add("--arch", help="any timm name; if not given, DINO's ViT-S/16; runs of main.py need its --pretrained_weights")
    add("--pretrained_weights", dest="weights", type=Path, help="the network's; if not given, DINO's are downloaded")
    add("--model_kwargs", nargs="+", metavar="KEY=VALUE", help="timm's keywords for the network, as in the scripts")
    add("--finetuning_options", default="", help='added to the published recipe: --finetuning_options="--epochs 300"')
    add("--few_labels_options", default="", help="likewise, added to --recipe few-labels")
    add("--jobs", type=number(int, 1), help="commands at a time; if not given, one per GPU or per core")
    add("--dry_run", action="store_true", help="print the commands, and run nothing")
    args = parser.parse_args(argv)
    return args, protocol_of(args)


def protocol_of(args: argparse.Namespace) -> Protocol:
    """Return the data set's protocol, changed as the options say. Raises InputError if they cannot be used."""
    if args.weights and not args.weights.is_file():
        raise InputError(f"--pretrained_weights {args.weights} is not there")
    protocol = PROTOCOLS[args.dataset]
    changes = {
        name: tuple(dict.fromkeys(getattr(args, name)))
        for name in ("methods", "percents", "numbers", "seeds", "readouts")
        if getattr(args, name)
    }
    if args.dataset == "Folder":
        if not args.data_path or not all(split_folder(args.data_path, train).is_dir() for train in (True, False)):
            raise InputError(
                "--dataset Folder needs --data_path with train/<class>/* and val/<class>/* or test/<class>/*, not "
                f"{args.data_path}"
            )
        name = args.data_path.resolve().name
        changes["output_dir"] = OUTPUT / (f"Folder_{name}" if name in PROTOCOLS else name)
    if args.dataset == "ADE20K":
        if classification := {"knn", "few-labels"}.intersection(changes.get("readouts", ())):
            raise InputError(
                f"--readouts {min(classification)} needs images with one label each: for segmentation use finetuned or "
                "linear"
            )
        if args.few_labels_options:
            raise InputError("--few_labels_options is for images with one label each, and has no effect here")
        if args.data_path:
            changes["output_dir"] = OUTPUT / scenes_name(args.data_path)
    given = {name: getattr(args, name) for name in ("data_path", "output_dir", "weights")}
    changes |= {name: path.resolve() for name, path in given.items() if path}  # commands run in other folders
    if args.arch:
        if not args.weights and any(map(protocol.is_run, changes.get("readouts", protocol.readouts))):
            raise InputError(
                f"--arch {args.arch} needs --pretrained_weights, its pretrained backbone: main.py downloads none; or "
                "ask for --readouts linear knn alone"
            )
        from data_selection.backbones import timm_name  # with timm, seconds to load

        changes |= {"arch": args.arch, "model": timm_name(args.arch), "weights": changes.get("weights")}
    if args.model_kwargs:
        changes["model_kwargs"] = shlex.join(args.model_kwargs)
    for name, given in (("finetuning", args.finetuning_options), ("few_labels", args.few_labels_options)):
        if given:
            changes[name] = f"{getattr(protocol, name)} {given}"
    protocol = replace(protocol, **changes)
    for readout, name in (("finetuned", "finetuning_options"), ("few-labels", "few_labels_options")):
        if getattr(args, name) and protocol.trainer == "deit" and readout not in protocol.readouts:
            raise InputError(f"--{name} has no effect: {readout} is not among the --readouts")
    if args.finetuning_options:
        check_options("--finetuning_options", args.finetuning_options, protocol.finetuning, protocol)
    if args.few_labels_options:
        recipe = f"--recipe few-labels {protocol.few_labels}"
        check_options("--few_labels_options", args.few_labels_options, recipe, protocol)
    return protocol


def check_options(name: str, given: str, options: str, protocol: Protocol) -> None:
    """Raise InputError for options that the trainer's main.py would reject: now, not after features and subsets.

    options: all that follow the table's own, the `given` ones included.
    """
    ours = ArgumentParser("")
    for option in SET_BY_THE_TABLE:
        ours.add_argument(option, nargs="*")
    try:
        taken = vars(ours.parse_known_args(shlex.split(given))[0])
    except ValueError as error:
        raise InputError(f"{name} {given!r} cannot be split into words: {error}") from None
    if given_too := [option for option, values in taken.items() if values is not None]:
        raise InputError(f"{name} gives --{given_too[0].replace('_', '-')}, which the table sets itself")
    segments = protocol.trainer == "segmenter"
    parse_options = parse_segmentation_options if segments else parse_finetuning_options
    with tempfile.TemporaryDirectory() as folder:
        start = f"--resume W.pth --subset_ids S.json --auto-resume --output_dir {shlex.quote(folder)}"
        start += "" if segments else " --data-set CIFAR10SUBSET"
        parse_options(shlex.split(f"{start} {options}"))
        if segments and "linear" in protocol.readouts:
            parse_options(shlex.split(f"{start} {options} --probe linear"))


def slots_for(protocol: Protocol, jobs: int | None) -> list[Mapping[str, str]]:
    """Return one environment per simultaneous command: its share of the cores, and its GPU if there are any."""
    on_gpus = not protocol.device
    gpus = visible_gpus() if on_gpus else []
    cores = worker_count(os.cpu_count() or 1)
    count = jobs or len(gpus) or (1 if on_gpus else cores)
    share = max(1, cores // count)
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": nested threads
    threads = {"OMP_NUM_THREADS": str(min(share, int(given)) if given.isdecimal() else share)}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}) for slot in range(count)]


def visible_gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*map(str, range(torch.cuda.device_count()))] if given is None else [gpu for gpu in given.split(",") if gpu]


def write_table(protocol: Protocol, results: list["Result"]) -> None:
    """Print the table, and write it as text, numbers and a picture."""
    from experiments.plots import plot_accuracies
    from experiments.table import columns_of, markdown

    output_dir = make_output_dir(protocol.output_dir)
    table = markdown(protocol, results)
    print(f"\n{table}")
    with atomic_file(output_dir / "table.md") as temporary:
        temporary.write_text(table)
    table_json = [
        {
            "readout": result.cell.readout,
            "method": result.cell.method,
            protocol.unit: result.cell.budget,
            "seed": result.cell.seed,
            protocol.metric: result.score,
            "images": result.images,
            "seconds": result.seconds,
            "commands": result.commands,
        }
        for result in results
    ]
    write_json(output_dir / "table.json", table_json, indent=1)
    plot_accuracies(protocol, columns_of(results), output_dir / "accuracy.png")
    print(f"wrote table.md, table.json and accuracy.png to {output_dir}")


def main(argv: list[str] | None = None) -> None:
    args, protocol = parse_args(argv)
    from experiments.results import Comparison  # with scikit-learn, seconds to load

    comparison = Comparison(protocol)
    if args.dry_run:
        print("\n".join(comparison.commands))
        return
    with locked(make_output_dir(protocol.output_dir)):
        try:
            comparison.run(slots_for(protocol, args.jobs))
        finally:  # if stopped, a table of the results so far
            if results := comparison.results():
                write_table(protocol, results)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    run(main)
