"""Every finetuning option, with the published defaults: DeiT's recipe as ActiveFT changed it."""

import argparse
import importlib.util

from common.command_line import ArgumentParser, add_model_kwargs_option, add_run_options, check_optimizer, number
from common.errors import InputError
from common.files import make_output_dir

DATA_SETS = (
    "CIFAR10", "CIFAR100", "IMNET", "INAT", "INAT19", "CIFAR10SUBSET", "CIFAR100SUBSET", "IMNETSUBSET",
    "FOLDER", "FOLDERSUBSET", "CSV",
)  # fmt: skip
INAT_CATEGORIES = ("kingdom", "phylum", "class", "order", "supercategory", "family", "genus", "name")
PUBLISHED_TOTAL_BATCH = 512  # --lr is for this many images per update
PUBLISHED_LR = 0.01
PUBLISHED_HFLIP = 0.5
PUBLISHED_EPOCHS = 1000
MOST_NOISE = 1000  # highest ratio of --lr-noise-std to --lr-noise-pct
# Changes by --recipe few-labels to the published recipe. Settled on random subsets of CIFAR-10 and the digits, with
# seeds that no table uses (experiments/README.md). The least crop of large images (crop_scale) was not measured.
FEW_LABELS = {
    "head_init": "linear",
    "unlabelled": 4000,
    "updates": 150,
    "total_batch_size": 96,
    "repeated_aug": False,  # three copies of each image leave 32 different ones in an update
    "opt": "adamw",
    "lr": 1e-4 * PUBLISHED_TOTAL_BATCH / 96,
    "weight_decay": 0.05,
    "layer_decay": 0.75,
    "clip_grad": 2.0,
    "warmup_epochs": 0,
    "min_lr": 0.0,
    "drop_path": 0.0,
    "smoothing": 0.0,
    "crop_padding": 0,
    "crop_scale": 0.5,
    "model_ema_decay": 0.99,
    "model_ema_warmup": True,
}
RECIPES = {"published": {}, "few-labels": FEW_LABELS}
# These may change when a run is resumed: no result depends on them, or their files or effects are compared instead.
NO_INFLUENCE = (
    "accum_steps", "auto_resume", "cache_mb", "confusion_matrix", "cooldown_epochs", "device", "dist_eval", "dist_url",
    "eval", "eval_interval", "model_ema_force_cpu", "num_workers", "output_dir", "pin_mem", "probe", "resplit",
    "save_interval", "tensorboard", "world_size",
    "batch_size", "data_path", "finetune", "labels", "resume", "subset_ids", "teacher_path", "total_batch_size",
    "recipe", "updates", "val_labels",
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser("Finetune a pretrained network on the chosen images.")
    natural, whole, on_or_off = number(int, 1), number(int, 0), argparse.BooleanOptionalAction
    share, positive, not_negative = number(float, 0, 1), number(float, above=0, maximum=1e30), number(float, 0, 1e30)

    group = parser.add_argument_group("run")
    add_run_options(group)
    add = group.add_argument
    add("--batch-size", default=256, type=natural, help="images per process and update")
    of_an_update = "images per update; default: the recipe's, or --batch-size times the processes"
    add("--total-batch-size", type=natural, help=of_an_update)
    add("--accum-steps", default=1, type=natural, help="split each update into this many passes, to save memory")
    add("--recipe", default="published", choices=RECIPES, help="few-labels: other defaults, which options override")
    add("--epochs", type=natural, help=f"default: {PUBLISHED_EPOCHS}, or as many as --updates take")
    add("--updates", type=natural, help="instead of --epochs: at least this many updates, in whole epochs")
    add("--unlabelled", default=0, type=whole, metavar="N", help="also train on N others of the pool, with soft labels")
    add("--finetune", default="", help="a pretrained backbone; file or https://")
    add("--start_epoch", default=0, type=whole)
    add("--save-interval", default=1, type=natural, help="epochs between checkpoints; last and best are always saved")
    add("--eval", action="store_true", help="evaluate only")
    add("--probe", choices=["linear", "knn"], help="do not finetune: fit a readout to the frozen features of --resume")
    add("--confusion-matrix", action="store_true", help="draw it after the last epoch, or with --eval")
    add("--tensorboard", action="store_true", help="write TensorBoard's files as well")
    add("--dist-eval", action="store_true", help="divide evaluation images among the processes")
    add("--eval_interval", default=1, type=natural, help="epochs between evaluations; the last is always evaluated")
    add("--cache-mb", default=4096, type=whole, help="memory for decoded images, half of it for evaluation")
    add("--pin-mem", default=True, action=on_or_off, help="pinned memory, copied faster to the GPU")
    add("--world_size", default=1, type=natural, help="accepted for compatibility; has no effect: the launcher sets it")

    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--model", default="deit_small_patch16_224", help="any timm name")
    add_model_kwargs_option(group)
    add("--input-size", type=natural, help="pixels per side; default: img_size of --model-kwargs, else 224")
    add("--drop", default=0.0, type=number(float, 0, below=1), help="dropout rate")
    add("--drop-path", default=0.1, type=number(float, 0, below=1), help="stochastic depth rate of the last block")
    add("--head-init", default="fresh", choices=["fresh", "linear"], help="linear: start from that of --probe linear")
    add("--freeze", default="none", choices=["none", "backbone"], help="backbone: train the head alone, augmented")
    add("--model-ema", default=True, action=on_or_off, help="keep a moving average of the weights")
    add("--model-ema-decay", default=0.99996, type=share)
    add("--model-ema-warmup", action="store_true", help="let the decay grow to --model-ema-decay; for short runs")
    add("--model-ema-force-cpu", action="store_true", help="keep the moving average in main memory")

    group = parser.add_argument_group("optimiser")
    add = group.add_argument
    add("--opt", default="SGD", type=str.lower, help="any timm optimiser; SGD uses Nesterov momentum")
    add("--opt-eps", default=1e-8, type=positive)
    add("--opt-betas", type=share, nargs="+", metavar="BETA", help="default: the optimiser's own")
    add("--clip-grad", type=positive, metavar="NORM", help="default: no clipping")
    add("--momentum", default=0.9, type=share)
    add("--weight-decay", default=1e-4, type=not_negative)
    fraction = number(float, maximum=1, above=0)
    add("--layer-decay", type=fraction, metavar="X", help="multiply the rate by X for each layer below the head")

    group = parser.add_argument_group("schedule")
    add = group.add_argument
    add("--sched", default="cosine", choices=["cosine", "tanh", "step", "poly", "plateau"])
    add("--lr", default=PUBLISHED_LR, type=positive, help="for 512 images per update; scaled in proportion")
    add("--lr-noise", type=share, nargs="+", metavar="SHARE", help="start and end of noise, as shares of the epochs")
    add("--lr-noise-pct", default=0.67, type=positive)
    add("--lr-noise-std", default=1.0, type=positive, help="drawn again until it is below --lr-noise-pct")
    add("--warmup-lr", default=1e-6, type=not_negative)
    add("--min-lr", default=1e-5, type=not_negative)
    add("--decay-epochs", default=30, type=number(float, above=0), help="of the step schedule, between decays")
    add("--warmup-epochs", default=5, type=whole)
    add("--cooldown-epochs", default=10, type=whole, help="accepted for compatibility; has no effect")
    add("--patience-epochs", default=10, type=whole, help="of the plateau schedule: evaluations without improvement")
    add("--decay-rate", "--dr", default=0.1, type=positive, help="decay factor of step and plateau; power of poly")

    group = parser.add_argument_group("augmentation")
    add = group.add_argument
    add("--color-jitter", default=0.0, type=not_negative)
    add("--hflip", default=PUBLISHED_HFLIP, type=share, help="probability of a flip; 0 for digits and letters")
    add("--crop-padding", default=4, type=whole, help="pixels added around images of up to 32x32 before the crop")
    add("--padding-mode", default="constant", choices=["constant", "reflect"], help="constant: black, as published")
    add("--crop-scale", default=0.08, type=fraction, help="smallest crop of larger images, as a share of their area")
    add("--aa", default="none", help="AutoAugment policy of timm, such as rand-m9-mstd0.5-inc1, or none")
    add("--smoothing", default=0.1, type=number(float, 0, below=1), help="label smoothing")
    add("--train-interpolation", default="bicubic", choices=["random", "bilinear", "bicubic"])
    add("--repeated-aug", default=True, action=on_or_off, help="draw every image of an epoch three times")
    add("--reprob", default=0.0, type=share, help="random erase probability")
    add("--remode", default="pixel", choices=["const", "rand", "pixel"])
    add("--recount", default=1, type=natural)
    add("--resplit", action="store_true", help="accepted for compatibility; has no effect")
    add("--mixup", default=0.0, type=not_negative, help="mixup alpha; 0 is off")
    add("--cutmix", default=0.0, type=not_negative, help="cutmix alpha; 0 is off")
    add("--cutmix-minmax", type=share, nargs=2, metavar=("MIN", "MAX"), help="overrides the alpha of cutmix")
    add("--mixup-prob", default=0.0, type=share, help="probability that a batch is mixed at all")
    add("--mixup-switch-prob", default=0.5, type=share, help="probability of cutmix if both are on")
    add("--mixup-mode", default="batch", choices=["batch", "pair", "elem"])

    group = parser.add_argument_group("distillation")
    add = group.add_argument
    add("--teacher-model", default="regnety_160", help="any timm name")
    add("--teacher-path", default="", help="the teacher's checkpoint; file or https://")
    add("--distillation-type", default="none", choices=["none", "soft", "hard"])
    add("--distillation-alpha", default=0.5, type=share, help="weight of the distillation loss")
    add("--distillation-tau", default=1.0, type=positive)

    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data-path", default="data", help="where CIFAR is downloaded to; else the folder of the images")
    own = "FOLDER: your own images, in IMNET's layout, turned upright; CSV: see --labels"
    add("--data-set", default="CIFAR10", choices=DATA_SETS, help=own)
    add("--inat-category", default="name", choices=INAT_CATEGORIES, help="level of the taxonomy to use as the class")
    add("--subset_ids", default=[], nargs="+", metavar="JSON", help="for ...SUBSET: chosen indices; several are joined")
    add("--labels", default=[], nargs="+", metavar="CSV", help="for CSV: path,label of images below --data-path")
    add("--val-labels", metavar="CSV", help="the same, to evaluate on; without it a readout is cross-validated")

    given, _ = parser.parse_known_args(argv, argparse.Namespace(batch_size=None))  # None if not given
    if given.epochs and given.updates:
        raise InputError(f"--epochs {given.epochs} and --updates {given.updates} are both given: give one of them")
    parser.set_defaults(**RECIPES[given.recipe])
    if given.batch_size:
        parser.set_defaults(total_batch_size=None)  # --batch-size overrides a recipe's total batch size
    if given.epochs:
        parser.set_defaults(updates=None)
    elif not (given.updates or RECIPES[given.recipe].get("updates")):
        parser.set_defaults(epochs=PUBLISHED_EPOCHS)
    args = parser.parse_args(argv)
    check_together(args)
    return args


def check_together(args: argparse.Namespace) -> None:
    """Check options against each other. Raises InputError."""
    plateau = args.sched == "plateau"
    if args.data_set.endswith("SUBSET") != bool(args.subset_ids):
        needs = "needs" if not args.subset_ids else "does not take"
        raise InputError(f"--data-set {args.data_set} {needs} --subset_ids, the JSON of chosen indices")
    if (args.data_set == "CSV") != bool(args.labels):
        needs = "needs" if not args.labels else "does not take"
        raise InputError(f"--data-set {args.data_set} {needs} --labels, the CSV of paths and labels")
    if args.val_labels and args.data_set != "CSV":
        raise InputError(f"--data-set {args.data_set} does not take --val-labels")
    evaluating = ("--eval", args.eval), ("--confusion-matrix", args.confusion_matrix), ("--sched plateau", plateau)
    wanted = [option for option, is_given in evaluating if is_given]
    if wanted and args.data_set == "CSV" and not args.val_labels:
        raise InputError(f"{wanted[0]} needs --val-labels, images to evaluate on")
    if plateau and args.lr_noise and args.eval_interval > 1:
        raise InputError(
            "--sched plateau with --lr-noise needs --eval_interval 1: it changes the rate at evaluations only"
        )
    if args.lr_noise and args.lr_noise_std > MOST_NOISE * args.lr_noise_pct:
        raise InputError(
            f"--lr-noise-std {args.lr_noise_std:g} is more than {MOST_NOISE} times --lr-noise-pct "
            f"{args.lr_noise_pct:g}: nearly all noise that is drawn would be rejected"
        )
    for option, values, most in (("--lr-noise", args.lr_noise, 2), ("--opt-betas", args.opt_betas, 3)):
        if values and len(values) > most:
            raise InputError(f"{option} takes at most {most} values, not {len(values)}")
    check_departures(args)
    check_optimizer(args.opt)
    if args.distillation_type != "none" and not args.teacher_path:
        raise InputError(f"--distillation-type {args.distillation_type} needs --teacher-path, the teacher's checkpoint")
    if args.teacher_path and args.distillation_type == "none":
        raise InputError(f"--teacher-path {args.teacher_path} has no effect without --distillation-type soft or hard")
    wanted = [name for name in ("auto_resume", "confusion_matrix", "tensorboard") if getattr(args, name)]
    if wanted and not args.output_dir:
        raise InputError(f"--{wanted[0].replace('_', '-')} needs --output_dir")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install tensorboard")
    if args.auto_resume and (args.eval or args.probe):
        raise InputError("--auto-resume continues training; with --eval or --probe give the checkpoint to --resume")
    if args.probe and args.confusion_matrix:
        raise InputError(f"--confusion-matrix needs a finetuned network, but --probe {args.probe} trains none")
    if args.probe and args.eval:
        raise InputError(f"--eval and --probe {args.probe} are both given: give one of them")
    if args.probe and not args.resume:
        raise InputError(f"--probe {args.probe} needs --resume, the pretrained backbone")
    if args.output_dir:
        folder = make_output_dir(args.output_dir)
        if args.probe and (folder / "checkpoint.pth").is_file():
            raise InputError(f"--probe would overwrite the summary of the finetuning in {folder}: give another folder")


def check_departures(args: argparse.Namespace) -> None:
    """Refuse departures from the published recipe where they make no sense. Raises InputError."""
    unlabelled, frozen = f"--unlabelled {args.unlabelled}", args.freeze == "backbone"
    departures = {
        "--head-init linear": args.head_init == "linear",
        "--freeze backbone": frozen,
        unlabelled: args.unlabelled > 0,
        f"--layer-decay {args.layer_decay}": args.layer_decay is not None,
        f"--hflip {args.hflip}": args.hflip != PUBLISHED_HFLIP,
    }
    given = [option for option, is_given in departures.items() if is_given]
    name = f"--recipe {args.recipe}" if args.recipe != "published" else "".join(given[:1])
    of_a_pool = args.data_set == "CSV" or args.data_set.endswith("SUBSET") or args.recipe != "published"
    # These need pretrained features: fresh weights hold nothing to read out.
    on_the_backbone = args.head_init == "linear" or frozen or args.unlabelled
    for refused, why in (
        (given and (args.eval or args.probe),
         f"{name} is for training, and --{'eval' if args.eval else 'probe'} trains nothing"),
        (on_the_backbone and not (args.resume or args.finetune), f"{name} needs --resume, the pretrained backbone"),
        (args.unlabelled and not of_a_pool, f"{unlabelled} needs a pool, --data-set CSV or ...SUBSET"),
        (args.unlabelled and (args.mixup or args.cutmix or args.cutmix_minmax),
         f"{unlabelled} has soft labels, and --mixup and --cutmix mix hard ones"),
        (frozen and args.layer_decay not in (None, 1),
         f"--layer-decay {args.layer_decay} sets rates for a backbone that --freeze backbone keeps fixed: give 1"),
        (frozen and args.drop, f"--drop {args.drop} has no effect with --freeze backbone"),
    ):  # fmt: skip
        if refused:
            raise InputError(why)
