"""Write scikit-learn's handwritten digits as an image folder in ImageNet's layout.

The 1,797 real scans (8x8 pixels, values 0..16) become `<folder>/{train,val}/<class>/<index>.png`: 32x32 grayscale,
bright strokes on a dark ground as in the data, split 80/20 with equal class shares. The file name is the image's index
in `sklearn.datasets.load_digits`. Nothing is downloaded; scikit-learn ships the images.

    python experiments/digits_pool.py FOLDER      # a second
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, run
from common.errors import InputError

IMAGE_SIZE = 32
VAL_FRACTION = 0.2
SPLIT_SEED = 0


def write_digits_pool(folder: Path) -> None:
    """Write the pool to `folder`; a pool that is already there is left as it is.

    The images go to a temporary sibling folder first and are renamed at the end, so `folder` is never half a pool.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} holds unrelated files: give a folder that does not exist yet")
    from sklearn.datasets import load_digits  # slow to load
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_indices, val_indices = train_test_split(
        np.arange(len(digits.target)), test_size=VAL_FRACTION, stratify=digits.target, random_state=SPLIT_SEED
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch) / folder.name
        for split, indices in (("train", train_indices), ("val", val_indices)):
            for index in indices:
                class_folder = unfinished / split / str(digits.target[index])
                class_folder.mkdir(parents=True, exist_ok=True)
                scan = Image.fromarray(np.round(digits.images[index] * 255 / 16).astype(np.uint8))
                scan.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).save(class_folder / f"{index:04d}.png")
        unfinished.rename(folder)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Write the handwritten digits as an image folder.")
    parser.add_argument("folder", type=Path, help="folder to create, e.g. data/digits")
    folder = parser.parse_args(argv).folder
    write_digits_pool(folder)
    print(f"{folder} holds the digits: train/ and val/")


if __name__ == "__main__":
    run(main)
