"""A pool of small real-format images and a tiny ViT, made anew for each test session: nothing is downloaded."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from common.pool_paths import PoolPaths, write_pool_paths
from data_selection.activeft.pool import Candidates, Pool

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("ant", "bee", "cat")
TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY_VIT_OPTIONS = ["--model-kwargs", *(f"{key}={value}" for key, value in TINY_VIT.items())]

torch.set_num_threads(1)  # the tests' matrices are tiny


def write_image(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_pool(root: Path, train_per_class: int, val_per_class: int, size: tuple[int, int] = (32, 32)) -> Path:
    """An image folder in ImageNet layout."""
    seed = 0
    for split, count in (("train", train_per_class), ("val", val_per_class)):
        for name in CLASSES:
            for number in range(count):
                write_image(root / split / name / f"{number:03d}.png", seed := seed + 1, size)
    return root


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train: 30 images of 3 classes, val: 6."""
    return write_pool(tmp_path_factory.mktemp("pools") / "insects", train_per_class=10, val_per_class=2)


def mixture(n: int, d: int, clusters: int, spread: float) -> np.ndarray:
    """(n, d + label): samples around random centres, and the centre of each."""
    random = np.random.RandomState(0)
    centres = random.randn(clusters, d)
    labels = random.randint(clusters, size=n)
    return np.column_stack([centres[labels] + spread * random.randn(n, d), labels]).astype(np.float32)


def write_image_paths(feature_path: Path, root: Path, paths: Iterable[str]) -> None:
    """List these images, which lie below a folder, beside a feature file."""
    relative = [os.path.relpath(path, root) for path in paths]
    write_pool_paths(feature_path, PoolPaths(str(root.resolve()), relative, [], []))


def pool_of(rows: torch.Tensor, labeled: tuple[int, ...] = (), excluded: tuple[int, ...] = ()) -> Pool:
    """A pool of these rows in one process."""
    return Pool(rows, Candidates(len(rows), labeled, excluded))


def tiny_vit(num_classes: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **{**TINY_VIT, **kwargs})
    for weight in model.parameters():  # fresh ViTs are nearly constant functions: give every weight a say
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare state dict of the tiny ViT."""
    path = tmp_path_factory.mktemp("weights") / "tiny_vit.pth"
    torch.save(tiny_vit().state_dict(), path)
    return path


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """Run a script as a user does, from the folder it documents; `launcher` comes before it, as in torchrun."""

    def run(script: str, *options: object, launcher: tuple[str, ...] = (), check: bool = True, **env: str):
        folder, _, name = script.partition("/")
        command = [sys.executable, *launcher, name, *map(str, options)]
        one_thread = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            command, cwd=ROOT / folder, env={**os.environ, **one_thread, **env}, capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run


def same(left: object, right: object) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def launch_two(port: int) -> tuple[str, ...]:
    """The documented launcher, with two processes on this machine."""
    return ("-m", "torch.distributed.launch", "--nproc_per_node=2", "--master_port", str(port), "--use_env")
