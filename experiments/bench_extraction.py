"""Images per second of extract_feature.py by precision and batch size, against a plain float32 loop.

    python experiments/bench_extraction.py

The plain loop reads, resizes and forwards the same images through the same network, batch by batch, and concatenates.
The command is timed as a whole, its imports aside. All run in turn, several times; the figures are medians.

On 2 cores of an Intel server CPU with AMX, --images 384 --batch_sizes 128, in 2 minutes:

    vit_small/16 at 224, 384 images, torch 2.15.0+cu132, 2 CPU threads
    precision and batch size               images/s   ratio
    plain loop, float32, 128                   20.0    1.00
    extract_feature.py, off, 128               24.5    1.21
    extract_feature.py, bf16, 128              69.3    3.44
"""

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))
import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import numpy as np
import timm
import torch
import torchvision.transforms as T
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader

from common.command_line import ArgumentParser, number, run, worker_count
from common.processes import pick_device
from data_selection import extract_feature


def write_photo(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """A JPEG of smooth noise, which decodes at the speed of a photograph of that size."""
    coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


class PlainImages(torch.utils.data.Dataset):
    def __init__(self, folder: Path):
        self.paths = sorted(folder.iterdir())
        bicubic, normalise = T.InterpolationMode.BICUBIC, T.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.transform = T.Compose([T.Resize((224, 224), bicubic), T.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


@torch.inference_mode()
def plain_loop(network: torch.nn.Module, folder: Path, device: torch.device) -> torch.Tensor:
    features = torch.empty(0)
    for images in DataLoader(PlainImages(folder), 128, num_workers=worker_count(16)):
        features = torch.cat([features, network.to(device).eval()(images.to(device)).cpu()])
    return features


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Measure images per second of the extraction.")
    parser.add_argument("--images", type=number(int, 1), default=192)
    parser.add_argument("--repeats", type=number(int, 1), default=3)
    parser.add_argument("--arch", default="vit_small", choices=extract_feature.VITS)
    parser.add_argument("--batch_sizes", type=number(int, 1), nargs="+", default=[16, 64, 128])
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"])
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        images, weights = Path(scratch, "images"), Path(scratch, "weights.pth")
        images.mkdir()
        rng = np.random.default_rng(0)
        for index in range(args.images):
            write_photo(images / f"{index:05d}.jpg", (320, 240), rng)
        network = timm.create_model(f"{args.arch}_patch16_224", num_classes=0)
        torch.save(network.state_dict(), weights)
        same = f"--dataset Folder --data_path {images} --arch {args.arch} --pretrained_weights {weights}"
        same += f" --device {args.device} --output_dir {scratch}"
        variants = {"plain loop, float32, 128": partial(plain_loop, network, images, device)}
        for amp in args.amp:
            for size in args.batch_sizes:
                options = (
                    f"{same} --device {args.device} --output_dir {scratch} --amp {amp} --batch_size_per_gpu {size}"
                )
                variants[f"extract_feature.py, {amp}, {size}"] = partial(extract_feature.main, options.split())
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.repeats):
            for name, extract in variants.items():
                started = time.perf_counter()
                extract()
                times[name].append(time.perf_counter() - started)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{args.arch}/16 at 224, {args.images} images, torch {torch.__version__}, {where}")
    print(f"{'precision and batch size':36} {'images/s':>10} {'ratio':>7}")
    for name, seconds in times.items():
        ratio = statistics.median(plain / ours for plain, ours in zip(next(iter(times.values())), seconds, strict=True))
        print(f"{name:36} {args.images / statistics.median(seconds):10.1f} {ratio:7.2f}")


if __name__ == "__main__":
    run(main)
