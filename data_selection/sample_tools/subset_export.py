"""Files for the people who label: a CSV to fill in, copies of the chosen images, tasks for a labelling tool."""

import argparse
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

import torch.nn.functional as F

from common.errors import InputError
from common.files import atomic_file, make_output_dir, read_json, write_json
from common.image_list import read_image_list, write_image_list
from common.pool_paths import PoolPaths, read_pool_paths
from common.subset_file import beside
from data_selection.activeft.assignment import representatives
from data_selection.activeft.pool import Pool

CSV_COLUMNS = ("path", "label", "represents")
LONGEST_NAME = 200  # bytes; file systems allow 255


def add_export_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--export_paths", action="store_true", help="write the chosen images' paths next to the JSON, one per line")
    add("--export_csv", action="store_true", help="CSV of path,label,represents to fill in, most representative first")
    add("--copy_images", metavar="DIR", help="copy the chosen images there, all into one folder")
    add("--export_tasks", choices=["label-studio"], help="write the chosen images as tasks to import into this tool")


def labels_file(subset: Path) -> Path:
    return beside(subset, "labels.csv")


def tasks_file(subset: Path) -> Path:
    return beside(subset, "tasks.json")


def labels_in(listing: Path) -> int:
    """Count the labels that are filled in; a list that cannot be read may be one with labels."""
    if not listing.is_file():
        return 0
    try:
        return sum(bool(image.label) for image in read_image_list(listing))
    except InputError:
        return 1


def check_exports(args: argparse.Namespace, n: int, subsets: Sequence[Path]) -> PoolPaths | None:
    """Return the pool's images if the options ask to export some, else None.

    Raises: InputError, before any work, if the export cannot be done or would lose labels.
    """
    if not (args.export_paths or args.export_csv or args.copy_images is not None or args.export_tasks):
        return None
    pool = read_pool_paths(args.feature_path, n)
    if pool.source and (args.export_paths or args.export_tasks):
        option = "--export_paths" if args.export_paths else "--export_tasks"
        raise InputError(
            f"{option} names files, but the images of {pool.root} are not files: use --copy_images or --export_csv"
        )
    lists = args.export_paths or args.export_csv
    if broken := lists and next((path for path in pool.paths if "\n" in path or "\r" in path), None):
        raise InputError(f"{broken!r} has a line break in its name, which lists cannot hold: rename it, extract again")
    if args.export_csv or args.copy_images is not None or args.export_tasks:
        pool.check_unchanged(args.feature_path)
    for file_of, is_written in ((labels_file, args.export_csv), (tasks_file, args.export_tasks)):
        for listing in map(file_of, subsets) if is_written else ():
            if filled := labels_in(listing):
                raise InputError(f"{listing} holds {filled} labels: move it, or name the new subset with --filename")
    if args.copy_images is not None:
        if not args.copy_images:
            raise InputError("--copy_images needs the name of a folder")
        if not pool.source and Path(args.copy_images).resolve().is_relative_to(Path(pool.root).resolve()):
            raise InputError(f"--copy_images {args.copy_images} is inside the pool {pool.root}, which it would change")
        make_output_dir(args.copy_images)
    return pool


def remove_stale_exports(subset: Path, indices: Sequence[int]) -> None:
    """Remove lists and tasks of another subset that had this name. Labels that are filled in stay, with a message."""
    with contextlib.suppress(InputError):
        if not subset.is_file() or read_json(subset, "subset") == list(indices):
            return
    beside(subset, "paths.txt").unlink(missing_ok=True)
    for listing in (labels_file(subset), tasks_file(subset)):
        if labels_in(listing):
            print(f"note: {listing} stays, with the labels of another subset")
        else:
            listing.unlink(missing_ok=True)


def export(
    args: argparse.Namespace, pool: PoolPaths, subset: Path, indices: Sequence[int], represents: dict[int, int]
) -> None:
    """Write the exports that the options ask for, lists and tasks beside the JSON of a subset.

    indices: the chosen ones, ascending. represents: how many samples each represents, if a CSV or tasks are asked for.
    """
    ranked = sorted(indices, key=lambda index: -represents.get(index, 0))
    if args.export_paths:
        listing = beside(subset, "paths.txt")
        with atomic_file(listing) as temporary:  # paths in any encoding
            temporary.write_bytes(b"".join(os.fsencode(Path(pool.root, pool.paths[i])) + b"\n" for i in indices))
        print(f"wrote the paths of the chosen images to {listing}")
    if args.export_csv:
        rows = [(pool.paths[index], "", represents[index]) for index in ranked]
        write_image_list(labels_file(subset), CSV_COLUMNS, rows)
        print(f"wrote {labels_file(subset)}: fill in the column label")
    if args.export_tasks:
        tasks = tasks_file(subset)
        write_json(tasks, [task(pool, index, represents[index]) for index in ranked], indent=1)
        print(
            f"wrote {tasks}, for Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={Path(pool.root).parent}"
        )
    if args.copy_images:
        copy_images(pool, indices, Path(args.copy_images))
        print(f"copied {len(indices)} images to {args.copy_images}")


def task(pool: PoolPaths, index: int, represents: int) -> dict[str, dict[str, object]]:
    """Return a Label Studio task."""
    path = pool.paths[index]
    url = quote(os.fsencode(f"{Path(pool.root).name}/{path}"))
    return {"data": {"image": f"/data/local-files/?d={url}", "path": path, "represents": represents}}


def copy_images(pool: PoolPaths, indices: Sequence[int], folder: Path) -> None:
    data_set = pool.data_set()
    for index, name in zip(indices, flat_names([pool.paths[index] for index in indices]), strict=True):
        with atomic_file(folder / name) as temporary:
            if data_set:
                temporary.write_bytes(data_set.content(index))
            else:
                shutil.copyfile(Path(pool.root, pool.paths[index]), temporary)


def represented(pool: Pool, covering: Sequence[int], unit: bool) -> dict[int, int]:
    """Count how many samples of the pool each of `covering` represents. Every process must call this.

    unit: whether the pool's rows have unit length.
    """
    nearest, _ = representatives(pool if unit else replace(pool, rows=F.normalize(pool.rows, dim=1)), covering)
    counts = nearest.bincount(minlength=len(covering))
    pool.processes.sum(counts)
    return dict(zip(covering, counts.tolist(), strict=True))


def flat_names(paths: Sequence[str]) -> list[str]:
    """Return names for these distinct paths in one folder, distinct even if upper and lower case are the same.

    Each name depends on its path alone, unless several would be the same: these end with a checksum.
    """
    plain = [path.replace("../", "").replace(os.sep, "_").lstrip("_.") for path in paths]
    times = Counter(name.casefold() for name in plain)

    def distinct(path: str, name: str) -> str:
        encoded = os.fsencode(name)
        if times[name.casefold()] == 1 and len(encoded) <= LONGEST_NAME:
            return name
        suffix = Path(name).suffix
        stem = os.fsdecode(os.fsencode(name.removesuffix(suffix))[:LONGEST_NAME])
        return f"{stem}_{crc32(os.fsencode(path)):08x}{suffix}"

    return [distinct(path, name) for path, name in zip(paths, plain, strict=True)]
