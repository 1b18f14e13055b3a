"""Label images with a trained model.

    python predict.py --checkpoint OUT/checkpoint.pth --data_path ~/photos --output predictions.csv
    torchrun --nproc_per_node=2 predict.py ...

writes path,label,probability,second,margin for every image below the folder, in a stable order: the most probable
class, its probability, the next class, and the difference of the two probabilities. --data_path may also be a list of
images (.csv, .txt) or a Hugging Face data set. No file but the checkpoint is needed. --least_certain 100 also writes
the images of smallest margin, as a CSV to be labelled next.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.feature_file import FeatureFile
from common.files import check_given, check_spares, locked, make_output_dir
from common.image_list import labelled_images, place_of, some, write_image_list
from common.pool_paths import pool_images

COLUMNS = ("path", "label", "probability", "second", "margin")
TO_LABEL = ("path", "label", "predicted", "probability", "second", "margin")
FIRST, PROBABILITY, SECOND, NEXT_PROBABILITY = range(4)  # columns of the table, one row per image


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Label images with a trained model.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint.pth of main.py; file or https://")
    add("--data_path", required=True, help="a folder, with every image below it, or a list (.csv, .txt)")
    add("--dataset", default="auto", choices=["auto", "HF"], help="HF: --data_path is a Hugging Face data set")
    add("--split", default="train", help="with --dataset HF")
    add("--image_column", help="with --dataset HF: the column of images, where there are several")
    add("--output", default="predictions.csv")
    add("--least_certain", type=number(int, 1), metavar="N", help="also list the N images of smallest margin, to label")
    add("--labels", nargs="+", default=[], metavar="CSV", help="leave images labelled in these out of that list")
    add("--batch-size", default=256, type=number(int, 1), help="images in one pass")
    add("--num_workers", default=16, type=number(int, 0), help="decoding processes, at most the machine's processors")
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="auto: fp16 on CUDA, else off")
    add("--resume", action="store_true", help="continue an interrupted run")
    args = parser.parse_args(argv)
    if args.labels and not args.least_certain:
        raise InputError("--labels needs --least_certain: it leaves labelled images out of that list")
    output = Path(args.output)
    if not output.name:
        raise InputError(f"--output {args.output!r} is not the name of a file")
    check_given([args.checkpoint], "checkpoint")
    outputs = [output, least_certain_file(output)] if args.least_certain else [output]
    check_spares(outputs, [args.checkpoint, args.data_path, *args.labels])
    labelled_images(args.labels, "--labels")  # raises for a faulty list before the work begins
    return args


def least_certain_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}_least_certain.csv")


def write_predictions(
    args: argparse.Namespace,
    table: np.ndarray,
    names: list[str],
    root: Path,
    classes: list[str],
    why: Callable[[int], str],
) -> None:
    """Write the CSV, and with --least_certain the list of the least certain images.

    table: (n, 4), NaN for images that cannot be used; why(row) gives the reason. names: image paths relative to `root`.
    Raises InputError if no image can be used.
    """
    output, margins = Path(args.output), table[:, PROBABILITY] - table[:, NEXT_PROBABILITY]

    def columns(row: int) -> tuple[str, ...]:
        first, probability, second, _ = table[row]
        return classes[int(first)], f"{probability:.4f}", classes[int(second)], f"{margins[row]:.4f}"

    unreadable = np.isnan(margins)
    if unreadable.all():
        raise InputError(f"none of the {len(names)} images can be used: {why(0)}")
    rows = ((name, *([""] * 4 if unreadable[row] else columns(row))) for row, name in enumerate(names))
    write_image_list(output, COLUMNS, rows)
    print(f"wrote the labels of {len(names) - unreadable.sum()} of {len(names)} images to {output}")
    if unreadable.any():
        without = unreadable.nonzero()[0]
        print(f"{some([names[row] for row in without])} images cannot be used and have no label: {why(without[0])}")
    if args.least_certain:
        known = {place_of(root / image.path) for image in labelled_images(args.labels, "--labels")}
        is_open = [not unreadable[row] and place_of(root / name) not in known for row, name in enumerate(names)]
        order = [row for row in np.argsort(margins, kind="stable") if is_open[row]]
        listing = least_certain_file(output)
        write_image_list(listing, TO_LABEL, ((names[row], "", *columns(row)) for row in order[: args.least_certain]))
        print(f"wrote {listing}: fill in the column label")


def main(argv: list[str] | None = None) -> Path:
    """Return the path of the CSV."""
    args = parse_args(argv)
    from common.checkpoints import (
        read_trained,
        weights_checksum,  # with torch and timm, seconds to load
    )
    from common.image_loader import missing_batches, reason_unreadable
    from common.images import note_on_other_formats
    from common.networks import input_size
    from common.processes import amp_dtype_of, launched
    from deit.augmentation import eval_transform
    from deit.engine import most_probable
    from deit.image_sources import unlabelled_images
    from deit.models import build_model

    output = Path(args.output)
    build = lambda options, run: build_model(  # noqa: E731
        options, len(run["classes"]), run.get("built_with", options.model_kwargs)
    )
    with launched(args.device) as processes, ExitStack() as held:
        model, options, trained = read_trained(args.checkpoint, "deit/main.py", build)
        classes, size = trained["classes"], input_size(options)
        if len(trained.get("std", ())) != 3 or len(trained.get("mean", ())) != 3 or not all(trained["std"]):
            raise InputError(f"checkpoint {args.checkpoint} does not say how its images were normalised")
        if len(classes) < 2:
            raise InputError(f"checkpoint {args.checkpoint} knows only {classes[0]!r}: there is nothing to predict")
        with processes.main_first():
            images, names, root = unlabelled_images(args, size, eval_transform(size))
        is_tree = Path(args.data_path).is_dir() and args.dataset != "HF"
        if is_tree and processes.is_main and (note := note_on_other_formats(root)):
            processes.report(note)
        settings = {
            "weights": weights_checksum(model.state_dict()),
            "images_of": getattr(images, "identity", None) or str(root),
            "amp": args.amp,
            "image_column": getattr(images, "source", {}).get("column"),
        }
        stamps = pool_images(root, images) if processes.is_main else None
        file = FeatureFile(make_output_dir(output.parent) / output.name, len(images), 4, settings, stamps)
        processes.from_main(lambda: held.enter_context(locked(output.parent, output.name)))
        processes.from_main(lambda: file.prepare(args.resume))
        file.open()
        model.to(processes.device)
        batches = missing_batches(images, size, file, processes, args.batch_size, args.num_workers, "predicting")
        for rows, parts, _, readable in batches:
            probable = most_probable(model, parts, trained, amp_dtype_of(args.amp, processes.device))
            probable[~readable.numpy()] = np.nan  # NumPy takes a tensor of one element for an index
            file.write(rows, probable, np.zeros(len(rows)))
        processes.barrier()  # all rows are written
        if processes.is_main:
            why = partial(reason_unreadable, images)
            write_predictions(args, np.asarray(file.table[:, :4]), names, root, classes, why)
            file.discard()
    return output


if __name__ == "__main__":
    run(main)
