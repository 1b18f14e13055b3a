"""Lists of images with labels, as people and labelling tools write them: CSV, text, Label Studio exports."""

import csv
import difflib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import InputError
from common.files import atomic_file, kind_of_file

OWN_COLUMNS = ("represents", "predicted")  # filled in by the selection scripts and predict.py
LABEL_COLUMNS = ("label", "choice")  # ours, and Label Studio's name for it
FIRST_NAMED = 3
MUCH_MORE_FREQUENT = 10  # a similar label that is at least this many times as frequent is the right spelling
ALIKE = 0.8  # least difflib ratio of similar labels


class ListedImage(NamedTuple):
    """path: as written. label: "" if there is none. added: the row was added by hand to a selection's list."""

    path: str
    label: str
    added: bool = False


def read_image_list(path: str | Path, what: str = "image list") -> list[ListedImage]:
    """Read the images of a list, each once, in its order.

    A .txt has one path per line. A .csv has a column `path` and may have `label` (or Label Studio's `choice`); it is
    separated by commas, semicolons or tabs. A .json is a Label Studio export of tasks that have a `path`.
    Raises: InputError if the list cannot be read, has no paths, or gives one image two labels.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")  # paths in any encoding
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from None
    if "\0" in text:
        raise InputError(f"the {what} {path} is not UTF-8 text: {kind_of_file(path) or 'save it as UTF-8'}")
    if not text.strip():
        raise InputError(f"the {what} {path} is empty")
    if path.suffix.lower() == ".txt":
        rows = [ListedImage(line.strip(), "") for line in text.split("\n")]
    elif path.suffix.lower() == ".json":
        rows = _label_studio(text, f"{what} {path}")
    else:
        rows = _csv(text, f"{what} {path}")
    found: dict[str, ListedImage] = {}
    for row in rows:
        before = found.setdefault(row.path, row)
        if before.label and row.label and before.label != row.label:
            raise InputError(f"the {what} {path} labels {row.path} twice: {before.label!r} and {row.label!r}")
        if row.label:
            found[row.path] = row
    if (nameless := found.pop("", None)) and nameless.label:
        raise InputError(f"the {what} {path} has a label without a path: {nameless.label!r}")
    if not found:
        raise InputError(f"the {what} {path} names no image")
    return list(found.values())


def _csv(text: str, what: str) -> list[ListedImage]:
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if "path" not in columns:
        raise InputError(f"the {what} has no column `path`; its columns are {', '.join(columns) or 'none'}")
    if twice := next((name for name in ("path", *LABEL_COLUMNS) if columns.count(name) > 1), None):
        raise InputError(f"the {what} has several columns `{twice}`: keep only one")
    reader.fieldnames = columns
    label = next((name for name in LABEL_COLUMNS if name in columns), "")
    ours = next((name for name in OWN_COLUMNS if name in columns), "")
    rows = []
    try:
        for row in reader:
            if any(row.get(None, ())):
                more = f"has more fields than there are columns ({separator.join(row[None])!r}): is a quote missing?"
                raise InputError(f"the {what} cannot be read: line {reader.line_num} {more}")
            written = bool((row.get(ours) or "").strip())  # by a script: spaces around the path are part of it
            path = (row["path"] or "") if written else (row["path"] or "").strip()
            added = ours == "represents" and not written
            rows.append(ListedImage(path, (row.get(label) or "").strip(), added))
        return rows
    except csv.Error as error:
        hint = "; is a quote not closed?" if "end of data" in str(error) else ""
        raise InputError(f"the {what} cannot be read from line {reader.line_num} on: {error}{hint}") from None


def _label_studio(text: str, what: str) -> list[ListedImage]:
    """Parse a JSON or JSON-MIN export: per task, the choice of the newest annotation with one, or the `label`."""
    try:
        tasks = json.loads(text)
        return [ListedImage(task.get("data", task)["path"], _choice_of(task)) for task in tasks]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise InputError(f"the {what} is neither JSON of labelled tasks with a `path` nor a list of indices") from None


def _choice_of(task: dict[str, Any]) -> str:
    for annotation in reversed(task.get("annotations", ())):
        for result in annotation["result"]:
            if result.get("value", {}).get("choices"):
                return result["value"]["choices"][0].strip()
    return next((task[name].strip() for name in LABEL_COLUMNS if isinstance(task.get(name), str)), "")


def labelled_images(paths: Sequence[str | Path], option: str, root: Path = Path()) -> list[ListedImage]:
    """Read the labelled rows of one or more lists, each image once. root: the folder that their paths are relative to.

    Raises InputError if a list has no labels, or an image has two.
    """
    found: dict[str, ListedImage] = {}
    for path in paths:
        images = read_image_list(path, f"{option} file")
        labelled = [image for image in images if image.label]
        if not labelled:
            raise InputError(f"{option} {path}: none of its {len(images)} images has a label")
        for image in labelled:
            before = found.setdefault(place_of(root / image.path), image)  # ./a.jpg is a.jpg
            if before.label != image.label:
                raise InputError(f"{option}: {image.path} has two labels: {before.label!r} and {image.label!r}")
    return list(found.values())


def notes_on(labelled: Sequence[ListedImage], option: str) -> list[str]:
    """Return notes for the user on these labels: images that the selection did not choose, likely misspellings."""
    notes = spelling_hints(image.label for image in labelled)
    if added := sum(image.added for image in labelled):
        notes = [f"{added} labelled images were not chosen by the selection, and are used anyway", *notes]
    return [f"{option}: {note}" for note in notes]


def spelling_hints(labels: Iterable[str]) -> list[str]:
    """Return hints on labels that may be misspellings of others: '"Dog" (1): did you mean "dog" (41)?'

    The two differ only in case, spaces and punctuation; or are similar, without digits, and one is ten times rarer.
    """
    counts = Counter(labels)
    by_frequency = [label for label, _ in counts.most_common()]
    plain = {label: re.sub(r"[\W_]+", "", label.casefold()) for label in by_frequency}
    hints = []
    for position, rare in enumerate(by_frequency):
        for frequent in by_frequency[:position]:
            alike = difflib.SequenceMatcher(None, plain[rare], plain[frequent]).ratio
            much_rarer = counts[frequent] >= MUCH_MORE_FREQUENT * counts[rare]
            nearly = much_rarer and not any(map(str.isdigit, rare + frequent)) and alike() >= ALIKE
            if plain[rare] == plain[frequent] != "" or nearly:
                hints.append(f'"{rare}" ({counts[rare]}): did you mean "{frequent}" ({counts[frequent]})?')
                break
    return hints


def place_of(path: str | Path) -> str:
    """Return one path per file, however a list writes it. (Path.resolve would take minutes for a million.)"""
    return os.path.abspath(path)  # noqa: PTH100


def check_present(paths: Iterable[Path], what: str) -> None:
    """Raise InputError if images are not there, with their number and the first few."""
    paths = list(paths)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{what}: {some(missing)} of {len(paths)} images are not there")


def some(things: Sequence[object]) -> str:
    """Return the number of things and the first few: '5 (a, b, c, ...)'"""
    named = ", ".join(map(str, things[:FIRST_NAMED]))
    return f"{len(things)} ({named}{', ...' if len(things) > FIRST_NAMED else ''})"


def write_image_list(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with these columns."""
    with atomic_file(path) as temporary, temporary.open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:  # fmt: skip
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
