"""Stage 3: finetune a pretrained ViT on the chosen images, with the DeiT recipe as ActiveFT changed it.

    python -m torch.distributed.launch --nproc_per_node=2 --master_port 29501 --use_env main.py --clip-grad 2.0 \
        --eval_interval 50 --data-set CIFAR10SUBSET --subset_ids SUBSET.json \
        --resume dino_deitsmall16_pretrain.pth --output_dir OUT

`torchrun --nproc_per_node=2 main.py ...` does the same, and so does one process with twice the --batch-size. Writes
checkpoint.pth, best_checkpoint.pth, log.txt (one JSON object per epoch) and summary.json into OUT.
"""

import argparse
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler.scheduler_factory import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import DistillationLoss, base_criterion
from engine import evaluate, train_one_epoch
from finetuning_data import build_datasets
from recipe_options import PUBLISHED_TOTAL_BATCH, parse_args
from repeated_augmentation import RepeatedAugmentationSampler
from training_state import EpochLog, TrainingState, is_own_checkpoint, load_starting_weights

from common.checkpoints import fetch_checkpoint
from common.command_line import InputError, run, worker_count
from common.networks import create_network
from common.output_files import write_json
from common.processes import Processes, launched


def build_loaders(
    args: argparse.Namespace, train: Dataset, val: Dataset, processes: Processes
) -> tuple[DataLoader, DataLoader]:
    """Batches to train on, drawn anew each epoch (sampler.set_epoch), and to evaluate on, three times as large."""
    rank, world_size = processes.rank, processes.world_size
    if args.repeated_aug:
        sampler = RepeatedAugmentationSampler(len(train), rank, world_size)
    else:
        sampler = DistributedSampler(train, world_size, rank, shuffle=True)
    common = {
        "num_workers": worker_count(args.num_workers),
        "pin_memory": args.pin_mem and processes.device.type == "cuda",
        "persistent_workers": worker_count(args.num_workers) > 0,
    }
    mine = range(rank, len(val), world_size) if args.dist_eval else range(len(val))
    return (
        DataLoader(train, args.batch_size, sampler=sampler, **common),
        DataLoader(val, 3 * args.batch_size, sampler=mine, **common),
    )


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


def build_criterion(args: argparse.Namespace, mixup: Mixup | None, nb_classes: int, device: torch.device) -> nn.Module:
    """The loss as a function of images, outputs and targets. Loads the teacher where there is one."""
    teacher = None
    if args.distillation_type != "none":
        teacher = create_network(args.teacher_model, nb_classes, args.input_size)
        checkpoint = fetch_checkpoint(args.teacher_path)
        fresh = load_starting_weights(teacher, checkpoint, args.teacher_path)
        if fresh:
            raise InputError(f"teacher {args.teacher_path} has no weights of the right shape for {', '.join(fresh)}")
        teacher.to(device).eval()
    base = base_criterion(mixup is not None, args.smoothing)
    return DistillationLoss(base, teacher, args.distillation_type, args.distillation_alpha, args.distillation_tau)


def build_mixup(args: argparse.Namespace, nb_classes: int) -> Mixup | None:
    if args.mixup <= 0 and args.cutmix <= 0 and args.cutmix_minmax is None:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=nb_classes,
    )


def amp_dtype_of(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        amp = "fp16" if device.type == "cuda" else "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def load_weights(args: argparse.Namespace, model: nn.Module) -> dict[str, Any] | None:
    """Load --finetune and --resume into the model. Returns the latter if it is a run's own checkpoint to go on from."""
    fresh = [name for name, _ in model.named_parameters()]
    if args.finetune:
        fresh = load_starting_weights(model, fetch_checkpoint(args.finetune), args.finetune)
    if args.resume:
        checkpoint = fetch_checkpoint(args.resume)
        if is_own_checkpoint(checkpoint) and not args.eval:
            return checkpoint
        fresh = load_starting_weights(model, checkpoint, args.resume)
    if args.eval and fresh:
        raise InputError(f"--eval needs --resume with trained weights for all of {args.model}; missing: {fresh[-1]}")
    return None


def build_state(args: argparse.Namespace, model: nn.Module, world_size: int) -> TrainingState:
    """Optimiser, schedule and moving average around a model that has its starting weights and is on its device."""
    device = next(model.parameters()).device
    # (departure) The published script copies the model before it loads the weights, so its average holds noise.
    ema = None
    if args.model_ema:
        ema = ModelEmaV3(model, args.model_ema_decay, device="cpu" if args.model_ema_force_cpu else None)
    args.lr *= args.batch_size * world_size / PUBLISHED_TOTAL_BATCH
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))
    lr_scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args))
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype_of(args.amp, device) == torch.float16)
    return TrainingState(model, optimizer, lr_scheduler, scaler, ema)


def distributed(args: argparse.Namespace, model: nn.Module, processes: Processes) -> nn.Module:
    """The model as it is trained: alone, or averaging its gradients with the other processes."""
    if processes.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[processes.device] if processes.device.type == "cuda" else None,
        # Without a teacher, the distillation head of a distilled model learns nothing.
        find_unused_parameters=is_distilled(model) and args.distillation_type == "none",
    )


def finetune(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Train and evaluate as the options say. Returns what summary.json holds."""
    seed_everything(args.seed + processes.rank)
    with processes.main_first():
        train, val, nb_classes = build_datasets(args)
    train_loader, val_loader = build_loaders(args, train, val, processes)
    steps = len(train_loader)

    model = build_model(args, nb_classes)
    own_checkpoint = load_weights(args, model)
    model.to(processes.device)
    amp_dtype = amp_dtype_of(args.amp, processes.device)
    evaluate_now = partial(
        evaluate, loader=val_loader, processes=processes, amp_dtype=amp_dtype, sharded=args.dist_eval
    )
    if args.eval:
        result = evaluate_now(model)
        report(processes, f"{len(val)} images: {describe(result)}")
        return {"last": result}

    mixup = build_mixup(args, nb_classes)
    criterion = build_criterion(args, mixup, nb_classes, processes.device)
    state = build_state(args, model, processes.world_size)
    start_epoch = args.start_epoch
    if own_checkpoint:
        start_epoch = state.resume(own_checkpoint, args.resume)
        report(processes, f"{args.resume}: going on with epoch {start_epoch}")
    elif start_epoch:
        state.lr_scheduler.step(start_epoch - 1)
    if start_epoch >= args.epochs:
        raise InputError(f"epoch {start_epoch} of --epochs {args.epochs} leaves nothing to train: raise it, or --eval")
    parallel_model = distributed(args, model, processes)

    n_parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    report(
        processes,
        f"{args.model}, {n_parameters:,} parameters; {len(train)} images of {nb_classes} classes, "
        f"{len(train_loader.sampler) * processes.world_size} draws in {steps} updates an epoch; "
        f"{args.batch_size * processes.world_size} images an update at lr {args.lr:g}",
    )
    output_dir = Path(args.output_dir) if args.output_dir and processes.is_main else None
    log = EpochLog(output_dir / "log.txt", start_epoch) if output_dir else None
    progress = tqdm(
        total=args.epochs * steps, initial=start_epoch * steps, desc="finetuning", disable=not processes.is_main
    )
    with progress:
        for epoch in range(start_epoch, args.epochs):
            # (departure) In every launch mode: a single process that never does this sees a third of a small subset.
            train_loader.sampler.set_epoch(epoch)
            trained = train_one_epoch(
                parallel_model, train_loader, criterion, state.optimizer, state.scaler, processes, epoch, progress,
                mixup=mixup, ema=state.model_ema, clip_grad=args.clip_grad, amp_dtype=amp_dtype,
            )  # fmt: skip
            results, improved = {}, False
            if (epoch + 1) % args.eval_interval == 0 or epoch == args.epochs - 1:  # (departure) the last one too
                results["test"] = evaluate_now(model)
                if state.model_ema:
                    results["test_ema"] = evaluate_now(state.averaged_model(processes.device))
                improved = state.note(results, epoch)
                progress.set_postfix(acc1=f"{results['test']['acc1']:.2f}", best=f"{state.best_acc1:.2f}")
            state.lr_scheduler.step(epoch, max(0.0, state.best_acc1))
            if output_dir:
                state.save(output_dir / "checkpoint.pth", epoch, args)
                if improved:
                    state.save(output_dir / "best_checkpoint.pth", epoch, args)
                log.append({**flat({"train": trained, **results}), "epoch": epoch, "n_parameters": n_parameters})

    summary = {"last": results, "best": state.best, "epochs": args.epochs, "images": len(train)}
    report(
        processes, f"last {describe(results['test'])}; best {describe(state.best['test'])}, chosen on the test split"
    )
    if output_dir:
        write_json(output_dir / "summary.json", summary, indent=2)
        report(processes, f"wrote checkpoint.pth, best_checkpoint.pth, log.txt and summary.json to {output_dir}")
    return summary


def flat(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"test": {"acc1": 90}} -> {"test_acc1": 90}"""
    return {f"{split}_{key}": value for split, values in results.items() for key, value in values.items()}


def describe(result: dict[str, Any]) -> str:
    when = f" (epoch {result['epoch']})" if "epoch" in result else ""
    return f"top-1 {result['acc1']:.2f}%, top-5 {result['acc5']:.2f}%{when}"


def report(processes: Processes, message: str) -> None:
    if processes.is_main:
        tqdm.write(message)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Returns: last and best accuracies, as in summary.json."""
    args = parse_args(argv)
    with launched(args.device, args.dist_url) as processes:
        return finetune(args, processes)


if __name__ == "__main__":
    run(main)
