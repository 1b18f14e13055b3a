"""Stage 3: finetune a pretrained ViT on the chosen images, with the DeiT recipe as ActiveFT changed it.

    python -m torch.distributed.launch --nproc_per_node=2 --master_port 29501 --use_env main.py --clip-grad 2.0 \
        --eval_interval 50 --data-set CIFAR10SUBSET --subset_ids SUBSET.json \
        --resume dino_deitsmall16_pretrain.pth --output_dir OUT

    python main.py --data-set CSV --data-path ~/photos --labels labels.csv --resume W.pth --output_dir OUT

`torchrun --nproc_per_node=2 main.py ...` does the same as the first, and so does one process with --total-batch-size
512. Writes checkpoint.pth, best_checkpoint.pth, log.txt (one JSON object per epoch), summary.json and curves.png into
OUT. The published accuracies of this recipe are in the README. A run to try, on a CPU, ends with top-1 89.17%:

    python ../experiments/digits_pool.py digits
    python main.py --data-set IMNET --data-path digits --device cpu --resume ../experiments/digits_vit.pth \
        --model vit_tiny_patch16_224 --model-kwargs img_size=32 patch_size=8 embed_dim=96 depth=4 num_heads=3 \
        --total-batch-size 32 --lr 0.3 --clip-grad 2 --warmup-epochs 0 --epochs 10 --output_dir OUT

It takes 23 seconds of processor time on a server CPU (Xeon, AVX-512).
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.command_line import run
from common.files import check_folder, check_given
from deit.recipe_options import parse_args


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Return the last and best accuracies, as in summary.json."""
    args = parse_args(argv)
    check_given(args.subset_ids, "--subset_ids")
    check_given([args.finetune, args.resume], "checkpoint")
    check_given([*args.labels, args.val_labels or ""], "list of labels")
    # CIFAR is downloaded; lists may name images anywhere.
    if not args.data_set.startswith("CIFAR") and (args.data_set != "CSV" or args.unlabelled):
        check_folder(args.data_path)
    from common.run_folder import run_trainer  # with torch and timm, seconds to load
    from deit.finetuning import finetune

    return run_trainer(finetune, args)


if __name__ == "__main__":
    run(main)
