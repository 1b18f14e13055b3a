"""What can be said of a column of accuracies, the seeds being the samples: mean, spread, and who differs from whom."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind_from_stats

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
    (mean1, std1), (mean2, std2) = mean_and_std(first), mean_and_std(second)
    if std1 == std2 == 0:
        return float(mean1 == mean2)
    return float(ttest_ind_from_stats(mean1, std1, len(first), mean2, std2, len(second), equal_var=False).pvalue)


def best_of(column: Mapping[str, Sequence[float]]) -> str:
    """The method with the highest mean."""
    return max(column, key=lambda method: statistics.fmean(column[method]))


def marks(column: Mapping[str, Sequence[float]]) -> dict[str, Marks]:
    """What to mark in one column: {method: its accuracies}. Without a test only the highest mean is marked."""
    best = column[best_of(column)]
    return {
        method: Marks(
            best=statistics.fmean(values) == statistics.fmean(best) or (welch(values, best) or 0) >= LEVEL,
            against_random=direction(values, column["random"]) if "random" in column else "",
        )
        for method, values in column.items()
    }


def direction(values: Sequence[float], others: Sequence[float]) -> str:
    """▲ when the values are significantly above the others, ▼ below, '' when neither can be said."""
    p = welch(values, others)
    if p is None or p >= LEVEL:
        return ""
    return "▲" if statistics.fmean(values) > statistics.fmean(others) else "▼"
