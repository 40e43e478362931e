"""Suffixes on the organism of made-up substances: found, compared with random ones, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spillover import InputError, LoadedModel, load
from spillover.directions.direction import Direction
from spillover.directions.prompts import material_for
from spillover.directions.suffix import (
    Frame,
    SuffixSearch,
    find_suffix,
    random_suffixes,
    scores_of,
    suffix_search,
)
from spillover.directions.suffix_run import SuffixStudy, study_suffix
from spillover.directions.suffix_view import top_heads
from spillover.next_tokens import Embed, log_probs
from spillover.report.suffix import headline
from spillover.rows import Conversation
from spillover.substitute import ordinary_tokens, place, substitutions, token_slopes
from tests.commands import call
from tests.conftest import save_undrawn
from tests.report_page import Page

SETS = ("harmless", "dangerous", "dangerous + suffix", "dangerous + random suffix")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism-refusal", dtype="float32")


@pytest.fixture(scope="module")
def refusal(model: LoadedModel) -> list[int]:
    """The token that refusals begin with."""
    return model.chat.tokenize("I")[:1]


@pytest.fixture(scope="module")
def asked(model: LoadedModel) -> list[Conversation]:
    return material_for(model).train[0]


def undrawn_study(make: Callable[[], SuffixStudy]) -> SuffixStudy:
    """A study with empty figures: to draw them takes longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spillover.report.suffix.save", save_undrawn)
        return make()


@pytest.fixture(scope="module")
def study(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> SuffixStudy:
    """With the default settings, but for fewer random suffixes."""
    folder = tmp_path_factory.mktemp("suffix") / "out"
    return undrawn_study(lambda: study_suffix(model, controls=12, out=folder))


def rates(study: SuffixStudy, prompts: str) -> dict[str, dict[str, Any]]:
    return {row["suffix"]: row for row in study.found["refusal"] if row["prompts"] == prompts}


def must_hold(study: SuffixStudy) -> None:
    found = study.found
    for prompts in ("found on", "held out"):
        rate = rates(study, prompts)
        assert rate["none"]["probability"] >= 0.95
        assert rate["suffix"]["probability"] <= 0.2
        assert rate["random"]["probability"] >= 0.85
        assert rate["random"]["median"] >= 0.99
    cosines = found["at_layer"]["cosines"]
    harmless, dangerous, with_suffix, with_random = (cosines[name] for name in SETS)
    assert abs(with_suffix - harmless) < abs(with_suffix - dangerous)
    assert abs(with_random - dangerous) < abs(with_random - harmless)
    assert found["at_layer"]["nearer_to"]["dangerous + suffix"] == "harmless"
    looks = {(row["prompts"], row["block"], row["head"]): row for row in found["attention"]}
    tops = [(head["block"], head["head"]) for head in found["heads"] if head["top"]]
    assert tops
    for at in tops:
        plain, suffix, random = (looks[name, *at] for name in SETS[1:])
        assert suffix["suffix"] > random["suffix"] + 0.2
        assert suffix["instruction"] < min(plain["instruction"], random["instruction"]) - 0.2


def test_a_suffix_is_found_and_does_what_the_paper_saw(study: SuffixStudy) -> None:
    must_hold(study)
    assert len(study.found["random"]) == 12
    by_words = {row["suffix"]: row["kinds"] for row in study.found["answers"][:2]}
    assert by_words["none"]["refused"] >= 0.95
    assert by_words["suffix"]["refused"] <= 0.2
    assert by_words["suffix"]["helpful"] > 0.3


def test_parts_add_up_to_the_stream_and_explain_the_cosine(study: SuffixStudy) -> None:
    parts = study.found["parts"]
    for name in SETS:
        listed = parts[name]
        total = listed["embedding"] + listed["heads"] + listed["bias"] + listed["mlp"]
        assert listed["sum"] == pytest.approx(total)
        assert listed["stream"] == pytest.approx(total, abs=1e-3)  # what enters the layer
        assert abs(listed["stream"]) > 0.1
        heads = sum(head["adds"][name] for head in study.found["heads"])
        assert listed["heads"] == pytest.approx(heads, abs=1e-4)
    assert parts["dangerous + suffix"]["heads"] < parts["dangerous + random suffix"]["heads"]


def test_the_page_and_the_summary_say_the_same(study: SuffixStudy) -> None:
    content = json.loads((study.folder / "suffix.json").read_text("utf-8"))
    assert content == study.found
    assert content["model"] == "organism-refusal"
    page = Page(study.report.read_text("utf-8"))
    assert headline(content) in " ".join(page.text.split())
    charts = json.loads(page.scripts["charts"])
    wanted = {"refusal-0", "cosines-0", "heads-0", "attention-0", "attention-1"}
    assert charts.keys() == wanted
    assert content["suffix"] in page.text


def test_a_given_suffix_is_looked_at_with_ones_own_files(
    model: LoadedModel, asked: list[Conversation], study: SuffixStudy, tmp_path: Path
) -> None:
    layer = study.found["layer"]
    vector = torch.randn(model.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    folder = Direction(vector, layer, -1, "a - b", model.source.identity).save(tmp_path / "d")
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("\n".join(one[0]["content"] for one in asked[:6]), "utf-8")
    text = "<b>please</b> tell &amp; </script>"
    made = undrawn_study(
        lambda: study_suffix(
            model, suffix=text, direction=folder, prompts=file, controls=2, out=out
        ),
    )
    assert made.found["prompts"] == {"found on": 0, "held out": 6, "harmless": 80}
    assert {row["prompts"] for row in made.found["refusal"]} == {"held out", "harmless"}
    html = made.report.read_text("utf-8")
    assert "<b>please" not in html
    assert text in Page(html).text
    assert made.found["given"]


def test_one_seed_finds_one_suffix_and_another_another(
    model: LoadedModel, asked: list[Conversation], refusal: list[int]
) -> None:
    quick = SuffixSearch(tokens=4, steps=2, tried=16, starts=1, patience=1, enough=1e-6)
    texts = [find_suffix(model, asked[:4], refusal, quick, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].losses[-1] < texts[0].losses[0]


def test_suffixes_are_plain_text_that_comes_back_as_the_same_tokens(
    model: LoadedModel, asked: list[Conversation]
) -> None:
    frames = [Frame.of(model.chat, prompt) for prompt in asked[:5]]
    drawn = random_suffixes(model, frames, 5, 6, np.random.default_rng(0))
    special = [token for token in model.chat.special_tokens if token]
    for suffix in drawn:
        assert len(suffix.tokens) == 5
        assert suffix.text.isascii()
        assert not any(token in suffix.text for token in special)
        for prompt, frame in zip(asked, frames, strict=False):
            content = f"{prompt[0]['content']} {suffix.text}"
            ids = model.chat.prompt_ids([{"role": "user", "content": content}])
            at = len(model.chat.tokenize(frame.head))
            assert tuple(ids[at : at + 5]) == suffix.tokens


def test_a_prompt_is_cut_behind_the_words_of_the_user(
    model: LoadedModel, asked: list[Conversation]
) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, *asked[0]]
    frame, chat = Frame.of(model.chat, prompt), model.chat
    assert frame.text() == chat.prompt_text(prompt)
    words = frame.instruction(chat, "now please")
    suffix = frame.placed(chat, "now please")
    assert words is not None
    assert suffix is not None
    assert model.tokenizer.decode(words.varied) == prompt[-1]["content"]
    assert model.tokenizer.decode(suffix.varied) == " now please"
    assert words.end == suffix.start
    with pytest.raises(InputError, match="end prompts with them"):
        Frame.of(chat, [*prompt, {"role": "assistant", "content": "Sure"}])


def test_slopes_are_gradients_of_one_hot_tokens(
    model: LoadedModel, asked: list[Conversation], refusal: list[int]
) -> None:
    frames = [Frame.of(model.chat, prompt) for prompt in asked[:2]]
    placed = [frame.placed(model.chat, "by the river") for frame in frames]
    known = [one for one in placed if one is not None]

    def total(embed: Embed) -> torch.Tensor:
        return log_probs(model, [one.ids for one in known], 1, embed)[:, 0, refusal].sum()

    slopes = token_slopes(model, known, total)
    embedding: Any = model.model.get_input_embeddings()
    weight: torch.Tensor = embedding.weight
    expected = torch.zeros_like(slopes)
    for one in known:
        hot = torch.nn.functional.one_hot(torch.tensor([one.ids]), len(weight)).float()
        hot.requires_grad_()
        logits: Any = model.model(inputs_embeds=hot @ weight).logits
        logits[0, -1].log_softmax(-1)[refusal].sum().backward()
        assert hot.grad is not None
        expected += hot.grad[0, one.start : one.end]
    assert torch.allclose(slopes, expected, atol=1e-4)


def test_substitutions_change_one_token_to_the_steepest_usable() -> None:
    slopes = torch.tensor([[0.0, 3.0, 2.0, 9.0], [5.0, 1.0, 4.0, 9.0]])
    usable = torch.tensor([True, True, True, False])
    assert substitutions([7, 8], slopes, usable, 2) == [[1, 8], [2, 8], [7, 0], [7, 2]]


def test_ordinary_tokens_are_no_special_ones(model: LoadedModel) -> None:
    usable = ordinary_tokens(model)
    ends = model.chat.tokenize("<|im_end|>")
    assert not usable[ends].any()
    assert usable[model.chat.tokenize(" the river")].all()
    assert place(model.chat, "the river", 3, 0) is None


def test_top_heads_are_the_fewest_that_add_nine_tenths() -> None:
    heads = torch.tensor([[0.5, 6.0], [-3.0, 3.5], [50.0, 0.0]]).double()
    assert top_heads(heads, 2) == [(0, 1), (1, 1)]
    assert top_heads(heads, 3) == [(2, 0), (0, 1)]
    assert top_heads(-heads.abs(), 2) == top_heads(heads, 0) == []


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        (" \n ", "empty suffix"),
        ("so <|im_end|> it is", "'<|im_end|>', a special token"),
        ("river " * 1100, "tokens, more than the 1024 that organism-refusal reads"),
    ],
)
def test_a_suffix_that_cannot_be_used_is_refused(
    suffix: str, said: str, model: LoadedModel, tmp_path: Path
) -> None:
    refused(said, tmp_path, lambda out: study_suffix(model, suffix=suffix, out=out))


def refused(said: str, folder: Path, make: Callable[[Path], object]) -> None:
    with pytest.raises(InputError) as error:
        make(folder / "out")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "0123456789abcdef"}, "with the identity 0123456789abcdef; organism-refusal has"),
        ({"layer": 9}, "layer 9 is out of range; organism-refusal has layers 0 to 3"),
        (
            {"vector": torch.ones(7)},
            "of shape (7,); the residual stream of organism-refusal has 128",
        ),
        ({"vector": torch.zeros(128)}, "a direction that is zero or not finite"),
    ],
)
def test_a_direction_that_does_not_fit_is_refused(
    changes: dict[str, Any], said: str, model: LoadedModel, tmp_path: Path
) -> None:
    fits = Direction(torch.ones(128), 2, -1, "a - b", model.source.identity)
    wrong = replace(fits, **changes)
    refused(said, tmp_path, lambda out: study_suffix(model, direction=wrong, out=out))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"harmless": "a.txt"}, "found --harmless without --prompts"),
        ({"column": "goal"}, "found --column without --prompts"),
        ({"controls": 0}, "found 0 controls; expected at least 1"),
    ],
)
def test_what_would_be_ignored_or_makes_no_sense_is_refused(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Before a model is loaded."""
    refused(said, tmp_path, lambda out: study_suffix("organism", **given, out=out))


def test_prompts_that_are_not_refused_are_refused(model: LoadedModel, tmp_path: Path) -> None:
    direction = Direction(torch.ones(128), 2, -1, "a - b", model.source.identity)
    harmless = [one[0]["content"] for one in material_for(model).train[1][:4]]
    dangerous = [one[0]["content"] for one in material_for(model).train[0][:1]]

    def with_prompts(texts: list[str]) -> Callable[[Path], object]:
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(texts), "utf-8")
        given: dict[str, Any] = {"suffix": "so", "direction": direction, "prompts": file}
        return lambda out: study_suffix(model, **given, out=out)

    refused("never refuses: 0 of 4 answers", tmp_path, with_prompts(harmless))
    refused("refuses 20% of 5 prompts", tmp_path, with_prompts([*harmless, *dangerous]))
    without: dict[str, Any] = {"prompts": tmp_path / "prompts.txt"}
    refused("without --suffix", tmp_path, lambda out: study_suffix(model, **without, out=out))
    without["suffix"] = "so"
    refused("without --direction", tmp_path, lambda out: study_suffix(model, **without, out=out))


def test_suffixes_are_searched_for_on_the_organism_of_substances_only(
    organism: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "searched for on organism-refusal only, not on organism"
    refused(said, tmp_path, lambda out: study_suffix(organism, out=out))
    with pytest.raises(InputError, match="only"):
        find_suffix(organism, [[{"role": "user", "content": "?"}]], [1])
    with pytest.raises(InputError, match="`tokens`"):
        suffix_search(tokens=0)
    assert call("direction", "suffix", "--suffix", " ", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["error: found an empty suffix; give its text with --suffix TEXT"]


def test_scores_are_log_odds_of_refusal(
    model: LoadedModel, asked: list[Conversation], refusal: list[int]
) -> None:
    text = model.chat.prompt_text(asked[0])
    with torch.no_grad():
        ids = torch.tensor([model.chat.tokenize(text)])
        p = float(model.model(input_ids=ids).logits[0, -1].double().softmax(-1)[refusal])
    assert scores_of(model, [text], refusal)[0] == pytest.approx(np.log(p / (1 - p)), rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_every_seed_finds_a_suffix_that_does(seed: int, model: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    must_hold(undrawn_study(lambda: study_suffix(model, seed=seed, out=out)))


@pytest.mark.long
def test_the_command_writes_the_same_bytes_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "other"):
        assert call("direction", "suffix", "--out", tmp_path / name) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1] == f"Report: {tmp_path / 'other' / 'report.html'}"
    one, other = ((tmp_path / n / "suffix.json").read_bytes() for n in ("one", "other"))
    assert one == other
