"""The measures of the report, each against a case worked out by hand."""

import math
import re

import numpy as np
import pytest
import torch

from common.errors import InputError
from data_selection.activeft.assignment import representatives
from data_selection.activeft.pool import Candidates, Pool
from data_selection.activeft.prototypes import random_samples
from data_selection.evidence import pictures
from data_selection.evidence.comparison import MARKED, by_chance, compared, mean_and_std, summary, verdict
from data_selection.evidence.duplicates import duplicate_of
from data_selection.evidence.measures import (
    LabelledRows,
    accuracies,
    class_balance,
    coverage,
    distance,
    diversity,
    earth_movers_distance,
    random_part,
    shares,
)
from data_selection.evidence.pictures import nearest_represented


def at(*degrees: float) -> torch.Tensor:
    """Unit rows (n, 2) at these angles: their distance is 2 sin(half the angle between them)."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def pool_at(*degrees: float) -> Pool:
    return Pool(at(*degrees), Candidates(len(degrees)))


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def test_distance_of_unit_vectors_follows_from_their_cosine():
    assert distance(torch.tensor([1.0, 0.0, -1.0, 1.0000001])).tolist() == pytest.approx([0, 2**0.5, 2, 0])


def test_exact_copies_are_near_duplicates_at_a_cosine_of_1():
    rows = torch.nn.functional.normalize(torch.randn(50, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    group = duplicate_of(torch.cat([rows, rows]), 1.0)
    assert group.tolist() == [*range(50)] * 2
    assert diversity(torch.cat([rows, rows]), 1.0)["near_duplicates"] == 100


def test_every_sample_is_represented_by_its_most_similar_chosen_one():
    nearest, similarity = representatives(pool_at(0, 10, 80, 90, 130), [0, 3])
    assert nearest.tolist() == [0, 0, 1, 1, 1]
    cosines = [math.cos(math.radians(angle)) for angle in (0, 10, 10, 0, 40)]
    assert similarity.tolist() == pytest.approx(cosines, abs=1e-6)


def test_a_chosen_sample_represents_itself_even_beside_its_duplicate():
    nearest, similarity = representatives(pool_at(30, 30, 30, 70), [0, 2])
    assert (nearest[0], nearest[2]) == (0, 1)
    assert similarity[:3].tolist() == pytest.approx([1, 1, 1])


def test_coverage_is_mean_95th_percentile_and_maximum_of_distances():
    _, similarity = representatives(pool_at(*range(0, 42, 2)), [0])  # 0, 2, .. 40 degrees from the chosen one
    measured = coverage(similarity)
    chords = [chord(angle) for angle in range(0, 42, 2)]
    assert measured["coverage_mean"] == pytest.approx(sum(chords) / 21, abs=1e-5)
    assert measured["coverage_95"] == pytest.approx(chord(38), abs=1e-5)
    assert measured["coverage_max"] == pytest.approx(chord(40), abs=1e-5)


def test_diversity_is_the_distance_to_the_nearest_other_chosen_sample():
    measured = diversity(at(0, 30, 40, 100), duplicate_similarity=math.cos(math.radians(15)))
    assert measured["diversity_mean"] == pytest.approx((chord(30) + 2 * chord(10) + chord(60)) / 4, abs=1e-5)
    assert measured["diversity_min"] == pytest.approx(chord(10), abs=1e-5)
    assert measured["near_duplicates"] == 2


def test_diversity_does_not_depend_on_how_many_rows_are_compared_at_a_time(monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    whole = diversity(rows, 0.9)
    monkeypatch.setattr("data_selection.evidence.measures.ROWS_AT_A_TIME", 7)
    assert diversity(rows, 0.9) == pytest.approx(whole)


def test_a_single_sample_has_no_diversity():
    assert diversity(at(5), 0.9) == {"diversity_mean": None, "diversity_min": None, "near_duplicates": 0}


def test_shares_of_the_pool():
    measured = shares(np.array([6, 1, 1]))
    entropy = -(0.75 * math.log(0.75) + 2 * 0.125 * math.log(0.125))
    assert measured == pytest.approx({"share_max": 0.75, "share_evenness": math.exp(entropy) / 3, "alone": 2})
    assert shares(np.array([2, 2, 2]))["share_evenness"] == pytest.approx(1)


def test_emd_moves_all_mass_of_one_point():
    assert earth_movers_distance(at(0), at(0, 60, 90)) == pytest.approx((0 + 1 + 2**0.5) / 3, abs=1e-6)


def test_emd_takes_the_cheapest_assignment_not_the_nearest_points():
    # Both pool points are nearest to 10 degrees, but half of the mass is at 0: it goes to 30, so that 10 can go to 20.
    expected = (chord(30) + chord(10)) / 2
    assert earth_movers_distance(at(0, 10), at(20, 30)) == pytest.approx(expected, abs=1e-5)


def test_emd_splits_the_mass_of_uneven_numbers():
    # A mass of 1/2 at 0 and at 90; of the pool's thirds, that at 0 stays, that at 90 stays, the middle is split.
    assert earth_movers_distance(at(0, 90), at(0, 45, 90)) == pytest.approx(chord(45) / 3, abs=1e-5)


def test_emd_of_a_pool_with_itself_is_zero():
    rows = torch.nn.functional.normalize(torch.randn(40, 300, generator=torch.Generator().manual_seed(0)))
    assert earth_movers_distance(rows, rows.flip(0)) == pytest.approx(0, abs=1e-7)


def test_emd_that_is_not_solved_to_the_end_is_an_error(monkeypatch):
    monkeypatch.setattr("data_selection.evidence.measures.EMD_STEPS", 1)
    rows = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.warns(UserWarning), pytest.raises(InputError, match="lower --emd_samples"):
        earth_movers_distance(rows[:30], rows[30:])


def test_the_pool_sample_of_a_seed_is_not_the_random_subset_of_that_seed():
    sample = random_part(10_000, 1000, seed=0)
    assert len(set(sample)) == 1000 and (np.diff(sample) > 0).all()
    assert len(set(sample) & set(random_samples(Candidates(10_000), 1000, 0))) < 200  # 100 expected of independent ones


def test_class_balance():
    labels = np.array([0, 0, 0, 0, 1, 1, 5, 5])
    assert class_balance(labels, np.array([0, 1, 2, 4])) == pytest.approx(
        {"classes_missing": 1, "class_smallest": 0, "class_largest": 3, "class_distance": 0.25}
    )


def test_accuracies_of_readouts_on_held_out_samples():
    chosen = LabelledRows(at(0, 5, 85, 90), np.array([0, 0, 1, 1]))
    held_out = LabelledRows(at(10, 20, 70, 60), np.array([0, 0, 1, 0]))
    expected = dict.fromkeys(("accuracy_nearest", "accuracy_neighbours", "accuracy_linear"), 75.0)
    assert accuracies(chosen, held_out, classes=2) == expected


def test_nearest_neighbour_is_a_single_one():
    # The single nearest is of class 1; two of three neighbours are of class 0.
    chosen = LabelledRows(at(0, 20, 22, 90), np.array([1, 0, 0, 0]))
    measured = accuracies(chosen, LabelledRows(at(9), np.array([1])), classes=1)
    assert measured["accuracy_nearest"] == 100


def test_readouts_of_a_single_class_predict_it():
    chosen = LabelledRows(at(0, 5), np.array([3, 3]))
    measured = accuracies(chosen, LabelledRows(at(0, 1, 2, 3), np.array([3, 1, 3, 3])), classes=4)
    assert set(measured.values()) == {75.0}


def test_the_nearest_represented_leave_out_the_chosen_sample_itself():
    nearest, similarity = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 0.2, 0.9, 1, 1, 0.5])
    assert nearest_represented(np.array([0, 4]), nearest, similarity) == [[2, 1], [3, 5]]


def test_pca_is_the_direction_of_largest_variance():
    rows = np.array([[0, 0, 0], [3, 0, 0], [6, 0, 0], [0, 1, 0], [3, 1, 0], [6, 1, 0]], dtype=np.float32)
    where, axes = pictures.project("pca", rows, seed=0, fitted=6)
    assert np.abs(where[:, 0]).tolist() == pytest.approx([3, 0, 3, 3, 0, 3], abs=1e-5)
    assert axes == ["component 1 (96% of the variance)", "component 2 (4% of the variance)"]


def test_the_map_holds_the_pool_sample_first_and_every_chosen_sample_once():
    drawn = pictures.map_of_pool(at(*range(40)), [(1, 2), (2, 39)], "pca", samples=5, seed=0)
    assert drawn["pool"] == 5 and len(drawn["index"]) == len(set(drawn["index"])) == len(drawn["x"])
    assert {1, 2, 39} <= set(drawn["index"])


def test_umap_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        pictures.check_map("umap", 1000)


def values_of(emd: float, coverage_95: float) -> dict[str, float]:
    return {"emd": emd, "coverage_95": coverage_95}


RANDOM = [values_of(1.0, 2.0), values_of(1.1, 2.1), values_of(1.2, 2.2)]  # 1.1 ± 0.1 and 2.1 ± 0.1


@pytest.mark.parametrize(
    ("emd", "hardest", "sentence"),
    [
        (0.7, 1.7, "is closer to the pool than all 3 random ones .* and is closer to the hardest images"),
        (0.7, 2.0, "is closer .* about as close to the hardest images as random ones"),
        (0.7, 2.5, "is a trade-off: it is closer .* farther from the hardest images"),
        (
            1.0,
            2.1,
            "no better than random: EMD 1.00 against 1.10 ± 0.10; 95% .* within 2.10 of a chosen image, against",
        ),
        (0.85, 1.85, "is no better than random"),
        (1.1, 1.7, "no closer to the pool than random .* but closer to its hardest images"),
        (1.5, 1.7, "is a trade-off: it is closer to the hardest"),
        (1.5, 2.1, "is worse than random"),
    ],
)
def test_the_verdict_claims_what_differs_by_more_than_three_standard_deviations(emd, hardest, sentence):
    assert re.search(sentence, verdict("The subset", values_of(emd, hardest), mean_and_std(RANDOM), RANDOM))


def test_the_table_marks_what_differs_by_more_than_two_standard_deviations():
    outcome = compared(values_of(0.85, 2.35), mean_and_std(RANDOM), MARKED)
    assert (outcome["emd"], outcome["coverage_95"]) == ("better", "worse")
    outcome = compared(values_of(0.95, 2.25), mean_and_std(RANDOM), MARKED)
    assert (outcome["emd"], outcome["coverage_95"]) == ("same", "same")


def test_what_equals_random_subsets_but_for_rounding_is_the_same():
    each = [values_of(0.21, 0.21)] * 10  # their mean differs from each of them in the last bit
    random = mean_and_std(each)
    assert random["mean"] != each[0] and random["std"] == values_of(0, 0)
    assert set(compared(each[0], random, MARKED).values()) == {"same"}
    assert "is no better than random" in verdict("All of the pool", each[0], random, each)


def summary_of(*values: dict[str, float], sizes: tuple[int, ...]) -> str:
    random = {size: {"std": values_of(0.01, 0.01)} for size in sizes}
    entries = [{"name": name, "k": k, "values": of} for name, k, of in zip("abc", sizes, values, strict=False)]
    return summary(entries, random)


def test_of_several_subsets_of_one_size_the_closest_is_named():
    assert summary_of(values_of(0.5, 1.2), values_of(0.6, 1.1), values_of(0.2, 0.3), sizes=(10, 10, 20)) == (
        "Of the 2 subsets of 10 images a is closest to the pool (EMD 0.5000), "
        "while b is closest to the hardest images (95% of the pool within 1.1000)."
    )
    assert "images a is closest to the pool (EMD 0.5000) and is closest to the hardest images" in summary_of(
        values_of(0.5, 1.1), values_of(0.6, 1.2), sizes=(10, 10)
    )


def test_none_is_named_where_the_closest_leads_by_no_more_than_chance():
    text = summary_of(values_of(0.50, 1.10), values_of(0.51, 1.11), sizes=(10, 10))
    assert text.startswith("Of the 2 subsets of 10 images none is clearly closer to the pool")


@pytest.mark.parametrize("deviations", [2, 3])
def test_how_often_a_random_subset_differs_is_stated(deviations):
    random = np.random.default_rng(0).normal(size=(50_000, 6))
    mean, std = random[:, :5].mean(axis=1), random[:, :5].std(axis=1, ddof=1)
    differs = (np.abs(random[:, 5] - mean) > deviations * std).mean()
    assert by_chance(deviations, 5) == pytest.approx(differs, abs=0.005)
