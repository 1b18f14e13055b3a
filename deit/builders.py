"""From the options to the parts of a run: optimiser, schedule, loss, images, and how processes divide them."""

import argparse
import warnings
from typing import Any

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import BatchSampler, ConcatDataset, DistributedSampler, Sampler
from torchvision.datasets.vision import StandardTransform

from common.batch_stream import REPEATS, BatchStream, DrawnImages, EpochPlan, RepeatedAugmentationSampler
from common.checkpoints import check_classes, fetch_checkpoint, run_of, weights_checksum
from common.command_line import usable
from common.cpus import worker_count
from common.errors import InputError
from common.image_loader import DecodedImages, ImageLoader, KeptBatches
from common.networks import create_network, input_size, preprocessing
from common.pretrained import load_pretrained, network_weights
from common.processes import Processes, amp_dtype_of
from common.training import Recipe, TrainingState
from deit.augmentation import train_transform
from deit.datasets import FinetuningData
from deit.engine import ClassificationLoss, base_criterion
from deit.recipe_options import FEW_LABELS, NO_INFLUENCE, PUBLISHED_LR, PUBLISHED_TOTAL_BATCH

MUCH_OF_THE_AVERAGE = 0.1


def build_plan(args: argparse.Namespace, n: int, processes: Processes) -> tuple[Sampler[int], EpochPlan]:
    """Which of n images this process draws in an epoch, and how its draws become updates."""
    rank, size = processes.rank, processes.size
    total = args.total_batch_size or args.batch_size * size
    if total % size:
        raise InputError(f"--total-batch-size {total} is not a multiple of {size} processes")
    if args.repeated_aug:
        sampler = RepeatedAugmentationSampler(n, rank, size)
    else:
        sampler = DistributedSampler(range(n), size, rank, shuffle=True)
    update_size = total // size
    return sampler, EpochPlan(len(sampler), update_size, -(-update_size // args.accum_steps), processes=size)


def run_length(args: argparse.Namespace, plan: EpochPlan) -> int:
    """Epochs of the whole run: --epochs, or as many as make --updates."""
    return args.epochs or -(-args.updates // plan.updates)


def scaled_lr(args: argparse.Namespace, images_per_update: int) -> float:
    return args.lr * images_per_update / PUBLISHED_TOTAL_BATCH


def describe_recipe(args: argparse.Namespace, data: FinetuningData, plan: EpochPlan) -> str:
    total, draws, n = plan.images_per_update, plan.draws * plan.processes, data.images_per_epoch
    distinct = min(n, -(-draws // REPEATS)) if args.repeated_aug else n
    recipe = (
        f"recipe: {total} images per update at lr {scaled_lr(args, total):g}; an epoch is {plan.updates} update(s), "
    )
    if len(data.unlabelled):
        recipe += f"{len(data.train)} labelled images, {data.repeats} times each, and {len(data.unlabelled)} unlabelled"
    else:
        recipe += f"{draws} draws of {distinct} of the {n} images"
    if args.recipe == "few-labels" and total != FEW_LABELS["total_batch_size"]:
        recipe += f"\nnote: this recipe was measured with {FEW_LABELS['total_batch_size']} images per update"
    if args.recipe == "published" and (total, args.lr) != (PUBLISHED_TOTAL_BATCH, PUBLISHED_LR):
        published = f"{PUBLISHED_TOTAL_BATCH} images per update and --lr {PUBLISHED_LR}"
        recipe += f"\nwarning: the published recipe is {published}"
    if (args.mixup or args.cutmix or args.cutmix_minmax) and not args.mixup_prob:
        recipe += "\nnote: --mixup and --cutmix have no effect with --mixup-prob 0, the published default"
    updates = run_length(args, plan) * plan.updates
    kept = args.model_ema_decay**updates
    if args.model_ema and not args.model_ema_warmup and kept > MUCH_OF_THE_AVERAGE:
        recipe += (
            f"\nnote: after {updates} updates at --model-ema-decay {args.model_ema_decay} the "
            f"moving average (test_ema) still holds {kept:.0%} of its starting weights; "
            "--model-ema-warmup lets it follow a short run"
        )
    return recipe


def describe_run(
    args: argparse.Namespace,
    data: FinetuningData,
    plan: EpochPlan,
    model: nn.Module,
    weights: str | None,
    recipe: Recipe,
) -> dict[str, Any]:
    """What the numbers of a run depend on: a checkpoint is resumed only if all of it is unchanged."""
    options = {name: value for name, value in vars(args).items() if name not in NO_INFLUENCE}
    run = {**options, **data.identity, "input_size": input_size(args)}
    run |= {"epochs": run_length(args, plan), "images_per_update": plan.images_per_update}
    # What predict.py needs beside the weights.
    prepared = preprocessing(args.model, args.input_size, args.model_kwargs)
    run |= {"classes": data.classes, "mean": list(prepared.mean), "std": list(prepared.std)}
    run["built_with"] = model.built_with
    if args.sched == "plateau":  # which counts evaluations
        run["eval_interval"] = args.eval_interval
    if weights is not None:
        run["weights"] = weights
    if recipe.loss.teacher is not None:
        run["teacher_weights"] = weights_checksum(recipe.loss.teacher.state_dict())
    return run


def build_state(args: argparse.Namespace, model: nn.Module, plan: EpochPlan) -> TrainingState:
    """Optimiser, schedule and moving average around a model that has its starting weights and is on its device."""
    device = next(model.parameters()).device
    # (departure) The published script copies the model before it loads the weights, so its average holds noise.
    ema = None
    if args.model_ema:
        device_of_ema = "cpu" if args.model_ema_force_cpu else None
        ema = ModelEmaV3(model, args.model_ema_decay, use_warmup=args.model_ema_warmup, device=device_of_ema)
    lr = scaled_lr(args, plan.images_per_update)
    with usable(f"--opt {args.opt}"):
        optimizer = create_optimizer_v2(model, **{**optimizer_kwargs(args), "lr": lr})
    if args.layer_decay not in (None, 1) and len({group["lr_scale"] for group in optimizer.param_groups}) == 1:
        raise InputError(f"--layer-decay {args.layer_decay} has no effect: timm finds no layers in {args.model}")
    with usable(f"--sched {args.sched}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PlateauLRScheduler is")  # not saved by timm's own trainer; it is by this one
        epochs = run_length(args, plan)
        lr_scheduler, _ = create_scheduler_v2(optimizer, **{**scheduler_kwargs(args), "num_epochs": epochs})
    if args.sched == "plateau" and not args.warmup_epochs:
        lr_scheduler.warmup_t = -1  # or timm would take epoch 0 for the warm-up, and go on at --warmup-lr
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype_of(args.amp, device) == torch.float16)
    return TrainingState(model, optimizer, lr_scheduler, scaler, ema)


def build_recipe(
    args: argparse.Namespace, plan: EpochPlan, model: nn.Module, data: FinetuningData, device: torch.device
) -> Recipe:
    """The loss and all that surrounds it. Loads the teacher where there is one."""
    mixup, nb_classes = None, len(data.classes)
    if args.cutmix_minmax:
        least, most = (int(share * input_size(args)) for share in args.cutmix_minmax)
        if least >= most:
            given = "{:g} {:g}".format(*args.cutmix_minmax)
            raise InputError(f"--cutmix-minmax {given}: the second must exceed the first by at least one pixel")
    if args.mixup_prob and (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None):
        mixup = Mixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=args.cutmix_minmax,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=nb_classes,
        )
    teacher = None
    if args.distillation_type != "none":
        checkpoint = fetch_checkpoint(args.teacher_path)
        run = run_of(checkpoint)
        check_classes(run, args.teacher_path, data.classes)
        kwargs = {key: value for key, value in run.get("built_with", {}).items() if key != "img_size"}
        teacher = create_network(args.teacher_model, nb_classes, input_size(args), kwargs)
        weights = network_weights(checkpoint, args.teacher_path)
        fresh = load_pretrained(teacher, weights, args.teacher_path)
        if fresh:
            raise InputError(f"teacher {args.teacher_path} has no weights of the right shape for {', '.join(fresh)}")
        if run and teacher.statistics != model.statistics:  # of other checkpoints they are not known
            theirs = "--teacher-model {} expects images normalised by another mean and std than --model {}"
            raise InputError(theirs.format(args.teacher_model, args.model))
        teacher.to(device).eval()
    base = base_criterion(mixup is not None or len(data.unlabelled) > 0, args.smoothing)
    distillation = args.distillation_type, args.distillation_alpha, args.distillation_tau
    loss = ClassificationLoss(base, mixup, teacher, *distillation)
    return Recipe(loss, plan, args.seed, args.clip_grad, amp_dtype_of(args.amp, device), args.output_dir)


def build_eval_loader(args: argparse.Namespace, data: FinetuningData, processes: Processes) -> KeptBatches:
    """All images of the evaluation split, or with --dist-eval this process's share, in batches three times as large."""
    mine = range(processes.rank if args.dist_eval else 0, len(data.val), processes.size if args.dist_eval else 1)
    batches = BatchSampler(mine, 3 * args.batch_size, drop_last=False)
    loader = ImageLoader(data.val, batches, batches.batch_size, args.num_workers, pin_memory(args, processes))
    return KeptBatches(loader, args.cache_mb * 2**19)


def build_train_loader(
    args: argparse.Namespace,
    data: FinetuningData,
    stream: BatchStream,
    processes: Processes,
    soft_labels: Tensor | None = None,
) -> ImageLoader:
    """One loader for the whole run, whose workers prepare the next epoch while this one is evaluated and saved."""
    images = data.train if soft_labels is None else ConcatDataset([data.train, data.unlabelled])
    images = DecodedImages(images, args.cache_mb * 2**19, worker_count(args.num_workers), processes.is_main)
    if soft_labels is not None:
        images = data.with_soft_targets(images, soft_labels, args.smoothing)
    drawn = DrawnImages(images, StandardTransform(train_transform(args)), args.seed)
    return ImageLoader(drawn, stream, stream.plan.micro_size, args.num_workers, pin_memory(args, processes))


def pin_memory(args: argparse.Namespace, processes: Processes) -> bool:
    return args.pin_mem and processes.device.type == "cuda"
