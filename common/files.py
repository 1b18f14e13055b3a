"""Files are written whole or not at all: a temporary name first, then a rename."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises InputError, with `what` the file is for, when it is missing or is no JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} {path} is not JSON: {error}") from None


def make_output_dir(path: str | Path) -> Path:
    """Create the folder if need be and try to write in it, so that a long run does not fail at its last step."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write into the output folder {folder}: {error.strerror}") from None
    return folder
