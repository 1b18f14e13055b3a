"""What timm must still do as it did for the published recipe, checked rather than believed."""

import math
import re

import pytest
import timm
import torch
import torchvision.transforms as T
from conftest import TINY_VIT_OPTIONS
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from common.batch_stream import EpochPlan, seed_augmentation
from common.errors import InputError
from common.networks import create_network, input_size
from common.processes import Processes
from common.training import to_network
from deit.builders import build_plan, build_state, run_length
from deit.datasets import eval_transform, train_transform
from deit.engine import end_epoch
from deit.models import build_model, check_network, is_distilled
from deit.recipe_options import FEW_LABELS, parse_args


def options(*extra: str):
    return parse_args(["--data-set", "IMNET", "--device", "cpu", *extra])


def tiny_options(*extra: str):
    return options("--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS, *extra)


@pytest.mark.parametrize(("total_batch", "processes"), [(256, 2), (512, 1), (64, 1)])
def test_learning_rate_of_each_epoch_follows_the_closed_form(total_batch, processes):
    args = tiny_options("--epochs", "20", "--batch-size", str(total_batch))
    _, plan = build_plan(args, 30, Processes(size=processes))
    state = build_state(args, build_model(args, 3), plan)
    peak = 0.01 * total_batch * processes / 512
    for epoch in range(20):
        t = max(0, epoch - 1)  # stepped at the end of each epoch with that epoch's number
        expected = (
            1e-6 + t * (peak - 1e-6) / 5 if t < 5 else 1e-5 + 0.5 * (peak - 1e-5) * (1 + math.cos(math.pi * t / 20))
        )
        assert all(group["lr"] == pytest.approx(expected, rel=1e-9) for group in state.optimizer.param_groups)
        end_epoch(state, evaluated=True)


def plateau_rates(evaluated: list[bool], *extra: str) -> list[float]:
    """The rate of each epoch, as a share of --lr, on a plateau of accuracy 0."""
    args = tiny_options("--epochs", "9", "--sched", "plateau", "--patience-epochs", "1", "--min-lr", "0", *extra)
    _, plan = build_plan(args, 30, Processes())
    state, rates = build_state(args, build_model(args, 3), plan), []
    for epoch_is_evaluated in evaluated:
        rates.append(round(state.lr / 0.005, 6))
        end_epoch(state, epoch_is_evaluated)
    return rates


def test_without_a_warm_up_the_plateau_schedule_starts_and_stays_at_its_rate():
    assert plateau_rates([True] * 4, "--warmup-epochs", "0") == [1, 1, 1, 0.1]


def test_epochs_without_an_evaluation_are_no_plateau():
    assert plateau_rates([False, False, True] * 3, "--warmup-epochs", "0") == [1] * 9
    assert plateau_rates([False] * 5, "--warmup-epochs", "2")[-2:] == [1, 1]


def test_images_per_process_replace_those_of_a_recipe():
    assert options("--recipe", "few-labels", "--resume", "W.pth").total_batch_size == 96
    assert options("--recipe", "few-labels", "--resume", "W.pth", "--batch-size", "4").total_batch_size is None


def test_optimiser_is_sgd_with_nesterov_momentum_and_no_decay_on_biases_norms_and_tokens():
    model = build_model(tiny_options(), 3)
    state = build_state(tiny_options(), model, EpochPlan(512, 512, 512))
    assert type(state.optimizer) is torch.optim.SGD
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    for group in state.optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (0.9, True)
        for weight in group["params"]:
            name = name_of[id(weight)]
            free = weight.ndim <= 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
            assert group["weight_decay"] == (0.0 if free else 1e-4), name


def test_a_fresh_head_is_a_truncated_normal_of_std_002_with_zero_bias():
    torch.manual_seed(0)
    head = build_model(tiny_options(), 4000).head
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.bias.abs().max() == 0


def test_stochastic_depth_rises_linearly_to_a_tenth_and_keeps_the_expectation():
    args = options("--model", "vit_tiny_patch16_224", "--model-kwargs", *TINY_VIT_OPTIONS[1:], "depth=5")
    blocks = build_model(args, 3).blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    torch.manual_seed(0)
    kept = blocks[4].drop_path1.train()(torch.ones(20000, 1))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert kept.mean().item() == pytest.approx(1, abs=0.01)


def test_training_crops_at_random_scale_and_flips_half_of_the_images():
    crop, flip, *rest = train_transform(options("--input-size", "64")).transforms
    assert isinstance(crop, RandomResizedCropAndInterpolation)
    assert (crop.scale, crop.ratio) == ((0.08, 1.0), pytest.approx((3 / 4, 4 / 3)))
    assert isinstance(flip, T.RandomHorizontalFlip) and flip.p == 0.5
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    for step in rest[:-1]:  # colour jitter 0 changes nothing
        assert isinstance(step, T.ColorJitter) and step(image).tobytes() == image.tobytes()


def test_without_flips_the_rest_of_the_augmentation_is_as_published():
    for size in ("32", "64"):
        with_flips, without = (
            [
                re.sub(" at 0x.*", "", str(step))
                for step in train_transform(options("--input-size", size, *extra)).transforms
            ]
            for extra in ([], ["--hflip", "0"])
        )
        assert without == [step for step in with_flips if "Flip" not in step] != with_flips


def test_small_images_are_padded_by_four_and_cropped_instead():
    size, crop, *_ = train_transform(options("--input-size", "32")).transforms
    assert isinstance(crop, T.RandomCrop) and (crop.size, crop.padding) == ((32, 32), 4)
    assert size.args == (32,)


def test_evaluation_resizes_by_256_over_224_and_crops_the_centre():
    resize, crop, *_ = eval_transform(224).transforms
    assert (resize.size, resize.interpolation, crop.size) == (256, T.InterpolationMode.BICUBIC, (224, 224))


def test_evaluation_takes_small_images_as_they_are():
    image = Image.effect_noise((32, 32), 50).convert("RGB")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (T.functional.pil_to_tensor(image) / 255 - mean[:, None, None]) / std[:, None, None]
    batch = eval_transform(32)(image)[None], torch.zeros(1)
    assert torch.equal(to_network(batch, torch.device("cpu"))[0][0], expected)


def test_a_distilled_model_gives_both_heads_in_training_and_their_mean_in_evaluation():
    model = build_model(options("--model", "deit_tiny_distilled_patch16_224", *TINY_VIT_OPTIONS), 3)
    assert is_distilled(model)
    images = torch.randn(2, 3, 32, 32)
    for rate in model.blocks:
        rate.drop_path1 = rate.drop_path2 = torch.nn.Identity()
    both = model.train()(images)
    torch.testing.assert_close(model.eval()(images), (both[0] + both[1]) / 2)


def test_published_defaults():
    args = parse_args(["--data-set", "CIFAR10"])
    published = {
        "batch_size": 256, "epochs": 1000, "seed": 0, "model": "deit_small_patch16_224", "drop": 0.0,
        "drop_path": 0.1, "model_ema": True, "model_ema_decay": 0.99996, "opt": "sgd", "clip_grad": None,
        "momentum": 0.9,
        "weight_decay": 1e-4, "sched": "cosine", "lr": 0.01, "warmup_lr": 1e-6, "min_lr": 1e-5, "decay_epochs": 30,
        "warmup_epochs": 5, "cooldown_epochs": 10, "patience_epochs": 10, "decay_rate": 0.1, "color_jitter": 0.0,
        "aa": "none", "smoothing": 0.1, "train_interpolation": "bicubic", "repeated_aug": True, "reprob": 0.0,
        "mixup": 0.0, "cutmix": 0.0, "mixup_prob": 0.0, "mixup_switch_prob": 0.5, "distillation_type": "none",
        "distillation_alpha": 0.5, "distillation_tau": 1.0, "eval_interval": 1, "head_init": "fresh", "freeze": "none",
        "layer_decay": None, "hflip": 0.5, "num_workers": 16, "pin_mem": True,
    }  # fmt: skip
    assert {key: getattr(args, key) for key in published} == published
    assert input_size(args) == 224


def test_images_are_normalised_with_the_statistics_of_the_networks_own_pretraining():
    batch = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.zeros(2)
    published = create_network("deit_small_patch16_224", 0, 32)
    own = create_network("vit_base_patch16_siglip_224.webli", 0, 32, {"embed_dim": 24, "depth": 1, "num_heads": 2})
    assert torch.equal(to_network(batch, torch.device("cpu"), published)[0], to_network(batch, torch.device("cpu"))[0])
    expected = (batch[0] / 255 - 0.5) / 0.5
    torch.testing.assert_close(to_network(batch, torch.device("cpu"), own)[0], expected)


def few_labels(*extra: str):
    return tiny_options("--recipe", "few-labels", "--resume", "w.pth", *extra)


def test_few_labels_changes_the_options_it_names_and_no_others():
    published, args = tiny_options("--resume", "w.pth"), few_labels()
    changed = {name for name in vars(args) if getattr(args, name) != getattr(published, name)}
    assert changed <= FEW_LABELS.keys() | {"recipe", "epochs"}
    assert all(getattr(args, name) == value for name, value in FEW_LABELS.items())


def test_an_option_beside_the_recipe_counts_even_with_its_published_value():
    args = few_labels("--lr", "0.01", "--padding-mode", "constant", "--head-init", "fresh")
    assert (args.lr, args.padding_mode, args.head_init) == (0.01, "constant", "fresh")


@pytest.mark.parametrize("n", [7, 50, 1000])
def test_updates_are_made_in_whole_epochs_whatever_the_number_of_images(n):
    args = few_labels("--updates", "40")
    _, plan = build_plan(args, n, Processes())
    assert plan.updates * (run_length(args, plan) - 1) < 40 <= plan.updates * run_length(args, plan)


def test_epochs_beside_the_recipe_replace_its_updates():
    args = few_labels("--epochs", "3")
    assert run_length(args, build_plan(args, 1000, Processes())[1]) == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--probe", "linear"], "--recipe few-labels is for training, and --probe trains nothing"),
        (["--resume", ""], "--recipe few-labels needs --resume"),
        (["--freeze", "backbone"], "--layer-decay 0.75 sets rates for a backbone .* give 1"),
    ],
)
def test_what_does_not_go_with_few_labels_is_refused_by_its_name(extra, message):
    with pytest.raises(InputError, match=message):
        few_labels(*extra)


def test_epochs_and_updates_together_are_refused():
    with pytest.raises(InputError, match="--epochs 3 and --updates 40 are both given"):
        few_labels("--epochs", "3", "--updates", "40")


def test_small_images_are_padded_with_what_they_show_where_that_is_asked_for():
    image = Image.new("RGB", (32, 32), (200, 200, 200))
    black, reflected = (
        train_transform(tiny_options("--crop-padding", "8", "--padding-mode", mode)) for mode in ("constant", "reflect")
    )
    assert any(black(image).min() == 0 for _ in range(20))
    assert all(reflected(image).min() == 200 for _ in range(20))


def test_the_least_share_of_a_larger_image_that_is_cropped_is_as_asked_for():
    crop = next(step for step in train_transform(options("--crop-scale", "0.5")).transforms if hasattr(step, "scale"))
    assert tuple(crop.scale) == (0.5, 1.0)


def test_a_batch_size_beside_few_labels_counts_even_with_its_published_value():
    assert (few_labels().total_batch_size, few_labels("--batch-size", "256").total_batch_size) == (96, None)


def dropout_rates(model: torch.nn.Module) -> dict[str, float]:
    return {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}


def test_drop_is_after_the_embedding_and_in_the_blocks_of_the_published_vits_and_timms_own_elsewhere():
    rates = dropout_rates(build_model(tiny_options("--drop", "0.3"), 3))
    assert rates.pop("head_drop") == 0 and rates.pop("blocks.0.attn.attn_drop") == rates.pop("blocks.1.attn.attn_drop")
    assert len(rates) == 7 and set(rates.values()) == {0.3}  # pos_drop; proj_drop, and two in the MLP, per block
    assert build_model(options("--model", "resnet10t", "--drop", "0.3"), 3).drop_rate == 0.3


DINOV3 = ["--model", "vit_small_patch16_dinov3.lvd1689m", "--input-size", "64",
          "--model-kwargs", "embed_dim=48", "depth=2", "num_heads=3"]  # fmt: skip


def test_the_head_sees_the_class_token_also_where_timm_averages_the_patches():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for given, position in (([], slice(1)), (["global_pool=avg"], slice(5, None))):  # after a class token and 4 others
        model = build_model(options(*DINOV3, *given), 3).eval()
        tokens = model.forward_features(images)
        seen = model.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(seen, tokens[:, position].mean(dim=1))


def own_checkpoint(model: torch.nn.Module, **run: object) -> dict:
    return {"model": model.state_dict(), "optimizer": {}, "lr_scheduler": {}, "epoch": 0, "args": {}, "run": run}


def test_the_policy_that_the_help_names_is_of_the_installed_libraries():
    """Pillow 13 raises an error for what timm's posterize asks of it."""
    transform = train_transform(options("--input-size", "32", "--aa", "rand-m9-mstd0.5-inc1"))
    image = Image.new("RGB", (32, 32), "teal")
    for seed in range(3000):
        seed_augmentation(seed)
        assert transform(image).shape == (3, 32, 32)


def test_a_checkpoint_of_a_head_that_saw_another_feature_is_refused():
    model = build_model(options(*DINOV3), 3)
    check_network(own_checkpoint(model, built_with=model.built_with), "c.pth", model)
    check_network(model.state_dict(), "pretrained.pth", model)
    for averaged in (own_checkpoint(model), own_checkpoint(model, built_with={"global_pool": "avg"})):
        with pytest.raises(InputError, match="c.pth was trained with another feature: add global_pool=avg to"):
            check_network(averaged, "c.pth", model)
    plain = build_model(tiny_options(), 3)
    check_network(own_checkpoint(plain), "c.pth", plain)


def test_a_model_is_built_again_with_the_keywords_that_its_checkpoint_keeps():
    model = build_model(options(*DINOV3), 3).eval()
    again = timm.create_model(DINOV3[1], num_classes=3, **model.built_with).eval()
    again.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), model(images))
