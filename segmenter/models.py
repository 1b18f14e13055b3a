"""A pretrained ViT that labels every pixel: timm's encoder, one of three decoders of its patch tokens, the weights.

The decoders are Segmenter's (Strudel et al., ICCV 2021), linear or mask transformer, and, for a frozen encoder, the
light readout of DINOv2's evaluation: batch norm and one linear layer.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models import Eva, VisionTransformer, get_pretrained_cfg, is_model_in_modules
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from common.checkpoints import fetch_checkpoint, is_own_checkpoint, read_trained, weights_checksum
from common.errors import InputError
from common.networks import create_network
from common.pretrained import load_pretrained, network_weights
from common.training import differences

HEAD_SIZE = 64  # channels of an attention head
VIT_MODULES = ("vision_transformer", "deit", "eva")


class PixelClassifier(nn.Module):
    """An encoder, a decoder of its patch tokens, and bilinear interpolation to the size of the image.

    Images are padded with zeros on the right and at the bottom to a multiple of the patch size. Class and
    register tokens are dropped after the encoder's final norm. A frozen encoder stays in evaluation mode.
    """

    def __init__(self, encoder: VisionTransformer | Eva, decoder: nn.Module, frozen: bool = False):
        super().__init__()
        self.encoder, self.decoder, self.frozen = encoder, decoder, frozen
        self.patch = patch_of(encoder)
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "PixelClassifier":
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w), normalised -> logits (b, c, h, w)"""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder.forward_features(padded)[:, self.encoder.num_prefix_tokens :]  # (b, h'w', d)
        grid = (padded.shape[-2] // self.patch, padded.shape[-1] // self.patch)
        logits = self.decoder(tokens).unflatten(1, grid).permute(0, 3, 1, 2)  # (b, c, h', w')
        logits = F.interpolate(logits.float(), size=padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]


class MaskTransformer(nn.Module):
    """Segmenter's decoder: class embeddings attend to the patches and each other, then meet every patch.

    Patch tokens (b, n, d) -> logits (b, n, c): similarities of patches and classes, normalised over the classes.
    """

    def __init__(self, d: int, classes: int, depth: int = 2, dropout: float = 0.1):
        super().__init__()
        self.proj_dec = nn.Linear(d, d)
        self.class_tokens = nn.Parameter(torch.zeros(1, classes, d))
        heads = max(1, d // HEAD_SIZE)
        self.blocks = nn.Sequential(*(
            Block(d, heads, qkv_bias=True, proj_drop=dropout, attn_drop=dropout) for _ in range(depth)
        ))  # fmt: skip
        self.norm = nn.LayerNorm(d)
        self.proj_patch, self.proj_classes = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.mask_norm = nn.LayerNorm(classes)
        self.apply(init_linear)
        nn.init.normal_(self.class_tokens, std=0.02)
        for projection in (self.proj_patch, self.proj_classes):
            nn.init.normal_(projection.weight, std=d**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        classes = self.class_tokens.expand(len(tokens), -1, -1)
        tokens = self.norm(self.blocks(torch.cat([self.proj_dec(tokens), classes], dim=1)))  # (b, n + c, d)
        patches = F.normalize(self.proj_patch(tokens[:, :n]), dim=-1)
        classes = F.normalize(self.proj_classes(tokens[:, n:]), dim=-1)
        return self.mask_norm(patches @ classes.mT)  # (b, n, d) x (b, d, c) -> (b, n, c)


class LinearDecoder(nn.Linear):
    """One linear layer: patch tokens (b, n, d) -> logits (b, n, c)."""

    def __init__(self, d: int, classes: int):
        super().__init__(d, classes)
        init_linear(self)


class BatchNormLinear(nn.Module):
    """Batch norm and one 1x1 convolution (a linear layer on every token): DINOv2's readout of frozen features."""

    def __init__(self, d: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(d)
        self.linear = nn.Linear(d, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]))


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as Segmenter does: weights from a truncated normal of std 0.02, bias zero."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_model(args: argparse.Namespace, classes: int) -> PixelClassifier:
    """Build the model with fresh weights."""
    frozen = args.probe is not None
    encoder = build_encoder(args.model, args.model_kwargs, args.crop_size, 0.0 if frozen else args.drop_path)
    d = encoder.embed_dim
    if args.decoder == "mask_transformer":
        decoder = MaskTransformer(d, classes, dropout=args.dropout)
    else:
        decoder = {"linear": LinearDecoder, "batchnorm_linear": BatchNormLinear}[args.decoder](d, classes)
    return PixelClassifier(encoder, decoder, frozen)


def load_weights(
    args: argparse.Namespace, model: PixelClassifier, classes: Sequence[str]
) -> tuple[str | None, tuple[dict[str, Any], str] | None]:
    """Load --resume into the encoder, or with --eval into the whole model. classes: the names of the model's classes.

    Returns: the checksum of the pretrained weights; and, if --resume is a run's own checkpoint, that and its source.
    """
    if not args.resume:
        return "none", None
    if args.eval:

        def same_model(options: argparse.Namespace, _: dict[str, Any]) -> PixelClassifier:
            then, now = ({name: vars(of).get(name) for name in ("model_kwargs", "decoder")} for of in (options, args))
            if changed := differences(then, now):
                raise InputError(f"{args.resume} is of another network: {'; '.join(changed)}: give what it had")
            return model

        read_trained(args.resume, "segmenter/main.py", same_model, classes)
        return None, None
    checkpoint = fetch_checkpoint(args.resume)
    if is_own_checkpoint(checkpoint) and "decoder" in checkpoint["run"]:
        return checkpoint["run"].get("weights"), (checkpoint, args.resume)
    weights = network_weights(checkpoint, args.resume)  # also of a checkpoint of deit/main.py
    load_pretrained(model.encoder, weights, args.resume)
    return weights_checksum(weights), None


def build_encoder(name: str, model_kwargs: dict[str, Any], crop_size: int, drop_path: float = 0.0) -> nn.Module:
    """Build timm's ViT with fresh weights and position embeddings for crops of this size; it takes any image size.

    Raises: InputError if the network is not a ViT.
    """
    if timm.is_model(name) and not is_model_in_modules(name, VIT_MODULES):
        raise InputError(f"--model {name} is not a ViT of timm: segmentation needs a token for every patch")
    config = get_pretrained_cfg(name, allow_unregistered=True)
    own_size = model_kwargs.get("img_size", config.input_size[-1] if config else crop_size)
    # Build it at its own size to learn the patch size, then resample its position embeddings to the crops.
    encoder = create_network(name, 0, own_size, {**model_kwargs, "dynamic_img_size": True}, drop_path_rate=drop_path)
    side = math.ceil(crop_size / patch_of(encoder)) * patch_of(encoder)
    encoder.set_input_size(img_size=(side, side))
    return encoder


def patch_of(encoder: nn.Module) -> int:
    """Return the side of a patch in pixels."""
    return encoder.patch_embed.patch_size[0]
