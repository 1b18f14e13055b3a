"""The cells of a table: the commands that lead to each score, and the results."""

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from common import VERSION
from common.errors import InputError
from common.feature_file import read_features
from common.files import read_json, write_json
from common.pool_paths import numbered_alike
from common.readouts import fit_readout, top_accuracies
from common.subset_file import read_subset_ids
from experiments import ROOT
from experiments.command_queue import Job, is_current, is_finished, recorded, run_jobs, with_needs
from experiments.protocols import DINO, METHODS, WITHOUT_SEED, Protocol


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    readout: str
    method: str
    budget: float  # in percent or images, as the protocol says
    seed: int


@dataclass(frozen=True)
class Result:
    """The result of a cell."""

    cell: Cell
    score: float  # top-1 accuracy or mean IoU in percent, at the end of a finetuning
    images: int  # number of labelled images
    seconds: float  # of the finetuning's last run (after resuming), or of the readout
    commands: tuple[str, ...]  # all that lead to it


class Comparison:
    """All cells of a protocol and the jobs behind them.

    A finetuned cell is a run of deit/main.py or segmenter/main.py; so is a linear readout for segmentation. The other
    readouts are fitted here, in no time, from the feature files.
    """

    def __init__(self, protocol: Protocol):
        self.protocol = protocol

    @cached_property
    def jobs(self) -> dict[Cell, tuple[Job, ...]]:
        """The jobs that each cell is made from: its finetuning, or the features of both splits and its subset.

        They are ordered by seed, so that an unfinished table has some of every method.
        """
        protocol = self.protocol
        train, val = extraction(protocol, "train"), extraction(protocol, protocol.val_split)
        jobs: dict[Cell, tuple[Job, ...]] = {}
        for seed in protocol.seeds:
            for budget in protocol.budgets:
                for method in protocol.methods:
                    subset = selection(protocol, train, method, budget, seed)
                    for readout in protocol.readouts:
                        made_from = (train, val, subset)
                        if protocol.is_run(readout):
                            made_from = (finetuning(protocol, subset, readout, method, budget, seed),)
                        jobs[Cell(readout, method, budget, seed)] = made_from
        return jobs

    @property
    def commands(self) -> list[str]:
        return [job.command for job in with_needs(job for jobs in self.jobs.values() for job in jobs)]

    def run(self, slots: Sequence[Mapping[str, str]]) -> None:
        """Run everything that is not finished. Raises InputError if a command fails."""
        cells_of: dict[Job, list[Cell]] = {}
        for cell, jobs in self.jobs.items():
            cells_of.setdefault(jobs[-1], []).append(cell)

        def describe(job: Job) -> str:
            results = [result for cell in cells_of.get(job, ()) if (result := self.result(cell))]
            scores = dict.fromkeys(f"{result.cell.readout} {result.score:.1f}%" for result in results)
            return ", ".join(scores) or "finished"

        run_jobs((job for jobs in self.jobs.values() for job in jobs), slots, describe)

    def results(self) -> list[Result]:
        """Return the results of all cells whose commands are finished."""
        return [result for cell in self.jobs if (result := self.result(cell))]

    def result(self, cell: Cell) -> Result | None:
        """Return the cell's result, or None if a command that it is made from is not finished."""
        jobs = self.jobs[cell]
        if not all(is_finished(job) for job in jobs):
            return None
        if not self.protocol.is_run(cell.readout):
            return self.frozen_result(cell, *jobs)
        summary, record = read_json(jobs[0].result, "summary of a finetuning"), recorded(jobs[0])
        # The last epoch counts: the best is chosen on the test split.
        score = summary["last"]["test"][self.protocol.metric]
        return Result(cell, score, summary["images"], record["seconds"], tuple(record["commands"]))

    def frozen_result(self, cell: Cell, train: Job, val: Job, subset: Job) -> Result:
        """Return the result of a subset's readout, which is fitted once and then kept in a file."""
        commands = [job.command for job in with_needs((train, val, subset))]
        kept_in = subset.folder.with_name(f"{cell.readout}.json")
        kept = read_json(kept_in, "accuracy of a readout") if kept_in.is_file() else {}
        if not is_current(kept, commands):
            started = time.monotonic()
            acc1, images = frozen_accuracy(cell.readout, train.result, val.result, subset.result)
            seconds = round(time.monotonic() - started, 2)
            kept = {"acc1": acc1, "images": images, "seconds": seconds, "commands": commands, "version": VERSION}
            write_json(kept_in, kept, indent=2)
        return Result(cell, kept["acc1"], kept["images"], kept["seconds"], tuple(commands))


def frozen_accuracy(readout: str, train: Path, val: Path, subset: Path) -> tuple[float, int]:
    """Fit a readout to the subset's labels. Returns: top-1 accuracy in % on the val features, number of labels."""
    features, labels = labelled_features(train)
    chosen = sorted(read_subset_ids(subset, len(labels)))
    fitted = fit_readout(readout, features[chosen], labels[chosen], classes=len(np.unique(labels)))
    held_out, held_out_labels = labelled_features(val)
    scores = top_accuracies(fitted, held_out, numbered_alike(train, val, held_out_labels))
    return scores["acc1"], len(chosen)


@cache
def labelled_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read features (n, d) and labels (n,). Raises InputError if a label is missing."""
    features, labels = read_features(path)
    if (labels < 0).any():
        raise InputError(f"{path} has images without a label: a readout of the frozen features needs all labels")
    return np.array(features), labels


def extraction(protocol: Protocol, split: str) -> Job:
    """Return the job of stage 1; it needs a job that writes the pool, if the protocol has one."""
    needs = ()
    if protocol.pool_script:
        pool = protocol.output_dir / "pool"
        needs = (Job("pool", protocol.pool_script, typed(protocol.data_path, "experiments"), pool, protocol.data_path),)
    name, which = ("features", "") if split == "train" else (f"{split}_features", f"--split {split}")
    folder = protocol.output_dir / name
    options = [
        f"--dataset {protocol.dataset} --data_path {typed(protocol.data_path, 'data_selection')}",
        which,
        f"--arch {protocol.arch}",
        f"--model-kwargs {protocol.model_kwargs}" if protocol.model_kwargs else "",
        f"--pretrained_weights {typed(protocol.weights, 'data_selection')}" if protocol.weights else "",
        f"{protocol.device} --output_dir {typed(folder, 'data_selection')} --resume",
    ]
    result = folder / protocol.feature_file(split)
    return Job(name, "data_selection/extract_feature.py", joined(options), folder, result, needs)


def folder_of(protocol: Protocol, method: str, budget: float, seed: int) -> Path:
    return protocol.output_dir / protocol.budget_folder(budget) / method / f"seed_{seed}"


def selection(protocol: Protocol, features: Job, method: str, budget: float, seed: int) -> Job:
    """Return the job of stage 2, the same for all seeds if the method has none."""
    seed = 0 if method in WITHOUT_SEED else seed
    folder = folder_of(protocol, method, budget, seed) / "subset"
    script, which = ("baseline.py", f"--method {method}") if method != "activeft" else (protocol.activeft, "")
    options = [
        f"{which} --feature_path {typed(features.result, 'data_selection')} {protocol.budget_option(budget)}",
        f"--seed {seed} {protocol.device}",
        f"--output_dir {typed(folder, 'data_selection')} --filename subset.json",
        protocol.selection_options(method, budget),
    ]
    name = f"{METHODS[method]} {protocol.budget_in_words(budget)} seed {seed}, subset"
    script = f"data_selection/sample_tools/{script}"
    return Job(name, script, joined(options), folder, folder / "subset.json", (features,))


def finetuning(protocol: Protocol, subset: Job, readout: str, method: str, budget: float, seed: int) -> Job:
    """Return the job of stage 3, by either recipe; for a linear readout, the run that trains only the readout."""
    trainer, folder = protocol.trainer, folder_of(protocol, method, budget, seed) / readout
    recipe = f"--recipe few-labels {protocol.few_labels}" if readout == "few-labels" else protocol.finetuning
    options = [
        f"--data-set {protocol.data_set}" if protocol.data_set else "",
        f"--data-path {typed(protocol.data_path, trainer)}",
        f"--subset_ids {typed(subset.result, trainer)} --model {protocol.model}",
        f"--model-kwargs {protocol.model_kwargs}" if protocol.model_kwargs else "",
        f"--resume {typed(protocol.weights, trainer) if protocol.weights else DINO}",
        f"{protocol.device} --seed {seed} --output_dir {typed(folder, trainer)} --auto-resume {recipe}",
        f"--probe {readout}" if readout == "linear" else "",
    ]
    name = f"{METHODS[method]} {protocol.budget_in_words(budget)} seed {seed}, {readout}"
    result = folder / "summary.json"
    return Job(name, f"{trainer}/main.py", joined(options), folder, result, (subset,), "*checkpoint.pth")


def typed(path: Path, start: str) -> str:
    """Return a path as typed in a folder of the project: relative if inside the project, else absolute."""
    path = path.resolve()
    return shlex.quote(os.path.relpath(path, ROOT / start) if path.is_relative_to(ROOT) else str(path))


def joined(options: Iterable[str]) -> str:
    return " ".join(option.strip() for option in options if option.strip())
