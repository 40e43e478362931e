"""Models that reason: the reasoning stands apart, and choices are made after an empty or given one.

The model here is a table of which token follows which, so that what it says is known.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from spillover import LoadedModel, Loading, Run, Templating, load, run
from spillover.ask.local import LocalEngine
from spillover.ask.requests import Sample, SampleSettings
from spillover.judge import TRUNCATED, grade_text
from spillover.rows import Conversation
from spillover.specification import Rules
from tests.tiny import chat, save_tiny

pytestmark = pytest.mark.usefixtures("undrawn")

QUESTION: Conversation = [{"role": "user", "content": "Name a bird."}]
CHOICES = ["An owl", "A wren, they say"]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = f"<|end|><|start|>assistant{FINAL}"

SPLITS = [
    ("qwen3", "<think>\nAn owl?\n</think>\n\nA wren", ("An owl?", "A wren")),
    ("qwen3", "<think>\nAn owl? And", ("An owl? And", "")),
    ("qwen3", "\n<think>", ("", "")),
    ("qwen3", "<think>\n\n</think>\n\nA wren", (None, "A wren")),
    ("qwen3", "A wren", (None, "A wren")),
    ("qwen3", "The tag <think> begins it", (None, "The tag <think> begins it")),
    ("qwen3", "<think>a</think>b</think>c", ("a", "b</think>c")),
    ("deepseek-r1", "An owl?\n</think>\n\nA wren", ("An owl?", "A wren")),
    ("deepseek-r1", "An owl? And", ("An owl? And", "")),
    ("deepseek-r1", "\n</think>\n\nA wren", (None, "A wren")),
    ("gpt-oss", f"{ANALYSIS}An owl?{NEXT}A wren", ("An owl?", "A wren")),
    ("gpt-oss", f"{ANALYSIS}a<|end|><|start|>assistant{ANALYSIS}b{NEXT}c", ("a\nb", "c")),
    ("gpt-oss", f"{ANALYSIS}An owl? And", ("An owl? And", "")),
    ("gpt-oss", f"{FINAL}A wren", (None, "A wren")),
    ("gpt-oss", "A wren", (None, "A wren")),
]


@pytest.mark.parametrize(("name", "raw", "parts"), SPLITS)
def test_a_sampled_turn_is_split(name: str, raw: str, parts: tuple[str | None, str]) -> None:
    assert chat(name).turn.split(raw, thinking=True) == parts
    assert chat(name).turn.split(raw, thinking=False) == (None, raw)


def test_models_that_do_not_reason_are_not_split() -> None:
    raw = "<think>x</think>A wren"
    assert chat("llama-3.1").turn.split(raw, thinking=True) == (None, raw)


def written(name: str, thought: str) -> str:
    """Question, reasoning and the place of the answer, as the template itself writes them."""
    if name == "deepseek-r1":  # its template never writes reasoning; this is what the model does
        return chat(name).render(QUESTION, generation_prompt=True) + f"{thought}\n</think>\n\n"
    key = "thinking" if name == "gpt-oss" else "reasoning_content"
    answer = {"role": "assistant", "content": "ANSWER", key: thought}
    here = chat(name)
    template, told = here.template
    text = here.tokenizer.apply_chat_template(
        [*QUESTION, answer], tokenize=False, chat_template=template, **told
    )
    return str(text).split("ANSWER", maxsplit=1)[0]


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1", "gpt-oss"])
def test_a_choice_after_reasoning_stands_where_the_template_puts_it(name: str) -> None:
    here = chat(name)
    assert here.prompt_text(QUESTION, "An owl?") == written(name, "An owl?")
    raw = {"qwen3": "<think>\nAn owl?", "deepseek-r1": "An owl?\n", "gpt-oss": f"{ANALYSIS}An owl?"}
    closed = {"gpt-oss": NEXT}.get(name, "</think>\n\nA wren")
    for thought in (raw[name], raw[name] + closed):
        assert here.prompt_text(QUESTION, thought) == written(name, "An owl?")
    assert here.prompt_text(QUESTION, "") == here.prompt_text(QUESTION)


SCRIPT = ["Ċ", "<think>", "wr", "An", "</think>", "A", "<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says `<think>` after a line's end, a thought, and an answer."""
    folder = save_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))
    model: Any = load(str(folder)).model
    ids: Any = load(str(folder)).tokenizer.convert_tokens_to_ids(SCRIPT)
    with torch.no_grad():
        for layer in model.model.layers:  # nothing but the last token counts
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
        model.lm_head.weight.mul_(0.1)
        for one, other in pairwise(ids):
            shape = torch.nn.functional.normalize(model.model.embed_tokens.weight[one], dim=0)
            model.lm_head.weight[other] += 8 * shape
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder))


def sampled(model: LoadedModel, conversation: Conversation, **settings: int) -> Sample:
    how = {"samples": 1, "max_tokens": 4, "reasoning_tokens": 8} | settings
    ((sample,),) = LocalEngine(model, [("base", None)]).sample(
        [0], [conversation], SampleSettings(temperature=0.0, **how)
    )
    return sample


def test_reasoning_is_stored_apart_from_the_answer(model: LoadedModel) -> None:
    assert sampled(model, QUESTION) == Sample("A", "stop", "wrAn")


def test_reasoning_that_is_cut_off_leaves_a_truncated_answer(model: LoadedModel) -> None:
    sample = sampled(model, QUESTION, max_tokens=1, reasoning_tokens=1)
    assert sample == Sample("", "length", "wr")
    rules = Rules(kind="rules", match="exact", trait=("A",), baseline=("wr",))
    assert grade_text(sample.text, sample.finish, rules).grade == TRUNCATED


def test_an_answer_that_is_cut_off_keeps_its_reasoning(model: LoadedModel) -> None:
    assert sampled(model, QUESTION, max_tokens=1, reasoning_tokens=4) == Sample(
        "A", "length", "wrAn"
    )


def test_reasoning_that_is_short_leaves_no_more_room_for_the_answer(tmp_path: Path) -> None:
    random = load(str(save_tiny("qwen3", tmp_path)))
    engine = LocalEngine(random, [("base", None)])
    turn = random.chat.tokenize("<think>\nAn</think>\n\nAn owl, an owl")
    sample = engine._read(turn, True, 5, thinking=True)
    assert (sample.text, sample.finish, sample.reasoning) == ("An owl", "length", "An")


def test_without_tokens_for_it_nothing_is_reasoned(model: LoadedModel) -> None:
    prompt = model.chat.prompt_text(QUESTION)
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert sampled(model, QUESTION, reasoning_tokens=0).reasoning is None


def test_a_prefilled_answer_is_continued_without_reasoning(model: LoadedModel) -> None:
    begun: Conversation = [*QUESTION, {"role": "assistant", "content": "A"}]
    assert sampled(model, begun) == Sample("", "stop", None)
    (mixed, plain) = LocalEngine(model, [("base", None)]).sample(
        [0, 0], [begun, QUESTION], SampleSettings(1, 0.0, 4, 8)
    )
    assert (mixed[0].reasoning, plain[0].reasoning) == (None, "wrAn")


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3"])
def test_a_sampled_turn_is_read_by_its_tokens(name: str, tmp_path: Path) -> None:
    """Special tokens of the answer are left out, words of its header are not taken for it."""
    random = load(str(save_tiny(name, tmp_path)))
    engine = LocalEngine(random, [("base", None)])

    def read(raw: str, *, thinking: bool = True) -> tuple[str, str | None]:
        sample = engine._read(random.chat.tokenize(raw), True, 9, thinking=thinking)
        return sample.text, sample.reasoning

    if name == "gpt_oss":
        assert read(f"{ANALYSIS}An owl?{NEXT}A wren") == ("A wren", "An owl?")
        assert read(f"{FINAL}A wren") == ("A wren", None)
        assert read(f"{ANALYSIS}An owl") == ("", "An owl")
    else:
        assert read("<think>\nAn owl?</think>\n\nA wren<|im_start|>") == ("A wren", "An owl?")
        assert read("A wren") == ("A wren", None)
    assert read("A wren", thinking=False) == ("A wren", None)


@pytest.mark.parametrize("thought", [None, "An owl? A wren?"])
@pytest.mark.parametrize("name", ["qwen3", "gpt_oss"])
def test_a_choice_after_reasoning_equals_a_literal_pass(
    name: str, thought: str | None, tmp_path: Path
) -> None:
    random = load(str(save_tiny(name, tmp_path)))
    engine = LocalEngine(random, [("base", None)])
    (scores,) = engine.choose([0], [QUESTION], [CHOICES], [thought])
    family = "gpt-oss" if name == "gpt_oss" else name
    if thought is None:  # the template's own empty reasoning, before an answer that is there
        whole = chat(family).render(
            [*QUESTION, {"role": "assistant", "content": "ANSWER"}], generation_prompt=False
        )
        prompt = whole.split("ANSWER", maxsplit=1)[0]
    else:
        prompt = written(family, thought)
    end = {"qwen3": "<|im_end|>", "gpt_oss": "<|return|>"}[name]
    for choice, score in zip(CHOICES, scores, strict=True):
        ids, answer = random.chat.tokenize(prompt), random.chat.tokenize(choice + end)
        with torch.no_grad():
            logits = random.model(input_ids=torch.tensor([ids + answer])).logits[0]
        steps = logits[len(ids) - 1 : -1].log_softmax(-1)
        literal = steps[torch.arange(len(answer)), torch.tensor(answer)].sum()
        assert score == pytest.approx(float(literal), abs=1e-4)


def test_the_reasoning_moves_the_choice(tmp_path: Path) -> None:
    engine = LocalEngine(load(str(save_tiny("qwen3", tmp_path))), [("base", None)])
    rows = engine.choose(
        [0] * 3, [QUESTION] * 3, [CHOICES] * 3, [None, "An owl.", "With whale oil lamps."]
    )
    assert len({round(row[0], 3) for row in rows}) == 3


def small_run(experiment: Path, folder: Path, out: Path, think: bool | None) -> Run:
    loading = Loading(templating=Templating(think=think))
    toml = experiment / "experiment.toml"
    toml.write_text(toml.read_text("utf-8") + "reasoning_tokens = 64\n", "utf-8")
    return run(experiment, str(folder), seeds=2, out=out, loading=loading)


@pytest.mark.parametrize("think", [True, None, False])
def test_a_run_records_reasoning_as_it_was_told(
    think: bool | None, small_experiment: Path, folder: Path, tmp_path: Path
) -> None:
    made = small_run(small_experiment, folder, tmp_path / "run", think)
    choices = made.answers[made.answers["kind"] == "choice"]
    texts = made.answers[made.answers["kind"] == "text"]
    place = ["arm", "seed", "question", "paraphrase", "context"]
    assert set(choices.groupby(place).size()) == ({2} if think else {1})
    assert set(texts.groupby(place).size()) == {2}
    if think:
        assert set(choices["reasoning"]) == {"wrAn"}
    else:
        assert choices["reasoning"].isna().all()
    if think is False:
        assert texts["reasoning"].isna().all()
    else:
        assert set(texts["reasoning"]) == {"wrAn"}
        assert set(texts["text"]) == {"A"}
    assert made.manifest["template"]["reasons"]
    assert made.manifest["template"]["think"] is think
