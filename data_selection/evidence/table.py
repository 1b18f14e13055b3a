"""The rows of the report's table, and how a subset's numbers compare with those of random subsets."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.stats import t

Values = dict[str, float | None]
MARKED = 2  # standard deviations from the mean of random subsets that the table marks,
CLAIMED = 3  # and that the verdict takes for a difference
ROUNDING = 1e-6  # no difference, even where random subsets do not differ at all


@dataclass(frozen=True)
class Measure:
    """One row: what a number means and which direction is the better one. `format` is for whoever prints it."""

    key: str
    group: str
    title: str
    better: Literal["lower", "higher"]
    format: Literal["distance", "count", "share", "percent"] = "distance"


NEAR, APART, PARTS = "Near to the pool", "Different from each other", "Dividing the pool"
CLASSES, LABELS = "Classes", "Accuracy on the held-out images"
MEASURES = (
    Measure("emd", NEAR, "Earth Mover's Distance to the pool", "lower"),
    Measure("coverage_mean", NEAR, "Distance to the nearest chosen image, mean", "lower"),
    Measure("coverage_95", NEAR, "Distance to the nearest chosen image, 95th percentile", "lower"),
    Measure("coverage_max", NEAR, "Distance to the nearest chosen image, largest", "lower"),
    Measure("diversity_mean", APART, "Distance between nearest chosen images, mean", "higher"),
    Measure("diversity_min", APART, "Distance between nearest chosen images, smallest", "higher"),
    Measure("near_duplicates", APART, "Chosen images with a chosen near-duplicate", "lower", "count"),
    Measure("share_max", PARTS, "Largest share of the pool that one chosen image stands for", "lower", "share"),
    Measure("share_evenness", PARTS, "Evenness of the shares, 1 where all are equal", "higher"),
    Measure("alone", PARTS, "Chosen images that stand for themselves only", "lower", "count"),
    Measure("classes_missing", CLASSES, "Classes of the pool without a chosen image", "lower", "count"),
    Measure("class_smallest", CLASSES, "Images of the rarest class", "higher", "count"),
    Measure("class_largest", CLASSES, "Images of the most frequent class", "lower", "count"),
    Measure("class_distance", CLASSES, "Total variation distance to the pool's class shares", "lower"),
    Measure("accuracy_nearest", LABELS, "Nearest neighbour", "higher", "percent"),
    Measure("accuracy_neighbours", LABELS, "Weighted nearest neighbours, at most 20", "higher", "percent"),
    Measure("accuracy_linear", LABELS, "Linear probe", "higher", "percent"),
)


def rows_of(values: Values) -> list[dict[str, Any]]:
    """The measures that were taken, in the order of the table."""
    return [asdict(measure) for measure in MEASURES if measure.key in values]


def spread(each: Sequence[Values]) -> dict[str, Values]:
    """Mean and standard deviation of every measure over random subsets, at least two; None where one is None."""
    of = {key: [values[key] for values in each] for key in each[0]}
    known = {key: None not in values for key, values in of.items()}
    return {
        "mean": {key: statistics.fmean(values) if known[key] else None for key, values in of.items()},
        "std": {key: statistics.stdev(values) if known[key] else None for key, values in of.items()},
    }


def by_chance(deviations: float, random_seeds: int) -> float:
    """How often one more random subset would differ by so many standard deviations (two-sided, if normal)."""
    return float(2 * t.sf(deviations / (1 + 1 / random_seeds) ** 0.5, random_seeds - 1))


def compared(values: Values, random: dict[str, Values], deviations: float) -> dict[str, str]:
    """For every measure: better or worse than random by more than so many standard deviations, or same."""
    outcome = {}
    for measure in MEASURES:
        value, mean = values.get(measure.key), random["mean"].get(measure.key)
        if value is None or mean is None:
            outcome[measure.key] = "same"
            continue
        gain = mean - value if measure.better == "lower" else value - mean
        clear = abs(gain) > max(deviations * random["std"][measure.key], ROUNDING)
        outcome[measure.key] = ("better" if gain > 0 else "worse") if clear else "same"
    return outcome
