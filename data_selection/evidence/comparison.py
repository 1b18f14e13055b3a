"""Compare a subset with random ones of its size: the table's rows, and the verdict in one sentence."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_selection.evidence.measures import Values

MARKED = 2  # standard deviations from the mean of random subsets beyond which the table marks a value
CLAIMED = 3  # the same for the verdict to claim a difference
ROUNDING = 1e-6  # a smaller difference counts as none, even if random subsets do not differ at all


@dataclass(frozen=True)
class Measure:
    """One row: what the number means, which direction is better, and how to print it."""

    key: str
    group: str
    title: str
    better: Literal["lower", "higher"]
    format: Literal["distance", "count", "share", "percent"] = "distance"


CLOSE, APART, PARTS = "Close to the pool", "Different from each other", "How the pool is divided"
CLASSES, PIXELS, LABELS = "Classes", "Classes of the pixels", "Accuracy on the held-out images"
MEASURES = (
    Measure("emd", CLOSE, "Earth Mover's Distance to the pool", "lower"),
    Measure("coverage_mean", CLOSE, "Distance to the nearest chosen image, mean", "lower"),
    Measure("coverage_95", CLOSE, "Distance to the nearest chosen image, 95th percentile", "lower"),
    Measure("coverage_max", CLOSE, "Distance to the nearest chosen image, largest", "lower"),
    Measure("diversity_mean", APART, "Distance between nearest chosen images, mean", "higher"),
    Measure("diversity_min", APART, "Distance between nearest chosen images, smallest", "higher"),
    Measure("near_duplicates", APART, "Chosen images with a chosen near-duplicate", "lower", "count"),
    Measure("share_max", PARTS, "Largest share of the pool that one chosen image represents", "lower", "share"),
    Measure("share_evenness", PARTS, "Evenness of the shares, 1 if all are equal", "higher"),
    Measure("alone", PARTS, "Chosen images that represent only themselves", "lower", "count"),
    Measure("classes_missing", CLASSES, "Classes of the pool without a chosen image", "lower", "count"),
    Measure("class_smallest", CLASSES, "Images of the rarest class", "higher", "count"),
    Measure("class_largest", CLASSES, "Images of the most frequent class", "lower", "count"),
    Measure("class_distance", CLASSES, "Total variation distance to the pool's class shares", "lower"),
    Measure("pixel_classes_missing", PIXELS, "Classes of the pool without a pixel", "lower", "count"),
    Measure("pixel_distance", PIXELS, "Total variation distance to the pool's shares of pixels", "lower"),
    Measure("accuracy_nearest", LABELS, "Nearest neighbour", "higher", "percent"),
    Measure("accuracy_neighbours", LABELS, "Weighted nearest neighbours, at most 20", "higher", "percent"),
    Measure("accuracy_linear", LABELS, "Linear probe", "higher", "percent"),
)

FEWEST_DIGITS, MOST_DIGITS = 2, 5
EMD, HARDEST = "emd", "coverage_95"
CLOSER, TRADES = "is closer to the pool than {beaten} ({emd})", "is a trade-off: it"
WORSE = "is worse than random"
SENTENCES = {  # by how EMD and HARDEST compare with random
    ("better", "better"): f"{CLOSER}, and is closer to the hardest images ({{hardest}})",
    ("better", "same"): f"{CLOSER}, and about as close to the hardest images as random ones ({{hardest}})",
    ("better", "worse"): f"{TRADES} {CLOSER}, but farther from the hardest images ({{hardest}})",
    ("same", "better"): "is no closer to the pool than random ({emd}), but closer to its hardest images ({hardest})",
    ("same", "same"): "is no better than random: {emd}; {hardest}",
    ("same", "worse"): f"{WORSE}: about as close to the pool ({{emd}}), farther from the hardest images ({{hardest}})",
    ("worse", "better"): f"{TRADES} is closer to the hardest images ({{hardest}}), but farther from the pool ({{emd}})",
    ("worse", "same"): f"{WORSE}: {{emd}}; {{hardest}}",
    ("worse", "worse"): f"{WORSE}: {{emd}}; {{hardest}}",
}
MERITS = {
    EMD: "is closest to the pool (EMD {:.4f})",
    HARDEST: "is closest to the hardest images (95% of the pool within {:.4f})",
}


def mean_and_std(each: Sequence[Values]) -> dict[str, Values]:
    """Return every measure's mean and standard deviation over random subsets, at least two; None if a value is None."""
    of = {key: [values[key] for values in each] for key in each[0]}
    known = {key: None not in values for key, values in of.items()}
    return {
        "mean": {key: statistics.fmean(values) if known[key] else None for key, values in of.items()},
        "std": {key: statistics.stdev(values) if known[key] else None for key, values in of.items()},
    }


def by_chance(deviations: float, random_seeds: int) -> float:
    """Return how often one more random subset would differ by so many standard deviations (two-sided, if normal)."""
    from scipy.stats import t  # slow to load

    return float(2 * t.sf(deviations / (1 + 1 / random_seeds) ** 0.5, random_seeds - 1))


def compared(values: Values, random: dict[str, Values], deviations: float) -> dict[str, str]:
    """Return per measure: better or worse than random by more than `deviations` standard deviations, or same."""
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


def verdict(name: str, values: Values, random: dict[str, Values], each: Sequence[Values]) -> str:
    """Return one sentence about a subset.

    Args:
        name: subject of the sentence. values: the subset's measures.
        random: mean and std over random subsets of the same size. each: the measures of each of them.
    """

    def in_digits(key: str) -> tuple[str, str]:
        value, mean, std = values[key], random["mean"][key], random["std"][key]
        digits = min(MOST_DIGITS, 1 - math.floor(math.log10(std))) if std > 0 else MOST_DIGITS  # two for the std
        digits = max(digits, FEWEST_DIGITS)
        return f"{value:.{digits}f}", f"against {mean:.{digits}f} ± {std:.{digits}f}"

    (emd, emd_of_random), (hardest, hardest_of_random) = in_digits(EMD), in_digits(HARDEST)

    outcome = compared(values, random, CLAIMED)
    farther = sum(values[EMD] < other[EMD] for other in each)
    text = SENTENCES[outcome[EMD], outcome[HARDEST]].format(
        beaten=f"all {farther} random ones" if farther == len(each) else f"{farther} of {len(each)} random ones",
        emd=f"EMD {emd} {emd_of_random}",
        hardest=f"95% of the pool within {hardest} of a chosen image, {hardest_of_random}",
    )
    if "accuracy_nearest" in values:
        mean, std = (random[of]["accuracy_nearest"] for of in ("mean", "std"))
        text += f"; its nearest neighbours label {values['accuracy_nearest']:.1f}% of the held-out images correctly"
        text += f", those of random ones {mean:.1f} ± {std:.1f}%"
    return f"{name} {text}."


def summary(entries: Sequence[dict[str, Any]], random: dict[int, dict[str, Values]]) -> str:
    """Return the headline: for one subset, its own verdict; for several, which is closest to the pool.

    Only subsets of the same size are compared with each other: the EMD of finite samples shrinks as they grow. The best
    is named if it leads the next by more than CLAIMED standard deviations of random subsets of that size.
    """
    if len(entries) == 1:
        return entries[0]["verdict"]
    parts = []
    for size in dict.fromkeys(entry["k"] for entry in entries):
        rivals = [entry for entry in entries if entry["k"] == size]
        if len(rivals) < 2:
            continue
        leads: dict[str, list[str]] = {}
        for key, merit in MERITS.items():
            first, second = sorted(rivals, key=lambda entry: entry["values"][key])[:2]
            least = first["values"][key]
            if second["values"][key] - least > CLAIMED * random[size]["std"][key]:
                leads.setdefault(first["name"], []).append(merit.format(least))
        said = ", while ".join(f"{name} {' and '.join(merits)}" for name, merits in leads.items())
        none = "none is clearly closer to the pool or to its hardest images than the others"
        parts.append(f"of the {len(rivals)} subsets of {size:,} images {said or none}")
    if not parts:
        return "The subsets differ in size: each is compared only with random ones of its own size."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def compare(subsets: Sequence[tuple[str, int, Values]], random: dict[int, list[Values]]) -> dict[str, Any]:
    """Return the part of the report that its verdict and its table are made of.

    subsets: name, size and measures of each. random: for each size, the measures of every random subset of that size.
    """
    deviations = {size: mean_and_std(each) for size, each in random.items()}
    entries = []
    for name, k, values in subsets:
        subject = name if len(subsets) > 1 else "The chosen subset"
        entries.append({
            "name": name,
            "k": k,
            "verdict": verdict(subject, values, deviations[k], random[k]),
            "values": values,
            "against_random": compared(values, deviations[k], MARKED),
        })  # fmt: skip
    seeds = len(next(iter(random.values())))
    return {
        "verdict": summary(entries, deviations),
        "measures": [asdict(measure) for measure in MEASURES if measure.key in values],
        "subsets": entries,
        "marked_by_chance": by_chance(MARKED, seeds),
        "claimed_by_chance": by_chance(CLAIMED, seeds),
        "random": [{"k": size, **deviations[size], "each": each} for size, each in random.items()],
    }
