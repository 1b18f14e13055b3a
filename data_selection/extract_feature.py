"""Stage 1: extract the features of every image of a pool with a pretrained ViT.

    python extract_feature.py --dataset CIFAR10
    python extract_feature.py --dataset Folder --data_path ~/photos --arch vit_small_patch14_dinov2.lvd142m
    python extract_feature.py --dataset Folder --data_path ~/photos --no-labels
    python extract_feature.py --dataset List --data_path pool.csv
    python extract_feature.py --dataset ADE20K --data_path data/ADEChallengeData2016
    torchrun --nproc_per_node=2 extract_feature.py --dataset ImageNet

The first writes features/CIFAR10_train.npy, (50000, 384 + 1): one row per image in dataset order, not normalised, the
label last; and features/CIFAR10_train.json, which describes them. About 25 images per second on 2 cores of an
Intel Xeon (AVX-512) in float32.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, add_model_kwargs_option, number, run
from common.errors import InputError
from common.files import check_folder, check_given, make_output_dir, scene_folder, scenes_name, split_folder

VITS = ("vit_tiny", "vit_small", "vit_base")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Extract the features of every image of a pool with a pretrained network.")
    add = parser.add_argument
    datasets = ["CIFAR10", "CIFAR100", "ImageNet", "ADE20K", "Folder", "List", "HF"]
    add("--dataset", default="CIFAR10", choices=datasets)
    add(
        "--data_path",
        default="data",
        help="folder of CIFAR10 and CIFAR100 (downloaded), or of ImageNet/; with ADE20K or Folder, the folder itself; "
        "with List a .csv (path, label) or .txt; with HF a Hugging Face data set: a folder, .parquet, or hub name",
    )
    add("--no-labels", action="store_true", help="with Folder: every image below it; folders are not classes")
    add("--image_column", help="with HF: the column of images, if there are several")
    add("--split", default="train", help="train; anything else is the test (CIFAR) or val split")
    add("--arch", default="vit_small", help=f"{', '.join(VITS)}, XCiT, resnet50: DINO's weights; any timm name: timm's")
    add("--patch_size", default=16, type=number(int, 1), help=f"patch size of {', '.join(VITS)}")
    add_model_kwargs_option(parser)
    add("--pretrained_weights", default="", help="checkpoint file instead of downloaded weights")
    add("--checkpoint_key", default="teacher", help="network to take from a checkpoint that holds several")
    add("--n_last_blocks", default=1, type=number(int, 1), help="concatenate the [CLS] tokens of the last n blocks")
    tokens = "append the mean of the last block's patch tokens"
    add("--avgpool_patchtokens", default=False, type=boolean, nargs="?", const=True, metavar="BOOL", help=tokens)
    add("--input_size", type=number(int, 1), help="pixels per side; 224, or the network's own size, when not given")
    add("--batch_size_per_gpu", default=128, type=number(int, 1))
    add("--num_workers", default=16, type=number(int, 0), help="decoding processes, at most the machine's processors")
    add("--amp", default="off", choices=["off", "bf16", "fp16"], help="precision; off is float32, as published")
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")
    add("--resume", action="store_true", help="continue an unfinished feature file")
    add("--output_dir", default="features")
    add("--extra_name", default="_", help="text between the dataset and the split in the file name")
    args = parser.parse_args(argv)
    if args.arch not in VITS and args.patch_size != 16:
        raise InputError(f"--patch_size goes with {', '.join(VITS)}; for {args.arch} use --model-kwargs patch_size=...")
    if args.avgpool_patchtokens and args.n_last_blocks != 1:
        raise InputError(f"--avgpool_patchtokens goes with --n_last_blocks 1 only, not {args.n_last_blocks}")
    for option in ("extra_name", "split"):
        if Path(getattr(args, option)).name != getattr(args, option):
            raise InputError(f"--{option} {getattr(args, option)} goes into the file name and cannot be a path")
    for option, dataset in (("no_labels", "Folder"), ("image_column", "HF")):
        if getattr(args, option) and args.dataset != dataset:
            raise InputError(f"--{option} goes with --dataset {dataset}, not with {args.dataset}")
    check_given([args.pretrained_weights], "checkpoint")
    return args


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1", "on")


def pool_location(args: argparse.Namespace) -> tuple[str, Path]:
    """Return the pool's name, for the feature file, and its folder, list or data set.

    With Folder, read one split if --data_path has folders for both (the ImageNet layout), else --data_path itself. A
    pool in ADE20K's layout, with or without masks, is named ADE20K or, in another folder, after that folder.
    """
    root, train = Path(args.data_path), args.split == "train"
    if args.dataset.startswith("CIFAR"):
        return args.dataset, root
    if args.dataset == "ImageNet":
        name, folder = "ImageNet", split_folder(root / "ImageNet", train)
    elif args.dataset == "ADE20K":
        name, folder = scenes_name(root), scene_folder(root, train)
    elif args.dataset == "HF":
        return root.resolve().name.removesuffix(".parquet"), root
    elif args.dataset == "List":
        if not root.is_file():
            raise InputError(f"image list {root} is not there")
        return root.stem, root
    else:
        both = not args.no_labels and split_folder(root, True).is_dir() and split_folder(root, False).is_dir()
        if root.is_dir() and not train and not both:
            of_splits = "reads all of it: leave out --no-labels" if args.no_labels else "lacks train/ and val/ or test/"
            raise InputError(f"--split {args.split} needs a folder of splits, and {root} {of_splits}")
        name, folder = root.resolve().name, split_folder(root, train) if both else root
    check_folder(folder)  # before any weights are downloaded
    return name, folder


def main(argv: list[str] | None = None) -> Path:
    """Extract the features; return the path of their file."""
    args = parse_args(argv)
    name, root = pool_location(args)
    path = make_output_dir(args.output_dir) / f"{name}{args.extra_name}{args.split}.npy"
    from data_selection.extraction import extract_features  # torch, timm: seconds to load

    extract_features(args, root, path)
    return path


if __name__ == "__main__":
    run(main)
