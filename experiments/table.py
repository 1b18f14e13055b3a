"""The table as text: a block per readout, a row per method, a column per budget, and what can be said under it.

The seeds are the samples: mean, spread, and which methods differ significantly.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind_from_stats

from experiments.cells import Result
from experiments.protocols import METHODS, PUBLISHED_COLUMNS, PUBLISHED_ROWS, READOUTS, REPORTED, published_accuracy

LEVEL = 0.05
ROW_ORDER = [
    *(name for name in METHODS if name != "activeft"),
    *(name for name in PUBLISHED_ROWS if name not in METHODS),
    "activeft",
]

Column = dict[str, list[float]]  # {method: its scores, one per seed}


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


def columns_of(results: Iterable[Result]) -> dict[str, dict[float, Column]]:
    """{readout: {percent: column}}, the percents ascending."""
    columns: dict[str, dict[float, Column]] = {}
    for result in sorted(results, key=lambda result: (result.cell.percent, result.cell.seed)):
        cell = result.cell
        column = columns.setdefault(cell.readout, {}).setdefault(cell.percent, {})
        column.setdefault(cell.method, []).append(result.score)
    return columns


def markdown(
    dataset: str, results: Sequence[Result], seeds: int, finetuning: str, score: str = "top-1 accuracy"
) -> str:
    """The whole table.

    seeds: how many there are to be of each cell; those that rest on fewer say so. finetuning: the options of it.
    score: what the numbers are.
    """
    images = {result.cell.percent: result.images for result in results}
    tables = columns_of(results)
    blocks = [f"# {dataset}: {score} in %"]
    for readout, columns in tables.items():
        titles = [f"{percent:g}% ({images[percent]:,} images)" for percent in columns]
        rows = [["", *titles], ["---"] * (len(titles) + 1)]
        for method in ROW_ORDER:
            cells = [cell_text(dataset, readout, method, percent, column, seeds) for percent, column in columns.items()]
            if any(cells):
                rows.append([METHODS.get(method, method), *cells])
        blocks.append(f"**{READOUTS[readout]}**")
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join([*blocks, legend(dataset, seeds, finetuning, score), *standing(tables)]) + "\n"


def cell_text(dataset: str, readout: str, method: str, percent: float, column: Column, seeds: int) -> str:
    """`**84.6 ± 0.5** ▲ (85.0 ± 0.4)`: measured, its marks, published."""
    parts = []
    if method in column:
        marked = marks(column)[method]
        measured = spread(*mean_and_std(column[method]))
        parts.append(f"**{measured}**" if marked.best else measured)
        parts.append(marked.against_random)
        done = len(column[method])
        parts.append(f"[{done} of {seeds} seeds]" if done < seeds else "")
    if published := published_accuracy(dataset, readout, method, percent):
        parts.append(f"({spread(*published)})")
    return " ".join(part for part in parts if part)


def spread(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def legend(dataset: str, seeds: int, finetuning: str, score: str) -> str:
    """What the numbers and marks mean, as a list."""
    lines = [
        f"Mean ± sample standard deviation over {seeds} seed{'s' * (seeds > 1)}, of selection and training alike.",
        f"{score[0].upper()}{score[1:]} on the whole test or validation split. "
        f"Finetuned with `{finetuning}`; the end of a run counts.",
        "**Bold**: the highest mean of a column, and every method that is not significantly below it. "
        "▲, ▼: significantly above, below Random.",
        f"Significant: p < {LEVEL} in Welch's t-test with the seeds as samples, not corrected for the number of "
        "comparisons. A method without a seed selects the same images every time: its frozen readouts have no spread.",
    ]
    if any(dataset == of for of, _ in PUBLISHED_COLUMNS):
        lines.append("In round brackets: published, mean ± standard deviation of 3 runs.")
    if dataset in REPORTED:
        lines.append(f"Users of the published code reported {REPORTED[dataset]}.")
    return "\n".join(f"- {line}" for line in lines)


def standing(tables: dict[str, dict[float, Column]]) -> list[str]:
    """In plain sentences, where another method is ahead of ActiveFT, and where it is no better than chance."""
    columns = {
        f"{readout}, {percent:g}%": column
        for readout, by_percent in tables.items()
        for percent, column in by_percent.items()
        if "activeft" in column and len(column) > 1
    }
    if not columns:
        return []
    behind = [line for title, column in columns.items() if (line := shortfall(title, column))]
    ahead = f"In {len(columns) - len(behind)} of {len(columns)} columns no method has a higher mean than ActiveFT."
    paragraphs = ["\n".join([f"{ahead} In the others:\n", *behind]) if behind else ahead]
    against_random = {title: marks(column)["activeft"].against_random for title, column in columns.items()}
    not_above = [title for title, column in columns.items() if "random" in column and against_random[title] != "▲"]
    if not_above:
        paragraphs.append(f"ActiveFT is not significantly above Random in: {'; '.join(not_above)}.")
    return paragraphs


def shortfall(title: str, column: Column) -> str | None:
    """One line on a column in which another method has a higher mean than ActiveFT."""
    best = best_of(column)
    first, ours = mean_and_std(column[best])[0], mean_and_std(column["activeft"])[0]
    if first <= ours:
        return None
    p = welch(column[best], column["activeft"])
    verdict = "untested" if p is None else f"{'significant' if p < LEVEL else 'not significant'}, p = {p:.2g}"
    return f"- {title}: {METHODS[best]} {first:.1f}, ActiveFT {ours:.1f} ({verdict})"
