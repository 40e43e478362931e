"""The exceptions of this package.

    SpilloverError
    ├── InputError (also ValueError)      bad input: nothing was computed; the CLI exits with 2
    │   ├── ExperimentError               an experiment folder, its TOML or its questions
    │   ├── ChatError                     chat rows, chat templates, loss masks
    │   ├── ModelError                    a model or adapter that cannot be found or used
    │   ├── DirectionError                prompts or a direction that cannot be used
    │   └── RunFolderError                an output folder that cannot be written or is not ours
    └── RunError (also RuntimeError)      something failed while computing; the CLI exits with 1
        └── MachineError                  out of memory or room, or a file that cannot be written

A message says what was found, what was expected and what to do next, with file and line where
there is one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


class SpilloverError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(SpilloverError, ValueError):
    """What the user gave cannot be used."""


class ExperimentError(InputError):
    """An experiment that cannot be found, read or accepted."""


class ChatError(InputError):
    """A chat row, a chat template or a loss mask that cannot be used."""


class ModelError(InputError):
    """A model or an adapter that cannot be found or used."""


class DirectionError(InputError):
    """A contrast of prompts, a direction or an intervention that cannot be used."""


class RunFolderError(InputError):
    """An output folder that cannot be written to, or that holds something else."""


class RunError(SpilloverError, RuntimeError):
    """A computation that failed."""


class MachineError(RunError):
    """What the machine could not give; nothing about what was computed."""


def where(path: Path | str, line: int | None = None) -> str:
    """`file:line` for messages, or `file` where no line is known."""
    return f"{path}:{line}" if line else f"{path}"


def check_writable(folder: Path) -> None:
    """Make sure that a folder can be created and written to; creates nothing.

    Raises:
        RunFolderError: when it is a file, or lies where nothing can be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder}: is a file; choose a folder with --out")
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        usable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be used ({error.strerror})") from None
    if not usable:
        raise RunFolderError(f"{folder}: cannot be written ({nearest}); choose another --out")


def meant(found: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one comes nearest to."""
    return next(iter(difflib.get_close_matches(found, list(known), n=1)), None)


def first_problem(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first problem of a pydantic error in one line: key, what was found, what is wrong.

    Args:
        kind: the model that was validated, whose keys are proposed for misspelt ones.
    """
    problem = first_error(error)
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = meant(str(problem["loc"][-1]), _keys_at(kind, problem["loc"][:-1]))
        hint = f"did you mean `{near}`?" if near else "remove it or check its spelling"
        return f"unknown key `{key}`; {hint}"
    found = problem.get("input")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) else ""
    return f"`{key}`: {message}{shown}" if key else message


def first_error(error: ValidationError) -> ErrorDetails:
    """The problem to report: an unknown key before others, which it often causes."""
    return min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that a model takes at a place in it; positions and free keys are passed over."""
    there = list(_models(kind))
    for part in location:
        fields = [model.model_fields[str(part)] for model in there if part in model.model_fields]
        if fields:
            there = [model for field in fields for model in _models(field.annotation)]
    return [name for model in there for name in model.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a value of this type is or has as parts."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
