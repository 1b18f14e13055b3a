"""Epoch time of deit/main.py against a plain loop that, as published, decodes and restarts its workers every epoch.

    python experiments/bench_trainer.py

Both make the same updates to the same network on the same images, taking turns in one run; figures are medians. `waits`
is the share of deit/main.py's time spent waiting for the next batch; the rest is the updates themselves.

On 2 cores of an Intel server CPU, torch 2.15, in 15 minutes:

    case                                plain, s/epoch   here, s/epoch   images/s   ratio
    small ViT, 500 images of 32x32               0.936           0.138       1850    6.79
    small ViT at 224, 500 photos                 1.969           0.554        462    3.58
    small ViT at 224, 5,000 photos              14.776          10.449        465    1.44
    ViT-S/16 at 224, 500 photos                 47.260          37.890          7    1.25

On an AMD EPYC (Zen 5), torch 2.14, the second row is 1.324, 0.438, 585 images/s and 3.02, with 3% waiting.
From the third row on, the remaining time is cropping and resizing photos, and the mathematics. --cache-mb 8192, as
here, keeps all 5,000 photos of this size in memory; the default 4096 keeps only some, and the ratio is 1.21.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))
import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import numpy as np
import torch
from torch.utils.data import DataLoader

from common.batch_stream import BatchStream, RepeatedAugmentationSampler
from common.command_line import ArgumentParser, number, run
from common.cpus import worker_count
from common.errors import InputError
from common.processes import Interruption, Processes
from deit.recipe_options import parse_args
from experiments.bench_extraction import write_photo

SMALL_VIT = "--model vit_tiny_patch16_224 --model-kwargs embed_dim=96 depth=4 num_heads=3"
SMALL_VIT_32, SMALL_VIT_224 = f"{SMALL_VIT} img_size=32 patch_size=8", f"{SMALL_VIT} img_size=224 patch_size=56"
PHOTO = (500, 375)
CASES = {  # name: images, their size, options of main.py, epochs timed together, repeats
    "small ViT, 500 images of 32x32": (500, (32, 32), SMALL_VIT_32, 20, 5),
    "small ViT at 224, 500 photos": (500, PHOTO, SMALL_VIT_224, 10, 3),
    "small ViT at 224, 5,000 photos": (5000, PHOTO, f"--cache-mb 8192 {SMALL_VIT_224}", 1, 3),
    "ViT-S/16 at 224, 500 photos": (500, PHOTO, "--model deit_small_patch16_224", 1, 3),
}


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write an image folder whose val split is a part of train."""
    rng = np.random.default_rng(0)
    for index in range(count):
        for split in ("train", "val") if index < 20 else ("train",):
            path = folder / split / str(index % 10) / f"{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_photo(path, size, rng)


def plain_epochs(args: argparse.Namespace) -> Iterator[None]:
    """Run one epoch per step: DeiT's loop, without this project's additions."""
    import torchvision.transforms as T  # seconds to load, with timm
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    from common.networks import input_size
    from deit.builders import build_plan, build_state
    from deit.models import build_model

    size = input_size(args)
    transform = create_transform(size, is_training=True, color_jitter=0.0, interpolation="bicubic")
    if size <= 32:
        transform.transforms[0] = T.RandomCrop(size, padding=4)
    images = ImageFolder(f"{args.data_path}/train", transform)
    sampler = RepeatedAugmentationSampler(len(images))
    loader = DataLoader(images, args.batch_size, sampler=sampler, num_workers=worker_count(args.num_workers))
    model = build_model(args, len(images.classes))
    _, plan = build_plan(args, len(images), Processes())
    state = build_state(args, model, plan)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for pixels, targets in loader:
            loss = criterion(model(pixels), targets)
            assert np.isfinite(loss.item())
            state.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
            state.optimizer.step()
            state.model_ema.update(model)
        state.lr_scheduler.step(epoch)
        yield


class Waiting:
    """An iterator that adds up the seconds spent waiting for its items."""

    def __init__(self, items: Iterable):
        self.items, self.seconds = iter(items), 0.0

    def __next__(self) -> Any:
        started = time.perf_counter()
        item = next(self.items)
        self.seconds += time.perf_counter() - started
        return item


def our_epochs(args: argparse.Namespace) -> Iterator[float]:
    """Run one epoch per step with the parts of deit/main.py. Yields the seconds that it waited for batches."""
    from common.training import update_weights
    from deit.builders import build_plan, build_recipe, build_state, build_train_loader
    from deit.datasets import build_datasets
    from deit.engine import end_epoch
    from deit.models import build_model

    processes = Processes(torch.device("cpu"))
    data = build_datasets(args)
    sampler, plan = build_plan(args, len(data.train), processes)
    model = build_model(args, len(data.classes))
    state = build_state(args, model, plan)
    recipe = build_recipe(args, plan, model, data, processes.device)
    stream = BatchStream(sampler, plan, 0, range(args.epochs))
    batches = Waiting(build_train_loader(args, data, stream, processes))
    for _ in range(args.epochs):
        state.model.train()
        while state.update < plan.updates:
            update_weights(state.model, batches, recipe, state, processes, Interruption())
        end_epoch(state, evaluated=False)
        yield batches.seconds
        batches.seconds = 0.0


def seconds_per_epoch(epochs: Iterator[float | None], count: int) -> tuple[float, float]:
    """Return seconds per epoch and waiting, means of `count` in a row: several if short, as batches are made ahead."""
    started = time.perf_counter()
    waited = sum(next(epochs) or 0.0 for _ in range(count))
    return (time.perf_counter() - started) / count, waited / count


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Epoch time of deit/main.py against a plain loop.")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--num_workers", type=number(int, 0), default=16)
    chosen = parser.parse_args(argv)
    if not any(chosen.only in name for name in CASES):
        raise InputError(f"--only {chosen.only}: no case has that in its name, of {', '.join(CASES)}")
    workers = worker_count(chosen.num_workers)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {workers} workers")
    print(f"{'case':34} {'plain, s/epoch':>15} {'here, s/epoch':>15} {'images/s':>10} {'ratio':>7} {'waits':>7}")
    for name, (count, size, options, epochs, repeats) in CASES.items():
        if chosen.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), count, size)
            args = parse_args([
                "--data-set", "IMNET", "--data-path", folder, "--device", "cpu", "--epochs", str(epochs * repeats + 1),
                "--num_workers", str(workers), "--batch-size", "256", "--total-batch-size", "256",
                "--clip-grad", "2.0", *options.split(),
            ])  # fmt: skip
            plain, ours = plain_epochs(args), our_epochs(args)
            next(plain), next(ours)  # the first epoch of each warms up
            times = [(*seconds_per_epoch(plain, epochs), *seconds_per_epoch(ours, epochs)) for _ in range(repeats)]
        before, _, here, waited = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(before / here for before, _, here, _ in times)
        draws = len(RepeatedAugmentationSampler(count))
        figures = f"{before:15.3f} {here:15.3f} {draws / here:10.0f} {ratio:7.2f} {100 * waited / here:6.0f}%"
        print(f"{name:34} {figures}", flush=True)


if __name__ == "__main__":
    run(main)
