"""Images per second of extract_feature.py by precision and batch size, against a plain float32 loop.

    python experiments/bench_extraction.py

The plain loop reads, resizes and forwards the same images through the same network, batch by batch, and concatenates.
All are measured in one run, in turn, several times; the figures are medians.

On 2 cores of an Intel server CPU with AMX, --images 384 --repeats 3 --batch_sizes 128, in 2 minutes:

    vit_small/16 at 224, 384 images, torch 2.15.0+cu132, 2 CPU threads
    precision and batch size               images/s   ratio
    plain loop, float32, 128                   20.0    1.00
    extract_feature.py, off, 128               24.5    1.21
    extract_feature.py, bf16, 128              69.3    3.44
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import worker_count
from common.feature_file import FeatureFile
from common.processes import Processes, pick_device
from data_selection.extract_feature import build_network, build_pool, extract, parse_args


def write_photo(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """A JPEG of smooth noise, which decodes at the speed of a photograph of that size."""
    coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


@torch.inference_mode()
def plain_loop(args: argparse.Namespace, network: torch.nn.Module, pool: torch.utils.data.Dataset) -> torch.Tensor:
    loader = DataLoader(pool, args.batch_size_per_gpu, num_workers=worker_count(args.num_workers))
    device = pick_device(args.device)
    features = torch.empty(0)
    for images, _ in loader:
        features = torch.cat([features, network.to(device)(images.to(device)).cpu()])
    return features


def ours(args: argparse.Namespace, network: torch.nn.Module, pool: torch.utils.data.Dataset, path: Path) -> None:
    file = FeatureFile(path, len(pool), network.num_features, {})
    file.prepare(resume=False)
    file.open()
    extract(args, network, pool, file, Processes(pick_device(args.device)))
    file.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"])
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, weights = Path(folder) / "images", Path(folder) / "weights.pth"
        images.mkdir()
        rng = np.random.default_rng(0)
        for index in range(chosen.images):
            write_photo(images / f"{index:05d}.jpg", (320, 240), rng)
        torch.save(timm.create_model(f"{chosen.arch}_patch16_224", num_classes=0).state_dict(), weights)
        common = ["--dataset", "Folder", "--data_path", str(images), "--arch", chosen.arch, "--device", chosen.device]
        variants = {"plain loop, float32, 128": None}
        for amp in chosen.amp:
            for size in chosen.batch_sizes:
                given = [*common, "--pretrained_weights", str(weights), "--amp", amp, "--batch_size_per_gpu", str(size)]
                variants[f"extract_feature.py, {amp}, {size}"] = parse_args(given)
        base = parse_args([*common, "--pretrained_weights", str(weights)])
        network, pool = build_network(base), build_pool(base, images)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(chosen.repeats):
            for name, args in variants.items():
                started = time.perf_counter()
                if args is None:
                    plain_loop(base, network, pool)
                else:
                    ours(args, network, pool, Path(folder) / "features.npy")
                times[name].append(time.perf_counter() - started)
    device = pick_device(chosen.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{chosen.arch}/16 at 224, {chosen.images} images, torch {torch.__version__}, {where}")
    print(f"{'precision and batch size':36} {'images/s':>10} {'ratio':>7}")
    plain = times["plain loop, float32, 128"]
    for name, seconds in times.items():
        ratio = statistics.median(before / after for before, after in zip(plain, seconds, strict=True))
        print(f"{name:36} {chosen.images / statistics.median(seconds):10.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
