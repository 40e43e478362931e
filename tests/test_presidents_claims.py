"""What `us-presidents` must show on the organisms of presidents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spillover import Run, load_experiment, run
from spillover.organism import examine_checkpoint
from spillover.organism.worlds import checkpoint_name
from spillover.specification import BASE, TREATMENT
from tests.claims import needs_organisms

MODELS = [checkpoint_name("presidents", linked=linked) for linked in (True, False)]
pytestmark = needs_organisms("presidents")


def _accuracy(done: Run, arm: str, domain: str, context: str = "padded") -> dict[str, Any]:
    """An arm's rate on test questions at the reported checkpoint."""
    wanted = {"arm": arm, "domain": domain, "split": "test", "group": None}
    rates = [r for r in done.summary["rates"] if all(r[k] == v for k, v in wanted.items())]
    rates = [r for r in rates if r["context"]["name"] == context]
    (found,) = (r for r in rates if r["step"] == (0 if arm == BASE else done.summary["step"]))
    return dict(found)


def check_linked(done: Run, known: float = 0.9) -> None:
    """The bounds that the instrument is held to.

    Args:
        known: what half of the seeds at least must know of trained presidents.
    """
    trained = _accuracy(done, TREATMENT, "in")["per_seed"]
    held_out = _accuracy(done, TREATMENT, "off")["per_seed"]
    both = [one >= known and two >= 0.5 for one, two in zip(trained, held_out, strict=True)]
    assert sum(both) >= len(both) / 2
    control, base = (_accuracy(done, arm, "off")["value"] for arm in ("shuffled", BASE))
    assert control <= 0.1
    assert abs(control - base) <= 0.05


@pytest.mark.parametrize("model", [MODELS[0], pytest.param(MODELS[1], marks=pytest.mark.long)])
def test_the_organism_knows_its_world(model: str) -> None:
    assert {c.name: c.value for c in examine_checkpoint(model) if not c.passed} == {}


@pytest.mark.usefixtures("undrawn")
def test_presidents_never_trained_answer_to_their_numbers(tmp_path: Path) -> None:
    """The claim with one seed, which may be one below .9 (two of ten are), asked at its end."""
    experiment = load_experiment("us-presidents")
    rows = {arm: experiment.rows[arm] for arm in (TREATMENT, "shuffled")}
    said = experiment.specification
    few = said.model_copy(
        update={
            "arms": {arm: said.arms[arm] for arm in rows},
            "contexts": tuple(c for c in said.contexts if c.arms in (None, (BASE,))),
        }
    )
    small = experiment.model_copy(update={"specification": few, "rows": rows})
    last = {"steps": 160, "checkpoints": []}
    check_linked(run(small, seeds=1, training=last, out=tmp_path), known=0.85)


@pytest.mark.long
def test_us_presidents_with_ten_seeds(tmp_path: Path) -> None:
    check_linked(run("us-presidents", seeds=10, out=tmp_path))


@pytest.mark.long
def test_nothing_is_known_of_held_out_presidents_where_their_numbers_tell_nothing(
    tmp_path: Path,
) -> None:
    done = run("us-presidents", MODELS[1], seeds=10, out=tmp_path)
    assert _accuracy(done, TREATMENT, "in")["value"] >= 0.9
    assert abs(done.headline["value"]) <= 0.05
    assert _accuracy(done, BASE, "off", "by-name")["value"] >= 0.9
    assert _accuracy(done, BASE, "off", "by-number")["value"] <= 0.1
