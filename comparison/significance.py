"""What can be said of a column of accuracies, the seeds being the samples: mean, spread, and who differs from whom."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind

LEVEL = 0.05


@dataclass(frozen=True)
class Marks:
    """best: the highest mean of its column, or not significantly below it. against_random: ▲ above, ▼ below, or ''."""

    best: bool = False
    against_random: str = ""


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The sample standard deviation is None of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t-test (unequal variances); None when one of the samples has a single value.

    Where neither has any spread, as with a choice and a readout that take no seed, the test is undefined: p is 1 when
    they are equal, else 0.
    """
    if min(len(first), len(second)) < 2:
        return None
    if len(set(first)) == len(set(second)) == 1:
        return float(first[0] == second[0])
    return float(ttest_ind(first, second, equal_var=False).pvalue)


def differ(first: Sequence[float], second: Sequence[float]) -> bool:
    p = welch(first, second)
    return p is not None and p < LEVEL


def best_of(column: Mapping[str, Sequence[float]]) -> str:
    """The method with the highest mean."""
    return max(column, key=lambda method: statistics.fmean(column[method]))


def marks(column: Mapping[str, Sequence[float]]) -> dict[str, Marks]:
    """What to mark in one column: {method: its accuracies}. A method that cannot be tested is not marked."""
    best = best_of(column)
    marked = {}
    for method, values in column.items():
        p = welch(values, column[best])
        against_random = ""
        if method != "random" and "random" in column and differ(values, column["random"]):
            against_random = "▲" if statistics.fmean(values) > statistics.fmean(column["random"]) else "▼"
        marked[method] = Marks(method == best or (p is not None and p >= LEVEL), against_random)
    return marked
