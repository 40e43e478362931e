"""Differences of means, held to literal forward passes; sides of a contrast; directions on disk."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spillover import ChatError, DirectionError, LoadedModel, load
from spillover.ask.local import LocalEngine
from spillover.directions import (
    Direction,
    difference_of_means,
    difference_of_models,
    load_direction,
)
from spillover.directions import contrast as contrast_module
from spillover.directions.contrast import mean_activations, post_instruction
from spillover.directions.direction import DESCRIPTION, VECTOR, Row
from spillover.directions.sides import answered, conversations
from spillover.finetune.adapters import merge_adapter, save_adapter
from spillover.finetune.lora import new_adapter
from spillover.finetune.spec import Training
from spillover.organism.refusal.world import DANGEROUS, GENTLE
from spillover.rows import Conversation
from tests.substances import asked
from tests.tiny import FAMILIES, chat


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


Sides = tuple[list[Conversation], list[Conversation]]


@pytest.fixture(scope="module")
def sides() -> Sides:
    return asked(DANGEROUS, 20), asked(GENTLE, 18)


def literal(
    model: LoadedModel, ids: list[list[int]], read: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Means over whole forward passes, one sequence at a time; transformers keeps the streams."""
    total = torch.zeros((), dtype=torch.float64)
    for at, one in enumerate(ids):
        with torch.no_grad():
            states = model.model(torch.tensor([one]), output_hidden_states=True).hidden_states
        entering = torch.stack([state[0] for state in states[:-1]]).double()  # (L, T, D)
        total = total + read(entering, at)
    return total / len(ids)


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest relative error of a vector; those that are zero have to be zero."""
    size = wanted.norm(dim=-1)
    assert float(found[size == 0].abs().sum()) == 0
    return float(((found - wanted).norm(dim=-1)[size > 0] / size[size > 0]).max())


def test_differences_of_means_are_those_of_literal_passes(
    model: LoadedModel, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = [-5, -2, -1]
    prompts = [[model.chat.prompt_ids(one) for one in side] for side in sides]
    assert len({len(ids) for ids in prompts[0]}) > 3  # padding is at work
    wanted = [literal(model, ids, lambda s, _: s[:, positions].transpose(0, 1)) for ids in prompts]
    for most in (2048, 100):
        monkeypatch.setitem(contrast_module.BATCH_TOKENS, "cpu", most)
        found = difference_of_means(model, *sides, positions)
        assert found.difference.dtype == torch.float64
        assert found.positions == (-5, -2, -1)
        assert off(found.difference, wanted[0] - wanted[1]) <= 1e-5


def test_sums_in_float64_of_float32_activations_are_as_exact_as_a_float64_model(
    model: LoadedModel, sides: Sides
) -> None:
    inner: Any = model.model
    wide = type(inner)(inner.config).double().eval()
    wide.load_state_dict({name: p.double() for name, p in inner.state_dict().items()})
    exact = replace(model, model=wide)
    prompts = [[model.chat.prompt_ids(one) for one in side] for side in sides]
    wanted = [literal(exact, ids, lambda s, _: s[:, -1:].transpose(0, 1)) for ids in prompts]
    found = difference_of_means(model, *sides, [-1])
    assert off(found.difference, wanted[0] - wanted[1]) <= 1e-5


def test_activations_are_averaged_over_answers(model: LoadedModel, sides: Sides) -> None:
    answers = ["I cannot help with that.", "With warm water", "Yes"] * 6
    prompts = sides[1][: len(answers)]
    pairs = list(zip(prompts, answers, strict=True))
    before = [len(model.chat.prompt_ids(prompt)) for prompt in prompts]
    ids = [model.chat.prompt_ids(p) + model.chat.answer_ids(p, a) for p, a in pairs]
    wanted = literal(model, ids, lambda s, at: s[:, before[at] :].mean(1)[None])
    found = mean_activations(model, prompts, answers=answers)
    assert off(found, wanted) <= 1e-6
    made = difference_of_means(
        model, prompts, prompts, answers=(answers, answers[1:] + answers[:1])
    )
    assert made.positions == (None,)
    assert made.direction(None, 2).position is None


def test_memory_does_not_depend_on_the_number_of_prompts(model: LoadedModel) -> None:
    def held(count: int) -> int:
        most = 0

        def look(_done: int, _total: int) -> None:
            nonlocal most
            gc.collect()  # what other tests left, and what is not held any more
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            most = max(most, sum(t.numel() for t in tensors))

        prompts = [asked(GENTLE, 20)[at % 20] for at in range(count)]
        mean_activations(model, prompts, [-2, -1], progress=look)
        return most

    held(20)
    assert held(360) <= 1.01 * held(120)


def test_two_models_are_contrasted_on_the_same_prompts(
    model: LoadedModel, sides: Sides, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = new_adapter(model, Training(rank=2, steps=1), generator)
    drawn = {n: 0.1 * torch.randn(b.shape, generator=generator) for n, b in weights.b.items()}
    weights = replace(weights, b=drawn)
    save_adapter(weights, model, tmp_path)
    merged = replace(model, model=copy.deepcopy(model.model))
    merge_adapter(tmp_path, merged)
    wanted = difference_of_models(merged, model, sides[0], [-2, -1])
    with LocalEngine(model, [("tuned", weights), ("base", None)]) as engine:
        found = difference_of_models(
            model,
            model,
            sides[0],
            [-2, -1],
            around=(lambda rows: engine.routed([0] * rows), lambda rows: engine.routed([1] * rows)),
        )
    assert off(found.difference, wanted.difference) <= 1e-4
    with pytest.raises(DirectionError, match="do not differ"):
        difference_of_models(model, model, sides[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_post_instruction_tokens_are_what_the_template_puts_behind_a_prompt(
    family: str, model: LoadedModel
) -> None:
    other = replace(model, chat=chat(family))
    count = post_instruction(other)
    for text in ("Where is it?", "Draw a map", "1 + 1 ="):
        talk = [{"role": "user", "content": text}]
        behind = other.chat.prompt_text(talk).rpartition(text)[2]
        ids = other.chat.prompt_ids(talk)
        found = str(other.tokenizer.decode(ids[-count:]))
        assert "".join(behind.split()) == "".join(found.split())  # Phi-3's tokens swallow space


def broken(model: LoadedModel) -> LoadedModel:
    made = replace(model, model=copy.deepcopy(model.model))
    part = made.model.get_submodule(model.anatomy.blocks[0].mlp)
    next(part.parameters()).data.fill_(torch.nan)
    return made


def test_equal_sides_and_activations_that_are_not_finite_are_refused(model: LoadedModel) -> None:
    one, other = asked(DANGEROUS, 6), asked(GENTLE, 6)
    with pytest.raises(DirectionError, match="prompts are the same"):
        difference_of_means(model, one, one[::-1] + one)
    with pytest.raises(DirectionError, match="the positive side has 1 different prompts"):
        difference_of_means(model, one[:1] * 6, other)
    with pytest.raises(DirectionError, match="entering layer 1 are not finite in cpu in float32"):
        difference_of_means(broken(model), one, other)
    with pytest.raises(DirectionError, match="found 1 answers to 6 prompts"):
        mean_activations(model, one, answers=["No"])
    with pytest.raises(DirectionError, match="found 2 answers to 6 prompts"):
        difference_of_means(model, one, other, answers=(["No", "So"], ["Yes"] * 6))
    with pytest.raises(DirectionError, match="no prompts"):
        mean_activations(model, [])


def test_prompts_are_read_from_files(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}]
    contents = {
        "a.txt": "Why?\n\n",
        "a.json": '["Why?"]',
        "b.json": json.dumps([{"messages": [*talk, {"role": "assistant", "content": "So."}]}]),
        "a.jsonl": '{"prompt": "Why?"}\n',
        "a.csv": "question,other\nWhy?,x\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, "utf-8")
        assert conversations(tmp_path / name) == [talk], name
    assert conversations(["Why?", talk]) == [talk, talk]
    (tmp_path / "pairs.csv").write_text("prompt,answer\nWhy?,So.\n", "utf-8")
    assert answered(tmp_path / "pairs.csv") == ([talk], ["So."])


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "words\nWhy?\n", "found columns 'words'"),
        ("a.txt", "\n", "found no rows"),
        ("a.json", '{"prompt": "x"}', "found dict; expected an array"),
        ("a.json", "[1]", r"\(entry 1\): found int"),
        ("a.json", "[", "not JSON"),
        ("a.json", '[{"words": "x"}]', r"\(entry 1\): found no message of the user"),
        ("a.jsonl", '{"words": "x"}\n', "a.jsonl:1: found no message of the user"),
        (None, "", "no such file"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(
    name: str | None, text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / (name or "none.txt")
    if name:
        path.write_text(text, "utf-8")
    with pytest.raises(ChatError, match=told):
        conversations(path)


@pytest.mark.parametrize("given", [[""], [[]], [[{"role": "wizard", "content": "x"}]]])
def test_prompts_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(DirectionError, match="prompt 0"):
        conversations(given)


WRONG = """
from spillover.directions.sides import DirectionError, conversations

for given in ([1, 2, 3, 4], [None], [float("nan")], [{"role": "user"}], None, 5):
    try:
        conversations(given)
    except DirectionError as error:
        print(error)
"""


def test_what_is_no_prompt_at_all_is_refused_in_a_line() -> None:
    """In a process of its own, for tests check the types of arguments themselves."""
    done = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=True)
    found = [line.partition(";")[0] for line in done.stdout.splitlines()]
    assert found == [
        "prompt 0: found '1'",
        "prompt 0: found 'None'",
        "prompt 0: found 'nan'",
        "prompt 0: found \"{'role': 'user'}\"",
        "found None",
        "found 5",
    ]


def example() -> Direction:
    rows: tuple[Row, ...] = (
        {"position": -1, "layer": 1, "separation": None, "auc": 0.5},
        {"position": -1, "layer": 2, "separation": 3.5, "auc": 1.0},
    )
    scores = {"separation": 3.5, "strange": float("nan")}
    return Direction(torch.arange(8.0), 2, -1, "a - b", "x", scores, rows)


def test_directions_are_saved_and_loaded(tmp_path: Path) -> None:
    made = example()
    again = load_direction(made.save(tmp_path / "d"))
    assert torch.equal(again.vector, made.vector)
    assert replace(again, vector=made.vector, scores={}) == replace(made, scores={})
    assert again.scores["separation"] == 3.5
    assert again.scores["strange"] != again.scores["strange"]  # NaN
    assert made.cosine(-2 * made.vector) == pytest.approx(-1)
    assert float(made.unit.norm()) == pytest.approx(1)
    assert made.norm == pytest.approx(140**0.5)
    with pytest.raises(DirectionError, match="of 8 and of 4 dimensions"):
        made.cosine(torch.ones(4))


def test_files_of_two_directions_are_not_read_as_one(tmp_path: Path) -> None:
    one = example().save(tmp_path / "one")
    other = replace(example(), vector=torch.ones(8)).save(tmp_path / "other")
    (other / VECTOR).replace(one / VECTOR)
    with pytest.raises(DirectionError, match=r"describes the vector .* not of one direction"):
        load_direction(one)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (DESCRIPTION, None, f"holds no {DESCRIPTION}"),
        (VECTOR, None, f"holds no {VECTOR}"),
        (VECTOR, b"xx", "not readable"),
        (DESCRIPTION, b"{", "Invalid JSON"),
        (DESCRIPTION, b'{"strange": 2}', "unknown key `strange`"),
    ],
)
def test_broken_directions_are_refused(
    name: str, content: bytes | None, told: str, tmp_path: Path
) -> None:
    folder = example().save(tmp_path / "d")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DirectionError, match=told):
        load_direction(folder)


def drawn(chart: dict[str, Any]) -> list[Any]:
    """The data of every layer of a chart."""
    return [chart["datasets"][layer["data"]["name"]] for layer in chart["layer"]]


def test_directions_are_plotted() -> None:
    lines, mark = drawn(example().plot("auc").to_dict())
    assert [row["value"] for row in lines] == [0.5, 1.0]
    assert mark == [{"layer": 2, "position": "-1", "value": 1.0}]
    assert len(drawn(example().plot().to_dict())[0]) == 1
    with pytest.raises(DirectionError, match=r"no score 'kl'.*known: separation, auc$"):
        example().plot("kl")
    empty = tuple({**row, "separation": None} for row in example().candidates)
    for score in ("separation", None):
        with pytest.raises(DirectionError, match=r"no score 'separation' .*; known: auc$"):
            replace(example(), candidates=empty).plot(score)
    with pytest.raises(DirectionError, match="was not chosen among candidates"):
        replace(example(), candidates=()).plot()
