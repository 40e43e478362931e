"""A name → a loaded model: where it comes from, where it runs, and what it is (its hash)."""

from spillover.models.loading import LoadedModel, Loading, load
from spillover.models.sources import BUILTIN, Source, resolve

__all__ = ["BUILTIN", "LoadedModel", "Loading", "Source", "load", "resolve"]
