import pytest
import torch
import torch.nn.functional as F

from data_selection.activeft.assignment import (
    NearestPrototypes,
    bounding,
    listed_similarities,
    nearest_of_all,
    principal_axes,
)


def clustered(n: int, d: int, clusters: int = 30, spread: float = 0.7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, d, generator=generator)
    which = torch.randint(clusters, (n,), generator=generator)
    return F.normalize(centres[which] + spread * torch.randn(n, d, generator=generator), dim=1)


def assert_nearest(
    features: torch.Tensor, centres: torch.Tensor, nearest: torch.Tensor, similarity: torch.Tensor
) -> None:
    exact = features.double() @ centres.double().T
    torch.testing.assert_close(similarity.double(), exact.amax(dim=1), atol=2e-6, rtol=0)
    torch.testing.assert_close(exact.gather(1, nearest[:, None]).squeeze(1), exact.amax(dim=1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("step", [0.0, 0.01, 0.3])
def test_nearest_is_exact_while_prototypes_move(step):
    features = clustered(3000, 48)
    centres = clustered(200, 48, seed=1)
    nearest_prototypes = NearestPrototypes(features, len(centres))
    for call in range(8):
        assert_nearest(features, centres, *nearest_prototypes(centres))
        speed = torch.logspace(-2, 0, 200)[:, None]  # a few prototypes are much faster than others
        centres = F.normalize(centres + step * speed * F.normalize(clustered(200, 48, seed=call), dim=1), dim=1)


@pytest.mark.parametrize("awake", [1, 20])
def test_nearest_is_exact_when_resting_prototypes_wake_up(awake):
    features, centres = clustered(2000, 32), clustered(300, 32, seed=1)
    nearest_prototypes, generator = NearestPrototypes(features, 300), torch.Generator().manual_seed(0)
    for call in range(30):
        moving = slice(0, 300) if call < 5 else slice(call, call + awake)
        step = 0.002 if call < 5 else 0.3
        centres = centres.clone()
        centres[moving] += step * torch.randn(centres[moving].shape, generator=generator)
        centres = F.normalize(centres, dim=1)
        assert_nearest(features, centres, *nearest_prototypes(centres))


def test_bounding_vectors_give_upper_bounds_of_similarities():
    features, centres = clustered(200, 24), clustered(50, 24, seed=1)
    for axes in (principal_axes(features), principal_axes(features)[:, -3:], torch.eye(24)):
        excess = bounding(features, axes) @ bounding(centres, axes).T - features @ centres.T
        assert excess.min() > -1e-5


def test_nearest_is_exact_with_a_list_without_one_and_with_a_new_one():
    features, centres = clustered(500, 16), clustered(150, 16, seed=1)
    nearest_prototypes, lists = NearestPrototypes(features, len(centres)), []
    for call in range(9):
        assert_nearest(features, centres, *nearest_prototypes(centres))
        lists.append(nearest_prototypes.pairs)
        step = 1.0 if call in (3, 4) else 0.01  # after such a step no list would last
        centres = F.normalize(centres + step * clustered(150, 16, seed=2 + call), dim=1)
    assert None not in (lists[3], lists[8]) and lists[4:6] == [None, None]
    assert lists[8] is not lists[3]


def test_a_pool_of_images_that_are_much_alike_takes_no_list_of_nearly_all_pairs():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, generator=generator)
    features = F.normalize(base + 0.1 * torch.randn(4000, 64, generator=generator), dim=1)
    centres = features[:300]
    nearest_prototypes = NearestPrototypes(features, len(centres))
    for _ in range(3):
        assert_nearest(features, centres, *nearest_prototypes(centres))
        assert nearest_prototypes.pairs is None
        centres = F.normalize(centres + 1e-3 * torch.randn(300, 64, generator=generator).sign(), dim=1)


def test_nearest_is_exact_when_no_bound_tells_prototypes_apart():
    base, generator = clustered(1, 64), torch.Generator().manual_seed(0)
    features = clustered(400, 64)
    nearest_prototypes = NearestPrototypes(features, 300)
    for _ in range(4):
        centres = F.normalize(base + 1e-4 * torch.randn(300, 64, generator=generator), dim=1)
        assert_nearest(features, centres, *nearest_prototypes(centres))


@pytest.mark.parametrize("k", [1, 128, 129, 145, 161, 1000])
def test_nearest_is_exact_for_any_number_of_prototypes(k):
    features, centres = clustered(300, 24), clustered(k, 24, seed=1)
    nearest_prototypes = NearestPrototypes(features, len(centres))
    for call in range(3):
        assert_nearest(features, centres, *nearest_prototypes(centres))
        centres = F.normalize(centres + 0.02 * clustered(k, 24, seed=2 + call), dim=1)


def test_nearest_is_exact_when_all_similarities_are_negative():
    features = F.normalize(torch.rand(100, 8, generator=torch.Generator().manual_seed(0)) + 0.5, dim=1)
    centres = -clustered(150, 8).abs()
    nearest_prototypes = NearestPrototypes(features, len(centres))
    for call in range(3):
        assert_nearest(features, centres, *nearest_prototypes(centres))
        centres = -F.normalize(centres.abs() + 0.02 * clustered(150, 8, seed=1 + call).abs(), dim=1)


def test_chunk_does_not_change_the_result():
    features, centres = clustered(1000, 32), clustered(200, 32, seed=1)
    whole = NearestPrototypes(features, 200)(centres)
    for chunk in (1, 7, 256, 5000):
        nearest, similarity = NearestPrototypes(features, 200, chunk)(centres)
        assert torch.equal(nearest, whole[0])
        torch.testing.assert_close(similarity, whole[1])
        assert torch.equal(nearest_of_all(features, centres, chunk)[0], whole[0])


def test_no_samples_give_no_assignment():
    nearest, similarity = NearestPrototypes(torch.empty(0, 16), 200)(clustered(200, 16))
    assert nearest.shape == similarity.shape == (0,)


def test_listed_similarities_are_the_listed_entries_of_the_product():
    features, centres = clustered(50, 20), clustered(30, 20, seed=1)
    listed = torch.randint(30, (50, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    torch.testing.assert_close(
        listed_similarities(features, centres, torch.arange(0, 201, 4), listed.flatten()).view(50, 4),
        (features @ centres.T).gather(1, listed.long()),
    )
