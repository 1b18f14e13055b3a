"""The table as text: a block per readout, a row per method, a column per budget; below, a legend and a verdict."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from experiments import significance
from experiments.protocols import (
    METHODS,
    PUBLISHED_COLUMNS,
    PUBLISHED_ROWS,
    READOUTS,
    REPORTED,
    Protocol,
    published_accuracy,
)
from experiments.results import Result
from experiments.significance import LEVEL, Column, Marks, Table

ROW_ORDER = [
    *(name for name in METHODS if name != "activeft"),
    *(name for name in PUBLISHED_ROWS if name not in METHODS),
    "activeft",
]
COMPARED = ("few-labels", "linear")  # the second of these readouts is subtracted from the first


def columns_of(results: Iterable[Result]) -> dict[str, dict[float, Column]]:
    """Return {readout: {budget: column}}, the budgets ascending."""
    columns: dict[str, dict[float, Column]] = {}
    for result in sorted(results, key=lambda result: (result.cell.budget, result.cell.seed)):
        cell = result.cell
        column = columns.setdefault(cell.readout, {}).setdefault(cell.budget, {})
        column.setdefault(cell.method, []).append(result.score)
    return columns


def differences_of(results: Sequence[Result], first: str, second: str) -> dict[float, Column]:
    """Return {budget: {method: [first readout minus second on the same labels, one per seed]}}."""
    scores = {result.cell: result.score for result in results}
    both = []
    for result in results:
        other = replace(result.cell, readout=second)
        if result.cell.readout == first and other in scores:
            difference = round(result.score - scores[other], 9) + 0.0  # without rounding errors, and 0 for -0
            both.append(replace(result, score=difference))
    return columns_of(both).get(first, {})


def markdown(protocol: Protocol, results: Sequence[Result]) -> str:
    """Return the whole table as Markdown, from all of the protocol's cells or some of them."""
    images = {result.cell.budget: result.images for result in results}
    titles = {
        budget: protocol.budget_in_words(budget) + ("" if protocol.numbers else f" ({count:,} images)")
        for budget, count in images.items()
    }
    tables = columns_of(results)
    blocks = [f"# {protocol.pool}: {protocol.score} in %"]
    for readout, table in tables.items():
        text = partial(cell_text, protocol, readout, table, significance.marks(table))
        blocks += [f"**{READOUTS[readout]}**", grid(table, titles, text), *ranking(table)]
    if differences := differences_of(results, *COMPARED):
        text = partial(difference_text, protocol, differences, significance.directions(differences))
        title = " minus ".join(READOUTS[readout] for readout in COMPARED)
        blocks += [f"**{title}**, on the same labels", grid(differences, titles, text)]
    return "\n\n".join([*blocks, legend(protocol, [*tables], bool(differences)), *standing(protocol, tables)]) + "\n"


def grid(columns: Iterable[float], titles: Mapping[float, str], text: Callable[[str, float], str]) -> str:
    """Return one row per method that has something to show in any column."""
    columns = list(columns)
    rows = [["", *(titles[budget] for budget in columns)], ["---"] * (len(columns) + 1)]
    for method in ROW_ORDER:
        cells = [text(method, budget) for budget in columns]
        if any(cells):
            rows.append([METHODS.get(method, method), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell_text(
    protocol: Protocol, readout: str, table: Table, marked: dict[float, dict[str, Marks]], method: str, budget: float
) -> str:
    """`**84.6 ± 0.5** ▲ (85.0 ± 0.4)`: measured, its marks, published."""
    parts = []
    if values := table[budget].get(method):
        its = marked[budget][method]
        parts.append(measured(protocol, values, its.against_random, bold=its.best))
    if published := published_accuracy(protocol.published_as, readout, method, budget):
        parts.append(f"({plus_minus(*published)})")
    return " ".join(parts)


def difference_text(
    protocol: Protocol, differences: Table, signs: Mapping[tuple[float, str], str], method: str, budget: float
) -> str:
    """`+1.1 ± 0.4 ▲`: the difference measured seed by seed, and its mark."""
    values = differences[budget].get(method)
    return measured(protocol, values, signs[budget, method], "+") if values else ""


def measured(protocol: Protocol, values: Sequence[float], sign: str, plus: str = "", bold: bool = False) -> str:
    """Return mean and spread with their marks, and the number of seeds behind them if not all are done."""
    text, done, seeds = plus_minus(*significance.mean_and_std(values), plus), len(values), len(protocol.seeds)
    parts = [f"**{text}**" if bold else text, sign, f"[{done} of {seeds} seeds]" if done < seeds else ""]
    return " ".join(part for part in parts if part)


def plus_minus(mean: float, std: float | None, plus: str = "") -> str:
    return f"{mean:{plus}.1f}" if std is None else f"{mean:{plus}.1f} ± {std:.1f}"


def ranking(table: Table) -> list[str]:
    """Return a line of the methods by mean rank, if there are several budgets and methods."""
    ranks = significance.mean_ranks(table)
    if len(table) < 2 or len(ranks) < 2:
        return []
    ordered = sorted(ranks, key=lambda method: (ranks[method] is None, ranks[method] or 0, ROW_ORDER.index(method)))
    listed = (f"{METHODS[name]} {'-' if ranks[name] is None else format(ranks[name], '.1f')}" for name in ordered)
    return [f"Mean rank over the {len(table)} budgets: {', '.join(listed)}."]


def legend(protocol: Protocol, readouts: Sequence[str], compared: bool) -> str:
    """Explain the numbers and marks, in a list."""
    seeds, score = len(protocol.seeds), protocol.score
    recipes = {"finetuned": protocol.finetuning, "few-labels": f"--recipe few-labels {protocol.few_labels}"}
    used = [f"{READOUTS[readout]}: `{recipes[readout]}`" for readout in readouts if readout in recipes]
    lines = [
        f"Mean ± sample standard deviation over {seeds} seed{'s' * (seeds > 1)}, for selection and training alike.",
        f"{score[0].upper()}{score[1:]} on the whole test or validation split, at the end of a run.",
        *([f"Options of the runs. {'; '.join(used)}."] if used else []),
        "**Bold**: the highest mean of a column, and every method that is not significantly below it. "
        "▲, ▼: significantly above, below Random.",
        f"Significant: p < {LEVEL} in Welch's t-test with the seeds as samples, corrected by Holm's method. In the "
        "table of each readout, all comparisons with Random, at all budgets together, are one family, and all "
        "comparisons with the highest means of the columns another; p-values below are corrected. A method without a "
        "seed selects the same images every time: its frozen readouts have no spread, nor do trainings that draw "
        "nothing at random. If neither side of a comparison has any spread, it is not tested, and "
        "only the highest mean is marked.",
    ]
    if compared:
        lines.append(
            "Differences between readouts: mean ± sample standard deviation of the differences seed by seed; "
            f"▲, ▼: p < {LEVEL} in the paired t-test, with all cells of that table as one family for Holm's method."
        )
    if any(protocol.published_as == of for of, _ in PUBLISHED_COLUMNS):
        lines.append("In round brackets: published, mean ± standard deviation of 3 runs.")
    if protocol.published_as in REPORTED:
        lines.append(f"Users of the published code reported {REPORTED[protocol.published_as]}.")
    return "\n".join(f"- {line}" for line in lines)


def standing(protocol: Protocol, tables: Mapping[str, Table]) -> list[str]:
    """Say where another method is ahead of ActiveFT, and where ActiveFT is not significantly above Random."""
    behind, not_above, total = [], [], 0
    for readout, table in tables.items():
        p_best, marked = significance.against(table, significance.best_of), significance.marks(table)
        for budget, column in table.items():
            if "activeft" not in column or len(column) < 2:
                continue
            total += 1
            title = f"{readout}, {protocol.budget_in_words(budget)}"
            if line := shortfall(column, p_best.get((budget, "activeft"))):
                behind.append(f"- {title}: {line}")
            if "random" in column and marked[budget]["activeft"].against_random != "▲":
                not_above.append(title)
    if not total:
        return []
    ahead = f"In {total - len(behind)} of {total} columns no method has a higher mean than ActiveFT."
    paragraphs = ["\n".join([f"{ahead} In the others:\n", *behind]) if behind else ahead]
    if not_above:
        paragraphs.append(f"ActiveFT is not significantly above Random in: {'; '.join(not_above)}.")
    return paragraphs


def shortfall(column: Column, p: float | None) -> str | None:
    """Return a line on a column where another method's mean is above ActiveFT's, else None; p: of the difference."""
    best = significance.best_of(column)
    first, ours = significance.mean_and_std(column[best])[0], significance.mean_and_std(column["activeft"])[0]
    if first <= ours:
        return None
    verdict = "untested" if p is None else f"{'significant' if p < LEVEL else 'not significant'}, p = {p:.2g}"
    return f"{METHODS[best]} {first:.1f}, ActiveFT {ours:.1f} ({verdict})"
