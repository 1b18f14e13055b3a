"""A run of the finetuning: data, model and readout, then epochs until the end, and what is written of them."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.batch_stream import BatchStream, seed_everything
from common.errors import InputError
from common.files import write_json
from common.processes import Interruption, Processes, amp_dtype_of
from common.progress import progress_bar
from common.run_folder import RunFolder, newest_checkpoint, plot_confusion_matrix, plot_curves, stop
from common.training import TrainingState
from deit.builders import (
    build_eval_loader,
    build_model,
    build_plan,
    build_recipe,
    build_state,
    build_train_loader,
    describe_recipe,
    describe_run,
    distributed,
    linear_head,
    load_weights,
    run_length,
)
from deit.engine import end_epoch, evaluate, step_schedule_to, train_one_epoch
from deit.finetuning_data import FinetuningData, build_datasets


def finetune(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Train and evaluate as the options say. Returns what summary.json holds."""
    seed_everything(args.seed)
    with processes.main_first():
        data = build_datasets(args)
    for note in filter(None, (*data.notes, data.classes_without_images())):
        processes.report(note)
    model = build_model(args, len(data.classes))
    weights, own_checkpoint = load_weights(args, model)
    model.to(processes.device)
    frozen = args.freeze == "backbone"
    head = linear_head(args, model) if frozen or args.head_init == "linear" else None
    if frozen:
        model.requires_grad_(False)
        head.requires_grad_(True)
    eval_loader = build_eval_loader(args, data, processes) if data.val is not None else []
    amp_dtype = amp_dtype_of(args.amp, processes.device)
    evaluate_now = partial(
        evaluate, loader=eval_loader, processes=processes, amp_dtype=amp_dtype, sharded=args.dist_eval
    )
    if args.eval:
        result = evaluate_now(model)
        processes.report(f"{len(data.val)} images: {describe(result)}")
        return {"last": {"test": result}}
    readout = None
    if data.val is None and weights != "none" and not own_checkpoint and processes.is_main:
        from deit.frozen_probe import cross_validated

        kind = args.probe or "linear"
        readout = cross_validated(kind, model, data, processes.device, args.batch_size, amp_dtype)
        processes.report(describe_cross_validation(kind, readout, len(data.train)))
    if args.probe:
        from deit.frozen_probe import probe  # scikit-learn takes a second to load, and finetuning does without it

        if data.val is not None:
            readout = probe(args.probe, model, data, processes, args.batch_size, amp_dtype)
        return finish_probe(args, readout, data, processes)

    sampler, plan = build_plan(args, data.images_per_epoch, processes)
    n_epochs = run_length(args, plan)
    recipe = build_recipe(args, plan, len(data.classes), processes.device, data.unlabelled is not None)
    run = describe_run(args, data, plan, weights, recipe)
    if args.auto_resume:
        own_checkpoint = newest_checkpoint(Path(args.output_dir), run, processes.report) or own_checkpoint
    start = known = None
    if args.head_init == "linear" and not own_checkpoint:
        from deit.frozen_probe import start_head

        known = start_head(head, model, data, processes, args.batch_size, amp_dtype)
        start = evaluate_now(model) if data.val is not None else None
        seen = f": {describe(start)} before the first update" if start else ""
        processes.report(f"head from a logistic regression on the frozen features of {len(data.train)} images{seen}")
    soft_labels = None
    if data.unlabelled is not None and not own_checkpoint:
        from deit.self_training import fit_soft_labels

        soft_labels = fit_soft_labels(model, data, processes, args.batch_size, amp_dtype, args.num_workers, known)
        sure = 100 * soft_labels.amax(dim=1).mean()
        processes.report(
            f"soft labels of {len(soft_labels)} unlabelled images: {sure:.0f}% sure of one class on average"
        )
    state = build_state(args, model, plan)
    state.soft_labels = soft_labels
    if own_checkpoint:
        state.resume(*own_checkpoint, run)
        if (data.unlabelled is None) != (state.soft_labels is None):
            what = f"checkpoint {own_checkpoint[1]} is of another run"
            raise InputError(f"{what}: one with unlabelled images, one without")
        processes.report(f"resumed {own_checkpoint[1]} at epoch {state.epoch}, update {state.update}")
    else:
        state.epoch = args.start_epoch
        if args.auto_resume:
            processes.report(f"no checkpoint in {args.output_dir}: starting at epoch {state.epoch}")
        if readout:
            state.best["cross_validated_readout"] = readout
        if start:
            state.best["linear_readout"] = start
    step_schedule_to(state)
    if state.epoch >= n_epochs and not (state.last or (own_checkpoint and data.val is None)):
        raise InputError(f"starting at epoch {state.epoch} of --epochs {n_epochs} leaves nothing to train")
    n_parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    processes.report(f"{args.model}: {n_parameters:,} parameters, {len(data.classes)} classes")
    processes.report(describe_recipe(args, data, plan))

    epochs = range(state.epoch, n_epochs)
    stream = BatchStream(sampler, plan, processes.rank, epochs, state.update)
    batches = iter(build_train_loader(args, data, stream, processes, state.soft_labels))
    parallel_model = distributed(args, model, processes)
    folder = None
    if writes(args, processes):
        folder = RunFolder(Path(args.output_dir), state.epoch, fresh=not own_checkpoint, tensorboard=args.tensorboard)
    progress = progress_bar(
        total=n_epochs * plan.updates,
        initial=state.epoch * plan.updates + state.update,
        desc="finetuning",
        unit="update",
        disable=not processes.is_main,
    )
    with Interruption() as interruption, progress:
        for epoch in epochs:
            lr = state.lr
            stopping = train_one_epoch(
                parallel_model, batches, recipe, state, processes, interruption, progress, frozen
            )
            if stopping and state.update < plan.updates:
                stop(folder, state, args, run, where(state), processes)
            entry = {"train": {"lr": lr, "loss": sum(state.losses) / plan.updates}}
            improved = False
            due = (epoch + 1) % args.eval_interval == 0 or epoch == n_epochs - 1  # (departure) the last one too
            if due and data.val is not None:
                results = {"test": evaluate_now(model)}
                if state.model_ema:
                    results["test_ema"] = evaluate_now(state.averaged_model(processes.device))
                improved = state.note(results, epoch=epoch)
                entry |= results
                progress.set_postfix(acc1=f"{results['test']['acc1']:.2f}", best=f"{state.best_score:.2f}")
            end_epoch(state)
            if folder:
                folder.append_to_log({**flat(entry), "epoch": epoch, "n_parameters": n_parameters})
                due = (epoch + 1) % args.save_interval == 0 or epoch == n_epochs - 1
                if improved or due:
                    names = ["best_checkpoint.pth"] * improved + ["checkpoint.pth"] * due
                    folder.save(state.checkpoint(args, run), names)
            if stopping and epoch < n_epochs - 1:
                stop(folder, state, args, run, where(state), processes)

    summary = {"last": state.last, "best": state.best, "epochs": n_epochs, "images": len(data.train)}
    if data.unlabelled is not None:
        summary["unlabelled"] = len(data.unlabelled)
    if args.confusion_matrix:
        confusion = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
        evaluate_now(model, confusion=confusion)
        summary["per_class_acc1"] = {
            name: 100 * row[label].item() / row.sum().item() if row.any() else None  # None: no image to evaluate
            for label, (name, row) in enumerate(zip(data.classes, confusion, strict=True))
        }
    if data.val is not None:
        last, best = describe(state.last["test"]), describe(state.best["test"])
        processes.report(f"last {last}; best {best}, chosen on the test split")
    if folder:
        scores = {"test_acc1": "model", "test_ema_acc1": "moving average"}
        plot_curves(folder.log(), folder.path / "curves.png", "epoch", scores, "top-1 accuracy in %")
        if args.confusion_matrix:
            plot_confusion_matrix(confusion, data.classes, folder.path / "confusion_matrix.png")
        write_json(folder.path / "summary.json", summary, indent=2)
        processes.report(f"wrote checkpoints, log.txt, summary.json and curves.png to {folder.path}")
    return summary


def where(state: TrainingState) -> str:
    return f"in epoch {state.epoch} after update {state.update}"


def writes(args: argparse.Namespace, processes: Processes) -> bool:
    return bool(args.output_dir) and processes.is_main


def describe_cross_validation(kind: str, result: dict[str, Any] | None, n: int) -> str:
    if result is None:
        return "no class has two labelled images: nothing can be cross-validated"
    accuracy = f"top-1 {result['acc1']:.1f} ± {result['std']:.1f}% over {result['folds']} folds"
    return (
        f"{kind} readout of the frozen features, cross-validated on the {n} labelled images: {accuracy}; "
        "where these were chosen, they are no random sample of the pool"
    )


def finish_probe(
    args: argparse.Namespace, result: dict[str, Any] | None, data: FinetuningData, processes: Processes
) -> dict[str, Any]:
    of_what = "cross_validated" if data.val is None else "last"
    summary = {"probe": args.probe, of_what: {"test": result}, "images": len(data.train)}
    if data.val is not None:
        processes.report(f"{args.probe} readout of the frozen features: {describe(result)}")
    if writes(args, processes):
        write_json(Path(args.output_dir) / "summary.json", summary, indent=2)
        processes.report(f"wrote {args.output_dir}/summary.json")
    return summary


def flat(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"test": {"acc1": 90}} -> {"test_acc1": 90}"""
    return {f"{split}_{key}": value for split, values in results.items() for key, value in values.items()}


def describe(result: dict[str, Any]) -> str:
    when = f" (epoch {result['epoch']})" if "epoch" in result else ""
    return f"top-1 {result['acc1']:.2f}%, top-5 {result['acc5']:.2f}%{when}"
