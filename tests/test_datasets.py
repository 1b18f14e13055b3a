"""The images that are trained and evaluated on, and what deit/main.py refuses before it starts."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY_VIT_OPTIONS, write_image, write_pool
from PIL import Image
from torchvision.datasets import CIFAR10

from common.errors import InputError
from deit.datasets import build_datasets, inaturalist
from deit.main import main
from deit.recipe_options import parse_args


def test_only_the_training_split_is_restricted_to_the_subset(pool, tmp_path):
    (tmp_path / "s.json").write_text("[29, 0, 11]")
    args = parse_args(["--data-set", "IMNETSUBSET", "--data-path", str(pool), "--subset_ids", str(tmp_path / "s.json"),
                       "--input-size", "32"])  # fmt: skip
    data = build_datasets(args)
    assert (len(data.train), len(data.val), data.classes) == (3, 6, ["ant", "bee", "cat"])
    assert [data.train[position][1] for position in range(3)] == [2, 0, 1]


def test_several_subsets_are_trained_on_together(pool, tmp_path):
    (tmp_path / "labelled.json").write_text("[4, 20]")
    (tmp_path / "chosen.json").write_text("[1, 20]")
    args = parse_args(["--data-set", "IMNETSUBSET", "--data-path", str(pool), "--input-size", "32",
                       "--subset_ids", str(tmp_path / "labelled.json"), str(tmp_path / "chosen.json")])  # fmt: skip
    assert [build_datasets(args).train.indices] == [[4, 20, 1]]


def test_imagenet_is_found_where_feature_extraction_looks_for_it(tmp_path):
    write_pool(tmp_path / "data" / "ImageNet", 1, 1)
    args = parse_args(["--data-set", "IMNET", "--data-path", str(tmp_path / "data"), "--input-size", "32"])
    assert len(build_datasets(args).train) == 3


@pytest.fixture
def inat(tmp_path):
    """iNaturalist 2018 in torchvision's layout: category ids 0 to 2, two images of each, one for each split."""
    taxa = ["Aves/0", "Aves/2", "Plantae/1"]
    for number, taxon in enumerate(taxa):
        for split in ("t", "v"):
            write_image(tmp_path / "2018" / taxon / f"{split}.jpg", number)
    for split, stem in (("train", "t"), ("val", "v")):
        images = [{"file_name": f"train_val2018/{taxon}/{stem}.jpg"} for taxon in taxa]
        (tmp_path / f"{split}2018.json").write_text(json.dumps({"images": images}))
    orders = {0: "Passeriformes", 1: "Rosales", 2: "Passeriformes"}
    categories = [{"id": number, "order": order} for number, order in orders.items()]
    (tmp_path / "categories.json").write_text(json.dumps(categories))
    return tmp_path


@pytest.mark.parametrize(
    ("category", "labels", "nb_classes"),
    [("name", [0, 1, 2], 3), ("supercategory", [0, 1, 0], 2), ("order", [0, 1, 0], 2)],
)
def test_inaturalist_splits_by_its_annotations_and_labels_by_the_category_asked_for(inat, category, labels, nb_classes):
    for split, file in (("train", "t.jpg"), ("val", "v.jpg")):
        images = inaturalist(inat, "2018", split, category, None)
        assert [images[row][1] for row in range(len(images))] == labels and len(images.classes) == nb_classes
        assert {Path(path).name for path, _ in images.samples} == {file}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-set", "CIFAR10SUBSET"], "--data-set CIFAR10SUBSET needs --subset_ids"),
        (["--subset_ids", "s.json"], "--data-set IMNET does not take --subset_ids"),
        (["--data-set", "MNIST"], "invalid choice: 'MNIST'"),
        (["--data-path", "/nowhere"], "image folder .*nowhere.* is not there"),
        (["--data-set", "INAT", "--data-path", "."], "iNaturalist 2018 is not in 2018"),
        (["--model", "deit_smal"], "model 'deit_smal' is not known to timm"),
        (["--opt", "sgdd"], "--opt sgdd is not known to timm"),
        (["--epochs", "0"], "0 must be at least 1"),
        (["--lr", "nan"], "'nan' is not a finite number"),
        (["--smoothing", "1"], "1 must be below 1"),
        (["--aa", "rnd-m9"], "--aa rnd-m9 is not an AutoAugment policy of timm"),
        (["--distillation-type", "hard"], "--distillation-type hard needs --teacher-path"),
        (["--distillation-type", "hard", "--teacher-path", "t.pth"], "needs a distilled model"),
        (["--start_epoch", "5", "--epochs", "5"], "starting at epoch 5 of --epochs 5 leaves nothing to train"),
        (["--input-size", "16"], "an image is 32x32 pixels"),
        (["--input-size", "48"], "img_size=32 in --model-kwargs and an input size of 48 differ"),
        (["--output_dir", "/proc/nowhere"], "cannot write into the output folder"),
        (["--resume", "gone.pth"], "checkpoint gone.pth is not there"),
        (["--resume", "misfit.pth"], "does not fit the model VisionTransformer: .*unexpected: stem.weight"),
    ],
)
def test_an_unusable_option_is_one_clear_line(options, message, pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"stem.weight": torch.zeros(1)}, "misfit.pth")
    common = ["--device", "cpu", "--num_workers", "0", "--data-set", "IMNET", "--data-path", str(pool), "--epochs", "1",
              "--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS]  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        main([*common, *options])
    assert "\n" not in str(caught.value)


def test_the_classes_are_those_of_both_splits_and_one_that_nobody_labelled_is_said_to_be_wrong(tmp_path):
    write_pool(tmp_path, 2, 1)
    (tmp_path / "train" / "bat").mkdir()  # no image of it was labelled
    for number in (1, 2):
        write_image(tmp_path / "val" / "bat" / f"{number}.png", number)
    write_image(tmp_path / "train" / "dog" / "1.png", 1)
    (tmp_path / "s.json").write_text("[0, 1, 4, 5, 6]")  # no bee
    given = ["--data-set", "IMNETSUBSET", "--data-path", tmp_path, "--subset_ids", tmp_path / "s.json"]
    data = build_datasets(parse_args(list(map(str, [*given, "--input-size", 32]))))
    assert data.classes == ["ant", "bat", "bee", "cat", "dog"]
    assert [data.train[index][1] for index in range(5)] == [0, 0, 3, 3, 4]
    assert [data.val[index][1] for index in range(5)] == [0, 1, 1, 2, 3]
    assert data.classes_without_images() == (
        "2 of 5 classes have no image to train on (bat, bee): their 3 evaluation images count as errors"
    )


def test_a_class_that_nobody_labelled_counts_as_errors(tmp_path, backbone, capsys):
    """Images of one colour per class are told apart by any features; a third of the evaluation is of an unknown one."""
    for split, shades in (("train", (0, 8)), ("val", (3, 5))):
        for number, name in enumerate(CLASSES):
            for shade in shades if (split, name) != ("train", "bee") else ():
                path = tmp_path / split / name / f"{shade}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (100 * number, 255 - 100 * number, shade)).save(path)
    common = ["--device", "cpu", "--num_workers", "0", "--data-set", "IMNET", "--data-path", str(tmp_path),
              "--resume", str(backbone), "--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS]  # fmt: skip
    summary = main([*common, "--probe", "knn"])
    assert summary["last"]["test"]["acc1"] == pytest.approx(200 / 3)
    main([*common, "--epochs", "1", "--confusion-matrix", "--output_dir", str(tmp_path / "out")])
    said = "1 of 3 classes have no image to train on (bee): their 2 evaluation images count as errors"
    assert capsys.readouterr().out.count(said) == 2


def test_splits_without_a_class_in_common_are_refused(tmp_path):
    write_image(tmp_path / "train" / "Ant" / "1.png", 1)
    write_image(tmp_path / "val" / "ant" / "1.png", 1)
    with pytest.raises(InputError, match="have no class folder in common"):
        build_datasets(parse_args(["--data-set", "IMNET", "--data-path", str(tmp_path)]))


def test_a_corrupt_training_image_is_named(tmp_path, backbone):
    write_pool(tmp_path, 4, 1)
    bad = tmp_path / "train" / "bee" / "002.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot read the image .*bee/002.png") as caught:
        main(["--device", "cpu", "--num_workers", "1", "--data-set", "IMNET", "--data-path", str(tmp_path),
              "--epochs", "1", "--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS,
              "--resume", str(backbone)])  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_where_to_put_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "https://localhost:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match="put it at .*/cifar-10-python.tar.gz"):
        main(["--device", "cpu", "--data-path", str(tmp_path)])


def test_own_folders_are_turned_upright_and_imagenets_are_as_published(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 30)).save(tmp_path / split / name / "0.jpg", exif=exif)
    (tmp_path / "s.json").write_text("[1]")
    given = ["--data-path", str(tmp_path), "--input-size", "48", "--subset_ids", str(tmp_path / "s.json")]
    for name, size in (("FOLDERSUBSET", (30, 40)), ("IMNETSUBSET", (40, 30))):
        assert build_datasets(parse_args(["--data-set", name, *given])).train[0][0].size == size


@pytest.mark.parametrize(
    ("file", "content", "category"),
    [
        ("categories.json", '[{"id": 0}]', "order"),
        ("categories.json", '{"a": 0}', "order"),
        ("val2018.json", "[]", "name"),
        ("val2018.json", '{"images": [{"id": 3}]}', "name"),
        ("val2018.json", '{"images": null}', "name"),
    ],
)
def test_annotations_of_another_form_are_one_line(file, content, category, inat):
    (inat / file).write_text(content)
    with pytest.raises(InputError, match="are not iNaturalist's of 2018, or of another form: "):
        inaturalist(inat, "2018", "val", category, None)
