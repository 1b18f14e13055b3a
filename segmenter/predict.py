"""Label every pixel of a folder of images with a trained model.

    python predict.py --checkpoint OUT/checkpoint.pth --data_path photos --output masks

writes masks/labels/<name>.png, with the labels of the annotations that the model was trained on (8 bits, with a palette
so that viewers show colours), and masks/overlays/<name>.png, the images tinted with them.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))
import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from common.command_line import ArgumentParser, number
from common.command_line import run as run_command
from common.errors import InputError
from common.files import atomic_file, make_output_dir, write_json
from common.images import image_folder, open_rgb
from common.processes import amp_dtype_of, pick_device
from common.progress import progress_bar
from common.run_folder import read_trained
from common.scenes import MaskLabels
from segmenter.evaluation import SlidingWindow, overlay, palette, save_mask
from segmenter.models import PixelClassifier
from segmenter.run_parts import build_model, load_trained
from segmenter.scene_transforms import eval_transform


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Label every pixel of a folder of images.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint.pth of main.py; file or https://")
    add("--data_path", "--data-path", required=True, help="a folder of images")
    add("--output", required=True, help="folder to write into")
    add("--batch-size", default=8, type=number(int, 1), help="windows in one pass")
    add("--device", default="auto", help="auto is cuda, then mps, then cpu")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="auto: fp16 on CUDA, else off")
    return parser.parse_args(argv)


def read_model(source: str) -> tuple[PixelClassifier, argparse.Namespace, MaskLabels]:
    """The model of a checkpoint, the options it was trained with, and its classes. Raises InputError."""
    checkpoint, recipe, classes = read_trained(source, "segmenter/main.py")
    try:
        labels = MaskLabels(tuple(classes), recipe.ignore_label, recipe.reduce_zero_label)
        model = build_model(recipe, len(classes))
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{source} is no checkpoint of segmenter/main.py: {error}") from None
    load_trained(model, checkpoint, source)
    return model.eval(), recipe, labels


@torch.inference_mode()
def main(argv: list[str] | None = None) -> Path:
    """Returns: the folder that was written into."""
    args = parse_args(argv)
    device = pick_device(args.device)
    images = image_folder(Path(args.data_path), loader=partial(open_rgb, upright=True))
    model, recipe, labels = read_model(args.checkpoint)
    stems = [Path(path).stem for path, _ in images.samples]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise InputError(f"{args.data_path} holds several images named {twice}: their masks would overwrite each other")
    folders = [make_output_dir(Path(args.output) / name) for name in ("labels", "overlays")]
    model.to(device)
    window = SlidingWindow(recipe.crop_size, recipe.stride, args.batch_size, amp_dtype_of(args.amp, device))
    resize, colours, first = eval_transform(recipe), palette(len(labels.classes)), int(labels.reduce_zero_label)
    for index in progress_bar(range(len(images)), desc="labelling", unit="img"):
        image = np.array(images[index][0])  # (h, w, 3)
        pixels = resize(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)))
        classes = window.predict(model, pixels.to(device), image.shape[:2]).cpu().numpy()
        to_labels, to_overlays = (folder / f"{stems[index]}.png" for folder in folders)
        save_mask(labels.values(classes), colours, first, to_labels)
        with atomic_file(to_overlays) as temporary:
            Image.fromarray(overlay(image, classes, colours)).save(temporary, format="PNG")
    names = dict(enumerate(labels.classes, start=first))  # what the labels in the files mean
    write_json(Path(args.output) / "classes.json", names, indent=1)
    print(f"wrote {len(images)} label images and overlays, and classes.json, to {args.output}")
    return Path(args.output)


if __name__ == "__main__":
    run_command(main)
