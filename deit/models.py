"""The network that is finetuned, its head, and the weights that it starts from."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from common.checkpoints import check_classes, fetch_checkpoint, is_own_checkpoint, run_of, weights_checksum
from common.errors import InputError
from common.networks import averages_beside_class_token, create_network, input_size
from common.pretrained import heads_of, load_pretrained, network_weights
from common.training import differences

# When DeiT was published, timm had the dropout of its ViTs after the embedding and in the blocks, not before the head.
PUBLISHED_DROPOUT = re.compile(r"(vit|deit)_(tiny|small|base)(_distilled)?_patch\d+_(224|384)")


def build_model(args: argparse.Namespace, nb_classes: int, built_with: dict[str, Any] | None = None) -> nn.Module:
    """The network with fresh weights. Its head sees the feature that subsets are chosen by.

    That is [CLS] also where timm averages the patches, as for DINOv3, if --model-kwargs do not say otherwise; not where
    a norm was trained for the mean (BEiT). built_with: the keywords of a network that is to be built again.
    """
    rates = {"drop_rate": args.drop, "drop_path_rate": args.drop_path}
    if PUBLISHED_DROPOUT.fullmatch(args.model.partition(".")[0]):
        rates |= {"drop_rate": 0.0, "pos_drop_rate": args.drop, "proj_drop_rate": args.drop}
    build = partial(create_network, args.model, nb_classes, input_size(args), **rates)
    model = build(args.model_kwargs if built_with is None else built_with)
    if built_with is None and "global_pool" not in args.model_kwargs and averages_beside_class_token(model):
        del model  # before there are two of a large one
        model = build({**args.model_kwargs, "global_pool": "token"})
    if is_distilled(model):
        model.set_distilled_training(True)  # both heads in training, their mean in evaluation
    elif args.distillation_type != "none":
        raise InputError(f"--distillation-type {args.distillation_type} needs a distilled model, not {args.model}")
    return model


def is_distilled(model: nn.Module) -> bool:
    return hasattr(model, "set_distilled_training")


def linear_head(args: argparse.Namespace, model: nn.Module) -> nn.Linear:
    """The layer that alone makes logits of what forward_head(pre_logits=True) gives. Raises InputError without one."""
    head, size = model.get_classifier(), input_size(args)
    if isinstance(head, nn.Linear) and head.bias is not None:
        device = head.weight.device
        images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode():
            features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
            if torch.allclose(head(features), model(images), rtol=1e-4, atol=1e-4):
                return head
    asked = "--head-init linear" if args.head_init == "linear" else "--freeze backbone"
    raise InputError(f"{asked} needs a model whose head is one linear layer; that of {args.model} is not")


def load_weights(
    args: argparse.Namespace, model: nn.Module, classes: Sequence[str]
) -> tuple[str | None, tuple[dict[str, Any], str] | None]:
    """Load --finetune and --resume into the model, whose classes have these names.

    Returns: the checksum of the pretrained weights, and where --resume is a run's own checkpoint, that and its source.
    (departure) A backbone weight that is missing or does not fit is an error, not a warning that nobody reads.
    """
    loaded, fresh = [], [name for name, _ in model.named_parameters()]
    for source in filter(None, (args.finetune, args.resume)):
        checkpoint = fetch_checkpoint(source)
        if is_own_checkpoint(checkpoint) and source == args.resume and not (args.eval or args.probe):
            return checkpoint["run"].get("weights"), (checkpoint, source)
        if args.eval and source == (args.resume or args.finetune):
            check_classes(checkpoint.get("run", {}), source, classes)
            check_network(checkpoint, source, model)
        weights = network_weights(checkpoint, source)
        if not args.eval and run_of(checkpoint).get("classes", classes) != list(classes):  # a head of other classes
            heads = heads_of(model)
            weights = {name: weight for name, weight in weights.items() if not name.startswith(heads)}
        loaded.append(weights_checksum(weights))
        fresh = load_pretrained(model, weights, source)
    if args.eval and fresh:
        raise InputError(f"--eval needs --resume with trained weights for all of {args.model}; missing: {fresh[-1]}")
    return " and ".join(loaded) or "none", None


def check_network(checkpoint: dict[str, Any], source: str, model: nn.Module) -> None:
    """Raise InputError where a run's own checkpoint is of a network that was built or given images in another way."""
    if not is_own_checkpoint(checkpoint):
        return
    run, kwargs = checkpoint["run"], checkpoint["args"].get("model_kwargs")  # version 1.1 added nothing to the user's
    trained, ours = run.get("built_with", kwargs), model.built_with
    pooling, our_pooling = (keywords.get("global_pool", "avg") for keywords in (trained or {}, ours))
    if pooling != our_pooling:
        raise InputError(f"{source} was trained with another feature: add global_pool={pooling} to --model-kwargs")
    # The published code has no keywords. To another img_size position embeddings are interpolated.
    keys = {*trained, *ours} - {"img_size", "dynamic_img_size", "global_pool"} if trained is not None else ()
    keys = [key for key in keys if "drop" not in key]  # which is for training
    theirs = {key: trained.get(key) for key in keys} | {key: run[key] for key in ("mean", "std") if key in run}
    mean, std = model.statistics
    changed = differences(theirs, {key: ours.get(key) for key in keys} | {"mean": mean, "std": std})
    if changed:
        advice = "give the --model and --model-kwargs of that run"
        raise InputError(f"{source} is of another network: {'; '.join(changed)}: {advice}")
