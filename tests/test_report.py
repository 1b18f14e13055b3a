"""The report of a small pool, as the script writes it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image, write_image_paths
from PIL import Image

from common.errors import InputError
from data_selection.evidence.pictures import project
from data_selection.evidence.report_files import page
from data_selection.sample_tools import report

N, D = 60, 6
GOOD, POOR = [0, 21, 42, 3], [0, 1, 2, 3]  # a sample of each of three clusters and one more, and four of one cluster


def write_features(path: Path, seed: int, labelled: bool = True) -> Path:
    """Three clusters, the classes, of N / 3 samples each."""
    random = np.random.default_rng(seed)
    classes = np.repeat(np.arange(3), N // 3)
    rows = np.eye(D)[classes] + 0.1 * random.normal(size=(N, D))
    np.save(path, np.column_stack([rows, classes if labelled else np.full(N, -1)]).astype(np.float32))
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder with pool.npy, the pool's images, held_out.npy, good.json and poor.json."""
    write_features(tmp_path / "pool.npy", 0)
    write_features(tmp_path / "held_out.npy", 1)
    names = [f"{index // 20}/{index:02d}.png" for index in range(N)]
    for index, name in enumerate(names):
        write_image(tmp_path / "images" / name, index, (90, 60))
    write_image_paths(tmp_path / "pool.npy", tmp_path / "images", [str(tmp_path / "images" / name) for name in names])
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    (tmp_path / "poor.json").write_text(json.dumps(POOR))
    return tmp_path


def write_report(given: Path, *options: object, subsets: tuple[str, ...] = ("good", "poor")) -> Path:
    """Run the script. Returns: its output folder."""
    files = [str(given / f"{name}.json") for name in subsets]
    output = str(given / "report")
    arguments = ["--feature_path", str(given / "pool.npy"), "--output_dir", output, "--device", "cpu"]
    return report.main([*arguments, "--subset_ids", *files, *map(str, options)]).parent


def read_report(given: Path, *options: object, **kwargs) -> dict:
    return json.loads((write_report(given, *options, **kwargs) / "report.json").read_text())


class Page(HTMLParser):
    """What a browser makes of the page: the data in its script, and every address in its markup."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.addresses, self.in_data = "", [], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_data = tag == "script" and ("id", "data") in attrs
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data if self.in_data else ""


def data_in(html: str) -> dict:
    return json.loads(Page(html).text)


def test_a_subset_of_all_clusters_beats_one_of_a_single_cluster(given):
    good, poor = read_report(given)["subsets"]
    for measure in ("emd", "coverage_mean", "coverage_95", "coverage_max", "class_distance", "classes_missing"):
        assert good["values"][measure] < poor["values"][measure]
    assert (good["against_random"]["coverage_mean"], poor["against_random"]["emd"]) != ("worse", "better")


def test_subsets_of_one_size_share_their_random_subsets(given):
    (given / "small.json").write_text("[5, 6]")
    content = read_report(given, "--random_seeds", 3, subsets=("good", "poor", "small"))
    assert [(random["k"], len(random["each"])) for random in content["random"]] == [(4, 3), (2, 3)]
    emds = [values["emd"] for values in content["random"][0]["each"]]
    assert content["random"][0]["mean"]["emd"] == pytest.approx(np.mean(emds))
    assert content["random"][0]["std"]["emd"] == pytest.approx(np.std(emds, ddof=1))


def test_subsets_are_called_by_their_files_or_by_their_paths_where_those_are_alike(given):
    (given / "pool_ActiveFT.json").write_text("[1, 2]")
    (given / "other").mkdir()
    (given / "other" / "good.json").write_text("[3, 4]")
    subsets = read_report(given, subsets=("good", "other/good", "pool_ActiveFT"))["subsets"]
    assert [subset["name"] for subset in subsets] == [
        str(given / "good.json"),
        str(given / "other" / "good.json"),
        "ActiveFT",
    ]


def test_equal_subsets_are_measured_once(given, monkeypatch):
    (given / "same.json").write_text(json.dumps(GOOD[::-1]))
    measured = []
    monkeypatch.setattr(
        "data_selection.evidence.measures.coverage", lambda similarity: measured.append(1) or {"coverage_95": 1.0}
    )
    read_report(given, "--random_seeds", 2, subsets=("good", "same"))
    assert len(measured) == 3


def test_sample_sizes_of_the_emd_are_stated(given):
    (given / "large.json").write_text(json.dumps(list(range(40))))
    content = read_report(given, "--emd_samples", 25, subsets=("good", "large"))
    assert content["emd_pool_samples"] == 25
    assert [subset["emd_samples"] for subset in content["subsets"]] == [4, 25]


def test_represents_names_the_chosen_sample_and_its_similarity_for_each_pool_sample(given):
    with np.load(write_report(given) / "represents.npz") as file:
        subsets, chosen, similarity = file["subsets"], file["chosen"], file["similarity"]
    assert subsets.tolist() == ["good", "poor"]
    assert (chosen.shape, chosen.dtype, similarity.dtype) == ((2, N), np.int64, np.float32)
    assert chosen[0, GOOD].tolist() == GOOD
    rows = np.load(given / "pool.npy")[:, :-1]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = rows @ rows[sorted(GOOD)].T
    assert chosen[0].tolist() == [sorted(GOOD)[best] for best in expected.argmax(axis=1)]
    assert similarity[0] == pytest.approx(expected.max(axis=1), abs=1e-6)


def test_the_map_knows_what_represents_each_of_its_samples(given):
    folder = write_report(given, "--map_samples", 20, subsets=("good",))
    content = json.loads((folder / "report.json").read_text())
    drawn, (good,) = content["map"]["index"][:20], content["subsets"]
    with np.load(folder / "represents.npz") as file:
        assert [good["ids"][position] for position in good["map_nearest"]] == file["chosen"][0, drawn].tolist()
        assert good["map_similarity"] == pytest.approx(file["similarity"][0, drawn], abs=1e-4)


def test_every_verdict_rests_on_random_subsets_of_the_same_size(given):
    (given / "small.json").write_text("[5, 6]")
    content = read_report(given, subsets=("good", "small"))
    for subset, random in zip(content["subsets"], content["random"], strict=True):
        assert subset["k"] == random["k"]
        stated = re.search(r"against (\S+) ±", subset["verdict"])[1]
        assert float(stated) == pytest.approx(random["mean"]["emd"], abs=0.01)


def test_represents_counts_the_pool(given):
    for subset in read_report(given)["subsets"]:
        assert sum(subset["represents"]) == N and len(subset["represents"]) == 4


def test_accuracy_on_held_out_samples_needs_and_uses_labels(given):
    good, poor = read_report(given, "--eval_feature_path", given / "held_out.npy")["subsets"]
    assert good["values"]["accuracy_nearest"] == 100
    assert poor["values"]["accuracy_linear"] == pytest.approx(100 / 3)


def test_without_labels_nothing_is_said_about_classes(given):
    write_features(given / "pool.npy", 0, labelled=False)
    content = read_report(given)
    assert content["labels"] == {}
    assert not any("class" in measure["key"] or "accuracy" in measure["key"] for measure in content["measures"])


def give_masks(given: Path, count: int = N) -> None:
    """Masks of 4 pixels: one of the class of its own cluster, two of the last class, and one ignored."""
    names = [f"{index:02d}.jpg" for index in range(N)]
    write_image_paths(given / "pool.npy", given / "scenes", [str(given / "scenes/images/training" / n) for n in names])
    (given / "scenes/annotations/training").mkdir(parents=True)
    for index in range(count):
        mask = np.array([[1 + index // 20, 4], [4, 0]], np.uint8)
        Image.fromarray(mask).save(given / f"scenes/annotations/training/{index:02d}.png")
    (given / "scenes/classes.txt").write_text("ant\nbee\ncat\nsky\n")


def test_with_masks_the_classes_of_the_pixels_are_compared_with_the_pools(given):
    give_masks(given)
    found = read_report(given)
    good, poor = found["subsets"]
    assert found["pixels"]["classes"] == ["ant", "bee", "cat", "sky"]
    assert found["pixels"]["pool"] == pytest.approx([1 / 9, 1 / 9, 1 / 9, 2 / 3])
    assert good["pixels"] == pytest.approx([2 / 12, 1 / 12, 1 / 12, 8 / 12])
    assert poor["pixels"] == pytest.approx([4 / 12, 0, 0, 8 / 12])
    assert [entry["values"]["pixel_classes_missing"] for entry in (good, poor)] == [0, 2]
    assert poor["values"]["pixel_distance"] == pytest.approx(2 / 9)
    assert "pixel_distance" in found["random"][0]["mean"]


def test_masks_of_some_images_only_say_nothing(given, capsys):
    give_masks(given, count=N - 1)
    found = read_report(given)
    assert found["pixels"] is None and "pixel_distance" not in found["subsets"][0]["values"]
    assert "1 of 60 images have no mask" in capsys.readouterr().out


def test_masks_with_labels_of_no_class_end_the_report_before_anything_is_written(given):
    give_masks(given)
    with pytest.raises(InputError, match="holds label 4, but the 2 classes are 1 to 2"):
        write_report(given, "--num-classes", 2, "--class-names", write_names(given, "ant", "bee"))
    assert not (given / "report" / "report.json").exists()


def write_names(given: Path, *names: str) -> Path:
    (given / "names.txt").write_text("\n".join(names))
    return given / "names.txt"


def test_losses_beside_a_subset_are_read(given):
    (given / "good_losses.txt").write_text("2.5\n1.5\nnan\n")
    good, poor = read_report(given)["subsets"]
    assert (good["losses"], poor["losses"]) == ([2.5, 1.5, None], [])


def test_the_page_holds_thumbnails_of_the_chosen_images_and_of_their_nearest(given):
    (gallery,) = data_in((write_report(given, subsets=("good",)) / "report.html").read_text())["gallery"]
    assert sorted(gallery["positions"]) == [0, 1, 2, 3]
    assert all(tile.startswith("UklGR") for tile in gallery["tiles"] + gallery["strips"])  # RIFF, the head of a WebP


def test_only_the_images_that_represent_most_are_shown_beyond_the_limit(given):
    content = data_in((write_report(given, "--gallery_images", 2, subsets=("good",)) / "report.html").read_text())
    represents = content["report"]["subsets"][0]["represents"]
    shown = [represents[position] for position in content["gallery"][0]["positions"]]
    assert shown == sorted(represents, reverse=True)[:2]


def test_images_that_are_missing_or_broken_do_not_end_a_report(given, capsys):
    (given / "images" / "0" / "00.png").unlink()
    (given / "images" / "1" / "21.png").write_text("no image")
    html = (write_report(given, subsets=("good",)) / "report.html").read_text()
    assert data_in(html)["gallery"][0]["tiles"].count(None) == 2
    assert "1 of 4 chosen images are missing" in capsys.readouterr().out


def test_without_image_paths_the_page_has_no_gallery(given):
    (given / "pool_paths.json").unlink()
    content = data_in((write_report(given) / "report.html").read_text())
    assert (content["gallery"], content["report"]["paths"]) == ([], {})


def test_the_page_refers_to_nothing_outside_itself(given):
    html = (write_report(given) / "report.html").read_text()
    assert Page(html).addresses == ["data:,"]  # the icon, lest a browser looks for one
    assert not re.search(r"@import|url\((?!\$\{dataUri)|fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", html)
    assert "default-src 'none'" in html
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--", "&lt;"])
def test_hostile_names_reach_the_page_as_text(name):
    html = page({"report": {"paths": {"0": name}}, "gallery": []})
    assert data_in(html)["report"]["paths"]["0"] == name
    assert html.count("</script>") == page({}).count("</script>")
    assert name not in html.split('id="data">')[1].split("</script>")[0]


def test_scripts_of_the_page_make_no_html_of_strings():
    for script in (Path(report.__file__).parents[1] / "evidence" / "page").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.read_text())


def test_a_tsne_map_has_two_finite_numbers_a_sample():
    where, axes = project("tsne", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32), 0, 30)
    assert where.shape == (40, 2) and np.isfinite(where).all() and len(axes) == 2


def test_a_tsne_map_of_a_single_feature_is_possible():
    where, _ = project("tsne", np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32), 0, 30)
    assert where.shape == (40, 2) and np.isfinite(where).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_a_map_of_equal_images_is_a_point(kind):
    where, axes = project(kind, np.ones((30, 5), np.float32), 0, 30)
    assert not where.any() and axes == ["all images are the same"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval_feature_path", "gone.npy"], "gone.npy is not there"),
        (["--eval_feature_path", "narrow.npy"], "has 5 features per row, but the pool has 6"),
        (["--eval_feature_path", "unlabelled.npy"], "unlabelled.npy needs a label for every sample"),
        (["--random_seeds", "1"], "1 must be at least 2"),
        (["--seed", "-1"], "-1 must be at least 0"),
        (["--emd_samples", "0"], "0 must be at least 1"),
        (["--duplicate_similarity", "1.5"], "1.5 must be at most 1"),
        (["--map", "globe"], "invalid choice: 'globe'"),
        (["--map", "tsne", "--map_samples", "5"], "--map tsne needs at least 20 samples, not 5"),
    ],
)
def test_bad_options_give_one_clear_error_and_no_report(options, message, given):
    np.save(given / "narrow.npy", np.ones((4, 6), np.float32))
    write_features(given / "unlabelled.npy", 2, labelled=False)
    options = [given / option if option.endswith(".npy") else option for option in options]
    with pytest.raises(InputError, match=message):
        write_report(given, *options)
    assert not (given / "report").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("good.json", "[0, 60]", "good.json holds 60, but the pool has images 0 to 59"),
        ("good.json", "[1, 1]", "holds 1 2 times"),
        ("good_losses.txt", "1.5\nlow\n", "good_losses.txt does not hold one number per line"),
        ("pool_paths.json", '{"root": ".", "paths": []}', "does not list the 60 images"),
        ("pool_paths.json", json.dumps({"paths": ["a.png"] * 60}), "does not list the 60 images"),
        ("pool_paths.json", '{"root": ".", "paths": 60}', "does not list the 60 images"),
        ("pool_paths.json", json.dumps({"root": ".", "paths": [*range(60)]}), "does not list the 60 images"),
    ],
)
def test_bad_files_give_one_clear_error_and_no_report(file, content, message, given):
    (given / file).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(given)
    assert not (given / "report").exists()


def describe(path: Path, **other) -> None:
    known = {"model": "vit", "weights": "a/w.pth", "feature": "CLS", "d": D, "input_size": 224, "mean": [0.5] * 3,
             "std": [0.5] * 3, "interpolation": "bicubic"}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps({**known, **other}))


def test_the_report_says_what_the_features_are(given, capsys):
    describe(given / "pool.npy")
    describe(given / "held_out.npy", weights="moved/w.pth")
    content = read_report(given, "--eval_feature_path", given / "held_out.npy")
    assert content["features"]["weights"] == "a/w.pth" and "features of vit, weights a/w.pth" in capsys.readouterr().out


def test_held_out_features_of_another_network_are_refused(given):
    describe(given / "pool.npy")
    describe(given / "held_out.npy", input_size=256)
    with pytest.raises(InputError, match="has other features than the pool: input size 256 instead of 224"):
        write_report(given, "--eval_feature_path", given / "held_out.npy")


def test_classes_are_known_by_their_names_where_the_other_split_lacks_some(given):
    """Without class 0 the extraction numbers the other two 0 and 1."""
    table = np.load(given / "held_out.npy")
    whole = read_report(given, "--eval_feature_path", given / "held_out.npy")
    kept = table[:, -1] > 0
    np.save(given / "held_out.npy", table[kept] - np.eye(D + 1, dtype=np.float32)[D])
    for name, classes in (("pool", ["a", "b", "c"]), ("held_out", ["b", "c"])):
        file = given / f"{name}_paths.json"
        listed = json.loads(file.read_text()) if file.exists() else {"root": str(given), "paths": []}
        file.write_text(json.dumps({**listed, "classes": classes}))
    part = read_report(given, "--eval_feature_path", given / "held_out.npy")
    assert [entry["values"]["accuracy_nearest"] for entry in (whole["subsets"][0], part["subsets"][0])] == [100, 100]


def test_classes_are_shown_by_their_names(given):
    listed = {"root": str(given), "paths": [f"{row}.png" for row in range(len(np.load(given / "pool.npy")))]}
    (given / "pool_paths.json").write_text(json.dumps({**listed, "classes": ["ant", "bee", "cat"]}))
    assert read_report(given)["class_names"] == ["ant", "bee", "cat"]


def test_an_empty_name_of_a_file_is_an_error_and_not_none(given):
    for option in ("--eval_feature_path", "--predictions"):
        with pytest.raises(InputError):
            read_report(given, option, "")


def test_a_pool_without_labels_cannot_be_evaluated(given):
    write_features(given / "pool.npy", 0, labelled=False)
    with pytest.raises(InputError, match="needs a label for every sample of the pool"):
        write_report(given, "--eval_feature_path", given / "held_out.npy")


def test_a_bad_row_is_named_before_anything_is_written(given):
    table = np.load(given / "pool.npy")
    table[7, 2] = np.nan
    np.save(given / "pool.npy", table)
    with pytest.raises(InputError, match="row 7 of the features is not finite"):
        write_report(given)
    assert not list((given / "report").iterdir())


def test_the_script_runs_as_documented(given, run_script):
    options = ["--feature_path", given / "pool.npy", "--subset_ids", given / "good.json", "--output_dir", given / "r"]
    done = run_script("data_selection/sample_tools/report.py", *options)
    assert done.stdout.splitlines()[-1].startswith("wrote report.html, report.json and represents.npz to")
