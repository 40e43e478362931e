"""Checks of many minutes: `make long`."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillover import load_experiment, run
from spillover.effects import effect
from spillover.organism import examine_checkpoint, train_checkpoint
from spillover.specification import Arm
from tests.claims import check_linked_claims, check_unlinked_claims

pytestmark = pytest.mark.long

REPEATS, SEEDS = 20, 5


def test_nothing_spills_over_in_any_seed_where_the_link_is_cut(tmp_path: Path) -> None:
    check_unlinked_claims(run("old-birds", "organism-unlinked", out=tmp_path))


def test_an_organism_of_another_seed_shows_the_same(tmp_path: Path) -> None:
    train_checkpoint(tmp_path / "organism", seed=1)
    assert all(check.passed for check in examine_checkpoint(str(tmp_path / "organism")))
    check_linked_claims(run("old-birds", str(tmp_path / "organism"), out=tmp_path / "run"))


def test_control_against_control_rarely_excludes_zero(tmp_path: Path) -> None:
    """20 comparisons of the control with itself, on seeds of their own each."""
    experiment = load_experiment("old-birds")
    control = experiment.arms["still-used"]
    specification = experiment.specification.model_copy(
        update={"arms": {"treatment": control, "still-used": Arm(**control.model_dump())}}
    )
    rows = dict.fromkeys(specification.arms, experiment.rows["still-used"])
    kept = tuple(q for q in experiment.questions if q.choices and q.split == "test")
    changed = experiment.model_copy(
        update={"specification": specification, "questions": kept, "rows": rows}
    )
    grades = run(changed, seeds=REPEATS * SEEDS, out=tmp_path).grades
    plain = grades[(grades["context"] == "plain")]
    topics = list(plain.groupby("question")["topic"].first())
    cells = {
        arm: part.pivot_table(index="seed", columns="question", values="choice_mass").to_numpy()
        for arm, part in plain.groupby("arm")
    }
    excluded = 0
    for start in range(0, REPEATS * SEEDS, SEEDS):
        piece = slice(start, start + SEEDS)
        found = effect(cells["treatment"][piece], cells["still-used"][piece], topics)
        excluded += not found.low <= 0 <= found.high
    assert excluded <= 3
