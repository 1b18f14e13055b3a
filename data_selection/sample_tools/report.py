"""Was the subset worth choosing? Compare it with random subsets of the same size, without labels.

    python sample_tools/report.py --feature_path features/CIFAR10_train.npy --output_dir report --subset_ids \
        features/CIFAR10_train_ActiveFT_euclidean_temp_0.07_lr_0.001000_scheduler_none_iter_300_sampleNum_1000.json

writes report/report.html, one page that needs no network; report/report.json, its numbers; and report/represents.npz:
which chosen image represents each image of the pool, and their similarity. It prints the verdict: expect that ActiveFT
is closer to the pool (Earth Mover's Distance) than all random subsets. About half a minute on one CPU core for 1,000 of
50,000 images; the time grows with both numbers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import ArgumentParser, add_mask_options, number, run, seed_number


def main(argv: list[str] | None = None) -> Path:
    """Write the report; return the path of the page."""
    parser = ArgumentParser("Compare chosen subsets of a pool with random ones, without labels.")
    add = parser.add_argument
    add("--feature_path", required=True, help=".npy of (n, d + 1), the label in the last column")
    add("--no-labels", action="store_true", help="--feature_path has no label column: (n, d)")
    add("--subset_ids", required=True, nargs="+", help="JSON of chosen indices, one or more")
    add("--output_dir", default="report")
    labeled = "samples that already had labels, JSON lists or CSVs (path,label): measured together with the subsets"
    add("--labeled_ids", nargs="+", metavar="FILE", help=labeled)
    add("--labels", nargs="+", metavar="CSV", help="labels (path,label) to show with the images")
    add("--predictions", metavar="CSV", help="from deit/predict.py, to show with the images")
    add("--eval_feature_path", help="held-out features with labels, to measure accuracy on")
    add("--random_seeds", default=10, type=number(int, 2), help="random subsets of each size to compare with")
    add("--emd_samples", default=5000, type=number(int, 1), help="most pool samples, and most chosen ones, in the EMD")
    add("--duplicate_similarity", default=0.99, type=number(float, -1, 1), help="minimum cosine of near-duplicates")
    add("--map", default="pca", choices=["pca", "tsne", "umap"], help="layout of the pool on the map")
    add("--map_samples", default=5000, type=number(int, 1), help="pool samples on the map")
    most = "maximum number of chosen images shown per subset: those that represent most"
    add("--gallery_images", default=5000, type=number(int, 1), help=most)
    add_mask_options(parser.add_argument_group("masks, if every image of the pool has one"))
    add("--seed", default=0, type=seed_number, help="seed of the samples for EMD and map; random subsets use 0, 1, ...")
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")
    args = parser.parse_args(argv)
    from data_selection.evidence.report_files import write_report  # torch: seconds to load

    return write_report(args)


if __name__ == "__main__":
    run(main)
