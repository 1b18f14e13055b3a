"""Images per second of extract_feature.py against a plain loop, by the size of the images.

    python experiments/bench_extraction.py

The plain loop is the obvious one: timm's network in float32 and torchvision's ImageFolder, which decodes at full size,
in a DataLoader with the same number of workers. The two take turns, several times, on the same files: 32 px PNGs,
500x375 JPEGs and 4000x3000 JPEGs (12 megapixels). "network" is extract_feature.py's network alone on images already in
memory: no loop can be faster, however it reads the files. Figures are medians; "cores" is the ratio of the loops'
processor times, workers included, which hardly depends on what else the machine does.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common.command_line import ArgumentParser, number, run
from common.cpus import worker_count
from common.feature_file import FeatureFile
from common.processes import Processes, passes, pick_device
from data_selection.extract_feature import parse_args

if TYPE_CHECKING:
    from data_selection.backbones import Backbone

DISTINCT = 16  # files of each kind; further ones are hard links to these
KINDS = {"32 px PNG": (32, 32, "png"), "500x375 JPEG": (500, 375, "jpg"), "12 megapixel JPEG": (4000, 3000, "jpg")}


def write_photo(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write an image of smooth noise, which decodes as fast as a photograph of that size."""
    coarse = rng.integers(0, 256, (max(4, size[1] // 8), max(4, size[0] // 8), 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def write_photos(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        photo = folder / f"{index:05d}.{suffix}"
        if index < DISTINCT:
            write_photo(photo, size, rng)
        else:  # a link, because a large image takes longer to write than to read
            photo.hardlink_to(photo.with_stem(f"{index % DISTINCT:05d}"))


@torch.inference_mode()
def plain_loop(network: torch.nn.Module, pool: Dataset, options: argparse.Namespace, device: torch.device) -> None:
    network.to(device)
    loader = DataLoader(pool, options.batch_size, num_workers=worker_count(options.num_workers))
    torch.cat([network(images.to(device)).cpu() for images, _ in loader])


def our_loop(
    backbone: "Backbone", pool: Dataset, file: FeatureFile, options: argparse.Namespace, device: torch.device
) -> None:
    from data_selection.extraction import amp_dtype, extract

    processes = Processes(device)
    file.prepare(resume=False)
    file.open()
    amp = amp_dtype(options.amp, processes)
    extract(backbone, pool, file, processes, options.batch_size, options.num_workers, amp)
    file.finish()


@torch.inference_mode()
def network_alone(backbone: "Backbone", images: torch.Tensor, batch_size: int, device: torch.device) -> None:
    for batch in images.split(batch_size):
        torch.cat([backbone.features(part.to(device)) for part in passes(batch, device)]).cpu()


def seconds_of(work: Callable[[], None]) -> tuple[float, float]:
    """Return the elapsed seconds of `work`, and the processor seconds of this process and its workers."""

    def processor_seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    elapsed, processor = time.perf_counter(), processor_seconds()
    work()
    return time.perf_counter() - elapsed, processor_seconds() - processor


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Images per second of extract_feature.py against a plain loop, by the size of the images.")
    parser.add_argument("--images", type=number(int, 1), default=128, help="images of each kind")
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--amp", default="off", choices=["off", "bf16", "fp16"], help="passed on to extract_feature.py")
    parser.add_argument("--batch_size", type=number(int, 1), default=32)
    parser.add_argument("--num_workers", type=number(int, 0), default=16)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(argv)
    import torchvision.transforms as T  # seconds to load, as timm is
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.datasets import ImageFolder

    from common.networks import create_network
    from data_selection.backbones import build_backbone
    from data_selection.extraction import build_pool

    device = pick_device(chosen.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{worker_count(1 << 16)} CPU cores"
    print(f"{chosen.arch} at 224, --amp {chosen.amp}, torch {torch.__version__}, {where}")
    print(f"{'':20}{'plain loop':>16}{'extract_feature.py':>20}{'ratio':>8}{'cores':>8}{'network':>15}")
    with tempfile.TemporaryDirectory() as folder:
        network = create_network(chosen.arch, num_classes=0, input_size=224).eval()
        torch.save(network.state_dict(), f"{folder}/w.pth")
        backbone = build_backbone(chosen.arch, weights=f"{folder}/w.pth")
        count, ready = chosen.images, torch.rand(chosen.images, 3, 224, 224)
        for kind, (width, height, suffix) in KINDS.items():
            root = Path(folder, kind)
            write_photos(root / "class", count, (width, height), suffix)
            args = parse_args(["--dataset", "Folder", "--data_path", str(root)])
            pool = build_pool(args, root, 224, "bicubic")
            steps = [T.Resize((224, 224), T.InterpolationMode.BICUBIC), T.ToTensor()]
            normalised = T.Compose([*steps, T.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)])
            plain_pool = ImageFolder(str(root), normalised)
            file = FeatureFile(root / "features.npy", count, network.num_features, {})
            plain = partial(plain_loop, network, plain_pool, chosen, device)
            ours = partial(our_loop, backbone, pool, file, chosen, device)
            alone = partial(network_alone, backbone, ready, chosen.batch_size, device)
            measured = [tuple(map(seconds_of, (plain, ours, alone))) for _ in range(chosen.repeats)]
            speeds = [count / statistics.median(each[which][0] for each in measured) for which in range(3)]
            ratios = [statistics.median(each[0][what] / each[1][what] for each in measured) for what in (0, 1)]
            ours_to_plain = f"{speeds[0]:10.1f} img/s{speeds[1]:14.1f} img/s{ratios[0]:8.2f}{ratios[1]:8.2f}"
            print(f"{kind:20}{ours_to_plain}{speeds[2]:9.1f} img/s", flush=True)


if __name__ == "__main__":
    run(main)
