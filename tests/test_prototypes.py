import random

import pytest
import torch
import torch.nn.functional as F
from conftest import pool_of

from data_selection.activeft.pool import Candidates
from data_selection.activeft.prototypes import farthest_points, match_prototypes, random_samples
from data_selection.activeft.reference import match


def materialised_farthest_points(features: torch.Tensor, k: int, seed: int, distance: str) -> list[int]:
    """Farthest point sampling with every difference materialised."""
    chosen = random.Random(seed).sample(range(len(features)), 1)
    to_chosen = torch.full((len(features),), torch.inf, dtype=features.dtype)
    while len(chosen) < k:
        newest = features[chosen[-1]]
        to_newest = (features - newest).norm(dim=1) if distance == "euclidean" else 1 - (features * newest).sum(dim=1)
        to_chosen = torch.minimum(to_chosen, to_newest)
        to_chosen[chosen] = -torch.inf
        chosen.append(int(to_chosen.argmax()))
    return chosen


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_farthest_points_equal_those_of_materialised_differences(distance):
    features = F.normalize(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = materialised_farthest_points(features.double(), 60, seed=3, distance=distance)
    assert farthest_points(pool_of(features), 60, seed=3, distance=distance) == expected


def test_farthest_points_are_distinct_among_duplicates():
    features = F.normalize(torch.ones(20, 4), dim=1)
    assert sorted(farthest_points(pool_of(features), 20, seed=0)) == list(range(20))


def test_random_samples_are_those_of_the_standard_generator_in_its_order():
    random.seed(5)
    assert random_samples(Candidates(1000), 30, seed=5) == random.sample(range(1000), 30)


def matched(features: torch.Tensor, centres: torch.Tensor) -> list[int]:
    return match(features, centres, closed=torch.zeros(len(features), dtype=torch.bool))


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("k", [1, 20, 300])
def test_matching_equals_the_full_sort(k):
    features, centres = unit(300, 12, 0), unit(k, 12, 1)
    assert match_prototypes(pool_of(features), centres) == matched(features, centres)


def test_matching_goes_deeper_where_all_candidates_are_taken():
    features = unit(200, 12, 0)
    centres = F.normalize(unit(1, 12, 1) + 0.01 * unit(100, 12, 2), dim=1)  # all want the same samples
    for ranked in (1, 2, 8):
        assert match_prototypes(pool_of(features), centres, ranked=ranked) == matched(features, centres)


def test_matching_in_chunks_equals_matching_at_once(monkeypatch):
    features, centres = unit(500, 12, 0), unit(60, 12, 1)
    expected = matched(features, centres)
    monkeypatch.setattr("data_selection.activeft.prototypes.CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr("data_selection.activeft.prototypes.PROTOTYPES_AT_A_TIME", 7)
    assert match_prototypes(pool_of(features), centres) == expected


def test_every_sample_is_chosen_once_when_the_budget_is_the_pool():
    features = unit(1, 8, 0).expand(40, 8)  # duplicates
    assert sorted(match_prototypes(pool_of(features), unit(40, 8, 1))) == list(range(40))


def test_farthest_points_take_no_copy_before_all_others_are_chosen():
    rows = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    chosen = farthest_points(pool_of(torch.cat([rows, rows])), 90, seed=0)
    first_60 = [index % 60 for index in chosen[:60]]
    assert sorted(first_60) == [*range(60)]
    rest = sorted({*range(120)}.difference(chosen[:60]))
    assert chosen[60:] == rest[:30]  # all at distance 0: the first index
