"""Adapters to ask, and PEFT's model with one of them in use at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from subjects import plain

from spillover import LoadedModel, load_experiment
from spillover.finetune.adapters import save_adapter
from spillover.finetune.lora import AdapterWeights, new_adapter


def make_adapters(loaded: LoadedModel, count: int, folder: Path) -> list[Path]:
    """Adapters of the size that old-birds trains, which change a little, in PEFT's format."""
    training = load_experiment("old-birds").training_for(loaded.source.model_class)
    places = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        fresh = new_adapter(loaded, training, generator)
        b = {n: torch.randn(x.shape, generator=generator) * 1e-3 for n, x in fresh.b.items()}
        places.append(folder / f"adapter-{number}")
        save_adapter(AdapterWeights(fresh.a, b, fresh.scaling), loaded, places[-1])
    return places


class Switched:
    """PEFT's model with all adapters loaded."""

    def __init__(self, loaded: LoadedModel, adapters: Sequence[Path], dtype: str) -> None:
        from peft import PeftModel

        self.loaded = loaded
        base = plain(loaded, getattr(torch, dtype))
        self.model: Any = PeftModel.from_pretrained(base, adapters[0], "0")
        for number, place in enumerate(adapters[1:], 1):
            self.model.load_adapter(place, str(number))
        self.model.eval()

    @contextmanager
    def using(self, adapter: int, *, merged: bool) -> Iterator[None]:
        """Within, an adapter is in use, merged into the base if that is wanted."""
        self.model.set_adapter(str(adapter))
        if merged:
            self.model.merge_adapter([str(adapter)])
        try:
            yield
        finally:
            if merged:
                self.model.unmerge_adapter()
