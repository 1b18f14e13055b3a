"""Finetuning that starts from the linear readout (--head-init linear), --freeze and --layer-decay."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_VIT_OPTIONS, launch_two

from common.batch_stream import EpochPlan
from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.readouts import as_linear_layer, fit_readout, linear_readout
from common.training import to_network
from deit.builders import build_state
from deit.datasets import build_datasets, labels_of
from deit.frozen_features import FrozenFeatures, head_and_soft_labels
from deit.main import main
from deit.models import build_model, linear_head, load_weights
from deit.recipe_options import parse_args
from experiments.digits_pool import write_digits_pool

DIGITS_VIT = ROOT / "experiments" / "digits_vit.pth"
DIGITS_MODEL = ["--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=32", "patch_size=8", "embed_dim=96",
                "depth=4", "num_heads=3"]  # fmt: skip
TINY = ["--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "pool"
    write_digits_pool(folder)
    return folder


def digit_options(digits: Path, subset: list[int], tmp_path: Path, *extra: object) -> list[str]:
    (tmp_path / "subset.json").write_text(json.dumps(subset))
    given = ["--data-set", "IMNETSUBSET", "--data-path", digits, "--subset_ids", tmp_path / "subset.json",
             "--resume", DIGITS_VIT, "--device", "cpu", "--num_workers", 0, "--total-batch-size", 32,
             *extra]  # fmt: skip
    return [*DIGITS_MODEL, *map(str, given)]


def random_subset(digits: Path, k: int, of_classes: int = 10) -> list[int]:
    """k of the images of the first classes, each of which has at least one of them."""
    labels = np.array(labels_of(build_datasets(parse_args([
        "--data-set", "IMNET", "--data-path", str(digits), "--input-size", "32"])).train))  # fmt: skip
    random = np.random.default_rng(0)
    first = [random.choice(np.flatnonzero(labels == label)) for label in range(of_classes)]
    rest = np.setdiff1d(np.flatnonzero(labels < of_classes), first)
    return [int(index) for index in (*first, *random.choice(rest, k - of_classes, replace=False))]


def pool_options(pool: Path, backbone: Path, *extra: object, model: list[str] = TINY) -> list[str]:
    given = ["--data-set", "IMNET", "--data-path", pool, "--resume", backbone, "--device", "cpu", "--num_workers", 0,
             "--warmup-epochs", 0, "--batch-size", 16, *extra]  # fmt: skip
    return [*model, *map(str, given)]


@pytest.mark.parametrize("of_classes", [10, 7, 2])
def test_the_first_head_predicts_what_the_readout_does_for_every_image_and_never_an_unlabelled_class(
    of_classes, digits, tmp_path
):
    args = parse_args(digit_options(digits, random_subset(digits, 28, of_classes), tmp_path, "--head-init", "linear"))
    data, device = build_datasets(args), torch.device("cpu")
    model = build_model(args, 10)
    load_weights(args, model, data.classes)
    features_of = FrozenFeatures(model, device, 64)
    (weight, bias), _ = head_and_soft_labels(features_of, data, "--head-init linear needs images")
    linear_head(args, model).load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    train, labels = features_of(data.as_evaluated(data.train))
    val, _ = features_of(data.val)
    pixels = torch.stack([data.val[row][0] for row in range(len(data.val))])
    with torch.inference_mode():
        logits = model.eval()(to_network((pixels, torch.zeros(1)), device, model)[0])
    expected = fit_readout("linear", train, labels, 10).predict(val)
    assert (logits.argmax(dim=1).numpy() == expected).all()
    assert logits[:, of_classes:].numel() == 0 or logits[:, of_classes:].max() < -9 < 0 <= logits.max(dim=1)[0].min()


def test_evaluated_before_the_first_update_the_linear_head_has_the_accuracy_of_the_probe(digits, tmp_path):
    common = digit_options(digits, random_subset(digits, 28), tmp_path)
    probed = main([*common, "--probe", "linear"])["last"]["test"]
    kept = ["--epochs", "1", "--lr", "1e-12", "--warmup-lr", "0", "--drop-path", "0"]
    summary = main([*common, "--head-init", "linear", *kept])
    assert summary["best"]["linear_readout"]["acc1"] == probed["acc1"] > 80
    assert summary["last"]["test"]["acc1"] == summary["last"]["test_ema"]["acc1"] == probed["acc1"]


def test_few_labels_makes_its_updates_from_the_readout_and_ends_above_it(digits, tmp_path):
    common = digit_options(digits, random_subset(digits, 28), tmp_path, "--output_dir", tmp_path / "run")
    summary = main([*common, "--recipe", "few-labels", "--updates", "40", "--hflip", "0"])
    assert summary["epochs"] == 1 and summary["unlabelled"] == 1409  # 28 x 25 labelled ones beside: 66 updates of 32
    readout, last = summary["best"]["linear_readout"]["acc1"], summary["last"]["test"]["acc1"]
    assert last - 1 > readout > 80
    trained = read_checkpoint(tmp_path / "run" / "checkpoint.pth")["model"]
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], read_checkpoint(DIGITS_VIT)["blocks.0.attn.qkv.weight"])


def test_a_folded_layer_has_the_probabilities_of_the_readout():
    random = np.random.default_rng(0)
    for classes in (2, 4):
        labels = np.repeat(np.arange(classes), 9)
        features = 5 + random.standard_normal((len(labels), 6)) * [1, 2, 3, 0.1, 0, 7] + labels[:, None]
        readout = linear_readout(features, labels).fit(features, labels)
        weight, bias = as_linear_layer(readout, classes)
        probabilities = torch.from_numpy(features @ weight.T + bias).softmax(dim=1).numpy()
        np.testing.assert_allclose(probabilities, readout.predict_proba(features), atol=1e-10)


def test_two_processes_start_from_the_head_of_one_and_train_it_alike(run_script, digits, tmp_path):
    common = digit_options(digits, random_subset(digits, 28), tmp_path, "--head-init", "linear", "--epochs", 1,
                           "--freeze", "backbone", "--lr", 1)  # fmt: skip
    main([*common, "--output_dir", str(tmp_path / "one")])
    run_script("deit/main.py", *common, "--dist-eval", "--output_dir", tmp_path / "two", launcher=launch_two(29517))
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("one", "two"))
    assert one["best"]["linear_readout"]["acc1"] == two["best"]["linear_readout"]["acc1"]
    for kind in ("model", "model_ema"):
        torch.testing.assert_close(one[kind]["head.weight"], two[kind]["head.weight"], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_goes_on_with_its_head_and_another_start_is_another_run(pool, backbone, tmp_path):
    given = [*pool_options(pool, backbone, "--head-init", "linear", "--output_dir", tmp_path), "--auto-resume"]
    main([*given, "--epochs", "2"])
    start = read_checkpoint(tmp_path / "checkpoint.pth")["best"]["linear_readout"]
    summary = main([*given, "--epochs", "3"])
    assert summary["best"]["linear_readout"] == start
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.txt").read_text().splitlines()] == [0, 1, 2]
    for changed, message in (
        (["--head-init", "fresh"], "head_init was linear, is fresh"),
        (["--freeze", "backbone"], "freeze was none, is backbone"),
        (["--layer-decay", "0.5"], "layer_decay was None, is 0.5"),
        (["--hflip", "0"], "hflip was 0.5, is 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            main([*given, "--epochs", "4", *changed])


@pytest.mark.parametrize("model", [TINY, ["--model", "resnet10t", "--input-size", "32"]], ids=["vit", "resnet"])
def test_a_frozen_backbone_keeps_every_bit_while_the_head_and_its_average_learn(model, pool, tmp_path):
    """Batch norm's statistics included."""
    backbone = build_model(parse_args(model), 3).state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    main(pool_options(pool, tmp_path / "backbone.pth", "--freeze", "backbone", "--lr", 1, "--model-ema-warmup",
                      "--epochs", 2, "--output_dir", tmp_path, model=model))  # fmt: skip
    trained = read_checkpoint(tmp_path / "checkpoint.pth")
    for kind in ("model", "model_ema"):
        changed = {name for name, value in trained[kind].items() if not torch.equal(value, backbone[name])}
        assert len(changed) == 2 and all(name.startswith(("head.", "fc.")) for name in changed)


def test_a_frozen_backbone_has_no_stochastic_depth(pool, backbone):
    """The rate of it changes no update: the loss on the evaluation split is the same to the last digit."""
    common = pool_options(pool, backbone, "--freeze", "backbone", "--epochs", 1)
    losses = {main([*common, "--drop-path", rate])["last"]["test"]["loss"] for rate in ("0", "0.9")}
    assert len(losses) == 1


def test_a_frozen_run_taken_up_again_ends_like_an_undisturbed_one(pool, backbone, tmp_path):
    given = ["--freeze", "backbone", "--lr", 1, "--sched", "step", "--auto-resume", "--output_dir"]
    for name, lengths in (("undisturbed", [4]), ("resumed", [2, 4])):
        for epochs in lengths:
            main(pool_options(pool, backbone, *given, tmp_path / name, "--epochs", epochs))
    one, other = (read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("undisturbed", "resumed"))
    for kind in ("model", "model_ema"):
        assert all(torch.equal(value, other[kind][name]) for name, value in one[kind].items())


def test_layer_decay_multiplies_the_rate_once_per_layer_below_the_head_and_keeps_the_no_decay_list():
    args = parse_args([*TINY, "--layer-decay", "0.5", "--warmup-epochs", "0"])
    model = build_model(args, 3)
    state = build_state(args, model, EpochPlan(512, 512, 512))
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    rates = {name_of[id(weight)]: group["lr"] for group in state.optimizer.param_groups for weight in group["params"]}
    decays = {name_of[id(w)]: group["weight_decay"] for group in state.optimizer.param_groups for w in group["params"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    assert state.lr == rates["head.weight"] == 0.01
    ratio = rates["blocks.0.mlp.fc1.weight"] / rates["blocks.1.mlp.fc1.weight"]
    assert ratio == pytest.approx(0.5) and rates["blocks.1.mlp.fc1.weight"] < rates["head.weight"]
    assert rates["patch_embed.proj.weight"] < rates["blocks.0.mlp.fc1.weight"]
    assert decays["pos_embed"] == decays["cls_token"] == decays["blocks.0.norm1.weight"] == 0
    assert decays["blocks.0.mlp.fc1.weight"] == 1e-4


def test_layer_decay_is_refused_for_a_network_without_layers_to_tell_apart():
    with pytest.raises(InputError, match="--layer-decay 0.5 has no effect"):
        build_state(parse_args([*TINY, "--layer-decay", "0.5"]), torch.nn.Linear(2, 2), EpochPlan(512, 512, 512))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--head-init", "linear", "--resume", ""], "--head-init linear needs --resume, the pretrained backbone"),
        (["--freeze", "backbone", "--resume", ""], "--freeze backbone needs --resume, the pretrained backbone"),
        (["--head-init", "linear", "--probe", "knn"], "--head-init linear is for training, and --probe trains nothing"),
        (["--hflip", "0", "--eval"], "--hflip 0.0 is for training, and --eval trains nothing"),
        (["--freeze", "backbone", "--layer-decay", "0.5"], "rates for a backbone that --freeze backbone keeps fixed"),
        (["--freeze", "backbone", "--drop", "0.1"], "--drop 0.1 has no effect with --freeze backbone"),
        (["--layer-decay", "1.5"], "1.5 must be at most 1"),
        (["--hflip", "-1"], "-1 must be at least 0"),
        (["--head-init", "linear", "--model", "deit_tiny_distilled_patch16_224"],
         "--head-init linear needs a model whose head is one linear layer"),
        (["--freeze", "backbone", "--model", "deit_tiny_distilled_patch16_224"],
         "--freeze backbone needs a model whose head is one linear layer"),
    ],
)  # fmt: skip
def test_options_are_refused_where_they_mean_nothing(given, message, pool, backbone):
    with pytest.raises(InputError, match=message):
        main([*pool_options(pool, backbone), *given])
