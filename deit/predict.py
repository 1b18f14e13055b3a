"""Label images with a trained model.

    python predict.py --checkpoint OUT/checkpoint.pth --data_path ~/photos --output predictions.csv
    torchrun --nproc_per_node=2 predict.py ...

writes path,label,probability,second,margin for every image below the folder, in one stable order: the most probable
class, how probable it is, the next class, and by how much it is less probable. A list of images (.csv, .txt) or a
Hugging Face data set does as well as a folder. The checkpoint alone is enough. --least_certain 100 also writes the
images of smallest margin, as a CSV to be labelled next.
"""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))
import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from common.checkpoints import weights_checksum
from common.command_line import ArgumentParser, number
from common.command_line import run as run_command
from common.errors import InputError
from common.feature_file import FeatureFile
from common.files import locked, make_output_dir
from common.image_list import labelled_images, some, write_image_list
from common.image_loader import ImageLoader, ImagesOrBlack
from common.images import any_images, open_rgb
from common.networks import input_size, normalised
from common.pool_paths import pool_images
from common.processes import Processes, amp_dtype_of, autocast, launched, passes
from common.progress import progress_bar
from common.run_folder import read_trained
from deit.finetuning_data import eval_transform
from deit.image_sources import DECODED_AT_LEAST
from deit.run_parts import build_model

COLUMNS = ("path", "label", "probability", "second", "margin")
TO_LABEL = ("path", "label", "predicted", "probability", "second", "margin")
FIRST, PROBABILITY, SECOND, NEXT_PROBABILITY = range(4)  # what is kept of each image


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Label images with a trained model.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint.pth of main.py; file or https://")
    add("--data_path", "--data-path", required=True, help="a folder, every image below it; or a list (.csv, .txt)")
    add("--dataset", default="auto", choices=["auto", "HF"], help="HF: --data_path is a Hugging Face data set")
    add("--split", default="train", help="with --dataset HF")
    add("--image_column", help="with --dataset HF: the column of images, where there are several")
    add("--output", default="predictions.csv")
    add(
        "--least_certain",
        type=number(int, 1),
        metavar="N",
        help="also write the N images of smallest margin, to be labelled, to <output>_least_certain.csv",
    )
    add("--labels", nargs="+", default=[], metavar="CSV", help="what is labelled in these is left out of that")
    add("--batch-size", "--batch_size", default=256, type=number(int, 1), help="images in one pass")
    add("--num_workers", default=16, type=number(int, 0), help="decoding processes, at most the machine's processors")
    add("--device", default="auto", help="auto is cuda, then mps, then cpu")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="auto: fp16 on CUDA, else off")
    add("--resume", action="store_true", help="continue an interrupted run")
    return parser.parse_args(argv)


def read_model(source: str) -> tuple[nn.Module, argparse.Namespace, dict[str, Any]]:
    """A trained model, the options it was trained with, and what else its checkpoint says of the run."""
    checkpoint, options, classes = read_trained(source, "deit/main.py")
    if len(classes) < 2:
        raise InputError(f"checkpoint {source} knows a single class, {classes[0]!r}: there is nothing to predict")
    try:
        model = build_model(options, len(classes))
        model.load_state_dict(checkpoint["model"])
    except (AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"checkpoint {source} does not hold the model that it names: {reason}") from None
    return model.eval(), options, checkpoint["run"]


def open_images(args: argparse.Namespace, size: int) -> tuple[Dataset, list[str], Path]:
    """The images, prepared as in training, what each is called, and the folder that these names are relative to."""
    transform, loader = eval_transform(size), partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * size)
    source = Path(args.data_path)
    if args.dataset == "HF" or source.suffix == ".parquet":
        from common.hf_images import HFImages  # an optional package

        images = HFImages(args.data_path, args.split, args.image_column, transform, loader)
        return images, images.names, source
    images = any_images(source, transform, loader)
    return images, [path[len(str(images.root)) + 1 :] for path, _ in images.samples], images.root


@torch.inference_mode()
def predict(
    model: nn.Module, run: dict[str, Any], images: Dataset, file: FeatureFile, args: argparse.Namespace, size: int,
    processes: Processes,
) -> None:  # fmt: skip
    """Write the two most probable classes of this process's share of the images; leave out what cannot be read.

    Batches are fixed blocks of rows, so the file does not depend on who computes which, or on interruptions.
    """
    device, amp_dtype = processes.device, amp_dtype_of(args.amp, processes.device)
    blocks = file.missing_blocks(args.batch_size)
    processes.barrier()  # all have seen what is missing before anyone fills it in
    blocks = blocks[processes.part(len(blocks))]
    loader = ImageLoader(ImagesOrBlack(images, size), blocks, args.batch_size, args.num_workers, device.type == "cuda")
    model.to(device)
    with progress_bar(total=sum(map(len, blocks)), unit="img", desc="predicting", disable=not processes.is_main) as bar:
        for rows, (pixels, _, readable) in zip(blocks, loader, strict=True):
            logits = []
            for part in passes(pixels, device):
                prepared = normalised(part.to(device, non_blocking=True), run["mean"], run["std"])
                with autocast(device, amp_dtype):
                    logits.append(model(prepared).float())
            probabilities, classes = torch.cat(logits).softmax(dim=1).topk(2)  # (b, 2)
            kept = torch.stack([classes, probabilities], dim=2).flatten(1).cpu()  # (b, 4)
            kept[~readable] = torch.nan
            file.write(rows, kept.numpy(), np.zeros(len(rows)))
            bar.update(len(rows))


def write_predictions(args: argparse.Namespace, table: np.ndarray, names: list[str], classes: list[str]) -> None:
    """Write the CSV, and what is least certain if asked for. table (n, 4), NaN where an image cannot be read."""
    output, margins = Path(args.output), table[:, PROBABILITY] - table[:, NEXT_PROBABILITY]

    def columns(row: int) -> tuple[str, ...]:
        first, probability, second, _ = table[row]
        return classes[int(first)], f"{probability:.4f}", classes[int(second)], f"{margins[row]:.4f}"

    unreadable = np.isnan(margins)
    rows = ((name, *([""] * 4 if unreadable[row] else columns(row))) for row, name in enumerate(names))
    write_image_list(output, COLUMNS, rows)
    print(f"wrote the labels of {len(names) - unreadable.sum()} of {len(names)} images to {output}")
    if unreadable.any():
        print(f"{some([names[row] for row in unreadable.nonzero()[0]])} images cannot be read: they have no label")
    if args.least_certain:
        known = {image.path for image in labelled_images(args.labels, "--labels")}
        order = [row for row in np.argsort(margins, kind="stable") if not unreadable[row] and names[row] not in known]
        listing = output.with_name(f"{output.stem}_least_certain.csv")
        write_image_list(listing, TO_LABEL, ((names[row], "", *columns(row)) for row in order[: args.least_certain]))
        print(f"wrote {listing}: fill in the column label")


def main(argv: list[str] | None = None) -> Path:
    """Returns: the path of the CSV."""
    args = parse_args(argv)
    output = Path(args.output)
    if args.labels and not args.least_certain:
        raise InputError("--labels goes with --least_certain: what is labelled already is left out of that")
    with launched(args.device) as processes, ExitStack() as held:
        labelled_images(args.labels, "--labels")  # what is wrong with it shows before the work begins
        model, options, run = read_model(args.checkpoint)
        size = input_size(options)
        with processes.main_first():
            images, names, root = open_images(args, size)
        settings = {
            "weights": weights_checksum(model.state_dict()),
            "images_of": getattr(images, "identity", None) or str(root),
            "amp": args.amp,
        }
        stamps = pool_images(root, images.samples) if processes.is_main and hasattr(images, "samples") else None
        file = FeatureFile(make_output_dir(output.parent) / output.name, len(images), 4, settings, stamps)
        processes.together(lambda: processes.is_main and held.enter_context(locked(output.parent, output.name)))
        processes.together(lambda: processes.is_main and file.prepare(args.resume))
        file.open()
        predict(model, run, images, file, args, size, processes)
        processes.barrier()  # all rows are written
        if processes.is_main:
            write_predictions(args, np.asarray(file.table[:, :4]), names, run["classes"])
            file.discard()
    return output


if __name__ == "__main__":
    run_command(main)
