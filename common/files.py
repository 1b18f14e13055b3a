"""Reading, checking and locking files; writing them whole or not at all (under a temporary name, then renamed)."""

import errno
import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

from common.errors import InputError

# First bytes of files that may be given by mistake, and what these are; text may start with white space.
FILE_KINDS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"<!doctype html": "an HTML page (a failed download?)",
    b"<html": "an HTML page (a failed download?)",
    b"<?xml": "an XML file",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"PK\x03\x04": "a zip archive, like .npz files and PyTorch checkpoints",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\x80": "a Python pickle, like old PyTorch checkpoints",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"{": "a JSON file",
    b"[": "a JSON file",
}

ADE20K = "ADEChallengeData2016"  # the folder in its archive


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any error.

    Raises InputError, naming the file, if it cannot be written (no space left, say).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def check_given(paths: Iterable[str], what: str) -> None:
    """Raise InputError if a given file is not there. ("" means not given; https:// addresses are checked later.)"""
    for path in paths:
        if path and not path.startswith("https://") and not Path(path).is_file():
            raise InputError(f"{what} {path} is {'a folder, not a file' if Path(path).is_dir() else 'not there'}")


def check_folder(folder: str | Path) -> None:
    """Raise InputError if a folder of images is not there."""
    if not Path(folder).is_dir():
        raise InputError(f"image folder {folder} is not there")


def walk(folder: str) -> list[tuple[str, list[str]]]:
    """List a folder and all folders below it except hidden ones, in one order, each with its sorted file names.

    A link to a folder that contains the link is left out: it would be walked for ever.
    """
    found, above = [], {folder: {identity(folder)}}  # above: identities of each folder and its parents
    for inside, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        own = above.pop(inside)
        for name in [*subfolders]:
            path = os.path.join(inside, name)  # noqa: PTH118 - the path that os.walk will use
            if is_hidden(name) or (known := identity(path)) in own:
                subfolders.remove(name)
            else:
                above[path] = own | {known}
        found.append((inside, sorted(files)))
    return sorted(found)


def refuse(error: OSError) -> NoReturn:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")


def identity(folder: str) -> tuple[int, int]:
    """Return a folder's identity (device, inode), whatever path leads to it."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not data: hidden, added to an archive by macOS, or a file system's own."""
    return name.startswith(".") or name in ("__MACOSX", "lost+found")


def check_spares(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raise InputError if an output is a folder, or is the same file as an input."""
    inputs = [Path(path) for path in inputs if Path(path).is_file()]
    for output in outputs:
        if output.is_dir():
            raise InputError(f"cannot write {output}: it is a folder")
        if output.exists() and any(output.samefile(path) for path in inputs):
            raise InputError(f"{output} is read by this command, which would overwrite it: give another name")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file. Raises InputError, saying `what` it is for, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} {path} is not JSON: {error}") from None


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Lock a folder, or one file in it, for this process. Raises InputError if another process has locked it.

    The lock ends with its process, however that ends, and worker processes do not inherit it (a POSIX record lock).
    """
    lock = folder / (f".{name}.lock" if name else ".lock")
    with lock.open("ab+", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read().decode().strip() or "another process"
                raise InputError(
                    f"{folder / name} is in use by {owner}: wait for it, or choose another --output_dir"
                ) from None
            # a file system without locks: go on without one
        file.truncate(0)
        try:
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise InputError(f"cannot write {lock}: {error.strerror}") from None
        yield


def kind_of_file(path: str | Path) -> str | None:
    """Say what a file of the wrong kind is ("it is a PDF"), for a message; None if its first bytes do not tell."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not start:
        return "it is empty"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in FILE_KINDS.items():
        if text.startswith(beginning) or start.startswith(beginning):
            return f"it is {kind}"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return "it is a safetensors file"
    if all(byte >= 0x20 or byte in b"\t\r\n" for byte in start):
        return "it is a CSV or text file" if b"," in start or b";" in start or b"\t" in start else "it is a text file"
    return None


def checksum(parts: Iterable[bytes]) -> str:
    """Return the CRC-32, in hex, of these parts in this order, with their lengths."""
    crc = 0
    for part in parts:
        crc = crc32(part, crc32(len(part).to_bytes(8, "little"), crc))
    return f"{crc:08x}"


def make_output_dir(path: str | Path) -> Path:
    """Create the folder if need be and test that it is writable, so that a long run does not fail at its last step."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise InputError(f"cannot write into the output folder {folder}: {reason}") from None
    return folder


def split_folder(root: Path, train: bool) -> Path:
    """Return the folder of one split in ImageNet layout: <root>/train; else <root>/val or, without it, <root>/test."""
    names = ("train",) if train else ("val", "test")
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def scene_folder(root: Path, train: bool) -> Path:
    """Return the image folder of one split in ADE20K's layout. `root`: the data set, or where ADE20K was unpacked."""
    root = root if (root / "images").is_dir() or not (root / ADE20K).is_dir() else root / ADE20K
    return root / "images" / ("training" if train else "validation")


def scenes_name(root: Path) -> str:
    """Return the name of a data set in ADE20K's layout: ADE20K, or for other data sets the name of their folder."""
    folder = scene_folder(root, train=True).parents[1]
    return "ADE20K" if folder.name == ADE20K else folder.resolve().name
