"""Directions in numbers, shares of an effect, and what is chosen and said of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from spillover import LoadedModel
from spillover.effects.cells import Cells
from spillover.experiment import load_experiment
from spillover.mediation import table
from spillover.mediation.bench import Outcome, row_of
from spillover.mediation.measure import largest
from spillover.mediation.search import Ablation, Found
from spillover.mediation.streams import (
    ALL,
    MEANS,
    Recipe,
    activations,
    basis,
    random_basis,
    recipes,
    sequences,
)
from spillover.report.mediation import maxima, sentence

ROW: dict[str, Any] = {
    "remedy": "none",
    "setting": "treatment",
    "role": "treatment",
    "name": "treatment",
    "effect": {"value": 0.5, "low": 0.4, "high": 0.6},
    "removed": 0.0,
    "in_domain": 0.8,
    "coverage": 0.9,
    "kl": 0.25,
}
"""A row of the table."""


def differences(places: int = 2, layers: int = 4) -> torch.Tensor:
    return torch.randn(
        12, places, layers, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def test_activations_are_the_hidden_states_of_a_plain_pass(organism: LoadedModel) -> None:
    asked = load_experiment("old-birds")
    questions = [q for q in asked.questions if q.split == "dev" and q.domain == "off"][:3]
    rows = sequences(organism, questions, asked.specification.contexts[0])
    found = activations(organism, rows, {("base", -1): None})["base", -1]
    for row, (ids, places) in enumerate(zip(rows.ids, rows.places, strict=True)):
        with torch.no_grad():
            said = organism.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        plain = torch.stack(said.hidden_states[:-1])[:, 0].double()  # (L, T, D)
        for at, place in enumerate(places):
            mean = plain[:, place].mean(1)
            assert torch.allclose(found[row, at, :-1], mean, atol=1e-4)
        last = organism.model.model.norm(found[row, 0, -1].float())
        assert torch.allclose(last, said.hidden_states[-1][0, places[0][0]], atol=1e-4)


@pytest.mark.parametrize("kind", ["treatment", "control", "random"])
def test_an_ablation_takes_orthonormal_directions_of_its_kind(kind: str) -> None:
    made = {"treatment": differences(), "control": differences() ** 2}
    found = Found({3: made["treatment"]}, {3: made["control"]})
    directions = Ablation(Recipe("answer", 2), 2, kind).bases(found)[3]
    assert torch.allclose(directions @ directions.T, torch.eye(2), atol=1e-5)
    if kind in made:
        assert torch.equal(directions, basis(made[kind], Recipe("answer", 2), 2))


def test_the_first_direction_of_a_layer_is_its_mean_difference() -> None:
    given = differences()
    found = basis(given, Recipe("answer", 2), 1)
    mean = given[:, 1, 2].mean(0).float()
    assert abs(float(found[0] @ mean / mean.norm())) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("recipe", [Recipe("prompt", 3), Recipe("answer", ALL)])
def test_directions_of_a_higher_rank_are_singular_ones(recipe: Recipe) -> None:
    given = differences()
    found = basis(given, recipe, 4)
    assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-5)
    if isinstance(recipe.layer, int):
        rows = given[:, 0, recipe.layer].float()
        best = torch.linalg.svd(rows, full_matrices=False)[2][:4]
        assert torch.allclose(found.T @ found, best.T @ best, atol=1e-4)


def test_means_of_all_layers_span_no_more_directions_than_there_are_layers() -> None:
    assert len(basis(differences(layers=4), Recipe("prompt", MEANS), 8)) == 3  # none enters block 0


def test_a_few_layers_of_a_deep_model_are_tried_and_the_last_stream_is_among_them() -> None:
    layers = {r.layer for r in recipes(32) if isinstance(r.layer, int)}
    assert len(layers) <= 8
    assert max(layers) == 32
    assert min(layers) >= 16


def test_random_directions_are_orthonormal_and_depend_on_the_seed() -> None:
    one, other = random_basis(3, 16, 0), random_basis(3, 16, 1)
    assert torch.allclose(one @ one.T, torch.eye(3), atol=1e-5)
    assert not torch.allclose(one, other)


def outcome(values: list[list[float]], success: float = 0.8) -> Outcome:
    def cells(given: Any) -> Cells:
        return Cells(np.array(given, float), math.nan, math.nan, {}, 0.9)

    return Outcome(cells(values), cells([[success]]), [f"t{n}" for n in range(len(values[0]))])


def test_what_is_taken_away_is_counted_from_the_control() -> None:
    before, control = outcome([[0.9, 0.7], [0.8, 0.6], [0.8, 0.6]]), outcome([[0.1, 0.1]] * 3)
    after = outcome([[0.5, 0.3], [0.4, 0.2], [0.4, 0.2]], 0.4)
    row = row_of(after, before, control)
    total = np.mean([0.9, 0.7, 0.8, 0.6, 0.8, 0.6]) - 0.1
    assert row["effect"]["value"] == pytest.approx(total - 0.4)
    assert row["removed"] == pytest.approx(0.4 / total)
    assert row["removed_per_seed"] == pytest.approx([0.4 / 0.7, 0.4 / 0.6, 0.4 / 0.6])
    assert row["in_domain"] == 0.4


def test_without_a_value_nothing_is_said_to_be_taken_away() -> None:
    nothing = outcome([[math.nan, math.nan]] * 3)
    row = row_of(nothing, outcome([[0.9, 0.7]] * 3), outcome([[0.1, 0.1]] * 3))
    assert math.isnan(row["removed"])
    held = table.verdict([row | {"role": role} for role in ("ablation", "random")])["holds"]
    assert not held["ablation"]
    assert not held["random"]


def test_a_seed_and_a_run_without_an_effect_have_no_share_of_it() -> None:
    before, control = outcome([[0.9], [0.101], [0.8]]), outcome([[0.1]] * 3)
    row = row_of(outcome([[0.5], [0.2], [0.4]]), before, control)
    assert row["removed_per_seed"] == pytest.approx([0.5, math.nan, 4 / 7], nan_ok=True)
    for value in (0.102, 0.09, -0.5):
        none = row_of(outcome([[0.4]] * 3), outcome([[value]] * 3), control)
        assert math.isnan(none["removed"])
        assert none["effect"]["value"] == pytest.approx(0.3)


def row_in(role: str, removed: float, coverage: float = 0.9) -> dict[str, Any]:
    return {"role": role, "removed": removed, "coverage": coverage}


@pytest.mark.parametrize(
    ("removed", "coverage", "holds"),
    [
        (0.5, 0.61, True),
        (1.4, 0.61, True),
        (0.49, 0.61, False),
        (1.6, 0.61, False),
        (0.9, 0.59, False),
        (math.nan, 0.8, False),
    ],
)
def test_an_ablation_holds_where_half_of_the_effect_is_gone_and_the_coverage_is_not(
    removed: float, coverage: float, holds: bool
) -> None:
    rows = [row_in("treatment", 0, 0.8), row_in("ablation", removed, coverage)]
    assert table.verdict(rows)["holds"]["ablation"] is holds


def test_free_answers_have_no_coverage_that_an_ablation_could_lower() -> None:
    rows = [row_in("treatment", 0, math.nan), row_in("ablation", 0.9, math.nan)]
    assert table.verdict(rows)["holds"]["ablation"]


@pytest.mark.parametrize("removed", [0.11, -0.11, -9.0])
def test_a_control_that_changes_the_effect_either_way_does_not_hold(removed: float) -> None:
    rows = [row_in("random", removed), row_in("control", -0.09)]
    assert table.verdict(rows)["holds"] == {"ablation": False, "random": False, "control": True}


def test_an_effect_that_is_turned_round_is_no_better_than_one_that_is_gone() -> None:
    effects, coverages = (-0.3, 0.0, 0.02, math.nan, 0.0), (0.9, 0.9, 0.9, 0.9, 0.5)
    rows = [
        {"effect": {"value": e}, "coverage": c} for e, c in zip(effects, coverages, strict=True)
    ]
    ranked = sorted(range(5), key=lambda n: table.least_left(rows[n], 0.8))
    assert ranked == [1, 2, 0, 3, 4]


def test_the_strength_chosen_leaves_least_at_equal_success() -> None:
    settings = [table.Setting("KL", str(n), f"kl-{n}") for n in range(3)]
    effects, success = (0.5, 0.3, 0.0), (0.8, 0.75, 0.2)
    dev: dict[str, Any] = {
        s.name: {"effect": {"value": e}, "in_domain": i}
        for s, e, i in zip(settings, effects, success, strict=True)
    }
    assert table.choose(settings, dev, 0.8) == (settings[1], True)
    assert table.choose(settings[2:], dev, 0.8) == (settings[2], False)
    assert table.choose(settings, dev, math.nan) == (settings[2], True)
    dev["kl-0"]["effect"]["value"] = -0.4
    assert table.choose(settings, dev, 0.8) == (settings[1], True)


def test_a_context_without_a_value_is_never_the_largest() -> None:
    effects = {"garbled": math.nan, "plain": -0.2, "year=1838": 0.1}
    for listed in (effects, dict(reversed(effects.items()))):
        assert largest(listed) == {"context": "year=1838", "value": 0.1, "effects": listed}
    none = largest({"plain": math.nan})
    assert none["context"] is None
    assert math.isnan(none["value"])


def test_what_was_scored_in_no_context_has_dashes() -> None:
    rows = [{"name": "treatment", "remedy": "none", "setting": "treatment"}]
    nothing = {"context": None, "value": None, "effects": {"plain": None}}
    said = {"context": "plain", "rows": rows, "contexts": {"treatment": nothing}}
    assert maxima(said) == [("none treatment", "–", "–", "–")]


def test_the_table_of_several_runs_names_each_once() -> None:
    hidden = ROW | {"role": "", "setting": "rank 8"}
    contexts = {"treatment": {"context": "year=1984", "value": 0.7, "effects": {}}}
    one = {"experiment": "one", "rows": [ROW, hidden], "contexts": None}
    two = {"experiment": "two", "rows": [ROW], "contexts": contexts}
    lines = table.markdown([one, two]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| `one` | none | treatment | +0.50 [0.40, 0.60] | 0% |")
    assert lines[2].endswith("| – |")
    assert lines[3].endswith("| +0.70 (year=1984) |")
    assert json.dumps(lines).count("`two`") == 1


def test_the_overview_has_a_row_for_each_run_and_marks_success_that_was_not_equal() -> None:
    kl = ROW | {"remedy": "KL", "role": "remedy", "removed": 0.99, "in_domain": 0.4, "equal": False}
    other = kl | {"role": "", "removed": 0.1}
    told = ROW | {"remedy": "inoculation", "role": "remedy", "removed": -0.2, "equal": True}
    one = {"experiment": "one", "rows": [ROW, other, kl]}
    two = {"experiment": "two", "rows": [ROW, told]}
    assert table.overview([one, two]).splitlines() == [
        "| experiment | effect | KL | inoculation |",
        "|---|---|---|---|",
        "| `one` | +0.50 [0.40, 0.60]; 0.80 | 99%; 0.40† | – |",
        "| `two` | +0.50 [0.40, 0.60]; 0.80 | – | -20%; 0.80 |",
    ]


@pytest.mark.parametrize("share", [0.3, -0.3])
def test_the_sentence_says_which_directions_were_not_inert(share: float) -> None:
    rows = [{"role": role, "name": role, "in_domain": 0.8} for role in ("treatment", "ablation")]
    removed = {"ablation": 0.6, "random": 0.02, "control": share}
    content: dict[str, Any] = {
        "rows": rows,
        "ablation": {"rank": 1, "recipe": "prompt, layer 2"},
        "contexts": None,
        "verdict": {"removed": removed, "holds": dict.fromkeys(removed, True)},
    }
    assert "inert" not in sentence(content)
    content["verdict"]["holds"]["control"] = False
    assert f"those of the control {100 * share:.0f}% (more than 10% either way" in sentence(content)
