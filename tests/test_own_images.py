"""From a folder of photos to labels, to a model, to predictions: any pool, and what goes to people and back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_VIT_OPTIONS, launch_two, write_image, write_image_paths

from common.errors import InputError
from common.feature_file import read_features
from common.image_list import ListedImage, labelled_images, read_image_list, spelling_hints
from common.pool_paths import read_pool_paths
from data_selection import extract_feature
from data_selection.sample_tools import ActiveFT_CIFAR, baseline
from data_selection.sample_tools.subset_export import flat_names
from deit import main as deit_main
from deit import predict

MODEL = ["vit_tiny_patch16_224", *TINY_VIT_OPTIONS]
N = 24
CLASSES = ("ant", "bee", "cat")


def image_path(number: int) -> str:
    return ["", "2019/", "2019/trip/", "b c/", "ü/x/"][number % 5] + f"IMG {number:03d}.png"


def label_of(path: str) -> str:
    return CLASSES[int(Path(path).stem[-3:]) % 3]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of images whose folders mean nothing, with hidden files."""
    root = tmp_path_factory.mktemp("tree") / "photos"
    for number in range(N):
        write_image(root / image_path(number), number)
    write_image(root / ".thumbnails" / "0.png", 0)
    write_image(root / "._IMG 000.png", 0)
    return root


def extract(data: object, out: Path, backbone: Path, *options: object) -> Path:
    given = ["--data_path", data, "--output_dir", out, "--arch", *MODEL, "--pretrained_weights", backbone, *options]
    return extract_feature.main([str(option) for option in (*given, "--num_workers", 0, "--device", "cpu")])


@pytest.fixture(scope="module")
def features(photos, backbone, tmp_path_factory) -> Path:
    return extract(photos, tmp_path_factory.mktemp("features"), backbone, "--dataset", "Folder", "--no-labels")


def choose(features: Path, out: Path, *options: object, method: str = "activeft") -> Path:
    given = [str(option) for option in ("--feature_path", features, "--output_dir", out, "--device", "cpu", *options)]
    if method == "activeft":
        return ActiveFT_CIFAR.main([*given, "--max_iter", "10"])
    return baseline.main(["--method", method, *given])


def write_csv(path: Path, rows: list[tuple], columns: tuple[str, ...] = ("path", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill_in(path: Path) -> Path:
    """The labels, as a person would write them."""
    rows = read_csv(path)
    return write_csv(path, [(row["path"], label_of(row["path"]), row["represents"]) for row in rows], tuple(rows[0]))


# Pools as they are


def test_every_image_of_a_tree_is_in_the_pool_whatever_its_folders_mean(photos, features):
    rows, labels = read_features(features)
    assert features.name == "photos_train.npy" and len(rows) == N and set(labels) == {-1}
    paths = [path.relative_to(photos).as_posix() for path in read_pool_paths(features, N).files()]
    assert sorted(paths) == sorted(map(image_path, range(N)))


def test_a_list_is_a_pool_in_its_order_with_its_labels(photos, features, backbone, tmp_path):
    rows = [(f"{photos}/{image_path(number)}", label_of(image_path(number))) for number in (5, 2, 9)]
    path = extract(write_csv(tmp_path / "some.csv", rows), tmp_path, backbone, "--dataset", "List")
    listed, labels = read_features(path)
    classes = read_pool_paths(path, 3).classes
    assert path.name == "some_train.npy" and [classes[label] for label in labels] == [label for _, label in rows]
    paths, whole = read_pool_paths(features, N).files(), read_features(features)[0]
    for row, number in enumerate((5, 2, 9)):
        assert np.allclose(listed[row], whole[paths.index(photos.resolve() / image_path(number))], atol=1e-5)


def test_a_text_lists_paths_relative_to_its_folder(photos, backbone, tmp_path):
    (photos / "pool.txt").write_text("".join(f"{image_path(number)}\n" for number in range(4)))
    path = extract(photos / "pool.txt", tmp_path, backbone, "--dataset", "List")
    (photos / "pool.txt").unlink()
    assert set(read_features(path)[1]) == {-1} and len(read_pool_paths(path, 4).files()) == 4


@pytest.fixture(scope="module")
def hf_table(photos):
    datasets = pytest.importorskip("datasets")
    files = [photos / image_path(number) for number in range(6)]
    table = {"photo": [{"bytes": file.read_bytes(), "path": None} for file in files], "kind": [0, 1, 2] * 2}
    columns = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict(table, columns)


@pytest.mark.parametrize("kind", ["disk", "splits", "parquet", "folder of parquet"])
def test_hugging_face_data_sets_are_pools(kind, hf_table, features, photos, backbone, tmp_path):
    import datasets

    source = tmp_path / "insects"
    if kind == "disk":
        hf_table.save_to_disk(source)
    elif kind == "splits":
        datasets.DatasetDict({"train": hf_table, "test": hf_table.select([0])}).save_to_disk(source)
    elif kind == "parquet":
        hf_table.to_parquet(source := source.with_suffix(".parquet"))
    else:
        (source / "data").mkdir(parents=True)
        hf_table.to_parquet(source / "data" / "train-00000.parquet")
        hf_table.select([0]).to_parquet(source / "data" / "test-00000.parquet")
    path = extract(source, tmp_path, backbone, "--dataset", "HF")
    rows, labels = read_features(path)
    assert path.name == "insects_train.npy" and labels.tolist() == [0, 1, 2] * 2
    whole, paths = read_features(features)[0], read_pool_paths(features, N).files()
    assert np.allclose(rows[4], whole[paths.index(photos.resolve() / image_path(4))], atol=1e-5)


def test_chosen_images_of_a_hugging_face_data_set_are_copied_under_the_names_of_the_csv(hf_table, backbone, tmp_path):
    hf_table.to_parquet(tmp_path / "insects.parquet")
    features = extract(tmp_path / "insects.parquet", tmp_path, backbone, "--dataset", "HF")
    subset = choose(features, tmp_path, "--number", 3, "--export_csv", "--copy_images", tmp_path / "to_label")
    listed = [row["path"] for row in read_csv(subset.with_name(f"{subset.stem}_labels.csv"))]
    assert sorted(listed) == sorted(file.name for file in (tmp_path / "to_label").iterdir())
    first = json.loads(subset.read_text())[0]
    copied = (tmp_path / "to_label" / f"train_{first}.png").read_bytes()
    assert copied == hf_table.cast_column("photo", __import__("datasets").Image(decode=False))[first]["photo"]["bytes"]


def test_the_report_shows_the_images_of_a_hugging_face_data_set_or_says_that_it_cannot(
    hf_table, backbone, tmp_path, capsys
):
    hf_table.to_parquet(tmp_path / "insects.parquet")
    features = extract(tmp_path / "insects.parquet", tmp_path, backbone, "--dataset", "HF")
    subset = choose(features, tmp_path, "--number", 3)
    capsys.readouterr()
    report(features, tmp_path / "report", "--subset_ids", subset)
    assert "are not there" not in capsys.readouterr().out
    tiles = page_data(tmp_path / "report")["gallery"][0]["tiles"]
    assert len(tiles) == 3 and all(tiles)
    hf_table.select(range(4)).to_parquet(tmp_path / "insects.parquet")
    report(features, tmp_path / "report", "--subset_ids", subset)
    assert "the page has no pictures: " in (said := capsys.readouterr().out) and "4 images now, not 6" in said
    assert page_data(tmp_path / "report")["gallery"] == []


# Out to people


def test_the_csv_lists_the_chosen_images_most_representative_first(features, tmp_path):
    subset = choose(features, tmp_path, "--number", 6, "--export_csv")
    rows = read_csv(subset.with_name(f"{subset.stem}_labels.csv"))
    assert list(rows[0]) == ["path", "label", "represents"] and {row["label"] for row in rows} == {""}
    represents = [int(row["represents"]) for row in rows]
    assert represents == sorted(represents, reverse=True) and sum(represents) == N
    paths = read_pool_paths(features, N).paths
    assert {row["path"] for row in rows} == {paths[index] for index in json.loads(subset.read_text())}


@pytest.mark.parametrize("method", ["random", "coreset"])
def test_every_selection_script_exports(method, features, tmp_path):
    subset = choose(features, tmp_path, "--number", 4, "--export_csv", method=method)
    represents = [int(row["represents"]) for row in read_csv(subset.with_name(f"{subset.stem}_labels.csv"))]
    assert len(represents) == 4 and sum(represents) == N


def test_chosen_images_are_copied_into_one_folder(photos, features, tmp_path):
    subset = choose(features, tmp_path, "--number", 5, "--copy_images", tmp_path / "to_label")
    paths = read_pool_paths(features, N).files()
    originals = sorted(paths[index].read_bytes() for index in json.loads(subset.read_text()))
    assert sorted(file.read_bytes() for file in (tmp_path / "to_label").iterdir()) == originals


def test_copies_have_distinct_names_in_any_file_system():
    paths = ["a/b.jpg", "a_b.jpg", "A/b.jpg", "c.jpg", "x" * 150 + "/" + "y" * 150 + ".jpg"]
    names = flat_names(paths)
    assert len({name.casefold() for name in names}) == len(paths) and names[3] == "c.jpg"
    assert all("/" not in name and len(name) < 255 and name.endswith(".jpg") for name in names)


def test_exports_of_another_subset_of_the_same_name_are_removed_but_never_labels(features, tmp_path, capsys):
    exports = ["--export_paths", "--export_csv", "--export_tasks", "label-studio"]
    named = ["--number", 3, "--filename", "s.json"]
    subset = choose(features, tmp_path, *named, *exports, method="random")
    written = ("s_paths.txt", "s_labels.csv", "s_tasks.json")
    choose(features, tmp_path, *named, method="random")  # the same subset
    assert all((tmp_path / name).is_file() for name in written)
    choose(features, tmp_path, *named, "--seed", 1, method="random")
    assert not any((tmp_path / name).exists() for name in written)
    fill_in(choose(features, tmp_path, *named, *exports, method="random").with_name("s_labels.csv"))
    choose(features, tmp_path, *named, "--seed", 1, method="random")
    assert (tmp_path / "s_labels.csv").is_file() and not (tmp_path / "s_paths.txt").exists()
    tasks = choose(features, tmp_path, *named, *exports[-2:], "--seed", 2, method="random").with_name("s_tasks.json")
    annotated = json.loads(tasks.read_text())
    annotated[0]["annotations"] = [{"result": [{"value": {"choices": ["ant"]}}]}]
    tasks.write_text(json.dumps(annotated))
    choose(features, tmp_path, *named, "--seed", 3, "--labeled_ids", tasks, method="random")
    assert json.loads(tasks.read_text()) == annotated
    with pytest.raises(InputError, match="s_tasks.json holds 1 labels: move it"):
        choose(features, tmp_path, *named, *exports[-2:], "--seed", 4, method="random")
    assert f"note: {tmp_path / 's_labels.csv'} stays, with the labels of another subset" in capsys.readouterr().out
    assert json.loads(subset.read_text())


def test_a_list_in_a_folder_behind_a_link_leads_to_its_images(photos, backbone, tmp_path):
    (tmp_path / "mnt" / "deep" / "user").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    home = tmp_path / "home" / "user"
    home.symlink_to(tmp_path / "mnt" / "deep" / "user")
    rows = [(f"{photos}/{image_path(number)}",) for number in range(4)]
    features = extract(write_csv(home / "some.csv", rows, ("path",)), tmp_path, backbone, "--dataset", "List")
    assert all(file.is_file() for file in read_pool_paths(features, 4).files())
    subset = choose(features, tmp_path, "--number", 2, "--export_paths", "--export_csv", method="random")
    assert all(Path(line).is_file() for line in subset.with_name(f"{subset.stem}_paths.txt").read_text().splitlines())
    pool = read_pool_paths(features, 4)
    listed = [ListedImage(rows[1][0], ""), ListedImage(str(tmp_path / "alias" / image_path(2)), "")]
    (tmp_path / "alias").symlink_to(photos)
    assert pool.indices_of(listed, "--labeled_ids") == [1, 2]
    known = write_csv(tmp_path / "known.csv", [(f"{tmp_path / 'alias'}/{image_path(1)}", "ant")])
    beside = choose(features, tmp_path, "--number", 1, "--labeled_ids", known, method="random")
    assert "labeled_1_" in beside.name


def test_label_studio_tasks_point_at_the_chosen_images_and_its_exports_are_labels(features, tmp_path):
    subset = choose(features, tmp_path, "--number", 3, "--export_tasks", "label-studio")
    tasks = json.loads(subset.with_name(f"{subset.stem}_tasks.json").read_text())
    paths = [read_pool_paths(features, N).paths[index] for index in json.loads(subset.read_text())]
    assert sorted(task["data"]["path"] for task in tasks) == sorted(paths)
    assert all(task["data"]["image"].startswith("/data/local-files/?d=photos/") for task in tasks)
    annotation = {"result": [{"type": "choices", "from_name": "label", "value": {"choices": ["bee"]}}]}
    exports = {
        "full": [{**task, "annotations": [annotation]} for task in tasks],
        "min": [{**task["data"], "choice": "bee", "id": 7} for task in tasks],
    }
    for name, content in exports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert {image.label for image in labelled_images([tmp_path / f"{name}.json"], "--labels")} == {"bee"}
        again = choose(features, tmp_path / name, "--number", 3, "--labeled_ids", tmp_path / f"{name}.json")
        assert not set(json.loads(again.read_text())) & set(json.loads(subset.read_text()))


def clustered(tmp_path: Path) -> Path:
    """8 directions, 5 samples nearly the same in each."""
    rows = np.repeat(np.eye(8), 5, axis=0) + 1e-3 * np.random.RandomState(0).randn(40, 8)
    np.save(tmp_path / "bursts.npy", np.column_stack([rows, -np.ones(40)]).astype(np.float32))
    return tmp_path / "bursts.npy"


@pytest.mark.parametrize("method", ["activeft", "random", "kmeans"])
def test_of_near_duplicates_one_is_chosen_and_none_like_a_labelled_one(method, tmp_path):
    features = clustered(tmp_path)
    (tmp_path / "labeled.json").write_text("[12, 13]")
    options = ["--drop_duplicates", 0.99, "--labeled_ids", tmp_path / "labeled.json"]
    chosen = json.loads(choose(features, tmp_path, "--number", 7, *options, method=method).read_text())
    assert sorted(index // 5 for index in chosen) == [0, 1, 3, 4, 5, 6, 7]
    with pytest.raises(InputError, match="budget of 8"):
        choose(features, tmp_path, "--number", 8, *options, method=method)


def test_filled_in_labels_are_never_overwritten(features, tmp_path):
    subset = choose(features, tmp_path, "--number", 3, "--export_csv")
    labels = fill_in(subset.with_name(f"{subset.stem}_labels.csv"))
    before = labels.read_text()
    with pytest.raises(InputError, match="holds 3 labels: move it, or"):
        choose(features, tmp_path, "--number", 3, "--export_csv")
    assert labels.read_text() == before


def test_copies_into_the_pool_are_refused(photos, features, tmp_path):
    with pytest.raises(InputError, match="inside the pool"):
        choose(features, tmp_path, "--number", 3, "--copy_images", photos / "2019" / "new")
    assert not (photos / "2019" / "new").exists()


def test_a_pool_that_changed_since_extraction_is_told_before_the_work(photos, features, backbone, tmp_path):
    for number in range(3):
        write_image(tmp_path / "pool" / f"{number}.png", number)
    features = extract(tmp_path / "pool", tmp_path, backbone, "--dataset", "Folder", "--no-labels")
    (tmp_path / "pool" / "0.png").unlink()
    write_image(tmp_path / "pool" / "1.png", 1, (40, 40))
    with pytest.raises(
        InputError, match=r"changed since .*: of 3 images 1 \(0.png\) are gone, 1 \(1.png\) are different"
    ):
        choose(features, tmp_path / "out", "--number", 1, "--export_csv")
    assert not list((tmp_path / "out").iterdir())


# Back from people


def test_a_second_round_chooses_beside_the_labels_of_the_first(features, tmp_path, capsys):
    subset = choose(features, tmp_path, "--number", 6, "--export_csv")
    labels = fill_in(subset.with_name(f"{subset.stem}_labels.csv"))
    second = choose(features, tmp_path / "2", "--number", 6, "--labeled_ids", labels, "--export_csv")
    assert not set(json.loads(second.read_text())) & set(json.loads(subset.read_text()))
    both = fill_in(second.with_name(f"{second.stem}_labels.csv"))
    third = choose(features, tmp_path / "3", "--number", 6, "--labeled_ids", labels, both)
    chosen = [json.loads(path.read_text()) for path in (subset, second, third)]
    assert len({index for each in chosen for index in each}) == 18
    assert "not chosen" not in capsys.readouterr().out


def test_rows_without_a_label_are_not_labelled(features, tmp_path):
    paths = read_pool_paths(features, N).paths
    labels = write_csv(tmp_path / "l.csv", [(paths[0], "ant"), (paths[1], ""), (paths[2], " ")])
    chosen = choose(features, tmp_path, "--number", N - 1, "--labeled_ids", labels)
    assert set(json.loads(chosen.read_text())) == set(range(N)) - {0}


def test_a_labelled_image_that_was_not_chosen_is_used_and_said(features, tmp_path, capsys):
    subset = choose(features, tmp_path, "--number", 3, "--export_csv")
    labels = fill_in(subset.with_name(f"{subset.stem}_labels.csv"))
    other = next(index for index in range(N) if index not in json.loads(subset.read_text()))
    with labels.open("a") as file:
        file.write(f"{read_pool_paths(features, N).paths[other]},bee,\n")
    chosen = choose(features, tmp_path / "2", "--number", N - 4, "--labeled_ids", labels)
    assert other not in json.loads(chosen.read_text())
    assert "1 labelled images were not chosen by the selection" in capsys.readouterr().out


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_are_read_as_spreadsheets_write_them(separator, tmp_path):
    rows = [["Path", "Label"], ["a b.jpg", " dog "], ["ü.jpg", ""]]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "l.csv").write_bytes(text.encode("utf-8-sig"))
    assert [image[:2] for image in read_image_list(tmp_path / "l.csv")] == [("a b.jpg", "dog"), ("ü.jpg", "")]


def test_labels_of_unknown_spelling_are_told():
    labels = ["dog"] * 41 + ["Dog"] + ["giraffe"] * 20 + ["girafe"] + ["cat"] * 30 + ["class 1"] * 20 + ["class 2"]
    hints = " ".join(spelling_hints(labels))
    assert '"Dog" (1): did you mean "dog" (41)?' in hints and '"girafe" (1): did you mean "giraffe"' in hints
    assert len(spelling_hints(labels)) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("gone 1.png", "ant"), ("gone 2.png", "bee")],
            r"2 \(gone 1.png, gone 2.png\) of 2 images are not in the pool",
        ),
        ([(image_path(0), ""), (image_path(1), "")], "none of its 2 images has a label"),
        ([(image_path(0), "ant"), (image_path(0), "bee")], "twice: 'ant' and 'bee'"),
        ([], "names no image"),
    ],
)
def test_unusable_labels_are_one_clear_line_of_the_selection(rows, message, features, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match=message):
        choose(features, tmp_path / "out", "--number", 2, "--labeled_ids", labels)
    assert not (tmp_path / "out").exists()


# Training and prediction


def train(photos: Path, labels: list[Path], out: object, backbone: Path, *options: object) -> dict:
    given = ["--data-set", "CSV", "--data-path", photos, "--labels", *labels, "--output_dir", out]
    given += ["--model", *MODEL, "--resume", backbone, "--epochs", 2, "--batch-size", 8]
    given += ["--num_workers", 0, "--device", "cpu", *options]
    return deit_main.main([str(option) for option in given])


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    rows = [(image_path(number), label_of(image_path(number))) for number in range(12)]
    return write_csv(tmp_path_factory.mktemp("labels") / "labels.csv", rows)


@pytest.fixture(scope="module")
def trained(photos, labels, backbone, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(photos, [labels], out, backbone)
    return out


def run_predict(checkpoint: Path, data: object, output: Path, *options: object) -> list[dict[str, str]]:
    given = ["--checkpoint", checkpoint, "--data_path", data, "--output", output, "--num_workers", 0, *options]
    predict.main([str(option) for option in (*given, "--device", "cpu")])
    return read_csv(output)


def test_labels_alone_train_on_everything_and_cross_validate_a_readout(photos, trained):
    summary = json.loads((trained / "summary.json").read_text())
    readout = summary["best"]["cross_validated_readout"]
    assert summary["images"] == 12 and readout["folds"] == 4  # of 4 images per class
    assert 0 <= readout["acc1"] <= 100 and readout["std"] >= 0 and summary["last"] == {}
    log = [json.loads(line) for line in (trained / "log.txt").read_text().splitlines()]
    assert len(log) == 2 and not any(key.startswith("test") for key in log[0])


def test_a_finished_run_of_labels_alone_is_resumed_to_the_same_summary(photos, labels, trained, backbone):
    before = (trained / "summary.json").read_text()
    train(photos, [labels], trained, backbone, "--auto-resume")
    assert (trained / "summary.json").read_text() == before


def test_corrected_labels_are_another_run(photos, labels, trained, backbone, tmp_path):
    rows = [(row["path"], "cat") if number == 0 else tuple(row.values()) for number, row in enumerate(read_csv(labels))]
    with pytest.raises(InputError, match="train_images was"):
        train(photos, [write_csv(tmp_path / "l.csv", rows)], trained, backbone, "--auto-resume", "--epochs", 3)


def test_validation_labels_are_evaluated_as_usual(photos, labels, backbone, tmp_path):
    rows = [(image_path(number), label_of(image_path(number))) for number in range(12, 18)]
    val = write_csv(tmp_path / "val.csv", rows)
    summary = train(photos, [labels], tmp_path / "out", backbone, "--val-labels", val)
    assert "acc1" in summary["last"]["test"] and "cross_validated_readout" not in summary["best"]


def test_a_probe_of_labels_alone_is_cross_validated(photos, labels, backbone, tmp_path):
    summary = train(photos, [labels], tmp_path / "out", backbone, "--probe", "knn")
    assert summary["cross_validated"]["test"]["folds"] == 4


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("gone.png", "ant"), (image_path(1), "bee")], [], r"--labels: 1 \(.*gone.png\) of 2 images are not there"),
        ([(image_path(0), ""), (image_path(1), "")], [], "none of its 2 images has a label"),
        ([(image_path(0), "ant"), (image_path(1), "ant")], [], "all 2 labels are 'ant'"),
        ([(image_path(0), "ant"), (image_path(0), "bee")], [], "twice: 'ant' and 'bee'"),
        ([(image_path(0), "ant"), (image_path(1), "bee", "wasp")], [], r"line 3 has more fields .*'wasp'"),
        ([(image_path(0), "ant"), (image_path(1), "bee")], ["--eval"], "needs --val-labels"),
        ([(image_path(0), "ant"), (image_path(1), "bee")], ["--val-labels", "{labels}"], "are in --labels too"),
    ],
)
def test_unusable_labels_are_one_clear_line_of_the_training(rows, options, message, photos, backbone, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", rows)
    with pytest.raises(InputError, match=message):
        train(photos, [labels], tmp_path / "out", backbone, *(str(labels) if "{" in o else o for o in options))


def test_two_lists_that_contradict_each_other_are_refused(photos, labels, backbone, tmp_path):
    other = write_csv(tmp_path / "other.csv", [(image_path(0), "cat"), (image_path(13), "bee")])
    with pytest.raises(InputError, match="IMG 000.png has two labels: 'ant' and 'cat'"):
        train(photos, [labels, other], tmp_path / "out", backbone)


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path):
    (tmp_path / "l.csv").write_text('path,label\na.png,ant\nb.png,"bee\nc.png,cat\n')
    with pytest.raises(InputError, match="cannot be read from line 2 on: .* is a quote not closed?"):
        read_image_list(tmp_path / "l.csv")


def test_two_columns_of_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="several columns `label`"):
        read_image_list(write_csv(tmp_path / "l.csv", [("a.png", "ant", "bee")], ("path", "Label", "label")))


def test_lists_of_absolute_paths_are_told_apart_when_a_run_is_resumed(photos, backbone, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "photos_of"
    elsewhere.mkdir()
    lists = []
    for place in ("a", "b"):
        for number in (0, 5):
            write_image(tmp_path / place / f"{number}.png", number)
        rows = [(tmp_path / place / "0.png", "ant"), (tmp_path / place / "5.png", "bee")]
        lists.append(write_csv(tmp_path / f"{place}.csv", rows))
    train(elsewhere, [lists[0]], out, backbone)
    with pytest.raises(InputError, match="is from another run: train_images was"):
        train(elsewhere, [lists[1]], out, backbone, "--auto-resume", "--epochs", 3)


def test_one_image_written_in_two_ways_is_one_of_a_pool(photos, backbone, tmp_path):
    rows = [(photos / image_path(0), "ant"), (f"{photos}/./{image_path(0)}", "bee")]
    with pytest.raises(InputError, match="lists .* 2 times, by different paths"):
        extract(write_csv(tmp_path / "pool.csv", rows), tmp_path, backbone, "--dataset", "List")


def test_a_line_break_in_a_name_is_told_before_lists_are_written(backbone, tmp_path):
    write_image(tmp_path / "pool" / "a\rb.png", 1)
    features = extract(tmp_path / "pool", tmp_path, backbone, "--dataset", "Folder", "--no-labels")
    with pytest.raises(InputError, match=r"'a\\rb.png' has a line break in its name"):
        choose(features, tmp_path / "out", "--number", 1, "--export_csv", method="random")
    assert not list(tmp_path.glob("out/*.json"))


def test_one_image_written_in_two_ways_has_one_label(tmp_path):
    rows = [("a.jpg", "ant"), ("./a.jpg", "ant"), ("b/../c.jpg", "bee")]
    images = labelled_images([write_csv(tmp_path / "same.csv", rows)], "--labels")
    assert [(image.path, image.label) for image in images] == [("a.jpg", "ant"), ("b/../c.jpg", "bee")]
    contradicting = write_csv(tmp_path / "other.csv", [*rows, ("c.jpg", "cat")])
    with pytest.raises(InputError, match="c.jpg has two labels: 'bee' and 'cat'"):
        labelled_images([contradicting], "--labels")


def test_predictions_are_those_of_the_model_with_nothing_but_its_checkpoint(photos, trained, tmp_path):
    rows = run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv")
    assert list(rows[0]) == ["path", "label", "probability", "second", "margin"]
    assert sorted(row["path"] for row in rows) == sorted(map(image_path, range(N)))
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    snippet = next(part for part in readme.split("```")[1::2] if "load_state_dict" in part).removeprefix("python\n")
    names: dict = {"timm": __import__("timm"), "torch": torch}
    exec(snippet.replace("OUT/", f"{trained}/"), names)
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.transforms.functional import normalize, pil_to_tensor

    from common.images import open_rgb

    pixels = normalize(
        pil_to_tensor(open_rgb(photos / rows[3]["path"])) / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    )
    values, order = names["model"].eval()(pixels[None]).softmax(1)[0].topk(2)
    assert [names["run"]["run"]["classes"][index] for index in order] == [rows[3]["label"], rows[3]["second"]]
    assert float(rows[3]["probability"]) == pytest.approx(values[0].item(), abs=1e-3)
    assert float(rows[3]["margin"]) == pytest.approx((values[0] - values[1]).item(), abs=1e-3)


def test_predictions_are_the_same_by_two_processes_in_other_batches(run_script, photos, trained, tmp_path):
    alone = run_predict(trained / "checkpoint.pth", photos, tmp_path / "alone.csv")
    options = ["--checkpoint", trained / "checkpoint.pth", "--data_path", photos, "--output", tmp_path / "two.csv"]
    run_script("deit/predict.py", *options, "--batch-size", 5, "--device", "cpu", launcher=launch_two(29733))
    assert [row["label"] for row in read_csv(tmp_path / "two.csv")] == [row["label"] for row in alone]
    assert not list(tmp_path.glob("*.partial*"))


def test_interrupted_predictions_are_resumed(photos, trained, tmp_path, monkeypatch):
    expected = run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv", "--batch-size", 5)
    (tmp_path / "p.csv").unlink()
    seen = []
    write = predict.FeatureFile.write

    def interrupted(self, rows, *values):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(rows)
        write(self, rows, *values)

    monkeypatch.setattr(predict.FeatureFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv", "--batch-size", 5)
    assert not (tmp_path / "p.csv").exists()
    again = []
    monkeypatch.setattr(
        predict.FeatureFile, "write", lambda self, rows, *v: (again.append(rows), write(self, rows, *v))
    )
    assert (
        run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv", "--batch-size", 5, "--resume") == expected
    )
    assert again and not set(again) & set(seen)


def test_the_least_certain_images_are_a_list_to_label_without_those_that_are(photos, labels, trained, tmp_path):
    rows = run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv", "--least_certain", 4, "--labels", labels)
    listed = read_csv(tmp_path / "p_least_certain.csv")
    known = {row["path"] for row in read_csv(labels)}
    open_rows = sorted((row for row in rows if row["path"] not in known), key=lambda row: float(row["margin"]))
    assert {row["path"] for row in listed} == {row["path"] for row in open_rows[:4]}
    elsewise = write_csv(
        tmp_path / "elsewise.csv", [(f"./x/../{row['path']}", row["label"]) for row in read_csv(labels)]
    )
    options = "--least_certain", 4, "--labels", elsewise
    run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv", *options)
    assert read_csv(tmp_path / "p_least_certain.csv") == listed
    assert {row["label"] for row in listed} == {""} and listed[0]["predicted"] == open_rows[0]["label"]


def test_lists_and_hugging_face_data_sets_are_predicted_too(photos, trained, hf_table, tmp_path):
    whole = {row["path"]: row["label"] for row in run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv")}
    listed = write_csv(photos / "some.csv", [(image_path(3), ""), (image_path(1), "")])
    rows = run_predict(trained / "checkpoint.pth", listed, tmp_path / "some.csv")
    listed.unlink()
    assert [row["label"] for row in rows] == [whole[image_path(3)], whole[image_path(1)]]
    elsewhere = write_csv(tmp_path / "elsewhere.csv", [(str(photos / image_path(3)), "")])
    (row,) = run_predict(trained / "checkpoint.pth", elsewhere, tmp_path / "one.csv")
    assert (tmp_path / row["path"]).samefile(photos / image_path(3)) and row["label"] == whole[image_path(3)]
    hf_table.to_parquet(tmp_path / "insects.parquet")
    rows = run_predict(trained / "checkpoint.pth", tmp_path / "insects.parquet", tmp_path / "hf.csv")
    assert [row["label"] for row in rows] == [whole[image_path(number)] for number in range(6)]


def test_an_unreadable_image_is_told_and_the_others_are_predicted(trained, tmp_path, capsys):
    for number in range(3):
        write_image(tmp_path / "pool" / f"{number}.png", number)
    (tmp_path / "pool" / "1.png").write_bytes(b"no image")
    rows = run_predict(trained / "checkpoint.pth", tmp_path / "pool", tmp_path / "p.csv")
    assert [bool(row["label"]) for row in rows] == [True, False, True]
    assert "1 (1.png) images cannot be used and have no label: cannot read the image" in capsys.readouterr().out


def test_predictions_overwrite_nothing_that_is_read(photos, labels, trained, tmp_path):
    listed = write_csv(tmp_path / "some.csv", [(str(photos / image_path(3)), "")])
    own = write_csv(tmp_path / "p_least_certain.csv", read_rows := [(image_path(0), "ant"), (image_path(1), "bee")])
    for data, output, options in (
        (listed, listed, ()),
        (photos, trained / "checkpoint.pth", ()),
        (photos, own, ("--least_certain", 3, "--labels", own)),
        (photos, tmp_path / "p.csv", ("--least_certain", 3, "--labels", own)),
    ):
        with pytest.raises(InputError, match="is read by this command, which would overwrite it"):
            run_predict(trained / "checkpoint.pth", data, output, *options)
    assert [tuple(row.values()) for row in read_csv(own)] == read_rows and not (tmp_path / "p.csv").exists()


def test_images_that_the_model_cannot_take_are_told_why(trained, tmp_path, capsys):
    write_image(tmp_path / "pool" / "1.png", 1)
    write_image(tmp_path / "pool" / "2.png", 2, (40, 48))
    run_predict(trained / "checkpoint.pth", tmp_path / "pool", tmp_path / "p.csv")
    assert "1 (2.png) images cannot be used and have no label: an image is 40x48 pixels" in capsys.readouterr().out
    (tmp_path / "pool" / "1.png").unlink()
    with pytest.raises(InputError, match="none of the 1 images can be used: an image is 40x48 pixels"):
        run_predict(trained / "checkpoint.pth", tmp_path / "pool", tmp_path / "q.csv")
    assert not (tmp_path / "q.csv").exists()


def test_a_model_of_a_single_class_is_refused(photos, trained, tmp_path):
    checkpoint = torch.load(trained / "checkpoint.pth", weights_only=True)
    checkpoint["run"]["classes"] = ["ant"]
    for name in ("head.weight", "head.bias"):
        checkpoint["model"][name] = checkpoint["model"][name][:1]
    torch.save(checkpoint, tmp_path / "one.pth")
    with pytest.raises(InputError, match="knows only 'ant': there is nothing to predict"):
        run_predict(tmp_path / "one.pth", photos, tmp_path / "p.csv")


def test_an_image_alone_in_its_batch_is_predicted(photos, trained, tmp_path):
    together = run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv")
    alone = run_predict(trained / "checkpoint.pth", photos, tmp_path / "q.csv", "--batch_size", 1)
    assert [row["label"] for row in alone] == [row["label"] for row in together]


def test_a_checkpoint_without_class_names_is_refused_before_the_work(photos, trained, backbone, tmp_path):
    checkpoint = torch.load(trained / "checkpoint.pth", weights_only=True)
    del checkpoint["run"]["classes"]
    torch.save(checkpoint, tmp_path / "old.pth")
    for source, message in ((tmp_path / "old.pth", "holds no class names"), (backbone, "bare weights")):
        with pytest.raises(InputError, match=message):
            run_predict(source, photos, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_names_of_any_encoding_survive_the_csv(tmp_path):
    names = [f"caf\udce9 {index}.png" for index in range(40)]
    features = clustered(tmp_path)
    write_image_paths(features, tmp_path, [str(tmp_path / name) for name in names])
    for name in names:
        (tmp_path / name).touch()
    subset = choose(features, tmp_path / "out", "--number", 3, "--export_csv", method="random")
    listed = read_image_list(subset.with_name(f"{subset.stem}_labels.csv"))
    assert sorted(image.path for image in listed) == [names[index] for index in json.loads(subset.read_text())]


# The report


def report(features: Path, out: Path, *options: object) -> dict:
    from data_selection.sample_tools import report as report_script

    given = ["--feature_path", features, "--output_dir", out, "--random_seeds", 2, "--device", "cpu", *options]
    report_script.main([str(option) for option in given])
    return json.loads((out / "report.json").read_text())


def page_data(folder: Path) -> dict:
    html = (folder / "report.html").read_text()
    return json.loads(html.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def test_a_subset_chosen_beside_labels_is_measured_together_with_them(features, tmp_path):
    first = choose(features, tmp_path, "--number", 5, "--export_csv")
    labels = fill_in(first.with_name(f"{first.stem}_labels.csv"))
    second = choose(features, tmp_path / "2", "--number", 4, "--labeled_ids", labels)
    both = sorted(json.loads(first.read_text()) + json.loads(second.read_text()))
    (tmp_path / "both.json").write_text(json.dumps(both))
    beside = report(features, tmp_path / "r1", "--subset_ids", second, "--labeled_ids", labels)
    whole = report(features, tmp_path / "r2", "--subset_ids", tmp_path / "both.json")
    assert beside["subsets"][0]["ids"] == both and beside["labeled"] == json.loads(first.read_text())
    assert beside["subsets"][0]["values"] == whole["subsets"][0]["values"]
    assert beside["random"][0]["k"] == 9 and beside["random"][0]["each"] != whole["random"][0]["each"]
    names = {str(index): label_of(read_pool_paths(features, N).paths[index]) for index in json.loads(first.read_text())}
    assert names.items() <= beside["given_labels"].items()


def test_the_report_shows_labels_and_predictions(features, photos, trained, labels, tmp_path):
    run_predict(trained / "checkpoint.pth", photos, tmp_path / "p.csv")
    subset = choose(features, tmp_path, "--number", 5, method="random")
    shown = ["--subset_ids", subset, "--labels", labels, "--predictions", tmp_path / "p.csv"]
    written = report(features, tmp_path / "report", *shown)
    predicted = [row["label"] for row in read_csv(tmp_path / "p.csv")]  # in the pool's order
    assert written["predictions"] == {str(row): label for row, label in enumerate(predicted)}
    assert len(written["given_labels"]) == 12
    with pytest.raises(InputError, match="not in the pool"):
        report(features, tmp_path / "r", *shown[:2], "--labels", write_csv(tmp_path / "l.csv", [("gone.png", "ant")]))


def test_the_report_lists_groups_of_near_duplicates_of_the_pool(tmp_path):
    features = clustered(tmp_path)
    (tmp_path / "S.json").write_text("[0, 20]")
    found = report(features, tmp_path / "report", "--subset_ids", tmp_path / "S.json")["duplicates"]
    assert (found["groups"], found["images"]) == (8, 40)
    assert found["shown"][0] == {"size": 5, "ids": [0, 1, 2, 3, 4], "strip": None}


def test_groups_of_near_duplicates_are_those_of_a_plain_loop(monkeypatch):
    from data_selection.evidence import duplicates

    rows = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    begins: list[int] = [7, 100]
    for row in (row for row in range(300) if row not in (7, 100)):
        if not any(rows[row] @ rows[first] >= 0.98 for first in begins):
            begins.append(row)
    monkeypatch.setattr(duplicates, "ROWS_AT_A_TIME", 64)
    group = duplicates.duplicate_of(rows, 0.98, first=[7, 100])
    assert (group == torch.arange(300)).nonzero().squeeze(1).tolist() == sorted(begins)
    assert ((rows * rows[group]).sum(dim=1) >= 0.98 - 1e-6).all()


# Hugging Face data sets that cannot be used


def test_the_split_of_a_folder_of_parquet_files_is_in_their_names_not_in_its_own(hf_table, tmp_path):
    from common.hf_images import HFImages

    folder = tmp_path / "train_photos"
    folder.mkdir()
    hf_table.to_parquet(folder / "part_0.parquet")
    assert len(HFImages(str(folder), "val")) == len(hf_table)  # no file names a split: all are the pool
    (folder / "part_0.parquet").rename(folder / "test.parquet")
    assert len(HFImages(str(folder), "test")) == len(hf_table)
    for split in ("train", "val"):
        with pytest.raises(InputError, match=f"has no split '{split}', only test: use --split"):
            HFImages(str(folder), split)


def test_a_split_is_not_found_inside_another_word(hf_table, tmp_path):
    from common.hf_images import HFImages

    hf_table.to_parquet(tmp_path / "latest_train-0.parquet")
    hf_table.select([0]).to_parquet(tmp_path / "latest_test-0.parquet")
    assert len(HFImages(str(tmp_path), "test")) == 1


def test_a_hugging_face_image_without_content_is_one_that_cannot_be_read(hf_table, backbone, tmp_path):
    table = hf_table.select_columns("photo").to_dict()
    first_is_missing = [None, *table["photo"][1:]]
    type(hf_table).from_dict({"photo": first_is_missing}, hf_table.select_columns("photo").features).to_parquet(
        tmp_path / "holes.parquet"
    )
    with pytest.raises(InputError, match=r"it has no content \(1 of 6, "):
        extract(tmp_path / "holes.parquet", tmp_path, backbone, "--dataset", "HF")


def test_exports_of_file_names_are_refused_where_images_are_no_files(hf_table, backbone, tmp_path):
    hf_table.to_parquet(tmp_path / "insects.parquet")
    features = extract(tmp_path / "insects.parquet", tmp_path, backbone, "--dataset", "HF")
    for export in (["--export_paths"], ["--export_tasks", "label-studio"]):
        with pytest.raises(InputError, match=f"{export[0]} names files, but the images of .* are not files"):
            choose(features, tmp_path, "--number", 3, *export)


def two_columns(hf_table, photos: list, others: list):
    import datasets

    kinds = datasets.Features(dict.fromkeys(("photo", "other"), hf_table.features["photo"]))
    return datasets.Dataset.from_dict({"photo": photos, "other": others}, kinds)


def test_another_column_or_other_images_of_a_hugging_face_data_set_are_never_taken_for_the_first(
    hf_table, backbone, tmp_path
):
    photos = hf_table.select_columns("photo").to_dict()["photo"]
    table = two_columns(hf_table, photos, photos[::-1])
    table.to_parquet(pool := tmp_path / "insects.parquet")
    options = (pool, tmp_path, backbone, "--dataset", "HF", "--resume")
    features = extract(*options, "--image_column", "photo")
    with pytest.raises(InputError, match="is finished, but has the images of column photo"):
        extract(*options, "--image_column", "other")
    table.select([*range(1, len(table)), 0]).to_parquet(pool)
    with pytest.raises(InputError, match="is finished, but has other images"):
        extract(*options, "--image_column", "photo")
    with pytest.raises(InputError, match="has other images now: extract again"):
        choose(features, tmp_path, "--number", 2, "--copy_images", tmp_path / "copies")


def test_the_unfinished_features_of_one_column_are_not_continued_with_another(hf_table, backbone, tmp_path):
    photos = hf_table.select_columns("photo").to_dict()["photo"]
    two_columns(hf_table, [None, *photos[1:]], photos).to_parquet(pool := tmp_path / "holes.parquet")
    with pytest.raises(InputError, match="has no content"):
        extract(pool, tmp_path, backbone, "--dataset", "HF", "--image_column", "photo")
    with pytest.raises(InputError, match="image_column was photo, is other"):
        extract(pool, tmp_path, backbone, "--dataset", "HF", "--image_column", "other", "--resume")


def test_whole_numbers_in_a_column_label_are_the_labels_of_a_hugging_face_data_set(hf_table, backbone, tmp_path):
    import datasets

    numbers = hf_table.select_columns("photo").add_column("label", [3, 1, 2, 0, 1, 7][: len(hf_table)])
    assert isinstance(numbers.features["label"], datasets.Value)
    numbers.to_parquet(tmp_path / "numbers.parquet")
    features = extract(tmp_path / "numbers.parquet", tmp_path, backbone, "--dataset", "HF")
    assert read_features(features)[1].tolist() == [3, 1, 2, 0, 1, 7][: len(hf_table)]
    ids = hf_table.select_columns("photo").add_column("label", [2**40 + row for row in range(len(hf_table))])
    ids.to_parquet(tmp_path / "ids.parquet")
    features = extract(tmp_path / "ids.parquet", tmp_path, backbone, "--dataset", "HF")
    assert set(read_features(features)[1]) == {-1}


def test_without_the_library_a_hugging_face_data_set_is_one_clear_line(backbone, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "datasets" else find(name, *rest)
    )
    with pytest.raises(InputError, match="pip install datasets"):
        extract(tmp_path / "x.parquet", tmp_path, backbone, "--dataset", "HF")


def test_unusable_hugging_face_data_sets_are_one_clear_line(hf_table, photos, backbone, tmp_path):
    import datasets

    datasets.DatasetDict({"train": hf_table, "test": hf_table}).save_to_disk(tmp_path / "splits")
    renamed = hf_table.select_columns("photo").rename_column("photo", "photo 2")
    datasets.concatenate_datasets([hf_table, renamed], axis=1).to_parquet(tmp_path / "two.parquet")
    hf_table.remove_columns("photo").to_parquet(tmp_path / "none.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"no parquet")
    for source, options, message in (
        ("splits", ["--split", "validation"], "no split 'validation', only train, test"),
        ("two.parquet", [], "name one with --image_column"),
        ("two.parquet", ["--image_column", "photos"], "no column 'photos', only photo, kind, photo 2"),
        ("none.parquet", [], "none of kind holds images"),
        ("damaged.parquet", [], "cannot load the data set"),
    ):
        with pytest.raises(InputError, match=message):
            extract(tmp_path / source, tmp_path, backbone, "--dataset", "HF", *options)
    named = extract(tmp_path / "two.parquet", tmp_path, backbone, "--dataset", "HF", "--image_column", "photo")
    assert len(read_features(named)[0]) == 6


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a.png", "ant")], ("file", "label"), "no column `path`; its columns are file, label"),
        (
            [("gone 1.png",), ("gone 2.png",), ("gone 3.png",), ("gone 4.png",)],
            ("path",),
            r"4 \(.*gone 3.png, ...\) of 4",
        ),
    ],
)
def test_unusable_lists_are_one_clear_line_of_the_extraction(rows, columns, message, backbone, tmp_path):
    with pytest.raises(InputError, match=message):
        extract(write_csv(tmp_path / "l.csv", rows, columns), tmp_path / "out", backbone, "--dataset", "List")
    assert not list(tmp_path.glob("out/*.npy*"))


def test_an_unreadable_image_of_a_hugging_face_data_set_is_named(hf_table, backbone, tmp_path):
    import datasets

    raw = hf_table.cast_column("photo", datasets.Image(decode=False))
    damaged = raw.map(lambda row, i: {"photo": {"bytes": b"none" if i == 2 else row["photo"]["bytes"], "path": None}},
                      with_indices=True)  # fmt: skip
    damaged.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(InputError, match=r"train_2.png of .*some.parquet.* \(1 of 6"):
        extract(tmp_path / "some.parquet", tmp_path, backbone, "--dataset", "HF")


def test_a_hugging_face_data_set_is_found_again_from_another_folder(hf_table, backbone, tmp_path, monkeypatch):
    hf_table.to_parquet(tmp_path / "insects.parquet")
    monkeypatch.chdir(tmp_path)
    features = extract("insects.parquet", tmp_path, backbone, "--dataset", "HF")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    choose(features, tmp_path, "--number", 2, "--copy_images", "chosen")
    assert len([*(tmp_path / "elsewhere" / "chosen").iterdir()]) == 2


def test_a_space_beside_a_file_name_survives_the_exported_csv(tmp_path):
    for column in ("represents", "predicted"):
        rows = [("a.png", "ant", 1), (" b.png", "bee", 2), ("by hand.png ", "ant", "")]
        write_csv(tmp_path / "S.csv", rows, columns=("path", "label", column))
        assert [image.path for image in read_image_list(tmp_path / "S.csv")] == ["a.png", " b.png", "by hand.png"]
    (tmp_path / "typed.csv").write_text("path, label\na.png , ant\n")
    assert read_image_list(tmp_path / "typed.csv")[0] == ("a.png", "ant", False)


def test_the_report_of_features_alone_takes_the_option_of_the_selection(tmp_path):
    np.save(tmp_path / "alone.npy", np.load(clustered(tmp_path))[:, :-1])
    (tmp_path / "S.json").write_text("[0, 20]")
    written = report(tmp_path / "alone.npy", tmp_path / "report", "--subset_ids", tmp_path / "S.json", "--no-labels")
    assert (written["n"], len(written["subsets"][0]["ids"])) == (40, 2)


def test_one_image_by_two_paths_has_one_label(photos, backbone, tmp_path):
    rows = [(image_path(number), label_of(image_path(number))) for number in range(6)]
    other = "cat" if rows[0][1] != "cat" else "ant"
    twice = write_csv(tmp_path / "twice.csv", [*rows, (f"{photos}/{rows[0][0]}", other)])
    given = ["--data-set", "CSV", "--data-path", str(photos), "--resume", str(backbone), "--device", "cpu", "--model"]
    with pytest.raises(InputError, match="has two labels: "):
        deit_main.main([*given, *MODEL, "--labels", str(twice)])
    with pytest.raises(InputError, match="has a label without a path: 'ant'"):
        deit_main.main([*given, *MODEL, "--labels", str(write_csv(tmp_path / "no.csv", [*rows, ("", "ant")]))])
