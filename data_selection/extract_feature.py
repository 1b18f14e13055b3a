"""Stage 1: features of every image of a pool, from a pretrained ViT.

    python extract_feature.py --dataset CIFAR10
    python extract_feature.py --dataset Folder --data_path ~/photos --arch vit_small
    python extract_feature.py --dataset ADE20K --data_path data/ADEChallengeData2016
    torchrun --nproc_per_node=2 extract_feature.py --dataset ImageNet

writes features/CIFAR10_train.npy: (n, d + 1), one row an image in dataset order, not normalised, the label last.
"""

import argparse
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))
import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import torch
import torchvision.transforms as T
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

from common.checkpoints import download_checkpoint, load_pretrained, network_weights, read_checkpoint
from common.command_line import ArgumentParser, number, run, worker_count
from common.errors import InputError
from common.feature_file import FeatureFile, unfinished, write_image_paths
from common.files import make_output_dir
from common.image_datasets import cifar, class_folders, image_folder, split_folder
from common.networks import add_model_kwargs_option, create_network
from common.processes import Processes, autocast, launched
from common.scenes import ADE20K, scene_folder, scene_images

VITS = ("vit_tiny", "vit_small", "vit_base")
DINO_URL = "https://dl.fbaipublicfiles.com/dino/{name}/{name}.pth"
DINO_WEIGHTS = {
    "vit_small/16": "dino_deitsmall16_pretrain",
    "vit_small/8": "dino_deitsmall8_pretrain",
    "vit_base/16": "dino_vitbase16_pretrain",
    "vit_base/8": "dino_vitbase8_pretrain",
    "xcit_small_12_p16": "dino_xcit_small_12_p16_pretrain",
    "xcit_small_12_p8": "dino_xcit_small_12_p8_pretrain",
    "xcit_medium_24_p16": "dino_xcit_medium_24_p16_pretrain",
    "xcit_medium_24_p8": "dino_xcit_medium_24_p8_pretrain",
    "resnet50": "dino_resnet50_pretrain",
}
# Options that change no row of the feature file.
NO_INFLUENCE = ("num_workers", "device", "resume", "output_dir", "extra_name", "data_path")
CPU_PASS = 16  # images in one forward pass on a CPU: the activations of more leave its caches
AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Extract the features of every image of a pool with a pretrained network.")
    parser.add_argument("--dataset", default="CIFAR10", choices=["CIFAR10", "CIFAR100", "ImageNet", "ADE20K", "Folder"])
    parser.add_argument(
        "--data_path",
        default="data",
        help="where CIFAR10 and CIFAR100 are downloaded to and ImageNet/ lies; with ADE20K or Folder, the folder",
    )
    parser.add_argument("--split", default="train", help="train; anything else is the test (CIFAR) or val split")
    parser.add_argument("--arch", default="vit_small", help=f"{', '.join(VITS)}, an XCiT, resnet50, or any timm name")
    parser.add_argument("--patch_size", default=16, type=number(int, 1), help=f"patch size of {', '.join(VITS)}")
    add_model_kwargs_option(parser)
    parser.add_argument(
        "--pretrained_weights", default="", help="checkpoint file; empty: DINO's weights for this arch, downloaded"
    )
    parser.add_argument(
        "--checkpoint_key", default="teacher", help="network to take from a checkpoint that holds several"
    )
    parser.add_argument(
        "--n_last_blocks", default=1, type=number(int, 1), help="concatenate the [CLS] tokens of the last n blocks"
    )
    parser.add_argument(
        "--avgpool_patchtokens", default=False, type=boolean, nargs="?", const=True, metavar="BOOL",
        help="append the mean of the last block's patch tokens",
    )  # fmt: skip
    parser.add_argument(
        "--input_size", type=number(int, 1), help="pixels a side; 224, or img_size of --model-kwargs, when not given"
    )
    parser.add_argument("--batch_size_per_gpu", default=128, type=number(int, 1))
    parser.add_argument(
        "--num_workers", default=16, type=number(int, 0), help="decoding processes, at most the machine's"
    )
    parser.add_argument("--amp", default="off", choices=AMP_DTYPES, help="precision; off is float32, as published")
    parser.add_argument("--device", default="auto", help="auto is cuda, then mps, then cpu")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished feature file")
    parser.add_argument("--output_dir", default="features")
    parser.add_argument("--extra_name", default="_", help="stands between the dataset and the split in the file name")
    args = parser.parse_args(argv)
    if args.arch not in VITS and args.patch_size != 16:
        raise InputError(f"--patch_size goes with {', '.join(VITS)}; for {args.arch} use --model-kwargs patch_size=...")
    if args.avgpool_patchtokens and args.n_last_blocks != 1:
        raise InputError(f"--avgpool_patchtokens goes with --n_last_blocks 1 only, not {args.n_last_blocks}")
    for option in ("extra_name", "split"):
        if Path(getattr(args, option)).name != getattr(args, option):
            raise InputError(f"--{option} {getattr(args, option)} goes into the file name and cannot be a path")
    args.input_size = args.input_size or args.model_kwargs.get("img_size", 224)
    return args


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text.lower() in ("true", "1", "on")


def pool_location(args: argparse.Namespace) -> tuple[str, Path]:
    """The pool's name, for the feature file, and its folder.

    Folder reads one split where DIR has folders for both (the ImageNet layout), else DIR itself. ADE20K's layout, with
    masks or without, makes a pool of that name or, in another folder, of the folder's.
    """
    root, train = Path(args.data_path), args.split == "train"
    if args.dataset.startswith("CIFAR"):
        return args.dataset, root
    if args.dataset == "ImageNet":
        name, folder = "ImageNet", split_folder(root / "ImageNet", train)
    elif args.dataset == "ADE20K":
        folder = scene_folder(root, train)
        name = args.dataset if folder.parents[1].name == ADE20K else folder.parents[1].resolve().name
    else:
        both = split_folder(root, True).is_dir() and split_folder(root, False).is_dir()
        name, folder = root.resolve().name, split_folder(root, train) if both else root
    if not folder.is_dir():  # said before any weights are downloaded
        raise InputError(f"image folder {folder} is not there")
    return name, folder


def build_pool(args: argparse.Namespace, root: Path) -> Dataset:
    # The whole image is resized, no crop is taken and the aspect ratio is not kept, as published.
    transform = T.Compose([
        T.Resize((args.input_size, args.input_size), interpolation=InterpolationMode.BICUBIC),
        T.ToTensor(),
        T.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ])  # fmt: skip
    if args.dataset == "ImageNet":
        return class_folders(root, transform)
    if args.dataset == "ADE20K":
        return scene_images(root, transform)
    if args.dataset == "Folder":
        return image_folder(root, transform)
    return cifar(args.dataset, root, train=args.split == "train", transform=transform)


def build_network(args: argparse.Namespace) -> nn.Module:
    """The pretrained network without a head. Raises InputError unless every one of its weights is in the checkpoint."""
    kwargs = args.model_kwargs
    if args.arch in VITS:
        name, kwargs = f"{args.arch}_patch16_224", {"patch_size": args.patch_size, **kwargs}
    else:  # DINO calls timm's xcit_small_12_p16_224 xcit_small_12_p16
        name = f"{args.arch}_224" if args.arch.startswith("xcit") and args.arch in DINO_WEIGHTS else args.arch
    network = create_network(name, num_classes=0, input_size=args.input_size, model_kwargs=kwargs)
    if not has_class_token(network) and (args.n_last_blocks != 1 or args.avgpool_patchtokens):
        raise InputError(f"--n_last_blocks and --avgpool_patchtokens need a ViT with a class token, not {args.arch}")
    if has_class_token(network) and args.n_last_blocks > len(network.blocks):
        raise InputError(
            f"--n_last_blocks {args.n_last_blocks} is more than the {len(network.blocks)} blocks of {name}"
        )
    if args.pretrained_weights:
        source, checkpoint = args.pretrained_weights, read_checkpoint(args.pretrained_weights)
    else:
        published = f"{args.arch}/{args.patch_size}" if args.arch in VITS else args.arch
        if published not in DINO_WEIGHTS:
            raise InputError(f"there are no DINO weights for {published}: give --pretrained_weights")
        source = DINO_URL.format(name=DINO_WEIGHTS[published])
        checkpoint = download_checkpoint(source)
    load_pretrained(network, network_weights(checkpoint, source, args.checkpoint_key), source)
    return network.eval()


def has_class_token(network: nn.Module) -> bool:
    return isinstance(network, VisionTransformer) and network.cls_token is not None


def image_features(
    network: nn.Module, images: Tensor, n_last_blocks: int = 1, avgpool_patchtokens: bool = False
) -> Tensor:
    """Features of images (b, 3, h, w): the [CLS] tokens, after the final norm, of the last blocks, in depth order.

    avgpool_patchtokens interleaves the [CLS] token with the mean patch token, as DINO's linear evaluation does:
    cls_0, mean_0, cls_1, mean_1, ... A network that is no ViT gives its pooled output.
    Returns: (b, n_last_blocks * d), (b, 2 d) or (b, d).
    """
    if not has_class_token(network):
        return network(images)  # (b, 3, h, w) -> (b, d)
    blocks = network.forward_intermediates(
        images, indices=n_last_blocks, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )  # [((b, h*w, d) patches, (b, 1, d) class)]
    class_tokens = torch.cat([prefix[:, 0] for _, prefix in blocks], dim=-1)
    if not avgpool_patchtokens:
        return class_tokens
    mean_patch = blocks[-1][0].mean(dim=1)
    return torch.stack([class_tokens, mean_patch], dim=-1).flatten(1)  # (b, d, 2) -> (b, 2 d)


@torch.inference_mode()
def extract(
    args: argparse.Namespace, network: nn.Module, pool: Dataset, file: FeatureFile, processes: Processes
) -> None:
    """Write the features of this process's share of the pool, a batch at a time.

    Batches are fixed blocks of rows, whichever process computes them and however often the run was interrupted, so the
    file is the same to the bit.
    """
    blocks = file.missing_blocks(args.batch_size_per_gpu)
    processes.barrier()  # all have seen what is missing before anyone fills it in
    blocks = blocks[processes.part(len(blocks))]
    device = processes.device
    loader = DataLoader(
        pool, batch_sampler=blocks, num_workers=worker_count(args.num_workers), pin_memory=device.type == "cuda"
    )
    amp_dtype = AMP_DTYPES[args.amp]
    network.to(device)
    bar = tqdm(total=sum(map(len, blocks)), unit="img", desc="extracting", disable=not processes.is_main)
    with bar:
        for rows, (images, labels) in zip(blocks, loader, strict=True):
            with autocast(device, amp_dtype):
                features = torch.cat(
                    [
                        image_features(
                            network, part.to(device, non_blocking=True), args.n_last_blocks, args.avgpool_patchtokens
                        )
                        for part in images.split(CPU_PASS if device.type == "cpu" else len(images))
                    ]
                )
            if not features.isfinite().all():
                bad = rows[int(features.isfinite().all(dim=1).int().argmin())]
                raise InputError(f"image {bad} of the pool has features that are not finite: try --amp off")
            file.write(rows, features.float().cpu().numpy(), labels.numpy())
            bar.update(len(rows))


def fingerprint(args: argparse.Namespace, network: nn.Module, pool: Dataset) -> dict[str, Any]:
    """What the features depend on: an interrupted extraction is continued only if all of it is unchanged."""
    weights = [weight.numpy().tobytes() for weight in network.state_dict().values()]
    images = [f"{Path(image).parent.name}/{Path(image).name}".encode() for image, _ in getattr(pool, "samples", ())]
    options = {key: value for key, value in vars(args).items() if key not in NO_INFLUENCE}
    return {**options, "weights": crc32(b"".join(weights)), "images": crc32(b"\0".join(images))}


def main(argv: list[str] | None = None) -> Path:
    """Returns: the path of the feature file."""
    args = parse_args(argv)
    with launched(args.device) as processes:
        name, root = pool_location(args)
        path = make_output_dir(args.output_dir) / f"{name}{args.extra_name}{args.split}.npy"
        if args.resume and path.is_file() and not unfinished(path).is_file():
            print(f"{path} is finished: nothing to resume; without --resume it is extracted again")
            return path
        network = build_network(args)
        with processes.main_first():
            pool = build_pool(args, root)
        with torch.inference_mode():
            d = image_features(network, pool[0][0][None], args.n_last_blocks, args.avgpool_patchtokens).shape[1]
        file = FeatureFile(path, len(pool), d, fingerprint(args, network, pool))
        if processes.is_main:
            print(f"{len(pool)} images from {root} -> {path} ({len(pool)} x {d} and a label)", flush=True)
            file.prepare(args.resume)
        processes.barrier()
        file.open()
        extract(args, network, pool, file, processes)
        processes.barrier()  # all rows are written
        if processes.is_main:
            if hasattr(pool, "samples"):
                write_image_paths(path, root, (image for image, _ in pool.samples))
            file.finish()
            print(f"wrote {path}")
    return path


if __name__ == "__main__":
    run(main)
