"""The subsets' numbers beside those of random subsets of the same size, and what follows from them."""

from collections.abc import Sequence
from typing import Any

from data_selection.evidence.evaluation import Evaluation
from data_selection.evidence.given import Subset
from data_selection.evidence.table import CLAIMED, MARKED, Values, by_chance, compared, rows_of, spread
from data_selection.evidence.verdict import summary, verdict


def compare(
    subsets: Sequence[Subset], evaluations: Sequence[Evaluation], random: dict[int, list[Values]]
) -> dict[str, Any]:
    """The part of the report that its verdict and its table are made of.

    Args:
        evaluations: of each subset. random: for each size, the measures of every random subset of that size.
    """
    spreads = {size: spread(each) for size, each in random.items()}
    entries = []
    for subset, evaluation in zip(subsets, evaluations, strict=True):
        k, values = len(subset.ids), evaluation.values
        name = subset.name if len(subsets) > 1 else "The chosen subset"
        sentence = verdict(name, values, spreads[k], random[k])
        entries.append(
            {
                "name": subset.name,
                "path": str(subset.path),
                "k": k,
                "verdict": sentence,
                "values": values,
                "against_random": compared(values, spreads[k], MARKED),
            }
        )
    seeds = len(next(iter(random.values())))
    return {
        "verdict": summary(
            [subset.name for subset in subsets],
            [len(subset.ids) for subset in subsets],
            [evaluation.values for evaluation in evaluations],
            spreads,
            [entry["verdict"] for entry in entries],
        ),
        "measures": rows_of(evaluations[0].values),
        "subsets": entries,
        "marked_by_chance": by_chance(MARKED, seeds),
        "claimed_by_chance": by_chance(CLAIMED, seeds),
        "random": [{"k": size, **spreads[size], "each": each} for size, each in random.items()],
    }
