"""The comparison on each data set (networks, options, methods, budgets, seeds), and the published numbers.

CIFAR and ImageNet follow the published protocol. One process with --total-batch-size 512 makes the same updates as the
published two with 256, so that each GPU can run a finetuning of its own.

digits: scikit-learn's digits, a small ViT, 50 epochs at lr 0.3 for every method and budget. Chosen on random subsets
of 14, 28 and 143 images: 100 epochs at lr 0.1 take twice the time and gain 1 to 3 points at the smallest budgets.

Folder: any image folder with train/<class>/* and val/<class>/* or test/<class>/*.

ADE20K, or any other folder in its layout: segmentation, with Segmenter's recipe. Its linear readout is a run too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.files import ADE20K, scenes_name
from experiments import ROOT

OUTPUT = ROOT / "experiments" / "output"
METHODS = {
    "random": "Random",
    "fds": "FDS",
    "kmeans": "K-Means",
    "coreset": "CoreSet",
    "herding": "Herding",
    "typiclust": "TypiClust",
    "probcover": "ProbCover",
    "maxherding": "MaxHerding",
    "bilaf": "BiLAF",
    "usl": "USL",
    "activeft": "ActiveFT",
}
WITHOUT_SEED = ("herding", "maxherding")  # they select the same images every time
READOUTS = {
    "finetuned": "finetuned",
    "few-labels": "finetuned by the recipe for few labels",
    "linear": "linear readout of the frozen features",
    "knn": "kNN readout of the frozen features",
}
PAPER_METHODS = ("random", "fds", "kmeans", "coreset", "activeft")
PUBLISHED_FINETUNING = "--total-batch-size 512 --clip-grad 2.0 --eval_interval 50 --save-interval 50"
DINO = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"


@dataclass(frozen=True)
class Protocol:
    """The comparison on one data set; by default as published, with DINO's ViT-S/16."""

    dataset: str  # extract_feature.py's --dataset
    data_set: str  # main.py's --data-set
    output_dir: Path
    percents: tuple[float, ...]  # budgets in percent of the pool
    numbers: tuple[int, ...] = ()  # budgets in images, instead
    methods: tuple[str, ...] = PAPER_METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    readouts: tuple[str, ...] = tuple(READOUTS)
    arch: str = "vit_small"  # the network, for extract_feature.py
    model: str = "deit_small_patch16_224"  # the same network, for main.py
    model_kwargs: str = ""
    weights: Path | None = None  # None: DINO's are downloaded
    finetuning: str = PUBLISHED_FINETUNING
    few_labels: str = "--eval_interval 50 --save-interval 50"  # options beside --recipe few-labels
    activeft: str = "ActiveFT_CIFAR.py"
    selection: Mapping[str, str] = field(default_factory=dict)  # {method: its authors' options}
    data_path: Path = ROOT / "data_selection" / "data"
    pool_script: str = ""  # writes the pool, if that is not given
    val_split: str = "val"  # scores are measured on it
    device: str = ""  # an option of the scripts; if empty, each command gets a GPU, if there are any
    trainer: str = "deit"  # the folder of the main.py that finetunes
    metric: str = "acc1"  # key of its score in summary.json
    score: str = "top-1 accuracy"  # the same in words

    @property
    def pool(self) -> str:
        """The pool's name in tables and file names: its data set's, or its folder's if that is the user's own."""
        if self.dataset == "ADE20K":
            return scenes_name(self.data_path)
        return self.data_path.resolve().name if self.dataset == "Folder" else self.dataset

    @property
    def published_as(self) -> str:
        """The data set whose published numbers are shown too, or "" for other pools."""
        return self.dataset if self.pool == self.dataset and not self.numbers else ""

    @property
    def budgets(self) -> tuple[float, ...]:
        return self.numbers or self.percents

    @property
    def unit(self) -> str:
        """The unit of the budgets, named like the selection scripts' option."""
        return "number" if self.numbers else "percent"

    def budget_option(self, budget: float) -> str:
        return f"--number {budget}" if self.numbers else f"--percent {budget:g}"

    def budget_folder(self, budget: float) -> str:
        return f"{budget}_images" if self.numbers else f"{budget:g}_percent"

    def budget_in_words(self, budget: float) -> str:
        return f"{budget:,} images" if self.numbers else f"{budget:g}%"

    def selection_options(self, method: str, budget: float) -> str:
        """Return its authors' options for this data set; none below the smallest budget that they have results for."""
        known = self.published_as and budget >= min(PROTOCOLS[self.dataset].percents)
        return self.selection.get(method, "") if known else ""

    def is_run(self, readout: str) -> bool:
        """Return whether a readout is a run of main.py; others are fitted to the feature files."""
        return readout in ("finetuned", "few-labels") or self.trainer == "segmenter"

    def feature_file(self, split: str) -> str:
        return f"{self.pool}_{split}.npy"


PROTOCOLS = {
    "digits": Protocol(
        dataset="Folder",
        data_set="FOLDERSUBSET",
        output_dir=OUTPUT / "digits",
        percents=(1, 2, 5, 10),
        methods=tuple(METHODS),
        seeds=(0, 1, 2, 3, 4),
        arch="vit_tiny_patch16_224",
        model="vit_tiny_patch16_224",
        model_kwargs="img_size=32 patch_size=8 embed_dim=96 depth=4 num_heads=3",
        weights=ROOT / "experiments" / "digits_vit.pth",
        finetuning="--epochs 50 --eval_interval 50 --save-interval 50 --lr 0.3 --total-batch-size 32 --clip-grad 2.0 "
        "--num_workers 0",
        few_labels="--eval_interval 50 --save-interval 50 --num_workers 0 --hflip 0",
        data_path=OUTPUT / "pool" / "digits",
        pool_script="experiments/digits_pool.py",
        device="--device cpu",
    ),
    "CIFAR10": Protocol(
        dataset="CIFAR10",
        data_set="CIFAR10SUBSET",
        output_dir=OUTPUT / "CIFAR10",
        percents=(0.5, 1, 2),
        selection={"bilaf": "--core_number 50", "usl": "--neighbours 400"},
        val_split="test",
    ),
    "CIFAR100": Protocol("CIFAR100", "CIFAR100SUBSET", OUTPUT / "CIFAR100", (1, 2, 5, 10), val_split="test"),
    "ImageNet": Protocol(
        dataset="ImageNet",
        data_set="IMNETSUBSET",
        output_dir=OUTPUT / "ImageNet",
        percents=(1, 5),
        readouts=("finetuned", "few-labels", "knn"),  # logistic regression with 1,000 classes takes hours
        activeft="ActiveFT_ImageNet.py",
    ),
    "Folder": Protocol("Folder", "FOLDERSUBSET", OUTPUT / "Folder", (1, 2, 5, 10)),
    "ADE20K": Protocol(
        dataset="ADE20K",
        data_set="",
        output_dir=OUTPUT / "ADE20K",
        percents=(5, 10, 15),
        readouts=("finetuned",),
        model="vit_small_patch16_224",
        finetuning="--batch-size 8",
        data_path=ROOT / "data_selection" / "data" / ADE20K,
        trainer="segmenter",
        metric="miou",
        score="mean IoU",
    ),
}

# Published top-1 accuracies (ADE20K: mean IoU) of DINO's ViT-S/16 in %: mean and standard deviation (some without) of
# 3 runs, as quoted by BiLAF (NeurIPS 2024) from the ActiveFT paper (CVPR 2023, Tables 1 and 2).
PUBLISHED_COLUMNS = (
    *(("CIFAR10", percent) for percent in (0.5, 1, 2)),
    *(("CIFAR100", percent) for percent in (1, 2, 5, 10)),
    *(("ImageNet", percent) for percent in (1, 5)),
    *(("ADE20K", percent) for percent in (5, 10, 15)),
)
PUBLISHED_ROWS = {
    "random": "77.3±2.6 82.2±1.9 88.9±0.4 14.9±1.9 24.3±2.0 50.8±3.4 69.3±0.7 45.1±0.8 64.3±0.3 "
    "14.54±1.02 20.27±1.68 23.55±1.35",
    "fds": "64.5±1.5 73.2±1.2 81.4±0.7 8.1±0.6 12.8±0.3 16.9±1.4 52.3±1.9 26.7±0.6 55.5±0.1 12.14 17.66 23.55",
    "kmeans": "83.0±3.5 85.9±0.8 89.6±0.6 17.6±1.1 31.9±0.1 42.4±1.0 70.7±0.3 49.8±0.5 64.0±0.2 13.62 19.12 23.10",
    "coreset": "- 81.6±0.3 88.4±0.2 - 30.6±0.4 48.3±0.5 62.9±0.6 - 61.7±0.2 - 20.25 23.68",
    "VAAL": "- 80.9±0.5 88.8±0.3 - 24.6±1.1 46.4±0.8 70.1±0.4 - 64.0±0.3 - 20.54 23.87",
    "LearnLoss": "- 81.6±0.6 86.7±0.4 - 19.2±2.2 38.2±2.8 65.7±1.1 - 63.2±0.4 - 19.71 22.94",
    "TA-VAAL": "- 82.6±0.4 88.7±0.2 - 34.7±0.7 46.4±1.1 66.8±0.5 - 64.3±0.2 - 20.63 24.24",
    "ALFA-Mix": "- 83.4±0.3 89.6±0.2 - 35.3±0.8 50.4±0.9 69.9±0.6 - 64.5±0.2 - - -",
    "activeft": "85.0±0.4 88.2±0.4 90.1±0.2 26.1±2.6 40.7±0.9 54.6±2.3 71.0±0.5 50.1±0.3 65.3±0.1 "
    "15.37±0.11 21.60±0.40 25.03±0.87",
    "bilaf": "81.0±1.2 89.2±0.6 92.5±0.4 31.8±1.6 43.5±0.8 62.8±1.2 73.7±0.5 50.8±0.4 66.2±0.2 16.54 22.03 25.71",
}
# Readouts of the frozen features on CIFAR10 at 0.5, 1, 2 and 5%, as published by BiLAF, without standard deviations.
PUBLISHED_READOUTS = {
    ("linear", "random"): (85.1, 87.6, 90.1, 92.5),
    ("linear", "activeft"): (87.8, 88.7, 90.6, 92.8),
    ("linear", "bilaf"): (86.5, 89.1, 91.0, 93.0),
    ("knn", "random"): (82.1, 86.7, 88.2, 90.8),
    ("knn", "activeft"): (86.8, 87.2, 88.5, 91.7),
    ("knn", "bilaf"): (85.7, 87.4, 88.7, 91.8),
}
# What users measured with the published code, in one run each, on two GPUs unless stated otherwise.
REPORTED = {
    "CIFAR10": "ActiveFT 79.4 at 0.5% and 86.5 at 1%, Random 88.6 at 2%; on one GPU ActiveFT 59.2 at 0.5% and 78 at 2%",
    "CIFAR100": "ActiveFT 37.2 and, with another seed, about 21.5 at 2%; K-Means 40.6 and 19.0",
}


def published_accuracy(dataset: str, readout: str, method: str, percent: float) -> tuple[float, float | None] | None:
    """Return mean and standard deviation (None if unknown), or None if nothing is published."""
    if readout != "finetuned":
        means = PUBLISHED_READOUTS.get((readout, method), ()) if dataset == "CIFAR10" else ()
        mean = dict(zip((0.5, 1, 2, 5), means, strict=False)).get(percent)
        return None if mean is None else (mean, None)
    cells = dict(zip(PUBLISHED_COLUMNS, PUBLISHED_ROWS.get(method, "").split(), strict=False))
    cell = cells.get((dataset, percent), "-")
    if cell == "-":
        return None
    mean, _, std = cell.partition("±")
    return float(mean), float(std) if std else None
