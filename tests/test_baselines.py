"""Each baseline against its definition, worked out naively on small pools."""

import json
import re
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pool_of

from common.errors import InputError
from common.processes import Processes
from data_selection.activeft.prototypes import farthest_points
from data_selection.baselines.clusters import (
    clusters_of,
    densities,
    kmeans_samples,
    typicality,
    typiclust_samples,
    usl_samples,
)
from data_selection.baselines.herding import herding_samples, maxherding_samples
from data_selection.baselines.probcover import probcover_samples, purest_radius
from data_selection.sample_tools import baseline


def gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(gaussian(n, d, seed), dim=1)


def planted_clusters(*sizes: int, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around the axes, and the axis of each."""
    cluster = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return F.normalize(torch.eye(len(sizes))[cluster] + spread * gaussian(len(cluster), len(sizes)), dim=1), cluster


def test_coreset_always_takes_the_sample_farthest_from_chosen_and_labelled_ones():
    rows = gaussian(60, 5)
    known = {"labeled": (7, 20), "excluded": (3,)}
    distance = torch.cdist(rows.double(), rows.double())
    expected = []
    for _ in range(10):
        to_chosen = distance[:, [7, 20, *expected]].amin(dim=1)
        to_chosen[[7, 20, 3, *expected]] = -1
        expected.append(int(to_chosen.argmax()))
    assert farthest_points(pool_of(rows, **known), 10, seed=0) == expected


def test_coreset_covers_within_twice_the_smallest_possible_radius():
    rows = gaussian(14, 3)
    distance = torch.cdist(rows, rows)
    best = min(distance[:, centres].amin(dim=1).max() for centres in combinations(range(14), 4))
    for seed in range(5):
        assert distance[:, farthest_points(pool_of(rows), 4, seed)].amin(dim=1).max() <= 2 * best


def test_herding_brings_the_mean_of_the_chosen_nearest_to_that_of_the_pool():
    pool = unit(80, 6)
    known = {"labeled": (1, 2), "excluded": (5,)}
    chosen = [1, 2]
    for _ in range(12):
        distances = [
            (pool[[*chosen, other]].mean(dim=0) - pool.mean(dim=0)).norm() if other not in (5, *chosen) else torch.inf
            for other in range(80)
        ]
        chosen.append(int(torch.tensor(distances).argmin()))
    assert herding_samples(pool_of(pool, **known), 12, seed=0) == chosen[2:]


def test_kmeans_takes_the_sample_nearest_to_the_mean_of_each_cluster():
    pool, cluster = planted_clusters(30, 20, 10)
    nearest = [
        int(members[(pool[members] - pool[members].mean(dim=0)).norm(dim=1).argmin()])
        for members in ((cluster == c).nonzero().squeeze(1) for c in range(3))
    ]
    assert sorted(kmeans_samples(pool_of(pool), 3, 0)) == nearest


def test_kmeans_leaves_clusters_with_labelled_samples_to_them():
    pool, cluster = planted_clusters(30, 20, 10, 5)
    labeled = int((cluster == 0).nonzero()[0])
    chosen = kmeans_samples(pool_of(pool, labeled=(labeled,)), 3, 0)
    assert sorted(cluster[chosen].tolist()) == [1, 2, 3]


def test_typicality_is_the_inverse_mean_distance_to_half_of_a_small_cluster():
    angles = torch.tensor([0.0, 0.1, 0.3, 0.9]).double()
    members = torch.stack([angles.cos(), angles.sin()], dim=1)
    chord = lambda angle: 2 * np.sin(angle / 2)  # noqa: E731
    expected = [
        2 / (chord(0.1) + chord(0.3)),
        2 / (chord(0.1) + chord(0.2)),
        2 / (chord(0.2) + chord(0.3)),
        2 / (chord(0.6) + chord(0.8)),
    ]
    assert typicality(members).tolist() == pytest.approx(expected, rel=1e-3)


def test_typiclust_takes_the_most_typical_of_the_largest_clusters_without_labels_first():
    pool, cluster = planted_clusters(40, 30, 20, 10)
    labeled = int((cluster == 1).nonzero()[0])
    chosen = typiclust_samples(pool_of(pool, labeled=(labeled,)), 3, 0)
    assert cluster[chosen].tolist() == [0, 2, 3]
    for sample in chosen:
        members = (cluster == cluster[sample]).nonzero().squeeze(1)
        assert sample == members[typicality(pool[members]).argmax()]


def test_typiclust_goes_round_after_round_through_at_most_500_clusters(monkeypatch):
    monkeypatch.setattr("data_selection.baselines.clusters.MOST_CLUSTERS", 2)
    pool, cluster = planted_clusters(12, 8)
    assert cluster[typiclust_samples(pool_of(pool), 6, 0)].tolist() == [0, 1, 0, 1, 0, 1]


def test_typiclust_takes_of_tiny_clusters_last():
    pool, cluster = planted_clusters(30, 20, 3)
    labeled = tuple(int((cluster == c).nonzero()[0]) for c in (0, 1))  # only the tiny cluster has no label yet
    chosen = typiclust_samples(pool_of(pool, labeled=labeled), 1, 0)
    assert cluster[chosen].tolist() == [0]


def test_typiclust_passes_over_a_cluster_that_is_exhausted(monkeypatch):
    monkeypatch.setattr("data_selection.baselines.clusters.MOST_CLUSTERS", 3)
    pool, cluster = planted_clusters(20, 12, 8)
    all_but_one = tuple((cluster == 0).nonzero().squeeze(1).tolist()[1:])
    chosen = typiclust_samples(pool_of(pool, excluded=all_but_one), 5, 0)
    assert cluster[chosen].tolist() == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("chunk", [100, 1 << 22])
def test_probcover_takes_the_ball_that_covers_most_of_what_is_left(chunk, monkeypatch):
    monkeypatch.setattr("data_selection.activeft.pool.CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr("data_selection.activeft.pool.FEWEST_ROWS", 1)
    pool = unit(150, 3)
    inside = torch.cdist(pool.double(), pool.double()) <= 0.5
    left = ~inside[9]
    expected = []
    for _ in range(12):
        gain = (inside & left).sum(dim=1)
        gain[[9, 4, *expected]] = -1
        expected.append(int(gain.argmax()))
        left &= ~inside[expected[-1]]
    assert probcover_samples(pool_of(pool, labeled=(9,), excluded=(4,)), 12, 0, radius=0.5) == expected


def test_probcover_draws_the_rest_at_random_when_all_is_covered():
    pool, cluster = planted_clusters(10, 10)
    some, others = (probcover_samples(pool_of(pool), 8, seed, radius=0.5) for seed in (0, 1))
    assert sorted(cluster[some[:2]].tolist()) == [0, 1]
    assert some[:2] == others[:2] and some[2:] != others[2:]
    assert len(set(some)) == 8


def test_probcovers_radius_is_the_largest_at_which_95_percent_of_the_balls_are_pure():
    pool, _ = planted_clusters(50, 50, spread=0.3)
    radius = purest_radius(pool, 2, seed=0)
    distance = torch.cdist(pool.double(), pool.double())
    found, _ = clusters_of(pool, 2, seed=0)

    def pure(delta: float) -> float:
        return np.mean([len(set(found[distance[i] <= delta].tolist())) == 1 for i in range(100)])

    assert pure(radius) >= 0.95 > pure(1.001 * radius)


@pytest.mark.parametrize(("sigma", "chunk"), [(1.0, 1 << 22), (1.0, 300), (0.3, 1 << 22), (5.0, 300)])
def test_maxherding_always_takes_the_sample_that_adds_most_to_the_coverage(sigma, chunk, monkeypatch):
    monkeypatch.setattr("data_selection.activeft.pool.CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr("data_selection.activeft.pool.FEWEST_ROWS", 1)
    monkeypatch.setattr("data_selection.baselines.herding.BLOCK", 64)
    pool = planted_clusters(60, 40, 30, 20, spread=0.3)[0].double()
    kernel = torch.exp(-((torch.cdist(pool, pool) / sigma) ** 2))
    chosen = [7, 100]
    for _ in range(25):
        coverage = [float(kernel[:, [*chosen, other]].amax(dim=1).mean()) for other in range(150)]
        open_samples = [other for other in range(150) if other not in (*chosen, 3)]
        chosen.append(max(open_samples, key=lambda other: round(coverage[other], 12)))  # the first on ties
    found = maxherding_samples(pool_of(pool, labeled=(7, 100), excluded=(3,)), 25, 0, sigma)
    assert found == chosen[2:]


def test_of_equal_gains_maxherding_takes_the_first_also_with_a_narrow_kernel():
    rows = F.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert maxherding_samples(pool_of(torch.cat([rows, rows])), 40, 0, sigma=0.05) == list(range(40))


def test_the_balls_of_equal_samples_have_a_finite_radius():
    assert 0 < purest_radius(F.normalize(torch.ones(30, 4), dim=1), 2, 0) <= 2


def test_maxherding_of_a_smaller_budget_is_the_beginning_of_a_larger_one():
    pool = unit(200, 8)
    largest = maxherding_samples(pool_of(pool), 50, 0)
    assert maxherding_samples(pool_of(pool), 20, 0) == largest[:20]
    assert maxherding_samples(pool_of(pool, labeled=tuple(largest[:20])), 30, 0) == largest[20:]


def test_maxherding_looks_again_only_at_candidates_that_may_have_the_greatest_gain(monkeypatch):
    computed = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: computed.append(len(a)) or product(a, b))
    maxherding_samples(pool_of(planted_clusters(*[40] * 20)[0]), 20, 0)
    assert 800 <= sum(computed) < 0.5 * 20 * 800


def test_usl_takes_the_densest_sample_that_is_far_from_those_of_other_clusters():
    pool = planted_clusters(40, 30, 20, 15, 10, spread=0.3)[0].double()
    distance = torch.cdist(pool, pool)
    labeled = (50, 80)
    cluster, _ = clusters_of(pool, 7, seed=0)
    density = 1 / distance.sort(dim=1).values[:, 1:9].mean(dim=1)
    taken = {int(cluster[sample]) for sample in labeled}
    size = torch.bincount(cluster)
    clusters = sorted((c for c in range(7) if c not in taken), key=lambda c: -size[c])[:5]
    utility, chosen = dict(enumerate(density.tolist())), []
    for turn in range(4):
        if turn:
            others = [*chosen, *labeled]
            utility = {
                x: density[x] - 0.2 * sum(1 / distance[x, y] ** 3 for y in others if cluster[y] != cluster[x])
                for x in range(115)
            }
        chosen = [max((x for x in range(115) if cluster[x] == c and x != 5), key=utility.__getitem__) for c in clusters]
    known = pool_of(pool, labeled=labeled, excluded=(5,))
    found = usl_samples(known, 5, 0, neighbours=8, repulsion=0.2, alpha=1.5, rounds=3)
    assert sorted(found) == sorted(chosen)
    assert sorted(found) != sorted(usl_samples(known, 5, 0, neighbours=8, repulsion=0.0))


def test_usl_fills_the_budget_when_there_are_fewer_clusters_with_samples_to_choose():
    pool, cluster = planted_clusters(20, 12, 8)
    first_cluster = tuple((cluster == 0).nonzero().squeeze(1).tolist())
    chosen = usl_samples(pool_of(pool, excluded=first_cluster), 3, 0)
    assert len(set(chosen)) == 3 and set(cluster[chosen].tolist()) == {1, 2}


def test_densities_of_duplicates_are_finite():
    pool = unit(4, 3).repeat(10, 1)
    assert densities(pool, 5).isfinite().all()


@pytest.fixture
def feature_path(tmp_path: Path) -> Path:
    features, labels = planted_clusters(50, 40, 30, 20, 10, spread=0.2)
    np.save(tmp_path / "planted_train.npy", torch.column_stack([features, labels]).numpy().astype(np.float32))
    return tmp_path / "planted_train.npy"


def choose(feature_path: Path, *options: object) -> list[int]:
    common = ["--feature_path", feature_path, "--output_dir", feature_path.parent, "--device", "cpu"]
    return json.loads(baseline.main([str(option) for option in (*common, *options)]).read_text())


def test_coreset_sees_the_features_as_extracted_and_fds_their_directions(feature_path):
    table = np.load(feature_path)
    table[33, :-1] *= 100
    np.save(feature_path, table)
    assert 33 in choose(feature_path, "--method", "coreset", "--percent", 2)
    assert choose(feature_path, "--method", "fds", "--percent", 2) == sorted(
        farthest_points(pool_of(F.normalize(torch.from_numpy(table[:, :-1]), dim=1)), 3, seed=0)
    )


@pytest.mark.parametrize("method", baseline.METHODS)
def test_the_same_seed_gives_the_same_ascending_indices(method, feature_path):
    chosen = choose(feature_path, "--method", method, "--percent", 10, "--seed", 3)
    assert chosen == sorted(set(chosen)) and len(chosen) == 15
    assert chosen == choose(feature_path, "--method", method, "--percent", 10, "--seed", 3)


@pytest.mark.parametrize("method", baseline.METHODS)
def test_all_that_is_neither_labelled_nor_excluded_can_be_chosen(method, feature_path):
    (feature_path.parent / "L.json").write_text(json.dumps(list(range(15))))
    (feature_path.parent / "X.json").write_text(json.dumps(list(range(10, 45))))
    known = ["--labeled_ids", feature_path.parent / "L.json", "--exclude_ids", feature_path.parent / "X.json"]
    assert choose(feature_path, "--method", method, "--percent", 70, *known) == list(range(45, 150))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "best"], "--method"),
        (["--method", "kmeans", "--delta", 0.5], "--delta only applies to --method probcover"),
        (["--method", "usl", "--sigma", 1], "--sigma only applies to --method maxherding"),
        (["--method", "maxherding", "--core_number", 5], "--core_number only applies to --method bilaf"),
        (["--method", "bilaf", "--rounds", 5], "--rounds only applies to --method usl"),
        (["--method", "bilaf", "--core_method", "kmeans", "--delta", 0.5], "--delta only applies to"),
        (["--method", "bilaf", "--core_number", 1], "--core_number: 1 must be at least 2"),
        (["--method", "bilaf", "--core_number", 9], "9 core samples are more than the budget of 3"),
        (["--method", "bilaf", "--core_ids", "gone.json"], "cannot read the --core_ids file gone.json"),
        (["--method", "probcover", "--delta", 3], "--delta"),
        (["--method", "probcover", "--delta", 0.5, "--num_classes", 4], "leave one of them out"),
        (["--method", "probcover", "--num_classes", 151], "--num_classes 151 is more than the 150 samples"),
    ],
)
def test_bad_options_give_one_clear_error(options, message, feature_path):
    with pytest.raises(InputError, match=message):
        choose(feature_path, *options)


def test_the_list_of_methods_says_of_each_what_it_needs_and_what_it_took(capsys):
    with pytest.raises(SystemExit) as ended:
        baseline.main(["--list"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    for method in baseline.METHODS:
        about = printed[printed.index(f"{method}: ") :].split("\n\n")[0]
        assert re.search(r"needs +\w.*scales +\w.*took +[\d.,]+ s, [\d.,]+ MB", about, re.DOTALL), about


def test_several_processes_are_refused(feature_path, monkeypatch):
    monkeypatch.setattr(baseline, "launched", lambda device: nullcontext(Processes(torch.device("cpu"), 1, 2)))
    with pytest.raises(InputError, match="baselines run in one process, not in 2"):
        choose(feature_path, "--method", "random")


def test_probcover_without_labels_asks_for_the_number_of_classes(feature_path):
    table = np.load(feature_path)
    table[:, -1] = -1
    np.save(feature_path, table)
    with pytest.raises(InputError, match="--num_classes is needed"):
        choose(feature_path, "--method", "probcover")
    assert len(choose(feature_path, "--method", "probcover", "--num_classes", 5)) == 3
