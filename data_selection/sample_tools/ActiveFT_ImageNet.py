"""Stage 2 for a large pool: choose which images to label, every iteration over a random batch of the pool.

    python sample_tools/ActiveFT_ImageNet.py --feature_path features/ImageNet_train.npy --percent 1

writes features/ImageNet_train_ActiveFT_euclidean_temp_0.07_lr_0.001000_scheduler_none_iter_100_sampleNum_12811.json:
the chosen indices, one ascending JSON list.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import number, run
from data_selection.sample_tools.ActiveFT_options import PUBLISHED_BATCH_SIZE, select_with_activeft, selection_parser


def main(argv: list[str] | None = None) -> Path:
    """Run the selection; return the path of the JSON of chosen indices."""
    parser = selection_parser(
        "Choose the images to label with ActiveFT, with the published settings for ImageNet.",
        feature_path="features/ImageNet_train.npy",
        percent="1",
        max_iter=100,
    )
    add = parser.add_argument
    add("--batch_size", default=PUBLISHED_BATCH_SIZE, type=number(int, 1), help="samples drawn for each iteration")
    add("--slice", dest="chunk", type=number(int, 1), help="rows per matrix product, to bound memory; no other effect")
    return select_with_activeft(parser.parse_args(argv))


if __name__ == "__main__":
    run(main)
