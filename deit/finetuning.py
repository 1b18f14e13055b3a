"""A run of the finetuning: data, model and readout, then epochs until the end, and what is written of them."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.batch_stream import BatchStream, seed_everything
from common.errors import InputError
from common.files import write_json
from common.image_loader import KeptBatches
from common.processes import Interruption, Processes, amp_dtype_of, in_parallel
from common.progress import progress_bar
from common.run_folder import RunFolder, newest_checkpoint, plot_confusion_matrix, plot_curves
from common.training import Batch, Recipe, TrainingState, update_weights
from deit import builders, models
from deit.datasets import FinetuningData, build_datasets
from deit.engine import end_epoch, evaluate, step_schedule_to
from deit.frozen_features import FrozenFeatures, cross_validated, head_and_soft_labels, probe

Evaluate = Callable[..., dict[str, Any]]  # of a model: engine.evaluate, the rest given


def finetune(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Train and evaluate as the options say. Returns the content of summary.json."""
    seed_everything(args.seed)
    with processes.main_first():
        data = build_datasets(args)
    for note in filter(None, (*data.notes, data.classes_without_images())):
        processes.report(note)
    model = models.build_model(args, len(data.classes))
    weights, own_checkpoint = models.load_weights(args, model, data.classes)
    model.to(processes.device)
    head = models.linear_head(args, model) if args.freeze == "backbone" or args.head_init == "linear" else None
    if args.freeze == "backbone":
        model.requires_grad_(False)
        head.requires_grad_(True)
    amp_dtype, evaluate_now = amp_dtype_of(args.amp, processes.device), None
    if data.val is not None:
        loader = builders.build_eval_loader(args, data, processes)
        evaluate_now = partial(
            evaluate, loader=loader, processes=processes, amp_dtype=amp_dtype, sharded=args.dist_eval
        )
    if args.eval:
        return finish_eval(args, model, evaluate_now, data, processes)
    features_of = FrozenFeatures(model, processes.device, args.batch_size, amp_dtype, args.num_workers)
    readout = None
    if data.val is None and weights != "none" and not own_checkpoint and processes.is_main:
        readout = cross_validated(args.probe or "linear", features_of, data)
        processes.report(describe_cross_validation(args.probe or "linear", readout, len(data.train)))
    if args.probe:
        if data.val is not None:
            readout = probe(args.probe, features_of, data, processes)
        return finish_probe(args, readout, data, processes)

    sampler, plan = builders.build_plan(args, data.images_per_epoch, processes)
    soft_targets = len(data.unlabelled) > 0
    recipe = builders.build_recipe(args, plan, model, data, processes.device)
    run = builders.describe_run(args, data, plan, model, weights, recipe)
    if args.auto_resume:
        own_checkpoint = newest_checkpoint(Path(args.output_dir), run, processes.report) or own_checkpoint
    soft_labels, best = None, {"cross_validated_readout": readout} if readout else {}
    if not own_checkpoint and (args.head_init == "linear" or soft_targets):
        soft_labels = start_from_readout(args, head, features_of, data, processes)
        if args.head_init == "linear" and evaluate_now:
            best["linear_readout"] = evaluate_now(model)
            processes.report(f"the head before the first update: {describe(best['linear_readout'])}")
    state = builders.build_state(args, model, plan)
    if own_checkpoint:
        models.check_network(*own_checkpoint, model)
        state.resume(*own_checkpoint, run)
        if (state.soft_labels is not None) != soft_targets:
            what = f"checkpoint {own_checkpoint[1]} is of another run"
            raise InputError(f"{what}: only one of the two has unlabelled images")
        processes.report(f"resumed {own_checkpoint[1]} at epoch {state.epoch}, update {state.update}")
    else:
        state.epoch, state.soft_labels, state.best = args.start_epoch, soft_labels, best
        if weights == "none":
            processes.report("note: neither --resume nor --finetune is given: the network starts from random weights")
        if args.auto_resume:
            processes.report(f"no checkpoint in {args.output_dir}: starting at epoch {state.epoch}")
    step_schedule_to(state)
    epochs = range(state.epoch, builders.run_length(args, plan))
    if not epochs and not (state.last or (own_checkpoint and data.val is None)):
        raise InputError(f"starting at epoch {state.epoch} of --epochs {epochs.stop} leaves nothing to train")
    processes.report(f"{args.model}: {state.n_parameters:,} parameters, {len(data.classes)} classes")
    processes.report(builders.describe_recipe(args, data, plan))

    if epochs and evaluate_now and not best:
        processes.together(lambda: read_all(loader, processes))
    stream = BatchStream(sampler, plan, processes.rank, epochs, state.update)
    batches = iter(builders.build_train_loader(args, data, stream, processes, state.soft_labels))
    folder = RunFolder(args, run, state, processes, "epoch", state.epoch, own_checkpoint and own_checkpoint[1])
    train(args, state, epochs, batches, recipe, evaluate_now, folder)
    return finish(args, state, epochs.stop, evaluate_now, data, folder)


def read_all(loader: KeptBatches, processes: Processes) -> None:
    """Decode all images to evaluate on: a damaged one is an error now, not after --eval_interval epochs."""
    for _ in progress_bar(loader, desc="reading evaluation images", leave=False, disable=not processes.is_main):
        pass


def start_from_readout(
    args: argparse.Namespace,
    head: nn.Linear | None,
    features_of: FrozenFeatures,
    data: FinetuningData,
    processes: Processes,
) -> Tensor | None:
    """Set the head to the linear readout of the frozen features, with --head-init linear; label the unlabelled images.

    Returns: the soft labels (m, c) of data.unlabelled, None if there are none.
    """
    purpose = "--head-init linear needs images" if args.head_init == "linear" else "--unlabelled needs labels"
    layer, soft_labels = processes.from_main(lambda: head_and_soft_labels(features_of, data, purpose))
    if args.head_init == "linear":
        for weight, value in zip((head.weight, head.bias), layer, strict=True):
            weight.data.copy_(torch.from_numpy(value))
        processes.report(f"head from a logistic regression on the frozen features of {len(data.train)} images")
    if soft_labels is not None:
        sure = f"{100 * soft_labels.amax(dim=1).mean():.0f}% sure of one class on average"
        processes.report(f"soft labels of {len(soft_labels)} unlabelled images: {sure}")
    return soft_labels


def train(
    args: argparse.Namespace,
    state: TrainingState,
    epochs: range,
    batches: Iterator[Batch],
    recipe: Recipe,
    evaluate_now: Evaluate | None,
    folder: RunFolder,
) -> None:
    """Train for these epochs, from the update in `state` on; evaluate, log and save at the intervals of the options."""
    processes, plan = folder.processes, recipe.plan
    # Without a teacher, the distillation head of a distilled model learns nothing.
    unused = models.is_distilled(state.model) and args.distillation_type == "none"
    parallel_model = in_parallel(state.model, processes, some_unused=unused)
    progress = progress_bar(
        total=epochs.stop * plan.updates,
        initial=state.epoch * plan.updates + state.update,
        desc="finetuning",
        unit="update",
        disable=not processes.is_main,
    )
    with Interruption() as interruption, progress:
        for epoch in epochs:
            lr, stopping, improved = state.lr, False, False
            # A frozen backbone stays as it is evaluated: no stochastic depth, no dropout, no update of batch norm.
            parallel_model.train(args.freeze != "backbone")
            while state.update < plan.updates and not stopping:
                stopping = update_weights(parallel_model, batches, recipe, state, processes, interruption)
                progress.update()
            if state.update < plan.updates:
                folder.stop(f"in epoch {state.epoch} after update {state.update}")
            entry = {"train_lr": lr, "train_loss": sum(state.losses) / plan.updates}
            is_last = epoch == epochs[-1]
            # (departure) The last epoch is evaluated, too.
            evaluated = evaluate_now is not None and (is_last or (epoch + 1) % args.eval_interval == 0)
            if evaluated:
                results = {"test": evaluate_now(state.model)}
                if state.model_ema:
                    results["test_ema"] = evaluate_now(state.averaged_model(processes.device))
                improved = state.note(results, epoch=epoch)
                entry |= {f"{of}_{key}": value for of, values in results.items() for key, value in values.items()}
                progress.set_postfix(acc1=f"{results['test']['acc1']:.2f}", best=f"{state.best_score:.2f}")
            end_epoch(state, evaluated)
            folder.append_to_log({**entry, "epoch": epoch, "n_parameters": state.n_parameters})
            folder.save(best=improved, last=is_last or (epoch + 1) % args.save_interval == 0)
            if stopping and not is_last:
                folder.stop(f"before epoch {state.epoch}")


def finish(
    args: argparse.Namespace,
    state: TrainingState,
    n_epochs: int,
    evaluate_now: Evaluate | None,
    data: FinetuningData,
    folder: RunFolder,
) -> dict[str, Any]:
    """Report the scores; write summary.json and the pictures. Returns the content of summary.json."""
    processes = folder.processes
    summary = {"last": state.last, "best": state.best, "epochs": n_epochs, "images": len(data.train)}
    if len(data.unlabelled):
        summary["unlabelled"] = len(data.unlabelled)
    if args.confusion_matrix:
        confusion = empty_confusion(data)
        evaluate_now(state.model, confusion=confusion)
        summary["per_class_acc1"] = {
            name: 100 * row[label].item() / row.sum().item() if row.any() else None  # None: no image to evaluate
            for label, (name, row) in enumerate(zip(data.classes, confusion, strict=True))
        }
    if evaluate_now:
        last, best = describe(state.last["test"]), describe(state.best["test"])
        processes.report(f"last {last}; best {best}, chosen on the test split")
    if folder.path:
        folder.finish()  # the checkpoints are there before the summary
        write_json(folder.path / "summary.json", summary, indent=2)
        scores = {"test_acc1": "model", "test_ema_acc1": "moving average"}
        plot_curves(folder.log(), folder.path / "curves.png", "epoch", scores, "top-1 accuracy in %")
        if args.confusion_matrix:
            plot_confusion_matrix(confusion, data.classes, folder.path / "confusion_matrix.png")
        processes.report(f"wrote checkpoints, log.txt, summary.json and curves.png to {folder.path}")
    return summary


def describe_cross_validation(kind: str, result: dict[str, Any] | None, n: int) -> str:
    if result is None:
        return "no class has two labelled images: nothing can be cross-validated"
    accuracy = f"top-1 {result['acc1']:.1f} ± {result['std']:.1f}% over {result['folds']} folds"
    return (
        f"{kind} readout of the frozen features, cross-validated on the {n} labelled images: {accuracy}; "
        "if these were selected, they are not a random sample of the pool"
    )


def finish_eval(
    args: argparse.Namespace, model: nn.Module, evaluate_now: Evaluate, data: FinetuningData, processes: Processes
) -> dict[str, Any]:
    confusion = empty_confusion(data) if args.confusion_matrix else None
    result = evaluate_now(model, confusion=confusion)
    processes.report(f"{len(data.val)} images: {describe(result)}")
    if args.confusion_matrix and processes.is_main:
        plot_confusion_matrix(confusion, data.classes, Path(args.output_dir) / "confusion_matrix.png")
        processes.report(f"wrote {args.output_dir}/confusion_matrix.png")
    return {"last": {"test": result}}


def finish_probe(
    args: argparse.Namespace, result: dict[str, Any] | None, data: FinetuningData, processes: Processes
) -> dict[str, Any]:
    key = "cross_validated" if data.val is None else "last"
    summary = {"probe": args.probe, key: {"test": result}, "images": len(data.train)}
    if data.val is not None:
        processes.report(f"{args.probe} readout of the frozen features: {describe(result)}")
    if args.output_dir and processes.is_main:
        write_json(Path(args.output_dir) / "summary.json", summary, indent=2)
        processes.report(f"wrote {args.output_dir}/summary.json")
    return summary


def describe(result: dict[str, Any]) -> str:
    when = f" (epoch {result['epoch']})" if "epoch" in result else ""
    return f"top-1 {result['acc1']:.2f}%, top-5 {result['acc5']:.2f}%{when}"


def empty_confusion(data: FinetuningData) -> Tensor:
    """Zeros (c, c), for `evaluate` to count in."""
    return torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
