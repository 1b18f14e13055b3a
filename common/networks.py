"""Networks are timm's; a keyword override makes a user's own small ViT as usable as the published ones."""

import argparse
import difflib
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from timm.utils import ParseKwargs
from torch import nn

from common.errors import InputError


def add_model_kwargs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-kwargs",
        "--model_kwargs",
        nargs="*",
        default={},
        action=KeywordOverrides,
        metavar="KEY=VALUE",
        help="keyword overrides for timm's create_model, such as img_size=32 patch_size=8 embed_dim=128",
    )


def input_size(args: argparse.Namespace) -> int:
    """Pixels per side of the images: --input-size, else img_size of --model-kwargs, else 224."""
    return args.input_size or args.model_kwargs.get("img_size", 224)


class KeywordOverrides(ParseKwargs):
    """timm's KEY=VALUE parsing, with an error of one line for anything else."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if "=" not in value:
                parser.error(f"argument {option_string}: {value!r} is not KEY=VALUE")
        super().__call__(parser, namespace, values, option_string)


def create_network(
    name: str, num_classes: int, input_size: int, model_kwargs: dict[str, Any] | None = None, **rates: float
) -> nn.Module:
    """A timm network with fresh weights for square images of `input_size` pixels.

    `model_kwargs` are the user's overrides, `rates` drop_rate and drop_path_rate. With num_classes 0 it has no head.
    Raises InputError for a name timm does not know or an override it does not take.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"model {name!r} is not known to timm" + (f"; close to it: {', '.join(close)}" if close else "")
        )
    kwargs = {**rates, **(model_kwargs or {})}
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        kwargs.setdefault("img_size", input_size)
    if kwargs.get("img_size", input_size) != input_size:
        raise InputError(f"img_size={kwargs['img_size']} in --model-kwargs and an input size of {input_size} differ")
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
        given = " ".join(f"{key}={value}" for key, value in kwargs.items())
        raise InputError(f"model {name} cannot be built with {given}: {error or type(error).__name__}") from None
