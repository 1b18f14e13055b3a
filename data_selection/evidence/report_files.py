"""From the options of report.py to its three files: measure, compare with random subsets, draw, write."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.feature_file import read_features
from common.files import atomic_file, make_output_dir, write_json
from common.processes import pick_device
from data_selection.activeft.pool import read_rows
from data_selection.evidence.accuracy import LabelledRows
from data_selection.evidence.against_random import compare
from data_selection.evidence.evaluation import Evaluation, Evaluator, evaluate_with_random
from data_selection.evidence.gallery import chosen_images, pictures
from data_selection.evidence.given import Subset, image_paths, known_labels, read_held_out, read_subsets
from data_selection.evidence.page import page
from data_selection.evidence.projection import check_map, map_of_pool

PARTS_OF_A_PATH = 2  # that the page shows: in an image folder the class and the file


def write_report(args: argparse.Namespace) -> Path:
    """Write report.json, report.html and represents.npz into the output folder.

    Returns: the path of the page. Raises: InputError, before any work, for anything that does not fit.
    """
    features, labels = read_features(args.feature_path)
    n, d = features.shape
    if (unknown := int((labels < 0).sum())) not in (0, n):
        print(f"{unknown} of {n} images have no label: nothing is said about classes")
    labels = known_labels(labels)
    subsets = read_subsets(args.subset_ids, args.feature_path, n)
    held_out = read_held_out(args.eval_feature_path, d, labels) if args.eval_feature_path else None
    check_map(args.map, min(n, args.map_samples))
    paths = image_paths(args.feature_path, n, subsets)
    device = pick_device(args.device)
    folder = make_output_dir(args.output_dir)

    pool = read_rows(features, device)
    if held_out:
        held_out = LabelledRows(read_rows(held_out[0], device), held_out[1])
    evaluator = Evaluator(pool, labels, held_out, args.emd_samples, args.duplicate_similarity, args.seed)
    evaluations, random = evaluate_with_random(evaluator, [subset.ids for subset in subsets], args.random_seeds)

    drawn = map_of_pool(pool, [subset.ids for subset in subsets], args.map, args.map_samples, args.seed)
    of_drawn = np.array(drawn["index"][: drawn["pool"]])
    report = {
        **compare(subsets, evaluations, random),
        "options": vars(args),
        "n": n,
        "d": d,
        "emd_pool_samples": len(evaluator.emd_sample(n)),
        "held_out": len(held_out.rows) if held_out else 0,
        "map": drawn,
    }
    for entry, subset, evaluation in zip(report["subsets"], subsets, evaluations, strict=True):
        entry |= {
            "emd_samples": len(evaluator.emd_sample(len(subset.ids))),
            "losses": subset.losses,
            **chosen_images(subset, evaluation),
            "map_nearest": evaluation.nearest[of_drawn].tolist(),
            "map_similarity": evaluation.similarity[of_drawn].round(4).tolist(),
        }
    shown = sorted(
        {*drawn["index"], *(index for entry in report["subsets"] for row in entry["nearest"] for index in row)}
    )
    report["labels"] = {index: int(labels[index]) for index in shown} if labels is not None else {}
    report["paths"] = {index: "/".join(paths[index].parts[-PARTS_OF_A_PATH:]) for index in shown} if paths else {}
    gallery = [pictures(entry, paths, args.gallery_images) for entry in report["subsets"]] if paths else []

    write_json(folder / "report.json", report)
    write_represents(folder / "represents.npz", subsets, evaluations)
    with atomic_file(folder / "report.html") as temporary:
        temporary.write_text(page({"report": report, "gallery": gallery}))
    print_summary(report, folder)
    return folder / "report.html"


def write_represents(path: Path, subsets: Sequence[Subset], evaluations: Sequence[Evaluation]) -> None:
    """Which chosen sample stands for each of the pool, by subset.

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


def print_summary(report: dict[str, Any], folder: Path) -> None:
    for line in dict.fromkeys([report["verdict"], *(entry["verdict"] for entry in report["subsets"])]):
        print(line)
    print(f"wrote report.html, report.json and represents.npz to {folder}")
