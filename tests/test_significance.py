"""What the seeds of a table can say: spread, tests, their correction, ranks."""

import pytest
from scipy.stats import ttest_ind, ttest_rel

from experiments.significance import Marks, holm, marks, mean_and_std, mean_ranks, paired, welch

HIGH, LOW, WIDE = [90.0, 91.0, 92.0], [70.0, 71.0, 72.0], [60.0, 80.0, 120.0]


def marks_of(column: dict[str, list[float]]) -> dict[str, Marks]:
    """In a table of one column."""
    return marks({1: column})[1]


def test_the_best_and_what_is_not_significantly_below_it_are_marked():
    marked = marks_of({"random": LOW, "fds": [89.0, 91.5, 90.5], "activeft": HIGH})
    assert {method: mark.best for method, mark in marked.items()} == {"random": False, "fds": True, "activeft": True}


def test_significantly_above_and_below_random_are_told_apart():
    marked = marks_of({"random": [80.0, 81.0, 82.0], "fds": LOW, "kmeans": WIDE, "activeft": HIGH})
    assert [marked[method].against_random for method in ("random", "fds", "kmeans", "activeft")] == ["", "▼", "", "▲"]


def test_the_test_is_welchs():
    # t = 20 / sqrt(1/3 + 1/3) with 4 degrees of freedom
    assert welch(HIGH, LOW) == pytest.approx(1.648e-05, rel=0.001)
    assert welch(HIGH, WIDE) == pytest.approx(ttest_ind(HIGH, WIDE, equal_var=False).pvalue)


def test_what_chance_gives_in_one_of_ten_is_not_marked():
    first, second = [80.0, 81.0, 82.0], [78.2, 79.2, 80.2]  # p = 0.09
    assert marks_of({"random": second, "activeft": first}) == {"random": Marks(best=True), "activeft": Marks(best=True)}


def test_a_single_seed_is_not_tested():
    assert welch([90.0], LOW) is None
    marked = marks_of({"random": [70.0], "fds": [90.0], "activeft": [80.0]})
    assert marked == {"random": Marks(), "fds": Marks(best=True), "activeft": Marks()}


def test_holm_multiplies_by_what_is_left_and_never_falls():
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005, "untested": None})
    assert corrected == pytest.approx({"d": 0.02, "b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1}


def test_what_is_significant_alone_is_not_marked_among_many_comparisons():
    random, better = [80.0, 81.0, 82.0], [83.0, 84.0, 85.0]  # p = 0.021
    assert marks_of({"random": random, "activeft": better})["activeft"].against_random == "▲"
    table = marks({budget: {"random": random, "activeft": better} for budget in (1, 2, 5)})
    assert [table[budget]["activeft"].against_random for budget in (1, 2, 5)] == ["", "", ""]
    assert all(table[budget]["random"].best for budget in (1, 2, 5))


def test_the_paired_test_sees_what_all_seeds_share():
    first, second = [60.0, 70.0, 80.0], [59.0, 68.5, 79.2]
    differences = [one - other for one, other in zip(first, second, strict=True)]
    assert paired(differences) == pytest.approx(ttest_rel(first, second).pvalue)
    assert paired(differences) < 0.05 < welch(first, second)
    assert paired([1.0]) is None


def test_a_rank_is_the_mean_over_the_budgets_and_ties_share_it():
    table = {1: {"random": LOW, "fds": HIGH, "activeft": HIGH}, 2: {"random": LOW, "fds": WIDE, "activeft": HIGH}}
    assert mean_ranks(table) == {"random": 3, "fds": 1.75, "activeft": 1.25}


def test_a_method_that_is_not_at_every_budget_has_no_rank():
    table = {1: {"random": LOW, "fds": HIGH, "activeft": WIDE}, 2: {"random": LOW, "activeft": HIGH}}
    assert mean_ranks(table) == {"random": 2, "activeft": 1, "fds": None}


def test_seeds_without_effect_on_either_side_are_no_samples_to_test():
    assert welch([80.0, 80.0], [80.1, 80.1]) is None
    assert paired([0.5, 0.5]) is None
    assert 0 < welch([80.0, 80.0, 80.0], HIGH) < 0.05


def test_the_spread_is_the_sample_standard_deviation():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2, 1)
    assert mean_and_std([1.0]) == (1, None)
