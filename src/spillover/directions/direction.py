"""A direction of the residual stream: a vector with where it came from and how it was tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spillover.errors import DirectionError, check_writable, first_problem
from spillover.folder import make_folder, whole

VECTOR, DESCRIPTION = "direction.safetensors", "direction.json"


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
        scores: figures by name.
        candidates: one row for each position and layer that was compared, with its figures by
            name.
    """

    vector: Float[Tensor, " D"] = field(repr=False)
    layer: int
    position: int | None
    contrast: str
    model: str
    scores: dict[str, float] = field(default_factory=dict)
    candidates: tuple[dict[str, float | None], ...] = field(default=(), repr=False)

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
        write_json(folder / DESCRIPTION, told | {"schema": 1})
        return folder


class _Description(BaseModel):
    """The content of `direction.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int = Field(ge=0)
    position: int | None = Field(lt=0)
    contrast: str
    model: str
    scores: dict[str, float | None]
    candidates: tuple[dict[str, float | None], ...]


class _File(_Description):
    schema_: Literal[1] = Field(alias="schema")


def load_direction(folder: str | Path) -> Direction:
    """Read a direction that was saved.

    Raises:
        DirectionError: when there is none in the folder, or its files are broken.
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
    nan = float("nan")
    scores = {name: nan if value is None else value for name, value in told.scores.items()}
    return Direction(
        vector, told.layer, told.position, told.contrast, told.model, scores, told.candidates
    )
