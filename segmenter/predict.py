"""Label every pixel of a folder of images with a trained model.

    python predict.py --checkpoint OUT/checkpoint.pth --data_path photos --output masks

writes masks/labels/<name>.png, with labels as in the annotations that the model was trained on (8 bits, with a palette
so that viewers show colours), and masks/overlays/<name>.png, the images tinted by label.
"""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, number, run
from common.errors import InputError
from common.files import check_folder, check_given, make_output_dir, read_json, write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Label every pixel of a folder of images.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="checkpoint.pth of main.py; file or https://")
    add("--data_path", required=True, help="a folder of images")
    add("--output", required=True, help="folder to write into")
    add("--batch-size", default=8, type=number(int, 1), help="windows in one pass")
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="auto: fp16 on CUDA, else off")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    """Return the output folder."""
    args = parse_args(argv)
    check_given([args.checkpoint], "checkpoint")
    check_folder(args.data_path)
    from common.checkpoints import read_trained
    from common.images import image_folder, open_rgb  # with torch and timm, seconds to load
    from common.processes import amp_dtype_of, pick_device
    from common.scenes import MaskLabels
    from segmenter.augmentation import eval_transform
    from segmenter.evaluation import SlidingWindow, write_labels
    from segmenter.models import build_model

    device, output = pick_device(args.device), Path(args.output)
    images = image_folder(Path(args.data_path), loader=partial(open_rgb, upright=True))
    model, recipe, trained = read_trained(
        args.checkpoint, "segmenter/main.py", lambda options, run: build_model(options, len(run["classes"]))
    )
    labels = MaskLabels(tuple(trained["classes"]), recipe.ignore_label, recipe.reduce_zero_label)
    (stem, times), *_ = Counter(Path(path).stem for path, _ in images.samples).most_common(1)
    if times > 1:
        raise InputError(f"{args.data_path} holds several images named {stem}: their masks would overwrite each other")
    # What the labels in the files mean; written first, so that a run that was killed can be repeated.
    names = {str(label): name for label, name in enumerate(labels.classes, start=int(labels.reduce_zero_label))}
    known = output / "classes.json"
    written_before = read_json(known, "names of the classes") if known.is_file() else None
    folders, places = (output / "labels", output / "overlays"), [Path(path).resolve() for path, _ in images.samples]
    for folder in folders:
        if any(place.is_relative_to(folder.resolve()) for place in places):
            raise InputError(f"the images are in {folder}, which would be overwritten: give another --output")
        if folder.is_dir() and any(folder.iterdir()) and written_before != names:
            raise InputError(f"{folder} holds other files than masks of these classes: give another --output")
    window = SlidingWindow(recipe.crop_size, recipe.stride, args.batch_size, amp_dtype_of(args.amp, device))
    for folder in folders:
        make_output_dir(folder)
    write_json(known, names, indent=1)
    unreadable = write_labels(model.to(device), window, images, eval_transform(recipe), labels, output)
    written = len(images) - len(unreadable)
    if not written:
        raise InputError(f"none of the {len(images)} images can be used: {unreadable[0]}")
    print(f"wrote {written} of {len(images)} label images and overlays, and classes.json, to {output}")
    for reason in unreadable:
        print(reason)
    return output


if __name__ == "__main__":
    run(main)
