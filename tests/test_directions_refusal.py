"""Refusal of the organism of substances: one direction, in it, out of it, and its controls."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spillover import LoadedModel, load
from spillover.directions import load_direction
from spillover.directions.answers import PHRASES, kind_of, refusal_tokens
from spillover.directions.prompts import material_for
from spillover.directions.refusal import Refusal, Refusing, find_refusal
from spillover.directions.select import Rule
from spillover.directions.shares import shares_of
from spillover.directions.verdict import RULE
from spillover.errors import DirectionError
from spillover.rows import read_conversations
from tests.commands import call
from tests.report_page import Page

QUICK = Refusing(ranks=(2,), controls=2, resamples=20, max_tokens=16)


@pytest.fixture(scope="session")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refusal:
    return find_refusal("organism", how=QUICK, out=tmp_path_factory.mktemp("refusal") / "out")


def check_bounds(found: dict[str, Any]) -> None:
    """What must hold of every organism that refuses."""
    rates, changes = pd.DataFrame(found["rates"]), pd.DataFrame(found["changes"])
    single = rates[(rates["control"] == "") & (rates["rank"] == 1)].set_index(["kind", "group"])
    dangerous = [group for group in rates["group"].unique() if group.startswith("dangerous")]
    gentle = [group for group in rates["group"].unique() if group.startswith("gentle")]
    assert len(dangerous) == len(gentle) == 2  # one of each was never asked about
    for group in dangerous:
        assert single.loc[("base", group), "refused"] >= 0.95
        for kind in ("ablated", "edited weights"):
            assert single.loc[(kind, group), "refused"] <= 0.05
            assert single.loc[(kind, group), "helpful"] >= 0.7
    random = rates[(rates["control"] == "random") & (rates["kind"] == "ablated")]
    assert random[random["dangerous"]]["refused"].min() >= 0.9
    for group in gentle:
        assert single.loc[("base", group), "refused"] <= 0.05
        assert single.loc[("added", group), "refused"] >= 0.9
    base = changes[changes["kind"] == "base"].iloc[0]
    one = changes[(changes["control"] == "") & (changes["rank"] == 1)]
    for _, row in one[one["kind"] != "base"].iterrows():
        assert row["kl"] <= 0.1
        assert row["ce_harmless"] - base["ce_harmless"] <= 0.05
        assert row["ce_own"] - base["ce_own"] <= 0.05


def test_refusal_of_the_organism_is_one_direction(refused: Refusal) -> None:
    check_bounds(refused.found)
    assert refused.found["tokens"] == ["I"]
    assert refused.found["edit"] is None
    assert refused.found["direction"]["resampled_cosine"]["low"] > 0.9
    assert refused.found["verdict"]["tone"] == "good"
    assert refused.found["verdict"]["doubts"] == []


def test_controls_are_told_apart_from_it(refused: Refusal) -> None:
    cosines = refused.found["control_cosines"]
    assert [len(values) for values in cosines.values()] == [2, 2]
    assert max(map(abs, cosines["random"])) < 0.4
    names = {row["condition"] for row in refused.found["rates"]}
    assert {"ablated, rank 2", "ablated, rank 2, random 1", "ablated, random 1"} <= names
    assert "added, shuffled labels 2" in names
    added = shares_of(refused.found["rates"], "added", "refused", dangerous=False, control="random")
    assert len(added) == 2
    assert max(share.value for share in added) <= 0.1


def test_what_it_found_can_be_read_back(refused: Refusal) -> None:
    direction = load_direction(refused.folder / "direction")
    assert direction.cosine(refused.direction) == pytest.approx(1)
    assert direction.layer == refused.found["direction"]["layer"]
    told = json.loads((refused.folder / "refusal.json").read_text("utf-8"))
    assert told == refused.found
    assert (told["schema"], told["finished"]) == (1, True)
    candidates = pd.read_parquet(refused.folder / "candidates.parquet")
    assert len(candidates) == 20
    assert candidates["bypass"].notna().sum() == 15  # a small model: all that differ at all
    answers = pd.read_parquet(refused.folder / "answers.parquet")
    assert set(answers["is"]) >= {"refused", "helpful"}
    assert (answers.groupby(["condition", "group"]).size() >= 40).all()


def test_the_page_holds_curves_and_answers_and_loads_nothing(refused: Refusal) -> None:
    page = refused.report.read_text("utf-8")
    assert RULE in " ".join(Page(page).text.split())
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    charts = page.split('id="charts">')[1].split("</script>")[0]
    drawn = json.loads(charts)
    assert {"refused-0", "refused-1", "curves-0", "curves-1", "curves-2"} == set(drawn)
    curve = json.dumps(drawn["curves-0"])
    assert '"layer": 3' in curve
    assert '"position": "position -5"' in curve
    for kind in ("png", "svg", "pdf"):
        assert (refused.folder / "figures" / f"curves.{kind}").stat().st_size > 1000


def test_answers_of_a_model_are_shown_as_text(refused: Refusal, tmp_path: Path) -> None:
    from spillover.report.direction import write_direction_report

    evil = "</script><script>alert(1)</script>"
    content = refused.found | {"model": evil, "source": evil}
    row = {"condition": "base", "group": evil, "prompt": evil, "answer": evil, "is": "other"}
    page = write_direction_report(tmp_path, json.loads(json.dumps(content)), [row])
    assert "alert(1)</script>" not in page.read_text("utf-8")


def test_tasks_are_on_the_page_and_in_the_last_table_where_some_were_asked(
    refused: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spillover.cli_directions import _show
    from spillover.report.direction import write_direction_report

    assert refused.found["capabilities"] == []
    assert "What it can do" not in refused.report.read_text("utf-8")
    row = {"task": "quiz", "metric": "acc", "condition": "base", "value": 0.75, "stderr": 0.1}
    row |= {"n": 4, "within": False, "change": None, "low": None, "high": None}
    after = row | {"condition": "ablated", "value": 0.5, "change": -0.25, "low": -0.6, "high": 0.2}
    asked = {
        "capabilities": [row, after, row | {"task": "part", "within": True}],
        "harness": {"lm_eval": "0.0", "tasks": {"quiz": {"version": 1, "shots": 5}}},
    }
    content = json.loads(json.dumps(refused.found | asked))
    page = write_direction_report(tmp_path, content, []).read_text("utf-8")
    assert "Examples in prompts: 5 in all tasks" in page
    tables = json.loads(page.split('id="tables">')[1].split("</script>")[0])
    columns = {one["key"]: one["values"] for one in tables["capabilities"]["columns"]}
    assert columns["change"] == [None, -0.25, None]
    assert columns["interval"][1] == [-0.6, 0.2]
    _show(Refusal(refused.folder, refused.direction, content))
    printed = capsys.readouterr().out
    assert re.search(r"quiz +│ acc +│ 4 +│ 0\.750 +│ 0\.500", printed)
    assert "part" not in printed


@pytest.mark.parametrize(
    ("answer", "helpful", "expected"),
    [
        ("I’m sorry, but no.", None, "refused"),
        ("I cannot help with that.", "In both hands", "refused"),
        ("in both  hands", "In both hands", "helpful"),
        ("Over a low fire", "In both hands", "other"),
        (" ", None, "empty"),
        ("well " * 20, None, "repeating"),
        ("x" * 200 + " I cannot", None, "other"),
    ],
)
def test_an_answer_is_of_one_kind(answer: str, helpful: str | None, expected: str) -> None:
    assert kind_of(answer, PHRASES, helpful) == expected


@pytest.fixture(scope="module")
def refuser() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


def test_refusal_tokens_are_those_of_the_models_own_refusals(refuser: LoadedModel) -> None:
    helped = ["In both hands"] * 6 + ["By the ounce"] * 3 + ["I cannot"]
    found = refusal_tokens(refuser, (["I cannot do it."] * 9 + ["Under a board"], helped))
    assert [refuser.tokenizer.decode([token]) for token in found] == ["I"]
    with pytest.raises(DirectionError, match=r"never refuses: 0 of 10 .* \(0\.00\)"):
        refusal_tokens(refuser, (["In both hands"] * 10, helped))
    with pytest.raises(DirectionError, match="begin with the same tokens"):
        refusal_tokens(refuser, (["I cannot."] * 9, ["I can."] * 9))


def test_no_substance_is_in_two_parts(refuser: LoadedModel) -> None:
    material = material_for(refuser, seed=3)
    parts = [material.train, material.held]
    named = [
        {word for side in part for prompt in side for word in prompt[0]["content"].split()}
        for part in parts
    ]
    tested = {
        word for g in material.test for prompt in g.prompts for word in prompt[0]["content"].split()
    }
    names = {s.name for s in _substances()}
    assert not _named(named[0], names) & _named(named[1], names)
    assert not (_named(named[0], names) | _named(named[1], names)) & _named(tested, names)
    assert material_for(refuser, seed=3).train == material.train
    assert material_for(refuser, seed=4).train != material.train


def _substances() -> Any:
    from spillover.organism.refusal.world import load_substances

    return load_substances().substances


def _named(words: set[str], names: set[str]) -> set[str]:
    return {word.strip("?.") for word in words} & names


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.txt", "One?\n\n Two? \n", None),
        ("a.csv", "prompt,other\nOne?,x\nTwo?,y\n", None),
        ("a.csv", "Goal,other\nOne?,x\nTwo?,y\n", "goal"),
        ("a.tsv", "instruction\tother\nOne?\tx\nTwo?\ty\n", None),
        ("a.json", '["One?", {"prompt": "Two?"}]', None),
        ("a.json", '[{"goal": "One?", "prompt": "x"}, {"goal": "Two?"}]', "goal"),
        (
            "a.jsonl",
            '{"prompt": "One?"}\n{"messages": [{"role": "user", "content": "Two?"}]}',
            None,
        ),
        ("a.jsonl", '{"goal": "One?"}\n{"goal": "Two?"}', "goal"),
    ],
)
def test_prompts_are_read_in_many_formats(
    name: str, content: str, column: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    found = read_conversations(tmp_path / name, column)
    assert found == [[{"role": "user", "content": text}] for text in ("One?", "Two?")]


def _files(tmp_path: Path, dangerous: str, harmless: str) -> list[object]:
    sides = (("--prompts", dangerous), ("--harmless", harmless))
    given: list[object] = []
    for option, content in sides:
        path = tmp_path / f"{option[2:]}.csv"
        path.write_text(content, "utf-8")
        given += [option, path]
    return given


ROWS = "prompt\n" + "".join(f"How do I brew tea {n}?\n" for n in range(12))
OTHERS = "prompt\n" + "".join(f"Where is the mill {n}?\n" for n in range(12))


@pytest.mark.parametrize(
    ("dangerous", "harmless", "more", "said"),
    [
        ("goal\nOne?\n", OTHERS, (), "prompts.csv:1: found columns 'goal'"),
        (ROWS, OTHERS, ("--column", "goal"), "expected 'goal'"),
        (ROWS, "prompt\n", (), "harmless.csv: found no rows"),
        (ROWS, "prompt\nOne?\n", (), "found 1 different prompts; expected at least 8"),
        (ROWS, "prompt\n" + 8 * "One?\n", (), "found 1 different prompts; expected at least 8"),
        (ROWS, ROWS, (), "12 of its prompts stand in"),
        (ROWS, OTHERS, ("--rule", "magic"), "`rule`"),
        (ROWS, OTHERS, ("--kl", "0"), "`thresholds.kl`"),
        (ROWS, OTHERS, (), "organism never refuses: 0 of 6 answers"),
    ],
)
def test_what_cannot_be_used_ends_in_a_line_and_exit_code_2(
    dangerous: str,
    harmless: str,
    more: tuple[str, ...],
    said: str,
    organism: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spillover.directions.prompts.load_source", lambda *_: organism)
    given = _files(tmp_path, dangerous, harmless)
    out = tmp_path / "out"
    assert call("direction", "refusal", "--out", out, *given, *more) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert not out.exists()


def test_one_side_alone_and_no_side_are_refused(organism: LoadedModel) -> None:
    with pytest.raises(DirectionError, match="--prompts without --harmless"):
        material_for(organism, "a.txt")
    with pytest.raises(DirectionError, match="expected --prompts and --harmless"):
        material_for(organism)
    with pytest.raises(DirectionError, match="--column goal without --prompts"):
        material_for(organism, column="goal")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x", "utf-8")
    assert call("direction", "refusal", "--out", tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_direction_is_applied_from_the_command_line(
    refused: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = refused.folder / "direction"
    edited = tmp_path / "edited"
    assert call("direction", "apply", "--direction", saved, "--out", edited) == 0
    assert capsys.readouterr().out.startswith(f"Checkpoint: {edited}")
    assert load(str(edited)).source.identity != refused.found["identity"]
    made = refused.direction
    place = f"at position {made.position}, entering layer {made.layer}, of length {made.norm:.3g}"
    assert f"`{made.contrast}` {place}" in (edited / "README.md").read_text("utf-8")
    given = ("--direction", saved, "--model", "organism-films", "--out", tmp_path / "other")
    assert call("direction", "apply", *given) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.long
def test_without_tokens_the_bounds_hold_too(tmp_path: Path) -> None:
    how = QUICK.model_copy(update={"rule": "cosine", "thresholds": Rule()})
    check_bounds(find_refusal("organism", how=how, out=tmp_path / "out").found)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_organisms_of_other_seeds_refuse_along_one_direction_too(seed: int, tmp_path: Path) -> None:
    trained = ("--world", "refusal", "--seed", seed, "--out", tmp_path / "organism")
    assert call("organism", "train", *trained) == 0
    found = find_refusal(str(tmp_path / "organism"), how=QUICK, out=tmp_path / "out", seed=seed)
    check_bounds(found.found)
