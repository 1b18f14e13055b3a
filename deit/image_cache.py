"""Images that are decoded once: a small subset is read a thousand times, the test split after every few epochs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

DECODED_AT_ONCE = 64


class DecodedImages(Dataset):
    """A data set of (PIL image, label) whose images are kept decoded, as many of the first ones as fit the budget.

    They are decoded when it is made, so that worker processes forked later share them.
    """

    def __init__(self, images: Dataset, budget_bytes: int, threads: int = 1, progress: bool = False):
        self.images = images
        self.kept: list[tuple[np.ndarray, int]] = []
        free = budget_bytes
        with (
            ThreadPoolExecutor(max(1, threads)) as pool,
            tqdm(total=len(images), desc="decoding", unit="img", disable=not progress, leave=False) as bar,
        ):
            for start in range(0, len(images), DECODED_AT_ONCE):
                some = range(start, min(start + DECODED_AT_ONCE, len(images)))
                decoded = [(np.asarray(image), label) for image, label in pool.map(images.__getitem__, some)]
                free -= sum(image.nbytes for image, _ in decoded)
                if free < 0:
                    break
                self.kept += decoded
                bar.update(len(some))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index < len(self.kept):
            image, label = self.kept[index]
            return Image.fromarray(image), label
        return self.images[index]


class KeptBatches:
    """A loader whose batches (images, labels) stay in memory after the first pass, if all of them fit the budget."""

    def __init__(self, loader: DataLoader, budget_bytes: int):
        self.loader, self.budget_bytes = loader, budget_bytes
        self.kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.kept is not None:
            yield from self.kept
            return
        batches, free = [], self.budget_bytes
        for images, labels in self.loader:
            free -= images.nbytes
            if free >= 0:
                batches.append((images, labels))
            elif batches:
                batches.clear()
            yield images, labels
        if free >= 0:
            self.kept = batches
