"""The pretrained network of stage 1: its weights, how images are prepared for it, and which token it gives."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoints import download_checkpoint, fetch_checkpoint, weights_checksum
from common.errors import InputError
from common.networks import (
    HUB,
    Preprocessing,
    create_network,
    download_timm_weights,
    has_class_token,
    model_config,
    preprocessing,
)
from common.pretrained import load_pretrained, network_weights

VITS = ("vit_tiny", "vit_small", "vit_base")  # the published names, for any --patch_size
DINO_URL = "https://dl.fbaipublicfiles.com/dino/{name}/{name}.pth"
DINO_WEIGHTS = {
    "vit_small/16": "dino_deitsmall16_pretrain",
    "vit_small/8": "dino_deitsmall8_pretrain",
    "vit_base/16": "dino_vitbase16_pretrain",
    "vit_base/8": "dino_vitbase8_pretrain",
    "xcit_small_12_p16": "dino_xcit_small_12_p16_pretrain",
    "xcit_small_12_p8": "dino_xcit_small_12_p8_pretrain",
    "xcit_medium_24_p16": "dino_xcit_medium_24_p16_pretrain",
    "xcit_medium_24_p8": "dino_xcit_medium_24_p8_pretrain",
    "resnet50": "dino_resnet50_pretrain",
}


@dataclass(frozen=True)
class Backbone:
    """A network without a head, in evaluation mode, and what to know about its features.

    model: timm's name. weights: the file or URL they come from. preprocessing: how images are prepared for it.
    """

    network: nn.Module
    model: str
    weights: str
    preprocessing: Preprocessing
    n_last_blocks: int = 1
    avgpool_patchtokens: bool = False

    def features(self, images: Tensor) -> Tensor:
        """Return the last blocks' [CLS] tokens, in depth order, for normalised images (b, 3, h, w), after final norm.

        avgpool_patchtokens interleaves the [CLS] token with the mean patch token, as DINO's linear evaluation does:
        cls_0, mean_0, cls_1, mean_1, ... Register tokens are never part of it. A network without a class token, or
        with attention pooling, gives its pooled output.
        Returns: (b, n_last_blocks * d), (b, 2 d) or (b, d).
        """
        network, n = self.network, self.n_last_blocks
        if self.uses_own_pooling():
            return network(images)  # (b, 3, h, w) -> (b, d)
        blocks = network.forward_intermediates(
            images, indices=n, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )  # [((b, h*w, d) patches, (b, 1 + registers, d) class token first)]
        class_tokens = torch.cat([prefix[:, 0] for _, prefix in blocks], dim=-1)
        if not self.avgpool_patchtokens:
            return class_tokens
        mean_patch = blocks[-1][0].mean(dim=1)
        return torch.stack([class_tokens, mean_patch], dim=-1).flatten(1)  # (b, d, 2) -> (b, 2 d)

    def feature_kind(self) -> str:
        """Describe the feature in words."""
        if self.uses_own_pooling():
            pool = getattr(self.network, "global_pool", "")
            return f"the model's own pooling ({pool})" if isinstance(pool, str) and pool else "the model's own pooling"
        if self.avgpool_patchtokens:
            return "CLS interleaved with the mean patch token"
        return "CLS" if self.n_last_blocks == 1 else f"CLS of the last {self.n_last_blocks} blocks"

    def uses_own_pooling(self) -> bool:
        """Return whether the feature is the network's own pooling: if it has no class token, or learned to pool."""
        one_token = self.n_last_blocks == 1 and not self.avgpool_patchtokens
        learned = one_token and getattr(self.network, "global_pool", None) == "map"
        return learned or not has_class_token(self.network)

    def describe(self) -> dict[str, Any]:
        """Describe the features, for the sidecar of the feature file.

        Raises: InputError if the network cannot take images of this size.
        """
        size = self.preprocessing.input_size
        try:
            with torch.inference_mode():
                d = self.features(torch.zeros(1, 3, size, size)).shape[1]
        except (AssertionError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.model} cannot take images of {size}x{size}: {reason}") from None
        named = {"model": self.model, "weights": self.weights, "feature": self.feature_kind(), "d": d}
        checksum = weights_checksum(self.network.state_dict())
        return named | self.preprocessing.described() | {"weights_checksum": checksum}


def timm_name(arch: str) -> str:
    """Return timm's name for what the published scripts and DINO call `arch`: vit_small, xcit_small_12_p16, ..."""
    if arch in VITS:
        return f"{arch}_patch16_224"
    return f"{arch}_224" if arch.startswith("xcit") and arch in DINO_WEIGHTS else arch


def build_backbone(
    arch: str,
    patch_size: int | None = None,
    weights: str = "",
    checkpoint_key: str = "teacher",
    model_kwargs: dict[str, Any] | None = None,
    input_size: int | None = None,
    n_last_blocks: int = 1,
    avgpool_patchtokens: bool = False,
) -> Backbone:
    """Build the network that the options of extract_feature.py name, with its weights.

    Args:
        arch: a published name (vit_small, ...: DINO's weights), or any timm name (timm's weights, those of its tag).
        patch_size: for the published ViTs, else None. weights: a checkpoint file to load instead.
    Raises:
        InputError unless the checkpoint holds every one of its weights, and the network has the feature asked for.
    """
    kwargs = model_kwargs or {}
    published = f"{arch}/{patch_size}" if patch_size else arch
    name = timm_name(arch)
    if patch_size:
        kwargs = {"patch_size": patch_size, **kwargs}
    config = model_config(name)
    timms_own = not weights and published not in DINO_WEIGHTS
    if timms_own and patch_size:
        raise InputError(f"there are no DINO weights for {published}: give --pretrained_weights")
    if timms_own and not config.get("hf_hub_id") and not config.get("url"):
        raise InputError(f"timm has no weights for {arch}: give --pretrained_weights")
    if timms_own and not arch.startswith(HUB):
        name = f"{config['architecture']}.{config['tag']}"  # the default tag if none was given
    prepared = preprocessing(name, input_size, kwargs)
    network = create_network(name, num_classes=0, input_size=prepared.input_size, model_kwargs=kwargs)
    check_feature(network, name, n_last_blocks, avgpool_patchtokens)
    if weights:
        source, checkpoint = weights, fetch_checkpoint(weights)
    elif timms_own:
        checkpoint, source = download_timm_weights(config)
    else:
        source = DINO_URL.format(name=DINO_WEIGHTS[published])
        checkpoint = download_checkpoint(source)
    load_pretrained(network, network_weights(checkpoint, source, checkpoint_key), source)
    return Backbone(network.eval(), name, source, prepared, n_last_blocks, avgpool_patchtokens)


def check_feature(network: nn.Module, name: str, n_last_blocks: int, avgpool_patchtokens: bool) -> None:
    """Raise InputError if the network has no class token, or fewer blocks than are asked for."""
    if n_last_blocks == 1 and not avgpool_patchtokens:
        return
    if not has_class_token(network):
        raise InputError(f"--n_last_blocks and --avgpool_patchtokens need a ViT with a class token, not {name}")
    if n_last_blocks > len(network.blocks):
        raise InputError(f"--n_last_blocks {n_last_blocks} is more than the {len(network.blocks)} blocks of {name}")
