"""Every option of finetuning for segmentation, with the published defaults: Segmenter's recipe and DINOv2's probe."""

import argparse

from common.command_line import (
    ArgumentParser,
    add_mask_options,
    add_model_kwargs_option,
    add_run_options,
    check_optimizer,
    number,
)
from common.errors import InputError
from common.files import make_output_dir

PASSES = 127  # over the chosen images: 16,000 iterations at 5% of ADE20K, 32,000 at 10%
# DINOv2's linear evaluation, where it differs from Segmenter's recipe; the warm-up is 1,500 of its 40,000 iterations.
PROBE_DEFAULTS = {
    "decoder": "batchnorm_linear",
    "opt": "adamw",
    "weight_decay": 1e-4,
    "power": 1.0,
    "min_lr": 0.0,
    "warmup": 0.0375,
}
# Options that change no result, and those that builders.describe_run describes in another form.
NO_INFLUENCE = (
    "auto_resume", "device", "dist_url", "eval", "eval_interval", "log_interval", "num_workers", "output_dir",
    "save_interval", "class_names", "data_path", "num_classes", "resume", "subset_ids",
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Finetune a pretrained ViT for semantic segmentation on the chosen images.")
    natural = number(int, 1)
    share, positive, not_negative = number(float, 0, 1), number(float, above=0, maximum=1e30), number(float, 0, 1e30)
    rate = number(float, 0, below=1)

    group = parser.add_argument_group("run")
    add_run_options(group)
    add = group.add_argument
    add("--batch-size", default=8, type=natural, help="images per iteration, over all processes")
    add("--iterations", type=natural, help=f"updates; default: {PASSES} passes over the chosen images")
    add("--eval", action="store_true", help="only evaluate the checkpoint of --resume")
    add("--probe", choices=["linear"], help="freeze the backbone: batch norm and one linear layer, trained with AdamW")
    add("--log-interval", default=100, type=natural, help="iterations between lines of log.txt")
    add("--eval_interval", default=4000, type=natural, help="iterations between evaluations; the last is evaluated")
    add("--save-interval", default=500, type=natural, help="iterations between checkpoints; last and best are saved")

    group = parser.add_argument_group("model; defaults in brackets are those with --probe")
    add = group.add_argument
    add("--model", default="vit_small_patch16_224", help="any ViT of timm")
    add_model_kwargs_option(group)
    add("--decoder", default="mask_transformer", choices=["mask_transformer", "linear"])
    add("--drop-path", default=0.1, type=rate, help="stochastic depth rate of the encoder's last block")
    add("--dropout", default=0.1, type=rate, help="dropout rate in the mask transformer")

    group = parser.add_argument_group("optimiser and schedule")
    add = group.add_argument
    add("--opt", default="sgd", type=str.lower, help="any timm optimiser; sgd uses Nesterov momentum [adamw]")
    add("--momentum", default=0.9, type=share)
    add("--weight-decay", default=0.0, type=not_negative, help="[0.0001]")
    add("--clip-grad", type=positive, metavar="NORM", help="default: no clipping")
    add("--lr", default=1e-3, type=positive)
    add("--min-lr", default=1e-5, type=not_negative, help="[0]")
    add("--power", default=0.9, type=positive, help="exponent of the polynomial schedule [1]")
    add("--warmup", default=0.0, type=rate, help="share of the iterations with a linear warm-up [0.0375]")

    group = parser.add_argument_group("augmentation and evaluation")
    add = group.add_argument
    add("--crop-size", default=512, type=natural, help="side of the crops, and of the window in evaluation")
    add("--short-side", type=natural, help="pixels that images are resized to; default: --crop-size")
    add("--long-side", type=natural, help="limit of the long side; default: 4 x --short-side")
    add(
        "--scale",
        default=[0.5, 2.0],
        type=number(float, above=0, maximum=100),
        nargs=2,
        metavar=("MIN", "MAX"),
        help="random factor of the size",
    )
    add("--max-class-share", default=0.75, type=share, help="of a crop; with more, it is drawn again, up to 10 times")
    add("--flip", default=0.5, type=share, help="probability of a horizontal flip")
    add("--photometric", default=0.5, type=share, help="probability of each colour distortion")
    add("--stride", type=natural, help="step of the evaluation window; default: 15/16 of --crop-size, 480 of 512")

    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", default="data/ADEChallengeData2016", help="a folder in ADE20K's layout")
    add_mask_options(group)
    add("--subset_ids", default=[], nargs="+", metavar="JSON", help="chosen indices; several files are joined")

    given = parser.parse_known_args(argv)[0]  # some defaults depend on these
    short_side = given.short_side or given.crop_size
    parser.set_defaults(
        short_side=short_side,
        long_side=4 * short_side,
        stride=max(1, given.crop_size * 15 // 16),
        **(PROBE_DEFAULTS if given.probe else {}),
    )
    args = parser.parse_args(argv)
    check_together(args)
    return args


def check_together(args: argparse.Namespace) -> None:
    """Check options against each other. Raises InputError."""
    if args.probe and args.decoder != PROBE_DEFAULTS["decoder"]:
        raise InputError(f"--probe {args.probe} has a decoder of its own: leave out --decoder {args.decoder}")
    check_optimizer(args.opt)
    if args.scale[0] > args.scale[1]:
        raise InputError(f"--scale {args.scale[0]:g} {args.scale[1]:g}: the first must not be above the second")
    if args.long_side < args.short_side:
        raise InputError(f"--long-side {args.long_side} is less than --short-side {args.short_side}")
    if args.stride > args.crop_size:
        raise InputError(f"--stride {args.stride} above --crop-size {args.crop_size} leaves pixels out")
    if args.auto_resume and not args.output_dir:
        raise InputError("--auto-resume needs --output_dir")
    if args.eval and (args.auto_resume or not args.resume):
        raise InputError("--eval needs --resume, the checkpoint to evaluate, and no --auto-resume")
    if args.probe and not (args.resume or args.auto_resume):
        raise InputError(f"--probe {args.probe} needs --resume, the pretrained backbone")
    if args.output_dir:
        make_output_dir(args.output_dir)
