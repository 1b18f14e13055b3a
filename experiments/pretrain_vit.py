"""Pretrain a small ViT on the digits pool without labels.

The objective is contrastive: SimCLR's NT-Xent loss between two augmented views of each image (Chen et al., "A Simple
Framework for Contrastive Learning of Visual Representations", ICML 2020). It is not DINO's self-distillation: in a
trial of 900 steps with it, 5-NN accuracy on val stayed at 40% while the teacher's outputs collapsed onto a few values.

The weights in digits_vit.pth come from this run on the pool that `make demo` writes:

    OMP_NUM_THREADS=1 python experiments/pretrain_vit.py --pool experiments/output/pool/digits

    5-NN accuracy on val, L2-normalised [CLS] features: 97.78%

It took 6 min 52 s with torch 2.15.0 and timm 1.0.31 on one of the 2 cores of an x86 server CPU (other work was running
on the machine). Training reads no labels; the printed accuracy does. The augmentations were chosen by comparing a few
short runs on this same val split, so the accuracy is a check of the features, not an unbiased estimate.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

import common  # noqa: F401 - before torch is loaded, see common/__init__.py

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.command_line import ArgumentParser, number, run, seed_number
from common.errors import InputError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 0}


def load_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return a split's images (N, 3, 32, 32) with values in 0..1 and their labels (N,)."""
    from torchvision.datasets import ImageFolder  # a second to load, like timm
    from torchvision.transforms.functional import to_tensor

    if not folder.is_dir():
        raise InputError(f"{folder} is missing: give --pool a folder that experiments/digits_pool.py has written")
    dataset = ImageFolder(str(folder))
    return torch.stack([to_tensor(image) for image, _ in dataset]), torch.tensor(dataset.targets)


def uniform(count: int, limit: float) -> Tensor:
    """Draw `count` values from [-limit, limit]."""
    return (2 * torch.rand(count) - 1) * limit


def augment(images: Tensor) -> Tensor:
    """Warp each image (B, 3, H, W) the way handwriting varies: slant, size, place, wobble and stroke weight.

    Rotations stay within 20 degrees and nothing is flipped, so that a 6 never turns into a 9. The warps are strong
    because weaker ones, and ones without gamma, left the classes less compact, so that few labels went less far.
    """
    count, size = len(images), images.shape[-2:]
    angle, shear = uniform(count, math.radians(20)), uniform(count, 0.2)
    scale_x, scale_y = uniform(count, 0.2).exp(), uniform(count, 0.2).exp()
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale_x, shear * cos - sin * scale_y, uniform(count, 0.3)], dim=1)
    row_y = torch.stack([sin * scale_x, shear * sin + cos * scale_y, uniform(count, 0.3)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    # A coarse random field, smoothly enlarged, bends the strokes (grid units: the image spans -1..1).
    wobble = F.interpolate(0.1 * torch.randn(count, 2, 4, 4), size=size, mode="bicubic", align_corners=True)
    warped = F.grid_sample(images, grid + wobble.permute(0, 2, 3, 1), align_corners=False)
    # Gamma thickens or thins the strokes' gray edges.
    return warped ** uniform(count, 0.5).exp().view(-1, 1, 1, 1)


def cls_features(vit: nn.Module, images: Tensor) -> Tensor:
    """Return the [CLS] token after the final norm, (B, D), of images (B, 3, H, W) in 0..1."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.transforms.functional import normalize

    return vit.forward_features(normalize(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))[:, 0]


def projection_head(width: int, hidden: int = 256, out: int = 64) -> nn.Sequential:
    """Build the MLP between the features and the loss; it is thrown away afterwards.

    Batch norm is essential: at initialisation [CLS] hardly depends on the image, and batch norm magnifies what does.
    """
    layers: list[nn.Module] = []
    for fan_in in (width, hidden):
        layers += [nn.Linear(fan_in, hidden), nn.BatchNorm1d(hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out))


def contrastive_loss(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1) of projections (2B, P), where rows i and i + B are views of one image."""
    unit = F.normalize(projections, dim=1)
    similarity = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
    other_view = torch.arange(len(unit)).roll(len(unit) // 2)
    return F.cross_entropy(similarity, other_view)


def pretrain(vit: nn.Module, images: Tensor, epochs: int, batch_size: int, lr: float, temperature: float) -> None:
    """Train `vit` in place on images (N, 3, H, W): AdamW, linear warm-up over 200 steps, cosine decay to zero."""
    head = projection_head(vit.num_features)
    parameters = [*vit.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    vit.train()
    progress = tqdm(range(epochs), desc="pretrain", unit="epoch")
    for _ in progress:
        # The last, smaller batch is dropped: the loss depends on the number of negatives.
        for batch in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            views = augment(images[batch].repeat(2, 1, 1, 1))
            loss = contrastive_loss(head(cls_features(vit, views)), temperature)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, max_norm=3.0)
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def standardise(vit: nn.Module, images: Tensor) -> None:
    """Give the features zero mean and unit variance over the images, by way of the final norm's weight and bias.

    The projection head's batch norm made the loss blind to a constant that all features share, so it grew until all
    cosines were near 1. Selection and finetuning look at the features without that batch norm.
    """
    vit.eval()
    features = cls_features(vit, images)
    mean, std = features.mean(dim=0), features.std(dim=0)
    vit.norm.weight /= std
    vit.norm.bias -= mean
    vit.norm.bias /= std


@torch.no_grad()
def knn_accuracy(vit: nn.Module, bank: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], k: int = 5) -> float:
    """Return the plain k-nearest-neighbour accuracy (majority vote) on L2-normalised [CLS] features."""
    vit.eval()
    bank_features, query_features = (F.normalize(cls_features(vit, images), dim=1) for images, _ in (bank, queries))
    nearest = (query_features @ bank_features.T).topk(k).indices
    return (bank[1][nearest].mode(dim=1).values == queries[1]).float().mean().item()


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("Pretrain a small ViT on the digits pool, without labels.")
    parser.add_argument("--pool", type=Path, required=True, help="folder written by digits_pool.py")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("digits_vit.pth"))
    parser.add_argument("--epochs", type=number(int, 1), default=200)
    parser.add_argument("--batch_size", type=number(int, 2), default=96)
    parser.add_argument("--lr", type=number(float, above=0), default=1e-3)
    parser.add_argument("--temperature", type=number(float, above=0), default=0.2)
    parser.add_argument("--seed", type=seed_number, default=0)
    args = parser.parse_args(argv)
    from timm import create_model

    from common.checkpoints import write_checkpoint  # loads timm, too

    torch.manual_seed(args.seed)
    train, val = load_images(args.pool / "train"), load_images(args.pool / "val")
    if len(train[0]) < args.batch_size:
        raise InputError(f"{args.pool} has {len(train[0])} images, fewer than --batch_size {args.batch_size}")
    vit = create_model("vit_tiny_patch16_224", **VIT)
    pretrain(vit, train[0], args.epochs, args.batch_size, args.lr, args.temperature)
    standardise(vit, train[0])
    write_checkpoint(args.output, vit.state_dict())
    print(f"5-NN accuracy on val, L2-normalised [CLS] features: {knn_accuracy(vit, train, val):.2%}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run(main)
