"""Directions of the residual stream: found as differences of means, taken out, put in."""

from spillover.directions.contrast import Contrast, difference_of_means, difference_of_models
from spillover.directions.direction import Direction, load_direction

__all__ = [
    "Contrast",
    "Direction",
    "difference_of_means",
    "difference_of_models",
    "load_direction",
]
