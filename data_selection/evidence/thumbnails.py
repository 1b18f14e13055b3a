"""Small copies of images that travel inside the page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from common.image_datasets import UNREADABLE

LONGEST_SIDE = 64
QUALITY = 75


def thumbnail(path: Path) -> Image.Image | None:
    """The image, made smaller if need be, never larger. None where it cannot be read: a report does without it."""
    try:
        with Image.open(path) as opened:
            opened.draft(
                "RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE)
            )  # a large JPEG is decoded at a fraction of its size
            image = opened.convert("RGB")
    except UNREADABLE:
        return None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def strip(images: Sequence[Image.Image | None]) -> Image.Image | None:
    """Images side by side in square cells of the size of the largest, which saves the headers of separate files."""
    side = max((max(image.size) for image in images if image), default=0)
    if not side:
        return None
    sheet = Image.new("RGBA", (side * len(images), side))
    for position, image in enumerate(images):
        if image:
            sheet.paste(image, (position * side + (side - image.width) // 2, (side - image.height) // 2))
    return sheet


def encoded(image: Image.Image | None) -> str | None:
    """WebP in base64: what follows `data:image/webp;base64,`."""
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
