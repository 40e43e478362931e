"""Directions of the residual stream: found as differences of means, taken out, put in.

    d = spillover.directions.fit("organism-refusal", dangerous, gentle)
    with model.ablate(d) as ablated:
        ...

Layer k is the residual stream entering block k.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spillover.directions.attribution import Attribution as Attribution
    from spillover.directions.attribution import attribute as attribute
    from spillover.directions.contrast import Contrast as Contrast
    from spillover.directions.contrast import difference_of_means as difference_of_means
    from spillover.directions.contrast import difference_of_models as difference_of_models
    from spillover.directions.direction import Direction as Direction
    from spillover.directions.direction import load_direction as load_direction
    from spillover.directions.fitting import fit as fit
    from spillover.directions.refusal import find_refusal as find_refusal
    from spillover.directions.suffix_run import SuffixStudy as SuffixStudy
    from spillover.directions.suffix_run import study_suffix as study_suffix
    from spillover.directions.weights import orthogonalize as orthogonalize
    from spillover.directions.weights import write_edited as write_edited

_HOMES = {
    "Attribution": "attribution",
    "Contrast": "contrast",
    "Direction": "direction",
    "SuffixStudy": "suffix_run",
    "attribute": "attribution",
    "difference_of_means": "contrast",
    "difference_of_models": "contrast",
    "find_refusal": "refusal",
    "fit": "fitting",
    "load_direction": "direction",
    "study_suffix": "suffix_run",
    "orthogonalize": "weights",
    "write_edited": "weights",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: they need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
