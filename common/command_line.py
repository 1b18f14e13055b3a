"""Code shared by all commands: options that are checked when they are parsed, and one-line errors."""

import argparse
import ast
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from common.errors import InputError

OUT_OF_MEMORY = ("memoryerror", "out of memory", "can't allocate memory", "cannot allocate memory")


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose help shows the defaults and whose errors are one line.

    Options may be typed with dashes or underscores: the published scripts use both (stages 1 and 2 unlike stage 3).
    """

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(map(self._as_added, sys.argv[1:] if args is None else args), namespace)

    def _as_added(self, argument: str) -> str:
        option, equals, value = argument.partition("=")
        if not option.startswith("--") or option in self._option_string_actions:
            return argument
        alike = (known for known in self._option_string_actions if known.replace("_", "-") == option.replace("_", "-"))
        return next(alike, option) + equals + value

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


class KeyValues(argparse.Action):
    """Parse KEY=VALUE ... into a dictionary; values that are not Python literals stay text."""

    def __call__(self, parser, namespace, values, option_string=None):
        parsed = {}
        for text in values:
            key, equals, value = text.partition("=")
            if not equals:
                parser.error(f"argument {option_string}: {text!r} is not KEY=VALUE")
            try:
                parsed[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                parsed[key] = value
        setattr(namespace, self.dest, parsed)


def add_model_kwargs_option(parser: argparse.ArgumentParser) -> None:
    overrides = "keyword overrides for timm's create_model, such as img_size=32 patch_size=8 embed_dim=128"
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE", help=overrides)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all trainers share."""
    add = parser.add_argument
    add("--seed", default=0, type=number(int, 0))
    add("--device", default="auto", help="auto is the first available of cuda, mps and cpu")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="auto: fp16 on CUDA, else off")
    add("--output_dir", default="", help="output folder; if empty, nothing is written")
    add("--resume", default="", help="a pretrained backbone, or a checkpoint to resume; a file or https://")
    add("--auto-resume", action="store_true", help="resume the newest checkpoint in --output_dir, if there is one")
    add("--num_workers", default=16, type=number(int, 0), help="decoding processes, at most the machine's processors")
    add("--dist_url", default="env://", help="where processes meet; env:// uses what the launchers set")


def check_optimizer(name: str) -> None:
    """Raise InputError if timm has no optimiser of this name, or if it needs second derivatives."""
    plain = name.removeprefix("lookahead_")
    if plain == "adahessian":
        raise InputError(f"--opt {name} needs second derivatives, which are not computed; try sgd, adamw or lamb")
    if name in ("sgd", "adamw", "lamb"):
        return
    from timm.optim import list_optimizers  # takes a second to load

    if plain not in list_optimizers():
        raise InputError(f"--opt {name} is not known to timm; try sgd, adamw or lamb")


@contextmanager
def usable(option: str) -> Iterator[None]:
    """Turn the errors of timm and torch on the options of an optimiser or schedule into one line."""
    try:
        yield
    except (ValueError, TypeError, IndexError, AssertionError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{option} does not work with its options as given: {reason}") from None


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that relate mask labels to classes (see common.scenes.mask_labels)."""
    add = parser.add_argument
    add("--class-names", default="", help="file, one name per line; default: the data's classes.txt, objectInfo150.txt")
    add("--num-classes", type=number(int, 1, 2**15 - 1), help="needed if no file names the classes")
    add("--ignore-label", default=255, type=number(int, 0, 2**16 - 1), help="mask label of pixels without a class")
    zero = "label 0 means no class, and 1 is the first class"
    add("--reduce-zero-label", default=True, action=argparse.BooleanOptionalAction, help=zero)


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command's main function and exit: 0, 130 when interrupted, 2 after an InputError (one line on stderr).

    The system's errors, such as a full disk, are one line too.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # to print file names in any encoding
    try:
        main()
    except InputError as error:
        # An error from a DataLoader worker comes after its traceback: only the last line is for the user.
        sys.exit(_report(f"error: {str(error).rsplit('InputError: ', 1)[-1]}", 2))
    except BrokenPipeError:  # the reader of the output (`| head`, say) has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        sys.exit(_report(f"error: {error}", 2))
    except (MemoryError, RuntimeError) as error:  # torch raises OutOfMemoryError on GPUs, RuntimeError on the CPU
        if not any(sign in f"{type(error).__name__} {error}".lower() for sign in OUT_OF_MEMORY):
            raise
        sys.exit(_report(f"error: out of memory, use smaller batches: {str(error).split('. ')[0]}", 2))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted", 130))
    sys.exit(0)


def _report(message: str, status: int) -> int:
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    return status


def number(
    kind: type[int] | type[float],
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Callable[[str], float]:
    """Return an argparse type: a finite number with `minimum <= x <= maximum` and `above < x < below`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not abs(value) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        for broken, rule in (
            (minimum is not None and value < minimum, f"at least {minimum}"),
            (maximum is not None and value > maximum, f"at most {maximum}"),
            (above is not None and value <= above, f"above {above}"),
            (below is not None and value >= below, f"below {below}"),
        ):
            if broken:
                raise argparse.ArgumentTypeError(f"{text} must be {rule}")
        return value

    return parse


seed_number = number(int, 0, 2**32 - 1)  # what NumPy and scikit-learn accept; random.Random treats -1 as 1
