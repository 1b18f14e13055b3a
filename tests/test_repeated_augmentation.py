"""The sampler's draws, against its definition."""

from collections import Counter

import pytest

from common.batch_stream import RepeatedAugmentationSampler


def draws_of(n: int, rank: int = 0, world_size: int = 1, epoch: int = 0) -> list[int]:
    sampler = RepeatedAugmentationSampler(n, rank, world_size)
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return draws


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 3), (50, 150), (85, 255), (86, 256), (250, 256), (511, 256), (1000, 768)]
)
def test_an_epoch_draws_whole_multiples_of_256_but_never_more_than_three_of_each(n, expected):
    draws = draws_of(n)
    assert len(draws) == expected
    assert max(Counter(draws).values()) <= 3


def test_an_epoch_of_250_images_sees_86_of_them():
    assert len(set(draws_of(250))) == 86


@pytest.mark.parametrize("n", [60, 250, 1000])
def test_two_processes_together_make_the_draws_of_one(n):
    shares = [draws_of(n, rank, world_size=2) for rank in (0, 1)]
    interleaved = [index for pair in zip(*shares, strict=True) for index in pair]
    assert interleaved == draws_of(n)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_chosen_image_is_trained_on_over_the_epochs(world_size):
    seen = {
        index for epoch in range(20) for rank in range(world_size) for index in draws_of(250, rank, world_size, epoch)
    }
    assert seen == set(range(250))


def test_without_set_epoch_a_third_of_a_small_subset_is_all_that_is_ever_seen():
    sampler = RepeatedAugmentationSampler(250)
    assert {index for _ in range(20) for index in sampler} == set(draws_of(250))


def test_more_processes_than_draws_have_one_draw_each():
    assert [list(RepeatedAugmentationSampler(1, rank, 8)) for rank in range(8)] == [[0]] * 8
