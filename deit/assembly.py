"""From the options to the parts of a run: model, optimiser, loss, images, and how they are divided among processes."""

import argparse
import signal
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from common.checkpoints import fetch_checkpoint, load_pretrained, network_weights
from common.command_line import worker_count
from common.errors import InputError
from common.networks import create_network
from common.processes import Processes
from deit.batch_stream import BatchStream, DrawnImages, EpochPlan
from deit.distillation import DistillationLoss, base_criterion
from deit.engine import Recipe
from deit.finetuning_data import FinetuningData, train_transform
from deit.image_cache import DecodedImages, KeptBatches
from deit.recipe_options import PUBLISHED_LR, PUBLISHED_TOTAL_BATCH
from deit.repeated_augmentation import REPEATS, RepeatedAugmentationSampler
from deit.training_state import TrainingState, is_own_checkpoint, newest_checkpoint


def build_plan(args: argparse.Namespace, n: int, processes: Processes) -> tuple[torch.utils.data.Sampler, EpochPlan]:
    """Which of n images this process draws in an epoch, and how its draws become updates."""
    rank, world_size = processes.rank, processes.size
    args.total_batch_size = args.total_batch_size or args.batch_size * world_size
    update_size, remainder = divmod(args.total_batch_size, world_size)
    if remainder:
        raise InputError(f"--total-batch-size {args.total_batch_size} is not a multiple of {world_size} processes")
    if args.repeated_aug:
        sampler = RepeatedAugmentationSampler(n, rank, world_size)
    else:
        sampler = DistributedSampler(range(n), world_size, rank, shuffle=True)
    return sampler, EpochPlan(len(sampler), update_size, micro_size=-(-update_size // args.accum_steps))


def describe_recipe(args: argparse.Namespace, n: int, plan: EpochPlan, world_size: int) -> str:
    draws = plan.draws * world_size
    distinct = min(n, -(-draws // REPEATS)) if args.repeated_aug else n
    scaled = args.lr * args.total_batch_size / PUBLISHED_TOTAL_BATCH
    recipe = (
        f"recipe: {args.total_batch_size} images an update at lr {scaled:g}; an epoch is {plan.updates} update(s), "
        f"{draws} draws of {distinct} of the {n} images"
    )
    if (args.total_batch_size, args.lr) != (PUBLISHED_TOTAL_BATCH, PUBLISHED_LR):
        published = f"{PUBLISHED_TOTAL_BATCH} images an update and --lr {PUBLISHED_LR}"
        recipe += f"\nwarning: the published recipe is {published}"
    return recipe


def build_model(args: argparse.Namespace, nb_classes: int) -> nn.Module:
    rates = {"drop_rate": args.drop, "drop_path_rate": args.drop_path}
    model = create_network(args.model, nb_classes, args.input_size, args.model_kwargs, **rates)
    if is_distilled(model):
        model.set_distilled_training(True)  # both heads in training, their mean in evaluation
    elif args.distillation_type != "none":
        raise InputError(f"--distillation-type {args.distillation_type} needs a distilled model, not {args.model}")
    return model


def is_distilled(model: nn.Module) -> bool:
    return hasattr(model, "set_distilled_training")


def load_weights(args: argparse.Namespace, model: nn.Module) -> tuple[dict[str, Any], str] | None:
    """Load --finetune and --resume into the model. Returns the run's own checkpoint to go on from, and its source.

    (departure) A backbone weight that is missing or does not fit is an error, not a warning that nobody reads.
    """
    if args.auto_resume and (own := newest_checkpoint(Path(args.output_dir))):
        return own
    fresh = [name for name, _ in model.named_parameters()]
    for source in filter(None, (args.finetune, args.resume)):
        checkpoint = fetch_checkpoint(source)
        if is_own_checkpoint(checkpoint) and source == args.resume and not (args.eval or args.probe):
            return checkpoint, source
        fresh = load_pretrained(model, network_weights(checkpoint, source), source)
    if args.eval and fresh:
        raise InputError(f"--eval needs --resume with trained weights for all of {args.model}; missing: {fresh[-1]}")
    return None


def build_state(args: argparse.Namespace, model: nn.Module) -> TrainingState:
    """Optimiser, schedule and moving average around a model that has its starting weights and is on its device."""
    device = next(model.parameters()).device
    # (departure) The published script copies the model before it loads the weights, so its average holds noise.
    ema = None
    if args.model_ema:
        ema = ModelEmaV3(model, args.model_ema_decay, device="cpu" if args.model_ema_force_cpu else None)
    scaled_lr = args.lr * args.total_batch_size / PUBLISHED_TOTAL_BATCH
    optimizer = create_optimizer_v2(model, **{**optimizer_kwargs(args), "lr": scaled_lr})
    lr_scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype_of(args.amp, device) == torch.float16)
    return TrainingState(model, optimizer, lr_scheduler, scaler, ema)


def amp_dtype_of(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        amp = "fp16" if device.type == "cuda" else "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def build_recipe(args: argparse.Namespace, plan: EpochPlan, nb_classes: int, device: torch.device) -> Recipe:
    """The loss and all that surrounds it. Loads the teacher where there is one."""
    mixup = None
    if args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None:
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
        teacher = create_network(args.teacher_model, nb_classes, args.input_size)
        weights = network_weights(fetch_checkpoint(args.teacher_path), args.teacher_path)
        fresh = load_pretrained(teacher, weights, args.teacher_path)
        if fresh:
            raise InputError(f"teacher {args.teacher_path} has no weights of the right shape for {', '.join(fresh)}")
        teacher.to(device).eval()
    base = base_criterion(mixup is not None, args.smoothing)
    criterion = DistillationLoss(base, teacher, args.distillation_type, args.distillation_alpha, args.distillation_tau)
    amp_dtype = amp_dtype_of(args.amp, device)
    evidence_dir = Path(args.output_dir) if args.output_dir else None
    return Recipe(criterion, plan, args.seed, mixup, args.clip_grad, amp_dtype, evidence_dir)


def build_eval_loader(args: argparse.Namespace, data: FinetuningData, processes: Processes) -> KeptBatches:
    """All images of the evaluation split, or with --dist-eval this process's share, in batches three times as large."""
    mine = range(processes.rank if args.dist_eval else 0, len(data.val), processes.size if args.dist_eval else 1)
    loader = DataLoader(data.val, 3 * args.batch_size, sampler=mine, **loader_options(args, processes))
    return KeptBatches(loader, args.cache_mb * 2**19)


def build_train_loader(
    args: argparse.Namespace, data: FinetuningData, stream: BatchStream, processes: Processes
) -> DataLoader:
    """One loader for the whole run, whose workers prepare the next epoch while this one is evaluated and saved."""
    threads = worker_count(args.num_workers)
    images = DecodedImages(data.train, args.cache_mb * 2**19, threads, progress=processes.is_main)
    drawn = DrawnImages(images, train_transform(args), args.seed)
    return DataLoader(drawn, batch_sampler=stream, **loader_options(args, processes))


def loader_options(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    return {
        "num_workers": worker_count(args.num_workers),
        "pin_memory": args.pin_mem and processes.device.type == "cuda",
        "worker_init_fn": ignore_sigterm,
    }


def ignore_sigterm(worker: int) -> None:
    """SIGTERM is for the process that trains (Interruption), which still needs its workers for a moment."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def distributed(args: argparse.Namespace, model: nn.Module, processes: Processes) -> nn.Module:
    """The model as it is trained: alone, or averaging its gradients with the other processes."""
    if processes.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        # Without a teacher, the distillation head of a distilled model learns nothing.
        find_unused_parameters=is_distilled(model) and args.distillation_type == "none",
    )
