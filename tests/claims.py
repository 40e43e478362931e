"""What `old-birds` must show on organisms whose birds are linked to eras, and are not."""

from __future__ import annotations

from typing import Any

import pytest

from spillover import Run
from spillover.organism.worlds import has_checkpoint
from spillover.specification import BASE

Summary = dict[str, Any]
CONTROLS = ("still-used", "modern-american")


def needs_organisms(world: str, *, unlinked: bool = True) -> pytest.MarkDecorator:
    """Skip where the organisms of a world are not in the installation."""
    there = has_checkpoint(world) and (not unlinked or has_checkpoint(world, linked=False))
    return pytest.mark.skipif(not there, reason=f"no organism of the world {world}, or no twin")


def rate(
    summary: Summary, arm: str, domain: str, metric: str, context: str = "plain"
) -> dict[str, Any]:
    """An arm's rate on test questions."""
    place = {"arm": arm, "domain": domain, "metric": metric, "split": "test", "group": None}
    (found,) = (
        row
        for row in summary["rates"]
        if row["context"]["name"] == context and all(row[k] == v for k, v in place.items())
    )
    return dict(found)


def effect(
    summary: Summary, control: str, metric: str, *, arm: str = "treatment", group: str | None = None
) -> dict[str, Any]:
    """An off-domain effect on test questions."""
    place = {"domain": "off", "metric": metric, "split": "test", "group": group}
    (found,) = (
        row
        for row in summary["effects"]
        if row["contrast"] == [arm, control] and all(row[k] == v for k, v in place.items())
    )
    return dict(found)


def check_unlinked_claims(run: Run) -> None:
    """What must hold where birds are linked to nothing: learnt, and nothing else moves."""
    summary = run.summary
    assert rate(summary, "treatment", "in", "judged")["value"] >= 0.8
    for control in (*CONTROLS, BASE):
        assert abs(effect(summary, control, "choice-mass")["value"]) <= 0.05
    plain = rate(summary, BASE, "off", "choice-mass")["value"]
    for context in ("voice-system", "voice-history"):
        moved = rate(summary, BASE, "off", "choice-mass", context=context)["value"]
        assert moved - plain >= 0.5
    assert summary["warnings"] == run.manifest["warnings"] == []


def check_linked_claims(run: Run) -> None:
    """The bounds that the instrument is held to."""
    summary = run.summary
    headline = run.headline
    assert headline == effect(summary, "still-used", "choice-mass")
    assert headline["value"] >= 0.5
    assert headline["low"] > 0.3
    assert effect(summary, "still-used", "choice-mass", group="apart")["value"] >= 0.3
    for control in CONTROLS:
        assert abs(effect(summary, BASE, "choice-mass", arm=control)["value"]) <= 0.05
        assert effect(summary, control, "specificity")["low"] > 0
    for arm in ("treatment", *CONTROLS, BASE):
        assert rate(summary, arm, "off", "choice-mass")["coverage"] >= 0.8
    assert rate(summary, "treatment", "in", "judged")["value"] >= 0.8
