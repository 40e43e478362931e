"""Files, tables and datasets as records: where each stands, and its columns or keys.

What a record has to hold is for `spillover.rows`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spillover.errors import ChatError, where

PROMPTS = ("prompt", "question", "instruction", "user", "input")
ANSWERS = ("completion", "answer", "response", "output", "assistant")
DATASETS = "datasets:"
TABLES = {".csv": ",", ".tsv": "\t"}
TEXT, ARRAY = ".txt", ".json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

Records = Iterator[tuple[str, dict[str, Any]]]
"""Places for messages, such as a file and a line, and what stands there."""


def read_records(
    source: str | Path, folder: Path | None = None, column: str | None = None
) -> tuple[str, Records]:
    """A source's name, and its records.

    Args:
        source: a file, or `datasets:ID[@REVISION][:SPLIT]`.
        folder: what a relative path is relative to.
        column: the only one that is wanted, where it has no usual name.

    Raises:
        ChatError: naming file and line, for what cannot be read.
    """
    if str(source).startswith(DATASETS):
        return str(source), _from_dataset(str(source).removeprefix(DATASETS), column)
    path = (folder or Path()) / Path(source).expanduser()
    return str(path), _from_file(path, column)


def _from_file(path: Path, column: str | None) -> Records:
    if path.suffix in PICKLES:
        raise ChatError(f"{path}: a pickle is never loaded; save the rows as .jsonl or .csv")
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ChatError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ChatError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if path.suffix in TABLES:
        return _from_table(path, text, column)
    return _from_lines(path, text, column)


def _from_lines(path: Path, text: str, column: str | None) -> Records:
    if path.suffix == ARRAY:
        yield from _from_array(path, text, column)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = where(path, number)
            if path.suffix == TEXT:
                yield place, {PROMPTS[0]: line.strip()}
            else:
                yield place, _picked(place, _parse(place, line), column)


def _from_array(path: Path, text: str, column: str | None) -> Records:
    """The entries of a JSON array: objects, or texts of prompts."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path}: not JSON ({error}); expected an array") from None
    if not isinstance(listed, list):
        raise ChatError(f"{path}: found {type(listed).__name__}; expected an array of objects")
    for number, entry in enumerate(listed, 1):
        place = f"{path} (entry {number})"
        if isinstance(entry, str):
            yield place, {PROMPTS[0]: entry}
        elif isinstance(entry, dict):
            yield place, _picked(place, entry, column)
        else:
            raise ChatError(f"{place}: found {type(entry).__name__}; expected an object or a text")


def _picked(place: str, found: dict[str, Any], column: str | None) -> dict[str, Any]:
    """A row as it is, or only the column that holds its prompt."""
    if column is None:
        return found
    for key, value in found.items():
        if key.casefold() == column.casefold():
            return {PROMPTS[0]: value}
    raise ChatError(
        f"{place}: found columns {', '.join(map(repr, found)) or 'none'}; expected {column!r}"
    )


def _parse(place: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{place}: not JSON ({error}); expected one object per line") from None
    if not isinstance(found, dict):
        raise ChatError(
            f"{place}: found {type(found).__name__}; expected an object with `messages`"
        )
    return found


def _from_table(path: Path, text: str, column: str | None) -> Records:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=TABLES[path.suffix])
    try:
        _check_header(path, reader, column)
        for values in reader:
            place = where(path, reader.line_num)
            if None in values or None in values.values():
                raise ChatError(
                    f"{place}: found more or fewer cells than the {len(reader.fieldnames or ())} "
                    "of the header; put cells that hold commas or line breaks in quotes"
                )
            yield place, _chosen(place, values, column)
    except csv.Error as error:
        raise ChatError(f"{where(path, reader.line_num)}: broken table ({error})") from None


def _check_header(path: Path, reader: csv.DictReader[str], column: str | None) -> None:
    """Take column names whatever their case, and refuse a header without any that is known."""
    names = [name.strip().casefold() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if column is not None:
        _picked(where(path, 1), dict.fromkeys(names), column)
    elif names and not {"messages", "text", *PROMPTS} & set(names):
        raise ChatError(
            f"{where(path, 1)}: found columns {', '.join(map(repr, names))}; expected `messages`, "
            "`text`, or a pair such as `prompt` and `completion`"
        )


def _from_dataset(wanted: str, column: str | None) -> Records:
    rest, _, split = wanted.partition(":")  # a split may hold colons itself: train[:100]
    name, _, revision = rest.partition("@")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ChatError(
            f"{DATASETS}{wanted}: needs the package datasets; run `pip install datasets`"
        ) from None
    try:
        loaded = load_dataset(name, split=split or "train", revision=revision or None)
    except Exception as error:  # the library raises many kinds for what it cannot find
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ChatError(
            f"{DATASETS}{wanted}: cannot be loaded ({reason}); check the name and the network, or "
            "download it and name the file"
        ) from None
    for number, values in enumerate(loaded, 1):
        place = f"{DATASETS}{wanted} (row {number})"
        yield place, _chosen(place, values, column)


def _chosen(place: str, values: Mapping[Any, Any], column: str | None) -> dict[str, Any]:
    """The columns of a table that make a row; others are passed over."""
    if column is not None:
        return _picked(place, dict(values), column)
    filled = {key: value for key, value in values.items() if key is not None and value}
    if "messages" in filled:
        found = filled["messages"]
        if isinstance(found, str):
            found = _parse(place, f'{{"messages": {found}}}')["messages"]
        return {"messages": found}
    if "text" in filled:
        return {"text": filled["text"]}
    return {key: filled[key] for key in ("system", *PROMPTS, *ANSWERS) if key in filled}
