"""How each data set is compared: which options of which command, at which budgets, how often.

CIFAR and ImageNet follow the published protocol. One process with --total-batch-size 512 makes the same updates as the
published two with 256, so that each GPU can run a finetuning of its own.

Digits: the pool, the ViT and the finetuning of the demo, but 50 epochs at lr 0.3 instead of 100 at 0.1, for half the
time, and the same for every method and budget. Settled on random subsets of 14, 28 and 143 images, where accuracies
are 1 to 3 points lower at the smallest budgets and the same at the largest.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
from experiments.digits_recipe import DIGITS_FINETUNING, DIGITS_MODEL, DIGITS_MODEL_KWARGS

METHODS = {
    "random": "Random",
    "fds": "FDS",
    "kmeans": "K-Means",
    "coreset": "CoreSet",
    "herding": "Herding",
    "typiclust": "TypiClust",
    "probcover": "ProbCover",
    "activeft": "ActiveFT",
}
READOUTS = {"finetuned": "", "linear": "--probe linear", "knn": "--probe knn"}
PUBLISHED_METHODS = ("random", "fds", "kmeans", "coreset", "activeft")
DINO = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"


@dataclass(frozen=True)
class Protocol:
    """The comparison on one data set.

    dataset, data_set: what extract_feature.py and main.py call it. arch, model, model_kwargs: the network, likewise.
    weights: its file; DINO's are downloaded when there is none. device: an option of both scripts. finetuning: options
    of main.py. activeft: the selection script. percents: the budgets. pool_script: what writes the pool, if it is not
    just there. on_gpus: a job has a GPU, where there are any; else one processor core.
    """

    dataset: str
    data_set: str
    arch: str
    model: str
    finetuning: str
    activeft: str
    percents: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    output_dir: Path
    readouts: tuple[str, ...] = tuple(READOUTS)
    model_kwargs: str = ""
    weights: Path | None = None
    data_path: Path = ROOT / "data_selection" / "data"
    pool_script: str = ""
    device: str = ""
    on_gpus: bool = True

    @property
    def feature_file(self) -> str:
        pool = self.data_path.resolve().name if self.dataset == "Folder" else self.dataset
        return f"{pool}_train.npy"


def published_protocol(dataset: str, data_set: str, script: str, percents: tuple[float, ...]) -> Protocol:
    return Protocol(
        dataset=dataset,
        data_set=data_set,
        arch="vit_small",
        model="deit_small_patch16_224",
        finetuning="--total-batch-size 512 --clip-grad 2.0 --eval_interval 50 --save-interval 50",
        activeft=script,
        percents=percents,
        seeds=(0, 1, 2),
        methods=PUBLISHED_METHODS,
        output_dir=ROOT / "experiments" / "output" / dataset,
        # logistic regression with 1,000 classes takes hours
        readouts=("finetuned", "knn") if dataset == "ImageNet" else tuple(READOUTS),
    )


PROTOCOLS = {
    "digits": Protocol(
        dataset="Folder",
        data_set="IMNETSUBSET",
        arch=DIGITS_MODEL,
        model=DIGITS_MODEL,
        finetuning=f"--epochs 50 --eval_interval 50 --save-interval 50 --lr 0.3 {DIGITS_FINETUNING}",
        activeft="ActiveFT_CIFAR.py",
        percents=(1, 2, 5, 10),
        seeds=(0, 1, 2, 3, 4),
        methods=tuple(METHODS),
        output_dir=ROOT / "experiments" / "output" / "digits",
        model_kwargs=DIGITS_MODEL_KWARGS,
        weights=ROOT / "experiments" / "digits_vit.pth",
        data_path=ROOT / "experiments" / "output" / "pool" / "digits",
        pool_script="experiments/digits_pool.py",
        device="--device cpu",
        on_gpus=False,
    ),
    "CIFAR10": published_protocol("CIFAR10", "CIFAR10SUBSET", "ActiveFT_CIFAR.py", (0.5, 1, 2)),
    "CIFAR100": published_protocol("CIFAR100", "CIFAR100SUBSET", "ActiveFT_CIFAR.py", (1, 2, 5, 10)),
    "ImageNet": published_protocol("ImageNet", "IMNETSUBSET", "ActiveFT_ImageNet.py", (1, 5)),
}
