"""BiLAF against a plain implementation of its seven steps, which holds all distances; and its corners."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mixture, pool_of

from common.errors import InputError
from data_selection.activeft import select
from data_selection.activeft.prototypes import farthest_points, random_samples
from data_selection.baselines.bilaf import bilaf_samples, shares
from data_selection.sample_tools import baseline


def clustered(n: int, seed: int = 0, d: int = 6) -> torch.Tensor:
    """Unit rows (n, d), float64, around 5 centres."""
    random = np.random.RandomState(seed)
    rows = random.randn(5, d)[random.randint(5, size=n)] + 0.6 * random.randn(n, d)
    return F.normalize(torch.from_numpy(rows), dim=1)


def random_core(pool, count: int) -> list[int]:
    return random_samples(pool.candidates, count, 0)


def plain_bilaf(features: torch.Tensor, core: list[int], budget: int, labeled=(), excluded=()) -> list[int]:
    """The seven steps of the paper for a budget that counts the core (1) and the labelled samples."""
    classes = range(len(core))
    rows = features.numpy()
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    cluster = distance[:, core].argmin(axis=1)  # 2
    members = [np.flatnonzero(cluster == i).tolist() for i in classes]
    kept = []
    for i in classes:  # 3
        size = len(members[i])
        order = [core[i]]
        while len(order) < size:
            outside = [x for x in members[i] if x not in order]
            sparse = {x: np.sort(distance[x, order])[:10].mean() for x in outside}
            order += sorted(outside, key=sparse.__getitem__)[: max(1, size // 10)]
        kept.append(order[: size - size // 10])
    known = [[core[i], *(x for x in labeled if cluster[x] == i and x != core[i])] for i in classes]
    room = [len({*members[i]} - {*excluded} - {*known[i]}) for i in classes]
    part = [Fraction(budget * len(inside), sum(map(len, kept))) for inside in kept]  # 4
    budgets = [min(max(int(part[i]), len(known[i])), len(known[i]) + room[i]) for i in classes]
    while sum(budgets) < budget:
        open_classes = [i for i in classes if budgets[i] < len(known[i]) + room[i]]
        budgets[max(open_classes, key=lambda i: part[i] - budgets[i])] += 1
    while sum(budgets) > budget:
        open_classes = [i for i in classes if budgets[i] > len(known[i])]
        budgets[min(open_classes, key=lambda i: part[i] - budgets[i])] -= 1
    chosen = []
    for i in classes:
        others = [j for j in classes if j != i]
        intra = {x: distance[x, kept[i]].mean() for x in members[i]}  # 5
        times = dict.fromkeys(others, 0)
        candidates, around, noise = [*kept[i]], [], [x for x in members[i] if x not in kept[i]]
        picked = []
        while len(picked) < budgets[i]:
            if len(picked) < len(known[i]):
                pick = known[i][len(picked)]
            else:
                first = next(
                    free
                    for some in (candidates, around, noise)
                    if (free := [x for x in some if x not in excluded and x not in picked])
                )
                pick = min(
                    first,
                    key=lambda x: min(  # 7
                        (1.1 ** times[j] * distance[x, core[j]] - intra[x]) / max(distance[x, core[j]], intra[x])
                        for j in others
                    ),
                )
            picked.append(pick)
            ring = sorted(candidates, key=lambda x: distance[x, pick])[: len(kept[i]) // budgets[i]]  # 6
            candidates = [x for x in candidates if x not in ring]
            around += ring
            if pick != core[i]:
                times[min(others, key=lambda j: distance[pick, core[j]])] += 1
        chosen += [x for x in picked if x not in labeled]
    assert len(chosen) + len(labeled) == budget
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "core_number", "budget"), [(300, 6, 60), (300, 25, 40), (90, 12, 70), (60, 2, 20)])
def test_bilaf_is_the_seven_steps_of_the_paper(n, core_number, budget, seed, monkeypatch):
    monkeypatch.setattr("data_selection.activeft.pool.CHUNK_ELEMENTS", 500 if seed else 1 << 22)
    monkeypatch.setattr("data_selection.activeft.pool.FEWEST_ROWS", 1)
    pool = clustered(n, seed)
    core = random_samples(pool_of(pool).candidates, core_number, seed)
    found = bilaf_samples(pool_of(pool), budget, 0, core_ids=core)
    assert found[:core_number] == core
    assert sorted(found) == plain_bilaf(pool, core, budget)


@pytest.mark.parametrize("seed", range(3))
def test_labelled_samples_are_part_of_the_budget_of_their_classes_and_excluded_ones_only_of_the_class(seed):
    pool = clustered(200, seed)
    ids = random_samples(pool_of(pool).candidates, 90, seed)
    core, labeled, excluded = ids[:8], ids[4:30], ids[30:]
    known = {"labeled": tuple(labeled), "excluded": tuple(excluded)}
    found = bilaf_samples(pool_of(pool, **known), 40, 0, core_ids=core)
    assert found[:4] == core[:4]  # the others are labelled
    assert sorted(found) == plain_bilaf(pool, core, 40 + len(labeled), labeled, excluded)


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_exact_and_distinct_in_every_corner(seed):
    random = np.random.RandomState(seed)
    n = random.randint(4, 40)
    pool = clustered(n, seed)
    if seed % 3 == 0:  # duplicates
        pool = pool[random.randint(0, max(2, n // 4), size=n)]
    ids = random.permutation(n).tolist()
    labeled = tuple(ids[: random.randint(0, n // 2)])
    excluded = tuple(ids[-random.randint(1, n // 3 + 1) :]) if seed % 2 else ()
    left = [x for x in range(n) if x not in (*labeled, *excluded)]
    for k in {1, len(left) // 2 or 1, len(left) - 1 or 1, len(left)}:
        chosen = bilaf_samples(pool_of(pool, labeled, excluded), k, 0, select_core=random_core)
        assert len(chosen) == len(set(chosen)) == k and set(chosen) <= set(left)


def test_the_core_is_activefts():
    pool = clustered(200).float()
    chosen = bilaf_samples(pool_of(pool), 30, seed=1, core_number=10)
    assert sorted(chosen[:10]) == select(pool, 10, seed=1, device="cpu").indices


def test_labelled_samples_are_the_core_as_far_as_they_go():
    pool = clustered(100)
    asked = []

    def select_core(some, count):
        asked.append((count, [*some.candidates.open_indices()]))
        return farthest_points(some, count, 0)

    few, many = (3, 50), tuple(range(20))
    assert bilaf_samples(pool_of(pool, labeled=few), 10, 0, 6, select_core=select_core)
    assert bilaf_samples(pool_of(pool, labeled=many), 10, 0, 6, select_core=select_core)
    assert asked == [(4, [x for x in range(100) if x not in few]), (6, [*many])]


def test_shares_are_rounded_down_and_the_rest_goes_where_most_is_missing():
    none, many = [0] * 4, [100] * 4
    assert shares(10, [40, 30, 20, 10], none, many) == [4, 3, 2, 1]
    assert shares(11, [40, 30, 20, 10], none, many) == [5, 3, 2, 1]  # exact: 4.4, 3.3, 2.2, 1.1
    assert shares(13, [40, 30, 20, 10], none, many) == [5, 4, 3, 1]  # exact: 5.2, 3.9, 2.6, 1.3
    assert shares(10, [40, 30, 20, 10], none, [100, 2, 100, 0]) == [5, 2, 3, 0]
    assert shares(10, [40, 30, 20, 10], [1, 1, 1, 6], many) == [2, 1, 1, 6]


def test_bilaf_refuses_a_core_that_does_not_fit_the_budget():
    pool = pool_of(clustered(50), labeled=(7,), excluded=(9,))
    with pytest.raises(InputError, match="4 core samples are more than the budget of 3"):
        bilaf_samples(pool, 3, 0, core_ids=[1, 2, 3, 4, 7])
    with pytest.raises(InputError, match="core sample 9 is excluded"):
        bilaf_samples(pool, 3, 0, core_ids=[1, 9])
    with pytest.raises(InputError, match="at least 2 are needed"):
        bilaf_samples(pool, 3, 0, core_ids=[1])


@pytest.fixture
def feature_path(tmp_path: Path) -> Path:
    np.save(tmp_path / "pool_train.npy", mixture(200, 8, clusters=6, spread=0.5))
    return tmp_path / "pool_train.npy"


def choose(feature_path: Path, *options: object) -> Path:
    common = ["--method", "bilaf", "--feature_path", feature_path, "--output_dir", feature_path.parent / "out"]
    return baseline.main([str(option) for option in (*common, "--device", "cpu", *options)])


def test_the_core_can_be_a_list_or_another_methods(feature_path):
    listed = feature_path.with_name("core.json")
    listed.write_text("[3, 10, 77]")
    paths = [
        choose(feature_path, "--percent", 10, *core)
        for core in (
            ["--core_ids", listed],
            ["--core_method", "kmeans", "--core_number", 5],
            ["--core_method", "probcover", "--core_number", 5, "--delta", 0.5],
            ["--core_number", 5],
        )
    ]
    subsets = [tuple(json.loads(path.read_text())) for path in paths]
    assert {3, 10, 77} < set(subsets[0])
    assert len({path.name for path in paths}) == len(set(subsets)) == 4
    with pytest.raises(InputError, match="--core_ids is the core itself"):
        choose(feature_path, "--core_ids", listed, "--core_number", 5)


def test_a_core_that_was_labelled_first_costs_nothing(feature_path):
    core = choose(feature_path, "--method", "kmeans", "--number", 6)
    path = choose(feature_path, "--number", 12, "--core_ids", core, "--labeled_ids", core)
    chosen = json.loads(path.read_text())
    assert len(chosen) == 12 and not set(chosen) & set(json.loads(core.read_text()))
