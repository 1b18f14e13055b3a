"""Published top-1 accuracies in %, mean and standard deviation of 3 runs, as quoted by BiLAF (NeurIPS 2024) from
the ActiveFT paper (CVPR 2023, Table 1); DINO's ViT-S/16, finetuned.
"""

COLUMNS = (
    *(("CIFAR10", percent) for percent in (0.5, 1, 2)),
    *(("CIFAR100", percent) for percent in (1, 2, 5, 10)),
    *(("ImageNet", percent) for percent in (1, 5)),
)
ROWS = {
    "random": "77.3±2.6 82.2±1.9 88.9±0.4 14.9±1.9 24.3±2.0 50.8±3.4 69.3±0.7 45.1±0.8 64.3±0.3",
    "fds": "64.5±1.5 73.2±1.2 81.4±0.7 8.1±0.6 12.8±0.3 16.9±1.4 52.3±1.9 26.7±0.6 55.5±0.1",
    "kmeans": "83.0±3.5 85.9±0.8 89.6±0.6 17.6±1.1 31.9±0.1 42.4±1.0 70.7±0.3 49.8±0.5 64.0±0.2",
    "coreset": "- 81.6±0.3 88.4±0.2 - 30.6±0.4 48.3±0.5 62.9±0.6 - 61.7±0.2",
    "VAAL": "- 80.9±0.5 88.8±0.3 - 24.6±1.1 46.4±0.8 70.1±0.4 - 64.0±0.3",
    "LearnLoss": "- 81.6±0.6 86.7±0.4 - 19.2±2.2 38.2±2.8 65.7±1.1 - 63.2±0.4",
    "TA-VAAL": "- 82.6±0.4 88.7±0.2 - 34.7±0.7 46.4±1.1 66.8±0.5 - 64.3±0.2",
    "ALFA-Mix": "- 83.4±0.3 89.6±0.2 - 35.3±0.8 50.4±0.9 69.9±0.6 - 64.5±0.2",
    "activeft": "85.0±0.4 88.2±0.4 90.1±0.2 26.1±2.6 40.7±0.9 54.6±2.3 71.0±0.5 50.1±0.3 65.3±0.1",
}
# The only published readouts of the frozen features, of ActiveFT's choice; without a spread.
FROZEN = {("CIFAR10", "linear", "activeft", 0.5): 87.8, ("CIFAR10", "knn", "activeft", 0.5): 86.8}
# What users measured with the published code, one run each, on two GPUs where nothing else is said.
REPORTED = {
    "CIFAR10": "ActiveFT 79.4 at 0.5% and 86.5 at 1%, Random 88.6 at 2%; on one GPU ActiveFT 59.2 at 0.5% and 78 at 2%",
    "CIFAR100": "ActiveFT 37.2 and, with another seed, about 21.5 at 2%; K-Means 40.6 and 19.0",
}


def published_accuracy(dataset: str, readout: str, method: str, percent: float) -> tuple[float, float | None] | None:
    """Mean and standard deviation (None where it is not known), or None where nothing is published."""
    if readout != "finetuned":
        mean = FROZEN.get((dataset, readout, method, percent))
        return None if mean is None else (mean, None)
    cells = dict(zip(COLUMNS, ROWS.get(method, "").split(), strict=False))
    cell = cells.get((dataset, percent), "-")
    if cell == "-":
        return None
    mean, std = map(float, cell.split("±"))
    return mean, std
