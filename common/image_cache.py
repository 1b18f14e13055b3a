"""Images that are decoded once: a small subset is read a thousand times, the test split after every few epochs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.image_loader import ImageLoader
from common.progress import progress_bar

DECODED_AT_ONCE = 64


class DecodedImages(Dataset):
    """A data set of PIL images and labels (or masks) kept decoded, as many of the first ones as fit the budget.

    They are decoded when it is made, so that worker processes forked later share them.
    """

    def __init__(self, images: Dataset, budget_bytes: int, threads: int = 1, progress: bool = False):
        self.images = images
        self.kept: list[tuple] = []
        free = budget_bytes
        with (
            ThreadPoolExecutor(max(1, threads)) as pool,
            progress_bar(total=len(images), desc="decoding", unit="img", disable=not progress, leave=False) as bar,
        ):
            for start in range(0, len(images), DECODED_AT_ONCE):
                some = range(start, min(start + DECODED_AT_ONCE, len(images)))
                decoded = [tuple(map(_as_array, sample)) for sample in pool.map(images.__getitem__, some)]
                free -= sum(part.nbytes for sample in decoded for part in sample if isinstance(part, np.ndarray))
                if free < 0:
                    break
                self.kept += decoded
                bar.update(len(some))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        if index < len(self.kept):
            return tuple(Image.fromarray(part) if isinstance(part, np.ndarray) else part for part in self.kept[index])
        return self.images[index]


def _as_array(part: Any) -> Any:
    return np.asarray(part) if isinstance(part, Image.Image) else part


class KeptBatches:
    """A loader whose batches stay in memory after the first pass, if all of them fit the budget.

    They are kept in ordinary memory: in the workers' shared memory each would hold an open file.
    """

    def __init__(self, loader: ImageLoader, budget_bytes: int):
        self.loader, self.budget_bytes = loader, budget_bytes
        self.kept: list[list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.kept is not None:
            yield from self.kept
            return
        batches, free = [], self.budget_bytes
        for batch in self.loader:
            free -= sum(part.nbytes for part in batch)
            if free >= 0:
                batches.append([part.clone() if part.is_shared() else part for part in batch])
            elif batches:
                batches.clear()
            yield batch
        if free >= 0:
            self.kept = batches
