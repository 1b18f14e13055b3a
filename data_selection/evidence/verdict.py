"""What the numbers say, in one sentence, and no more than they say."""

import math
from collections.abc import Sequence

from data_selection.evidence.table import CLAIMED, Values, compared

FEWEST_DIGITS, MOST_DIGITS = 2, 5
EMD, HARDEST = "emd", "coverage_95"
NEARER, TRADES = "lies nearer to the pool than {beaten} ({emd})", "trades one for the other: it"
SENTENCES = {  # by how EMD and HARDEST compare with random
    ("better", "better"): f"{NEARER}, and leaves the hardest images nearer ({{hardest}})",
    ("better", "same"): f"{NEARER}, and leaves the hardest images as far away as random ones do ({{hardest}})",
    ("better", "worse"): f"{TRADES} {NEARER}, but leaves the hardest images farther away ({{hardest}})",
    ("same", "better"): "is no nearer to the pool than random ({emd}), but nearer to its hardest images ({hardest})",
    ("same", "same"): "is no better than random: {emd}; {hardest}",
    ("same", "worse"): "is worse than random: as near to the pool ({emd}), farther from its hardest images ({hardest})",
    ("worse", "better"): f"{TRADES} is nearer to the hardest images ({{hardest}}), but farther from the pool ({{emd}})",
    ("worse", "same"): "is worse than random: {emd}; {hardest}",
    ("worse", "worse"): "is worse than random: {emd}; {hardest}",
}
MERITS = {
    EMD: "lies nearest to the pool (EMD {:.4f})",
    HARDEST: "leaves the hardest images nearest (95% of the pool within {:.4f})",
}


def verdict(name: str, values: Values, random: dict[str, Values], each: Sequence[Values]) -> str:
    """One sentence on a subset.

    Args:
        name: how the sentence calls it. values: its measures.
        random: mean and std of random subsets of the same size, and `each` of them.
    """

    def in_digits(key: str) -> tuple[str, str]:
        value, mean, std = values[key], random["mean"][key], random["std"][key]
        digits = min(MOST_DIGITS, 1 - math.floor(math.log10(std))) if std > 0 else MOST_DIGITS  # two of the deviation
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
        text += f"; its nearest neighbours label {values['accuracy_nearest']:.1f}% of the held-out images rightly"
        text += f", those of random ones {mean:.1f} ± {std:.1f}%"
    return f"{name} {text}."


def summary(
    names: Sequence[str],
    sizes: Sequence[int],
    values: Sequence[Values],
    random: dict[int, dict[str, Values]],
    sentences: Sequence[str],
) -> str:
    """The sentence above all others: of one subset its own; of several, which is nearest to the pool.

    Only subsets of one size are compared with each other: the EMD of finite samples shrinks as they grow. The best is
    named where it leads the next by more than the verdict's standard deviations of random subsets of that size.
    """
    if len(names) == 1:
        return sentences[0]
    parts = []
    for size in dict.fromkeys(sizes):
        rivals = [position for position in range(len(names)) if sizes[position] == size]
        if len(rivals) < 2:
            continue
        leads: dict[str, list[str]] = {}
        for key, merit in MERITS.items():
            first, second = sorted(rivals, key=lambda position: values[position][key])[:2]
            if values[second][key] - values[first][key] > CLAIMED * random[size]["std"][key]:
                leads.setdefault(names[first], []).append(merit.format(values[first][key]))
        said = ", while ".join(f"{name} {' and '.join(merits)}" for name, merits in leads.items())
        none = "none is clearly nearer to the pool than the others, or leaves its hardest images nearer"
        parts.append(f"of the {len(rivals)} subsets of {size:,} images {said or none}")
    if not parts:
        return "The subsets differ in size: each is compared with random ones of its own size only."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
