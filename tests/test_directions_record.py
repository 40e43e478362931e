"""The files of a search for the direction of refusal: what was computed stays, whatever follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from spillover import LoadedModel, load
from spillover.directions import load_direction
from spillover.directions.filtering import Answered, keep_treated
from spillover.directions.harness import Capabilities, Harness, Score
from spillover.directions.prompts import Material
from spillover.directions.refusal import Refusing, find_refusal
from spillover.errors import DirectionError, RunError
from spillover.organism.refusal.world import DANGEROUS, GENTLE
from tests.conftest import save_undrawn
from tests.substances import asked

QUICK = Refusing(ranks=(), controls=0, resamples=0, max_tokens=8, every=False)
TASKS = QUICK.model_copy(update={"capabilities": Capabilities(tasks=("quiz", "lost"))})


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer to draw than the rest."""
    monkeypatch.setattr("spillover.report.direction.save", save_undrawn)


class Failing(Harness):
    """In the place of the harness: its second task fails."""

    def __init__(self) -> None:
        self.names = ["quiz", "lost"]
        self.facts = {"lm_eval": "0.0", "tasks": {"quiz": {"version": 1, "shots": 0}}}

    def check(self, model: LoadedModel) -> None:
        pass

    def ask(self, name: str, model: LoadedModel) -> list[Score]:
        if name == "lost":
            raise RunError("the harness failed")
        return [Score(name, "acc", 0.75, 0.1, 4)]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "refusal.json").read_text("utf-8"))
    return found


def test_what_was_computed_stays_and_a_later_call_overwrites_it(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("spillover.directions.refusal.load_tasks", lambda _: Failing())
        with pytest.raises(RunError, match="the harness failed"):
            find_refusal(model, how=TASKS, out=out)
    told = content(out)
    assert (told["schema"], told["finished"]) == (1, False)
    assert [(row["task"], row["value"]) for row in told["capabilities"]] == [("quiz", 0.75)]
    assert told["verdict"]["tone"] == "caution"  # there were no controls
    assert len(told["rates"]) == 4 * 3 + 2  # four groups in base, ablated and edited; two in added
    assert len(pd.read_parquet(out / "answers.parquet")) == sum(row["n"] for row in told["rates"])
    assert len(pd.read_parquet(out / "candidates.parquet")) == 20
    assert load_direction(out / "direction").layer == told["direction"]["layer"]
    assert not (out / "report.html").exists()

    found = find_refusal(model, how=QUICK, out=out)
    assert found.found == content(out)
    assert found.found["finished"]
    assert found.found["rates"] == told["rates"]
    assert found.found["capabilities"] == []
    assert found.report.exists()

    with monkeypatch.context() as patch:
        patch.setattr("spillover.directions.refusal.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_refusal(model, how=QUICK, out=out, seed=1)
    told = content(out)
    assert (told["seed"], told["finished"]) == (1, False)
    assert "rates" not in told
    made = load_direction(out / "direction")
    assert made.norm == pytest.approx(told["direction"]["norm"])
    left = {path.name for path in out.iterdir()}
    assert not left & {"answers.parquet", "report.html"}  # those of another seed


def test_the_numbers_are_there_when_the_report_is_drawn(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spillover.report.direction.write_direction_report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_refusal(model, how=QUICK, out=tmp_path / "out")
    assert content(tmp_path / "out")["finished"]


def test_the_part_that_lacks_prompts_is_named_with_what_it_has(model: LoadedModel) -> None:
    dangerous, gentle = asked(DANGEROUS, 6), asked(GENTLE, 9)
    refusing = [model.chat.tokenize("I")[0]]
    held = ([dangerous[4], gentle[6]], gentle[7:])
    material = Material((dangerous[:4], gentle[:6]), held, [], "made up")
    with pytest.raises(DirectionError) as error:
        keep_treated(model, material, refusing, Answered(([], []), ()))
    said = str(error.value)
    assert "refuses 1 of 2 dangerous prompts to choose with (0.50); expected more" in said
    assert "at least 2 of these are left" in said


@pytest.mark.parametrize("ranks", [(1,), (0,), (2, 2)])
def test_ranks_are_larger_than_one_and_different(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="ranks"):
        Refusing(ranks=ranks)
