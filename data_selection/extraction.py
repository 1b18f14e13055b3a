"""From a pool's images to its feature file, with one process or several; nothing is lost if one is killed."""

import argparse
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as T
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode

from common.errors import InputError
from common.feature_file import (
    FeatureFile,
    description_file,
    difference,
    in_words,
    read_description,
    read_features,
    unfinished,
)
from common.files import atomic_file, locked, write_json
from common.image_list import place_of, some
from common.image_loader import image_name, missing_batches, reason_unreadable
from common.images import cifar, class_folders, image_folder, image_list, image_tree, note_on_other_formats, open_rgb
from common.networks import normalised
from common.pool_paths import PoolPaths, paths_file, pool_images, read_pool_paths, write_pool_paths
from common.processes import Processes, amp_dtype_of, autocast, launched
from common.scenes import scene_images
from data_selection.backbones import VITS, Backbone, build_backbone

# Options that change no row of the feature file.
NO_INFLUENCE = (
    "num_workers", "device", "resume", "output_dir", "extra_name", "data_path", "input_size", "image_column",
    "batch_size_per_gpu",
)  # fmt: skip
DECODED_AT_LEAST = 2  # times the input size: the smallest size that a large photo may be decoded at
FIRST_NAMED = 3
CPU_INFO = Path("/proc/cpuinfo")


def build_pool(args: argparse.Namespace, root: Path, input_size: int, interpolation: str) -> Dataset:
    """Build the pool's data set. As published, whole images are resized: no crop, and the aspect ratio is not kept."""
    transform = T.Compose([
        T.Resize((input_size, input_size), interpolation=InterpolationMode(interpolation)),
        T.PILToTensor(),
    ])  # fmt: skip
    if args.dataset == "ImageNet":
        return class_folders(root, transform)
    if args.dataset == "ADE20K":
        return scene_images(root, transform)
    if args.dataset.startswith("CIFAR"):
        return cifar(args.dataset, root, train=args.split == "train", transform=transform)
    # (departure) The user's own photos are turned upright, and large ones decoded at a smaller size.
    loader = partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * input_size)
    if args.dataset == "HF":
        from common.hf_images import HFImages  # an optional package

        return HFImages(args.data_path, args.split, args.image_column, transform, loader)
    kinds = {"List": image_list, "Folder": image_tree if args.no_labels else image_folder}
    pool = kinds[args.dataset](root, transform, loader)
    if args.dataset == "List":
        image, times = Counter(place_of(path) for path, _ in pool.samples).most_common(1)[0]
        if times > 1:
            raise InputError(f"{root} lists {image} {times} times, by different paths: remove all but one")
    return pool


def extract_features(args: argparse.Namespace, root: Path, path: Path) -> None:
    """Compute the feature file of the pool in `root` as the options describe, or the part of it that is missing."""
    with launched(args.device) as processes, ExitStack() as held:
        processes.from_main(lambda: held.enter_context(locked(path.parent, path.stem)))
        backbone = build_backbone(
            args.arch,
            args.patch_size if args.arch in VITS else None,
            args.pretrained_weights,
            args.checkpoint_key,
            args.model_kwargs,
            args.input_size,
            args.n_last_blocks,
            args.avgpool_patchtokens,
        )
        prepared = backbone.preprocessing
        with processes.main_first():
            pool = build_pool(args, root, prepared.input_size, prepared.interpolation)
        described = backbone.describe()
        stamps = pool_images(folder_of(root), pool) if processes.is_main else None
        file = FeatureFile(path, len(pool), described["d"], fingerprint(args, described, pool, root), stamps)
        if args.dataset == "Folder" and processes.is_main and (note := note_on_other_formats(root)):
            processes.report(note)
        if note := getattr(pool, "note", None):
            processes.report(note)
        if processes.is_main:
            print(in_words(described))
            print(f"{len(pool)} images from {root} -> {path} ({len(pool)} x {described['d']} and a label)", flush=True)
            if classes := getattr(pool, "classes", ()):
                print(f"classes: {some(classes)}", flush=True)
        if args.resume and path.is_file() and not unfinished(path).is_file():
            processes.from_main(lambda: check_finished(file, described, pool, root))
            processes.report(f"{path} is finished: nothing to resume; without --resume it is extracted again")
            return
        if processes.is_main and not args.resume and unfinished(path).is_file():
            print(f"note: {unfinished(path)} is begun anew; --resume would continue it", flush=True)
        processes.from_main(lambda: file.prepare(args.resume))
        file.open()
        amp = amp_dtype(args.amp, processes)
        extract(backbone, pool, file, processes, args.batch_size_per_gpu, args.num_workers, amp)
        processes.barrier()  # all rows are written
        if processes.is_main:
            finish(file, pool, root, described)


def check_finished(file: FeatureFile, described: dict[str, Any], pool: Dataset, root: Path) -> None:
    """Raise InputError if a finished feature file has other images, or other features, than it would have now."""
    features, labels = read_features(file.path)
    n = len(features)
    differs = difference(described, read_description(file.path))
    if n != file.shape[0]:
        differs = f"{n} images instead of {file.shape[0]}"
    elif not differs and paths_file(file.path).is_file():
        before, now = read_pool_paths(file.path, n), pool_paths_of(file, pool, root)
        if now is None or bool(before.source) != bool(now.source):  # of another kind of pool
            differs = "other images"
        elif now.source and before.source["column"] != now.source["column"]:
            differs = f"the images of column {before.source['column']}"
        elif now.source:
            differs = "other images" * (before.source.get("content") not in (None, now.source["content"]))
        elif before.root != now.root and Path(before.root).exists():  # so not moved
            differs = f"the images of {before.root}"
        elif before.paths != now.paths or before.sizes not in ([], now.sizes):
            differs = "other images"
        elif labels.tolist() != [image.label for image in file.images]:
            differs = "other labels"
    if differs:
        raise InputError(f"--resume: {file.path} is finished, but has {differs}: leave out --resume to redo it")


def pool_paths_of(file: FeatureFile, pool: Dataset, root: Path) -> PoolPaths | None:
    """Return the list of the pool's images that is kept beside the feature file; None if they have no names (CIFAR)."""
    classes = getattr(pool, "classes", [])
    if file.images:
        paths, sizes = [image.path for image in file.images], [image.size for image in file.images]
        return PoolPaths(str(folder_of(root).resolve()), paths, sizes, classes)
    if hasattr(pool, "names"):
        source = {**pool.source, "content": pool.content_checksum()}
        return PoolPaths(str(root), pool.names, [], classes, source)
    return None


def folder_of(root: Path) -> Path:
    """Return the folder `root`, or the folder of the file `root`, such as a list of images."""
    return root.parent if root.is_file() else root


def fingerprint(args: argparse.Namespace, described: dict[str, Any], pool: Dataset, root: Path) -> dict[str, Any]:
    """Return what the features depend on: an extraction is continued only if all of it is unchanged."""
    options = {key: value for key, value in vars(args).items() if key not in NO_INFLUENCE}
    known = {**options, **described, "weights": described["weights_checksum"]}  # wherever the weights are
    if hasattr(pool, "samples"):
        known["folder"] = str(folder_of(root).resolve())
    elif hasattr(pool, "identity"):  # images that are not files
        known |= {"images_of": pool.identity, "image_column": pool.source["column"]}
    return known


def amp_dtype(name: str, processes: Processes) -> torch.dtype | None:
    """Return the type for --amp: None (float32) also on a CPU that is no faster in bfloat16."""
    if name == "bf16" and processes.device.type == "cpu" and not has_fast_bfloat16():
        processes.report("--amp bf16: this processor is no faster in bfloat16 than in float32; using float32")
        return None
    return amp_dtype_of(name, processes.device)


def has_fast_bfloat16() -> bool:
    """Return whether this processor multiplies matrices much faster in bfloat16 than in float32.

    Those with AMX do, and AMD's with AVX-512 bf16 (2.8 times, Zen 5). Intel's with AVX-512 bf16 alone were slower.
    """
    amx, avx512 = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return amx or (avx512 and CPU_INFO.is_file() and "AuthenticAMD" in CPU_INFO.read_text())


@torch.inference_mode()
def extract(
    backbone: Backbone,
    pool: Dataset,
    file: FeatureFile,
    processes: Processes,
    batch_size: int,
    num_workers: int,
    amp: torch.dtype | None,
) -> None:
    """Write the features of this process's share of the pool, a batch at a time; leave out unreadable images."""
    backbone.network.to(processes.device)
    size, mean, std, _ = backbone.preprocessing
    for rows, images, labels, readable in missing_batches(
        pool, size, file, processes, batch_size, num_workers, "extracting"
    ):
        parts = []
        for part in images:
            with autocast(processes.device, amp):
                parts.append(backbone.features(normalised(part, mean, std)).float())
        features = torch.cat(parts).cpu()
        finite = features.isfinite().all(dim=1) | ~readable
        if not finite.all():
            bad = rows[int(finite.int().argmin())]
            remedy = "try --amp off" if amp else "are the weights damaged?"
            raise InputError(f"{image_name(pool, bad)} has features that are not finite: {remedy}")
        features[~readable] = torch.nan
        file.write(rows, features.numpy(), labels.numpy())


def finish(file: FeatureFile, pool: Dataset, root: Path, described: dict[str, Any]) -> None:
    """Give the feature file its final name, and write beside it its description and the paths of its images.

    Raises: InputError if images cannot be read: it names the first few, and a file that lists all of them.
    """
    listing = file.path.with_name(f"{file.path.stem}_unreadable.txt")
    missing = file.missing_rows()
    if missing:
        errors = [reason_unreadable(pool, row) for row in missing]
        with atomic_file(listing) as temporary:
            temporary.write_text("".join(f"{error}\n" for error in errors), errors="surrogateescape")
        more = f", and {len(errors) - FIRST_NAMED} more" if len(errors) > FIRST_NAMED else ""
        raise InputError(
            f"{'; '.join(errors[:FIRST_NAMED])}{more} ({len(errors)} of {len(pool)}, all listed in {listing}): "
            f"repair or remove them, and run again with --resume, which keeps the features of the others"
        )
    if listed := pool_paths_of(file, pool, root):
        write_pool_paths(file.path, listed)
    write_json(description_file(file.path), described, indent=1)
    file.finish()
    listing.unlink(missing_ok=True)
    print(f"wrote {file.path}")
