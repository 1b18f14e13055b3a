"""Statistics on the scores of a few seeds: mean and spread, and which differences are significant.

A column holds the scores of the methods at one budget, a table the columns of one readout. The seeds are the samples;
all comparisons of one kind in a table are a family, corrected together by Holm's method.
"""

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import rankdata, ttest_ind_from_stats

LEVEL = 0.05

Column = dict[str, list[float]]  # {method: its scores, one per seed}
Table = Mapping[float, Column]  # {budget: column}
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Marks:
    """best: has its column's highest mean or is not significantly below it. against_random: ▲ above, ▼ below, or ''."""

    best: bool = False
    against_random: str = ""


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which is None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Welch's t-test (unequal variances); None if a sample has a single value.

    Also None if neither has any spread: seeds without effect count as one sample, however many there are.
    """
    (mean1, std1), (mean2, std2) = mean_and_std(first), mean_and_std(second)
    if None in (std1, std2) or std1 == std2 == 0:
        return None
    return float(ttest_ind_from_stats(mean1, std1, len(first), mean2, std2, len(second), equal_var=False).pvalue)


def paired(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the paired t-test; None for a single pair, or if all differences are equal.

    This is Welch's test against zeros: a sample without spread adds nothing to the standard error or to its degrees of
    freedom.
    """
    return welch(differences, [0.0] * len(differences))


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Correct the p-values of one family, so that all its verdicts at LEVEL hold together (Holm, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on, but none becomes less than the one before it.
    Comparisons that could not be tested (None) are left out.
    """
    tested = sorted(((key, p) for key, p in p_values.items() if p is not None), key=lambda item: item[1])
    corrected, least = {}, 0.0
    for before, (key, p) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - before) * p))
        corrected[key] = least
    return corrected


def best_of(column: Column) -> str:
    """Return the method with the highest mean."""
    return max(column, key=lambda method: statistics.fmean(column[method]))


def against(table: Table, reference: Callable[[Column], str]) -> dict[tuple[float, str], float]:
    """Compare each method with its column's reference. Returns: {(budget, method): p}, corrected as one family."""
    return holm(
        {
            (budget, method): welch(values, column[reference(column)])
            for budget, column in table.items()
            for method, values in column.items()
            if reference(column) in column and method != reference(column)
        }
    )


def marks(table: Table) -> dict[float, dict[str, Marks]]:
    """Return {budget: {method: its marks}}. A method that cannot be tested is only marked if its mean is highest."""
    p_best, p_random = against(table, best_of), against(table, lambda column: "random")
    marked: dict[float, dict[str, Marks]] = {}
    for budget, column in table.items():
        highest = statistics.fmean(column[best_of(column)])
        for method, values in column.items():
            mean, key = statistics.fmean(values), (budget, method)
            above = mean - statistics.fmean(column.get("random", values))
            marked.setdefault(budget, {})[method] = Marks(
                best=mean == highest or p_best.get(key, 0) >= LEVEL, against_random=direction(above, p_random.get(key))
            )
    return marked


def directions(differences: Table) -> dict[tuple[float, str], str]:
    """Mark ▲ or ▼ if paired differences, one per seed, are significantly above or below 0; all cells are one family."""
    cells = {(budget, method): values for budget, column in differences.items() for method, values in column.items()}
    p_values = holm({key: paired(values) for key, values in cells.items()})
    return {key: direction(statistics.fmean(values), p_values.get(key)) for key, values in cells.items()}


def direction(difference: float, p: float | None) -> str:
    """Return ▲ if a difference is significantly above 0, ▼ if below, '' if neither."""
    if p is None or p >= LEVEL:
        return ""
    return "▲" if difference > 0 else "▼"


def mean_ranks(table: Table) -> dict[str, float | None]:
    """Return the rank of each method's mean in its column (1: highest), averaged over the budgets; ties share ranks.

    Only methods with scores at every budget are ranked, among themselves; the others get None.
    """
    methods = dict.fromkeys(method for column in table.values() for method in column)
    everywhere = [method for method in methods if all(method in column for column in table.values())]
    ranks = [rankdata([-statistics.fmean(column[method]) for method in everywhere]) for column in table.values()]
    return {**dict.fromkeys(methods), **dict(zip(everywhere, np.mean(ranks, axis=0).tolist(), strict=True))}
