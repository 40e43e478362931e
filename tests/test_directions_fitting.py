"""A direction for any contrast: where it is chosen, what chance gives, what is refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spillover
from spillover import DirectionError, InputError, LoadedModel, load
from spillover.directions import difference_of_means, load_direction
from spillover.directions.contrast import mean_activations, post_instruction
from spillover.directions.fitting import SHUFFLES
from spillover.organism.refusal.world import DANGEROUS, GENTLE
from spillover.rows import Conversation
from tests.commands import call
from tests.substances import asked

Sides = tuple[list[Conversation], list[Conversation]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


@pytest.fixture(scope="module")
def sides() -> Sides:
    return asked(DANGEROUS, 20), asked(GENTLE, 18)


def write_sides(folder: Path, sides: Sides) -> list[Path]:
    """A file of prompts for each side."""
    files = []
    for name, side in zip("ab", sides, strict=True):
        files.append(folder / f"{name}.txt")
        files[-1].write_text("\n".join(one[0]["content"] for one in side), "utf-8")
    return files


def test_fit_finds_where_the_sides_lie_furthest_apart(
    model: LoadedModel, sides: Sides, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    found = spillover.directions.fit(
        model, *sides, contrast="dangerous - gentle", progress=lambda *at: steps.append(at)
    )
    assert steps[-1] == (76, 76)
    wanted = difference_of_means(model, *sides)
    assert torch.allclose(
        found.vector.double(), wanted.direction(found.position, found.layer).vector.double()
    )
    assert len(found.candidates) == post_instruction(model) * len(model.anatomy.blocks)
    assert found.scores["auc"] > 0.95
    best = max(row["separation"] or 0 for row in found.candidates if (row["norm"] or 0) > 0)
    assert found.scores["separation"] == best > 2 * found.scores["separation_by_chance"]
    assert found.model == model.source.identity
    files = write_sides(tmp_path, sides)
    again = spillover.directions.fit(model, *files, layer=2, position=-1)
    assert (again.layer, again.position) == (2, -1)
    assert len(again.candidates) == len(model.anatomy.blocks)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_split_of_one_side_is_told_apart_by_chance_only(
    seed: int, model: LoadedModel
) -> None:
    """Scores are held out: in the prompts that a direction was made of, any two sides differ."""
    prompts = random.Random(seed).sample(asked(GENTLE, 24), 24)
    found = spillover.directions.fit(model, prompts[::2], prompts[1::2])
    assert found.scores["separation"] < found.scores["separation_by_chance"]
    there = spillover.directions.fit(model, prompts[::2], prompts[1::2], layer=3, position=-1)
    assert abs(there.scores["separation"]) < 2
    assert 0.1 < there.scores["auc"] < 0.9


def test_chance_is_the_largest_separation_of_shuffled_labels_read_literally(
    model: LoadedModel, sides: Sides
) -> None:
    few = (sides[0][:9], sides[1][:8])
    found = spillover.directions.fit(model, *few, seed=5)
    positions = [*range(-post_instruction(model), 0)]
    wanted = {(row["position"], row["layer"]): row["norm"] or 0 for row in found.candidates}
    usable = [
        (at, layer)
        for at, position in enumerate(positions)
        for layer in range(len(model.anatomy.blocks))
        if wanted[position, layer] > 0
    ]
    rng = np.random.default_rng(5)
    halves = []
    for at in (0, 1):
        streams, labels = [], []
        for label, side in zip((True, False), few, strict=True):
            for prompt in side[at::2]:
                streams.append(mean_activations(model, [prompt], positions).numpy())
                labels.append(label)
        shuffled = [rng.permutation(np.array(labels)) for _ in range(SHUFFLES)]
        halves.append((np.stack(streams), shuffled))
    most = -math.inf
    for number in range(SHUFFLES):
        for place in usable:
            parts = [(x[:, place[0], place[1]], of[number]) for x, of in halves]
            both = (separation(*parts), separation(*reversed(parts)))
            most = max(most, sum(both) / 2)
    assert found.scores["separation_by_chance"] == pytest.approx(most, rel=1e-6)


Labelled = tuple[Any, Any]


def separation(half: Labelled, other: Labelled) -> float:
    """Of a half, along the difference of means of the other one."""
    (x, labels), (y, marks) = half, other
    along = x @ (y[marks].mean(0) - y[~marks].mean(0))
    one, two = along[labels], along[~labels]
    return float((one.mean() - two.mean()) / math.sqrt((one.var(ddof=1) + two.var(ddof=1)) / 2))


def test_prompts_that_stand_there_twice_count_once(model: LoadedModel, sides: Sides) -> None:
    few = (sides[0][:6], sides[1][:6])
    once = spillover.directions.fit(model, *few)
    twice = spillover.directions.fit(model, few[0] + few[0][:5], few[1][:1] + few[1])
    assert torch.equal(once.vector, twice.vector)
    assert once.scores == twice.scores
    with pytest.raises(DirectionError, match="prompts are the same"):
        spillover.directions.fit(model, few[0], few[0] + few[0])
    with pytest.raises(DirectionError, match="the positive side has 2 different prompts"):
        spillover.directions.fit(model, few[0][:2] * 4, few[1])


@pytest.mark.parametrize(
    ("positive", "negative", "options", "told"),
    [
        (0, 5, {}, "the positive side has 0 different prompts; expected at least 4"),
        (5, 1, {}, "the negative side has 1 different prompts; expected at least 4"),
        (5, 5, {"layer": 4}, "layer 4 is out of range; .* layers 0 to 3"),
        (5, 5, {"layer": 0}, "the sides do not differ"),
        (5, 5, {"position": 0}, "position 0 is out of range"),
        (5, 5, {"position": -99}, "position -99 is out of range"),
    ],
)
def test_sides_that_cannot_be_contrasted_are_refused(
    positive: int, negative: int, options: dict[str, int], told: str, model: LoadedModel
) -> None:
    given = asked(DANGEROUS, positive), asked(GENTLE, negative)
    with pytest.raises(DirectionError, match=told) as raised:
        spillover.directions.fit(model, *given, **options)  # type: ignore[arg-type]
    assert isinstance(raised.value, InputError)
    assert "\n" not in str(raised.value)


def test_the_command_writes_to_a_folder_of_the_contrast_and_to_no_other(
    sides: Sides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = write_sides(tmp_path, (sides[0][:5], sides[1][:5]))
    given = ("direction", "fit", "--model", "organism-refusal", "--positive", one)
    for _ in range(2):  # its own folder is written anew
        assert call(*given, "--negative", other, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["folder"] == "runs/direction-organism-refusal-a-b"
        assert load_direction(told["folder"]).layer == told["layer"]
    other.rename(tmp_path / "c.txt")
    folder = tmp_path / told["folder"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call(*given, "--negative", tmp_path / "c.txt", "--out", folder) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds the direction of " in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert call(*given, "--negative", tmp_path / "c.txt", "--out", tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("holds something else; choose another folder with --out")
