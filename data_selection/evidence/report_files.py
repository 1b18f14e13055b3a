"""The report's files: read and check what the user gives, measure, compare, and write report.html and its data."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError
from common.feature_file import difference, in_words, read_description, read_features
from common.files import atomic_file, make_output_dir, write_json
from common.pool_paths import PoolPaths, numbered_alike, paths_file, read_pool_paths
from common.processes import pick_device
from common.subset_file import losses_file, note_on_pool, read_subset_ids
from data_selection.activeft.pool import read_rows
from data_selection.evidence.annotations import read_annotations, read_pixel_classes
from data_selection.evidence.comparison import compare
from data_selection.evidence.measures import Evaluation, Evaluator, LabelledRows, evaluate_with_random
from data_selection.evidence.pictures import (
    Thumbnails,
    check_map,
    chosen_images,
    map_of_pool,
    pictures,
    pool_duplicates,
    thumbnails_of,
)

PAGE = Path(__file__).parent / "page"
PLACEHOLDER = "{{data}}"
PARTS_OF_A_PATH = 2  # shown on the page: in an image folder, the class and the file


class Subset(NamedTuple):
    """chosen: as the file lists them. ids: these and the samples labelled before, distinct, ascending.

    losses: of the optimisation that chose them, None for one that was not finite.
    """

    name: str
    path: Path
    chosen: list[int]
    ids: tuple[int, ...]
    losses: list[float | None]


def write_report(args: argparse.Namespace) -> Path:
    """Write report.json, report.html and represents.npz into the output folder.

    Returns: the path of the page. Raises: InputError, before any work, if anything does not fit.
    """
    features, labels = read_features(args.feature_path, labels=not args.no_labels)
    described = read_description(args.feature_path)
    if described:
        print(f"features of {in_words(described)}")
    n, d = features.shape
    if (unknown := int((labels < 0).sum())) not in (0, n):
        print(f"{unknown} of {n} images have no label: the report says nothing about classes")
    labels = known_labels(labels)
    known = read_annotations(args, n)
    subsets = read_subsets(args.subset_ids, args.feature_path, n, known.labeled)
    held_out = (
        read_held_out(args.eval_feature_path, args.feature_path, d, labels)
        if args.eval_feature_path is not None
        else None
    )
    check_map(args.map, min(n, args.map_samples))
    listed = read_pool_paths(args.feature_path, n) if paths_file(Path(args.feature_path)).is_file() else None
    names = listed.paths if listed else ()
    for note in filter(None, (note_on_pool(of.path, of.chosen, n, names, features=features) for of in subsets)):
        print(note)
    paths = listed.files() if listed else None
    thumbnail = drawn_images(listed, subsets) if listed else None
    pixels = read_pixel_classes(paths, args)
    device = pick_device(args.device)
    folder = make_output_dir(args.output_dir)

    pool = read_rows(features, device)
    if held_out:
        held_out = LabelledRows(read_rows(held_out[0], device), held_out[1])
    evaluator = Evaluator(pool, labels, held_out, args.emd_samples, args.duplicate_similarity, args.seed, pixels)
    evaluations, random = evaluate_with_random(
        evaluator, [subset.ids for subset in subsets], args.random_seeds, known.labeled
    )

    drawn = map_of_pool(pool, [subset.ids for subset in subsets], args.map, args.map_samples, args.seed)
    of_drawn = np.array(drawn["index"][: drawn["pool"]])
    report = {
        **compare(
            [(of.name, len(of.ids), evaluation.values) for of, evaluation in zip(subsets, evaluations, strict=True)],
            random,
        ),
        "options": vars(args),
        "features": described,
        "n": n,
        "d": d,
        "emd_pool_samples": len(evaluator.emd_sample(n)),
        "held_out": len(held_out.rows) if held_out else 0,
        "map": drawn,
        "labeled": known.labeled,
        "duplicates": pool_duplicates(pool, args.duplicate_similarity, thumbnail),
        "pixels": {"classes": pixels.names, "pool": pixels.shares().tolist()} if pixels else None,
    }
    for entry, subset, evaluation in zip(report["subsets"], subsets, evaluations, strict=True):
        entry |= {
            "path": str(subset.path),
            "emd_samples": len(evaluator.emd_sample(len(subset.ids))),
            "losses": subset.losses,
            "pixels": pixels.shares(subset.ids).tolist() if pixels else None,
            **chosen_images(subset.ids, evaluation),
            "map_nearest": evaluation.nearest[of_drawn].tolist(),
            "map_similarity": evaluation.similarity[of_drawn].round(4).tolist(),
        }
    groups = (report["duplicates"] or {}).get("shown", [])
    rows = [group["ids"] for group in groups] + [row for entry in report["subsets"] for row in entry["nearest"]]
    shown = sorted({*drawn["index"], *(index for row in rows for index in row)})
    for name, of in (("given_labels", known.labels), ("predictions", known.predictions)):
        report[name] = {index: of[index] for index in shown if index in of}
    report["labels"] = {index: int(labels[index]) for index in shown} if labels is not None else {}
    report["class_names"] = listed.classes if listed else []
    report["paths"] = {index: "/".join(paths[index].parts[-PARTS_OF_A_PATH:]) for index in shown} if paths else {}
    gallery = [pictures(entry, thumbnail, args.gallery_images) for entry in report["subsets"]] if thumbnail else []

    write_json(folder / "report.json", report)
    write_represents(folder / "represents.npz", subsets, evaluations)
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(page({"report": report, "gallery": gallery}), encoding="utf-8")
    for line in dict.fromkeys([report["verdict"], *(entry["verdict"] for entry in report["subsets"])]):
        print(line)
    print(f"wrote report.html, report.json and represents.npz to {folder}")
    return folder / "report.html"


def write_represents(path: Path, subsets: Sequence[Subset], evaluations: Sequence[Evaluation]) -> None:
    """Write, for each subset, which chosen sample represents each pool sample.

    Arrays: subsets (m,), their names; chosen (m, n), int64, an index into the pool; similarity (m, n), float32, cosine.
    """
    chosen = [np.array(subset.ids)[of.nearest] for subset, of in zip(subsets, evaluations, strict=True)]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            subsets=np.array([subset.name for subset in subsets]),
            chosen=np.stack(chosen),
            similarity=np.stack([of.similarity for of in evaluations]),
        )


def read_subsets(paths: Sequence[str], feature_path: str, n: int, labeled: Sequence[int] = ()) -> list[Subset]:
    """Read the subsets, named after their files without the pool's name that the selection puts in front.

    labeled: samples that had labels when the subsets were chosen, and are measured with them.

    Raises: InputError if a file is not a subset of n samples, or the losses beside it are not a list of numbers.
    """
    distinct = list(dict.fromkeys(map(Path, paths)))
    names = [path.stem.removeprefix(f"{Path(feature_path).stem}_") for path in distinct]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, distinct, strict=True)]
    chosen = [read_subset_ids(path, n) for path in distinct]
    return [
        Subset(name, path, ids, tuple(sorted({*ids, *labeled})), read_losses(path))
        for name, path, ids in zip(names, distinct, chosen, strict=True)
    ]


def read_losses(subset: Path) -> list[float | None]:
    """Read the losses that the selection wrote beside its subset; empty if there is no such file."""
    path = losses_file(subset)
    if not path.is_file():
        return []
    try:
        losses = [float(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(f"{path} does not hold one number per line ({error}): select again, or remove it") from None
    return [loss if math.isfinite(loss) else None for loss in losses]


def known_labels(labels: np.ndarray) -> np.ndarray | None:
    """Return labels (n,), or None unless every sample has one."""
    return labels if (labels >= 0).all() else None


def read_held_out(path: str, feature_path: str, d: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Read held-out features (m, d) and labels (m,). Raises InputError unless they and the pool's labels are usable."""
    features, held_out_labels = read_features(path)
    if features.shape[1] != d:
        raise InputError(f"--eval_feature_path {path} has {features.shape[1]} features per row, but the pool has {d}")
    if differs := difference(read_description(feature_path), read_description(path)):
        raise InputError(f"--eval_feature_path {path} has other features than the pool: {differs}")
    if labels is None:
        raise InputError("--eval_feature_path needs a label for every sample of the pool, but some are -1 (unknown)")
    if known_labels(held_out_labels) is None:
        raise InputError(f"--eval_feature_path {path} needs a label for every sample, but some are -1 (unknown)")
    return features, numbered_alike(feature_path, path, held_out_labels)


def drawn_images(pool: PoolPaths, subsets: Sequence[Subset]) -> Thumbnails | None:
    """Return a function that draws the pool's images, or None if none can be read. Say if chosen images are missing."""
    try:
        drawn = thumbnails_of(pool)
    except InputError as error:
        print(f"the page has no pictures: {error}")
        return None
    chosen = [] if pool.source else sorted({index for subset in subsets for index in subset.ids})
    missing = [path for path in (Path(pool.root, pool.paths[index]) for index in chosen) if not path.is_file()]
    if missing:
        print(f"{len(missing)} of {len(chosen)} chosen images are missing ({missing[0]}): their tiles stay empty")
    return drawn


def page(content: dict[str, Any]) -> str:
    """Return one HTML file that holds its data, styles and scripts. All of `content` is text in it, never markup.

    page.html refers to its style sheet and scripts, and has one placeholder, for the data.
    """
    html = (PAGE / "page.html").read_text(encoding="utf-8")
    for tag, link in (("style", r'<link rel="stylesheet" href="(.+?)">'), ("script", r'<script src="(.+?)"></script>')):
        html = re.sub(link, lambda part, tag=tag: f"<{tag}>\n{(PAGE / part[1]).read_text('utf-8')}</{tag}>", html)
    return html.replace(PLACEHOLDER, json_in_script(content))


def json_in_script(content: Any) -> str:
    """Return JSON that no HTML parser takes for markup: it cannot end the <script> that it is in."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
