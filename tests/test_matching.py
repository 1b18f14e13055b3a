import pytest
import torch
import torch.nn.functional as F
from conftest import pool_of

from data_selection.activeft.matching import match_prototypes
from data_selection.activeft.reference import match


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
    monkeypatch.setattr("data_selection.activeft.matching.CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr("data_selection.activeft.matching.PROTOTYPES_AT_A_TIME", 7)
    assert match_prototypes(pool_of(features), centres) == expected


def test_every_sample_is_chosen_once_when_the_budget_is_the_pool():
    features = unit(1, 8, 0).expand(40, 8)  # duplicates
    assert sorted(match_prototypes(pool_of(features), unit(40, 8, 1))) == list(range(40))
