"""Stage 3 for segmentation: finetune a pretrained ViT on the chosen images, with Segmenter's recipe.

    torchrun --nproc_per_node=2 main.py --data-path ../data_selection/data/ADEChallengeData2016 \
        --subset_ids SUBSET.json --resume dino_deitsmall16_pretrain.pth --output_dir OUT

A single process makes the same updates. With --probe linear the backbone is frozen; only batch norm and a linear layer
are trained. Writes checkpoint.pth, best_checkpoint.pth, log.txt (one JSON object every 100 iterations), summary.json,
curves.png and predictions.png into OUT.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import run
from common.files import check_folder, check_given
from segmenter.recipe_options import parse_args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Return the last and best results, as in summary.json."""
    args = parse_args(argv)
    check_given(args.subset_ids, "--subset_ids")
    check_given([args.resume], "checkpoint")
    check_folder(args.data_path)
    from common.run_folder import run_trainer  # with torch and timm, seconds to load
    from segmenter.finetuning import finetune

    return run_trainer(finetune, args)


if __name__ == "__main__":
    run(main)
