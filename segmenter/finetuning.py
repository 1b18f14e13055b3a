"""A finetuning run: build data and model, iterate to the end, write the results."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common.batch_stream import BatchStream, seed_everything
from common.errors import InputError
from common.files import write_json
from common.processes import Interruption, Processes, amp_dtype_of, in_parallel
from common.progress import progress_bar
from common.run_folder import RunFolder, newest_checkpoint, plot_curves
from common.training import Batch, Recipe, TrainingState, update_weights
from segmenter import builders, models
from segmenter.datasets import build_datasets
from segmenter.evaluation import SlidingWindow, evaluate, plot_predictions

Evaluate = Callable[..., dict[str, Any]]  # of a model: evaluation.evaluate, the rest given


def finetune(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Train and evaluate as the options say. Return the content of summary.json."""
    if args.probe and processes.size > 1:
        raise InputError(f"--probe {args.probe} needs one process, not {processes.size}: batch norm sees all images")
    seed_everything(args.seed)
    scenes, val = build_datasets(args, processes)
    classes = scenes.labels.classes
    model = models.build_model(args, len(classes))
    if args.probe and args.batch_size == 1 and args.crop_size <= model.patch:
        raise InputError(f"--batch-size 1 at --crop-size {args.crop_size} is a single patch: batch norm needs several")
    weights, own_checkpoint = models.load_weights(args, model, classes)
    model.to(processes.device)
    amp_dtype = amp_dtype_of(args.amp, processes.device)
    window = SlidingWindow(args.crop_size, args.stride, args.batch_size, amp_dtype)
    loader = builders.build_eval_loader(args, val, processes)
    evaluate_now = partial(evaluate, batches=loader, classes=len(classes), processes=processes, window=window)
    if args.eval:
        result = evaluate_now(model)
        processes.report(f"{len(val)} images: {describe(result)}")
        return {"last": {"test": result}}

    sampler, plan = builders.build_plan(args, len(scenes), processes)
    iterations = plan.updates
    state = builders.build_state(args, model, iterations, amp_dtype)
    run = builders.describe_run(args, scenes, val, iterations, weights)
    if args.auto_resume:
        own_checkpoint = newest_checkpoint(Path(args.output_dir), run, processes.report) or own_checkpoint
    if own_checkpoint:
        state.resume(*own_checkpoint, run)
        processes.report(f"resumed {own_checkpoint[1]} at iteration {state.update}")
    elif weights == "none" and args.probe:
        raise InputError(f"--probe {args.probe} needs --resume: {args.output_dir} holds no checkpoint to go on from")
    elif weights == "none":
        processes.report("note: --resume is not given: the encoder starts from random weights")
    state.lr_scheduler.step_update(state.update)
    loss = lambda model, images, targets: builders.pixel_loss(model(images), targets, processes)  # noqa: E731
    recipe = Recipe(loss, plan, args.seed, args.clip_grad, amp_dtype, args.output_dir)
    processes.report(
        f"{args.model}, {args.decoder}: {state.n_parameters:,} parameters to train, {len(classes)} classes"
    )
    processes.report(
        f"recipe: {iterations} iterations of {args.batch_size} crops of {args.crop_size} pixels at lr {args.lr:g}, "
        f"{iterations * args.batch_size / len(scenes):.0f} passes over {len(scenes)} images"
    )

    stream = BatchStream(sampler, plan, processes.rank, range(1), state.update)
    batches = iter(builders.build_train_loader(args, scenes, stream, processes))
    folder = RunFolder(args, run, state, processes, "iteration", state.update + 1, own_checkpoint and own_checkpoint[1])
    train(args, state, batches, recipe, evaluate_now, folder)
    summary = {"last": state.last, "best": state.best, "iterations": iterations, "images": len(scenes)}
    summary["per_class_iou"] = dict(zip(classes, state.last["test"]["iou"], strict=True))
    last, best = describe(state.last["test"]), describe(state.best["test"])
    processes.report(f"last {last}; best {best}, chosen on the validation split")
    if folder.path:
        folder.finish()  # the checkpoints are there before the summary
        write_json(folder.path / "summary.json", summary, indent=2)
        plot_curves(folder.log(), folder.path / "curves.png", "iteration", {"test_miou": "model"}, "mean IoU in %")
        plot_predictions(model, window, val, processes.device, folder.path / "predictions.png")
        processes.report(f"wrote checkpoints, log.txt, summary.json, curves.png, predictions.png to {folder.path}")
    return summary


def train(
    args: argparse.Namespace,
    state: TrainingState,
    batches: Iterator[Batch],
    recipe: Recipe,
    evaluate_now: Evaluate,
    folder: RunFolder,
) -> None:
    """Train from the update in `state` to the last; evaluate, log and save at the intervals of the options."""
    processes, iterations = folder.processes, recipe.plan.updates
    parallel_model = in_parallel(state.model, processes).train()
    progress = progress_bar(
        total=iterations, initial=state.update, desc="finetuning", unit="it", disable=not processes.is_main
    )
    with Interruption() as interruption, progress:
        while state.update < iterations:
            lr = state.lr
            stopping = update_weights(parallel_model, batches, recipe, state, processes, interruption)
            state.lr_scheduler.step_update(state.update)
            progress.update()
            finished = state.update == iterations
            entry: dict[str, Any] = {}
            improved = False
            if finished or state.update % args.eval_interval == 0:
                result = evaluate_now(state.model)
                parallel_model.train()
                improved = state.note({"test": result}, iteration=state.update)
                entry = {f"test_{key}": value for key, value in result.items()}
                progress.set_postfix(miou=f"{result['miou']:.2f}", best=f"{state.best_score:.2f}")
            if entry or state.update % args.log_interval == 0:
                trained = {"train_lr": lr, "train_loss": sum(state.losses) / len(state.losses)}
                state.losses.clear()
                folder.append_to_log(
                    {**trained, **entry, "iteration": state.update, "n_parameters": state.n_parameters}
                )
            folder.save(best=improved, last=finished or state.update % args.save_interval == 0)
            if stopping and not finished:
                folder.stop(f"after iteration {state.update}")


def describe(result: dict[str, Any]) -> str:
    when = f" (iteration {result['iteration']})" if "iteration" in result else ""
    return (
        f"mIoU {result['miou']:.2f}%, pixel accuracy {result['pixel_acc']:.2f}%, "
        f"mean class accuracy {result['mean_acc']:.2f}%{when}"
    )
