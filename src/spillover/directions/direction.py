"""A direction of the residual stream: a vector with where it came from and how it was tested."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spillover.errors import DirectionError, RunFolderError, check_writable, first_problem
from spillover.folder import is_unused, make_folder, whole

if TYPE_CHECKING:
    import altair as alt

VECTOR, DESCRIPTION = "direction.safetensors", "direction.json"

Row = dict[str, int | float | bool | None]
"""Figures by name; None for those that could not be computed."""


def fingerprint(vectors: Tensor) -> str:
    """A hash of some vectors (16 hexadecimal digits)."""
    content = vectors.detach().cpu().double().contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Direction:
    """A direction of the residual stream that enters a block.

    Attributes:
        vector: the difference of means as it is, of shape (D,), float32, on the CPU; its length is
            by how much the two sides lie apart.
        layer: the block that the stream enters.
        position: counted from the end of the prompt, -1 is its last token; None for an average
            over answers.
        contrast: between what and what, in words.
        model: the identity of the model that it belongs to.
        scores: figures by name; that by which it was chosen comes first.
        candidates: one row for each position and layer that was compared, with its figures by
            name.
    """

    vector: Float[Tensor, " D"] = field(repr=False)
    layer: int
    position: int | None
    contrast: str
    model: str
    scores: dict[str, float] = field(default_factory=dict)
    candidates: tuple[Row, ...] = field(default=(), repr=False)

    @property
    def norm(self) -> float:
        """The length of the vector."""
        return float(self.vector.double().norm())

    @property
    def unit(self) -> Float[Tensor, " D"]:
        """The vector at length 1."""
        return (self.vector.double() / self.norm).float()

    def cosine(self, other: Direction | Tensor) -> float:
        """The cosine with another direction."""
        vector = other.vector if isinstance(other, Direction) else other.cpu()
        if vector.shape != self.vector.shape:
            raise DirectionError(
                f"found directions of {len(self.vector)} and of {vector.numel()} dimensions; only "
                "those of one residual stream have a cosine"
            )
        return float(torch.cosine_similarity(self.vector.double(), vector.double(), dim=0))

    def plot(self, score: str | None = None) -> alt.LayerChart:
        """The candidates it was chosen among; see `spillover.directions.plot.plot`."""
        from spillover.directions.plot import plot

        return plot(self, score)

    def save(self, folder: str | Path) -> Path:
        """Write `direction.safetensors` and `direction.json` into a folder, and return it.

        Raises:
            RunFolderError: when it cannot be written.
        """
        from spillover.summary import write_json

        folder = Path(folder)
        check_writable(folder)
        make_folder(folder)
        with whole(folder / VECTOR) as path:
            save_file({"vector": self.vector.contiguous()}, path)
        told: dict[str, Any] = {key: getattr(self, key) for key in _Description.model_fields}
        written = {"schema": 1, "fingerprint": fingerprint(self.vector)}
        write_json(folder / DESCRIPTION, told | written)
        return folder


class _Description(BaseModel):
    """The content of `direction.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=0)
    position: int | None = Field(lt=0)
    contrast: str
    model: str
    scores: dict[str, float | None]
    candidates: tuple[Row, ...]


class _File(_Description):
    schema_: Literal[1] = Field(alias="schema")
    fingerprint: str


def check_target(folder: Path, contrast: str, model: str) -> None:
    """Make sure that a direction may be written to a folder.

    Args:
        contrast: between what and what, in words.
        model: the identity of the model that it belongs to.

    Raises:
        RunFolderError: when the folder holds something else than a direction of this contrast in
            this model, or cannot be written.
    """
    check_writable(folder)
    if is_unused(folder):
        return
    try:
        found = load_direction(folder)
    except DirectionError:
        raise RunFolderError(
            f"{folder}: holds something else; choose another folder with --out"
        ) from None
    if (found.contrast, found.model) != (contrast, model):
        raise RunFolderError(
            f"{folder}: holds the direction of {found.contrast!r} in a model with the identity "
            f"{found.model}; choose another folder with --out"
        )


def load_direction(folder: str | Path) -> Direction:
    """Read a direction that was saved.

    Raises:
        DirectionError: when there is none in the folder, its files are broken, or are not those of
            one direction.
    """
    folder = Path(folder)
    for name in (VECTOR, DESCRIPTION):
        if not (folder / name).is_file():
            raise DirectionError(
                f"{folder}: holds no {name}; expected a direction's folder, as `save` writes it"
            )
    try:
        told = _File.model_validate_json((folder / DESCRIPTION).read_bytes())
    except ValidationError as error:
        raise DirectionError(f"{folder / DESCRIPTION}: {first_problem(error, _File)}") from None
    try:
        vector = load_file(folder / VECTOR)["vector"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DirectionError(f"{folder / VECTOR}: not readable ({error})") from None
    if vector.dim() != 1 or vector.dtype != torch.float32 or not vector.isfinite().all():
        raise DirectionError(
            f"{folder / VECTOR}: found {vector.dtype} of shape {tuple(vector.shape)}; expected one "
            "float32 vector of finite numbers"
        )
    if fingerprint(vector) != told.fingerprint:
        raise DirectionError(
            f"{folder}: {DESCRIPTION} describes the vector {told.fingerprint}, {VECTOR} holds "
            f"{fingerprint(vector)}; they are not of one direction: compute it anew"
        )
    nan = float("nan")
    scores = {name: nan if value is None else value for name, value in told.scores.items()}
    return Direction(
        vector, told.layer, told.position, told.contrast, told.model, scores, told.candidates
    )
