"""The three stages of a comparison as jobs: the commands of the README, with what each reads and writes."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.jobs import ROOT, Job
from experiments.protocols import DINO, METHODS, READOUTS, Protocol


@dataclass(frozen=True)
class Cell:
    """One accuracy of the table."""

    readout: str
    method: str
    percent: float
    seed: int


def readout_jobs(protocol: Protocol) -> dict[Cell, Job]:
    """The job behind each cell, seed after seed, so that an unfinished table has some of every method."""
    features = extraction(protocol)
    jobs = {}
    for seed in protocol.seeds:
        for percent in protocol.percents:
            for method in protocol.methods:
                subset = selection(protocol, features, method, percent, seed)
                for readout in protocol.readouts:
                    jobs[Cell(readout, method, percent, seed)] = reading(protocol, subset, readout, seed)
    return jobs


def with_what_they_need(jobs: Iterable[Job]) -> list[Job]:
    """Each job once, after those it needs."""
    ordered: dict[Job, None] = {}
    for job in jobs:
        ordered |= dict.fromkeys([*with_what_they_need(job.needs), job])
    return list(ordered)


def extraction(protocol: Protocol) -> Job:
    """Stage 1, on the training split; before it the pool itself, where that has to be written."""
    needs = ()
    if protocol.pool_script:
        pool = protocol.output_dir / "pool"
        needs = (Job("pool", protocol.pool_script, typed(protocol.data_path, "experiments"), pool, protocol.data_path),)
    folder = protocol.output_dir / "features"
    options = [
        f"--dataset {protocol.dataset} --data_path {typed(protocol.data_path, 'data_selection')}",
        f"--arch {protocol.arch}",
        f"--model-kwargs {protocol.model_kwargs}" if protocol.model_kwargs else "",
        f"--pretrained_weights {typed(protocol.weights, 'data_selection')}" if protocol.weights else "",
        f"{protocol.device} --output_dir {typed(folder, 'data_selection')} --resume",
    ]
    script = "data_selection/extract_feature.py"
    return Job("features", script, joined(options), folder, folder / protocol.feature_file, needs)


def selection(protocol: Protocol, features: Job, method: str, percent: float, seed: int) -> Job:
    """Stage 2."""
    folder = protocol.output_dir / f"{percent:g}_percent" / method / f"seed_{seed}" / "subset"
    script, which = ("baseline.py", f"--method {method}") if method != "activeft" else (protocol.activeft, "")
    options = [
        f"{which} --feature_path {typed(features.result, 'data_selection')} --percent {percent:g} --seed {seed}",
        f"{protocol.device} --output_dir {typed(folder, 'data_selection')} --filename subset.json",
    ]
    name = f"{METHODS[method]} {percent:g}% seed {seed}, subset"
    script = f"data_selection/sample_tools/{script}"
    return Job(name, script, joined(options), folder, folder / "subset.json", (features,))


def reading(protocol: Protocol, subset: Job, readout: str, seed: int) -> Job:
    """Stage 3: finetuning, or a readout of the frozen features."""
    folder = subset.folder.with_name(readout)
    options = [
        f"--data-set {protocol.data_set} --data-path {typed(protocol.data_path, 'deit')}",
        f"--subset_ids {typed(subset.result, 'deit')} --model {protocol.model}",
        f"--model-kwargs {protocol.model_kwargs}" if protocol.model_kwargs else "",
        f"--resume {typed(protocol.weights, 'deit') if protocol.weights else DINO}",
        f"{protocol.device} --seed {seed} --output_dir {typed(folder, 'deit')}",
        READOUTS[readout] or f"--auto-resume {protocol.finetuning}",
    ]
    name = subset.name.replace("subset", readout)
    return Job(name, "deit/main.py", joined(options), folder, folder / "summary.json", (subset,), "*checkpoint.pth")


def typed(path: Path, start: str) -> str:
    """A path as one types it in a folder of the project: relative inside the project, else absolute."""
    path = path.resolve()
    return shlex.quote(os.path.relpath(path, ROOT / start) if path.is_relative_to(ROOT) else str(path))


def joined(options: Iterable[str]) -> str:
    return " ".join(option.strip() for option in options if option.strip())
