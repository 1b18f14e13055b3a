"""The main job on real images, offline: are images chosen by ActiveFT worth more than as many random ones?

    make demo

writes scikit-learn's handwritten digits as an image folder, extracts features with a small ViT that was pretrained on
them without labels, chooses 2% with ActiveFT and at random, finetunes on each choice, fits a linear readout of the
frozen features as well, and prints all accuracies over several seeds. It runs the documented commands and prints each
before it does.
"""

import json
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from experiments.digits_pool import write_digits_pool
from experiments.digits_recipe import DIGITS_FINETUNING, DIGITS_MODEL, DIGITS_MODEL_KWARGS
from experiments.draw_choice import draw_choice

DEMO = Path(__file__).resolve().parent
OUTPUT = DEMO / "output" / "demo"
SEEDS = (0, 1, 2)
PERCENT = 2
JOBS = {
    "finetuned": f"--epochs 100 --eval_interval 100 --save-interval 100 --lr 0.1 {DIGITS_FINETUNING}",
    "linear_probe": "--probe linear",
}


def run(folder: str, command: str) -> None:
    """Print a command as a user would type it, and run it."""
    print(f"\n$ cd {folder}; python {command}", flush=True)
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=DEMO.parent / folder)
    if done.returncode:
        sys.exit(f"the command above ended with exit code {done.returncode}")


def extract() -> Path:
    run(
        "data_selection",
        f"extract_feature.py --dataset Folder --data_path ../experiments/output/demo/digits --arch {DIGITS_MODEL} "
        f"--model-kwargs {DIGITS_MODEL_KWARGS} --pretrained_weights ../experiments/digits_vit.pth "
        "--output_dir ../experiments/output/demo/features",
    )
    return OUTPUT / "features" / "digits_train.npy"


def choose_with_activeft(seed: int) -> Path:
    run(
        "data_selection",
        "sample_tools/ActiveFT_CIFAR.py --feature_path ../experiments/output/demo/features/digits_train.npy "
        f"--percent {PERCENT} --seed {seed} --export_paths "
        f"--output_dir ../experiments/output/demo --filename ActiveFT_seed{seed}.json",
    )
    return OUTPUT / f"ActiveFT_seed{seed}.json"


def choose_at_random(seed: int, n: int, k: int) -> Path:
    path = OUTPUT / f"random_seed{seed}.json"
    path.write_text(json.dumps(sorted(random.Random(seed).sample(range(n), k))) + "\n")
    return path


def accuracy_of(subset: Path, job: str, options: str) -> float:
    """Run deit/main.py on a subset. Returns: top-1 accuracy at its end, in percent."""
    run(
        "deit",
        f"main.py --data-set IMNETSUBSET --data-path ../experiments/output/demo/digits "
        f"--subset_ids ../experiments/output/demo/{subset.name} "
        f"--model {DIGITS_MODEL} --model-kwargs {DIGITS_MODEL_KWARGS} --resume ../experiments/digits_vit.pth "
        f"{options} --output_dir ../experiments/output/demo/{job}/{subset.stem}",
    )
    return json.loads((OUTPUT / job / subset.stem / "summary.json").read_text())["last"]["test"]["acc1"]


def spread(accuracies: Sequence[float]) -> str:
    return f"{statistics.mean(accuracies):5.1f} ± {statistics.stdev(accuracies):.1f}"


def main() -> None:
    started = time.monotonic()
    write_digits_pool(OUTPUT / "digits")
    feature_path = extract()
    n = len(json.loads((OUTPUT / "features" / "digits_train_paths.json").read_text())["paths"])
    accuracies: dict[tuple[str, str], list[float]] = {}
    for seed in SEEDS:
        chosen = choose_with_activeft(seed)
        k = len(json.loads(chosen.read_text()))
        for method, subset in (("random", choose_at_random(seed, n, k)), ("ActiveFT", chosen)):
            for job, options in JOBS.items():
                accuracy = accuracy_of(subset, job, f"{options} --seed {seed}")
                accuracies.setdefault((job, method), []).append(accuracy)

    print(f"\ntop-1 accuracy in % on the 360 validation images with {k} of {n} labelled, seeds {SEEDS}:")
    for (job, method), values in sorted(accuracies.items()):
        each = "  ".join(f"{accuracy:.1f}" for accuracy in values)
        print(f"  {job:13} {method:9} {spread(values)}   ({each})")
    picture = draw_choice(
        feature_path,
        {"random": OUTPUT / "random_seed0.json", "ActiveFT": OUTPUT / "ActiveFT_seed0.json"},
        OUTPUT / "chosen_images.png",
    )
    print(f"wrote a picture of both choices of seed 0 to {picture}; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
