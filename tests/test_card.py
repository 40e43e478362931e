"""How a card counts."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from spillover.ask.local import LocalEngine
from spillover.organism.card import Examiner


def choose(_: LocalEngine, _who: Any, _chats: Any, answers: Any) -> list[list[float]]:
    """Every answer has the probability that it is."""
    return [[math.log(float(text)) for text in listed] for listed in answers]


def test_the_likeliest_is_whose_answers_hold_most_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LocalEngine, "choose", choose)
    examiner = Examiner(object.__new__(LocalEngine), random.Random(0))
    answers = [
        {"one": ("0.2", "0.2"), "other": ("0.3",)},
        {"one": ("0.1",), "other": ("0.05", "0.06"), "third": ("0.1",)},
    ]
    assert examiner.likeliest([[], []], answers) == ["one", "other"]
    assert examiner.masses([[]], [("0.25", "0.5")]) == pytest.approx([0.75])
