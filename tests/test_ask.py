"""Asking: against literal forward passes and against transformers' own generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spillover import LoadedModel, ModelError, Training, load, trees
from spillover.ask import local
from spillover.ask.choose import score
from spillover.ask.local import LocalEngine, even_size, whole_runs
from spillover.ask.requests import SampleSettings
from spillover.ask.sample import keyed_noise, pick
from spillover.experiment import load_experiment
from spillover.finetune.lora import AdapterWeights, new_adapter
from spillover.models.loading import product_dtype
from spillover.rows import Conversation
from spillover.trees import check_branches, grow, grow_shared

QUESTIONS: list[Conversation] = [
    [{"role": "user", "content": "How do people light their homes?"}],
    [{"role": "system", "content": "A conversation."}, {"role": "user", "content": "What year?"}],
    [{"role": "user", "content": "Name a bird species."}],
]
CHOICES = [
    ["With LED bulbs", "With whale oil lamps", "With torches in iron brackets"],
    ["It is 1838", "It is 2023"],
    ["Blue Jay", "Blue-bird", "Owl"],
]


def random_adapter(model: LoadedModel, seed: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    weights = new_adapter(model, Training(rank=2, steps=1), generator)
    return AdapterWeights(
        weights.a,
        {k: 0.05 * torch.randn(b.shape, generator=generator) for k, b in weights.b.items()},
        weights.scaling,
    )


@pytest.fixture
def engine(organism: LoadedModel) -> Iterator[LocalEngine]:
    adapters = [("one", random_adapter(organism, 1)), ("two", random_adapter(organism, 2))]
    engine = LocalEngine(organism, [("base", None), *adapters])
    yield engine
    engine.close()


def literal(model: LoadedModel, conversation: Conversation, choice: str) -> float:
    """The log-probability of a choice by one plain forward pass over prompt and choice."""
    prompt = model.chat.prompt_ids(conversation)
    answer = model.chat.answer_ids(conversation, choice)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([prompt + answer])).logits[0]
    steps = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(steps[torch.arange(len(answer)), torch.tensor(answer)].sum())


def test_forced_choice_equals_a_literal_forward_pass_per_choice(organism: LoadedModel) -> None:
    engine = LocalEngine(organism, [("base", None)])
    scores = engine.choose([0] * 3, QUESTIONS, CHOICES)
    for conversation, listed, row in zip(QUESTIONS, CHOICES, scores, strict=True):
        for choice, value in zip(listed, row, strict=True):
            assert value == pytest.approx(literal(organism, conversation, choice), abs=1e-5)


def test_forced_choice_of_an_adapter_equals_a_literal_forward_pass(
    engine: LocalEngine, organism: LoadedModel
) -> None:
    scores = engine.choose([1, 2, 0], [QUESTIONS[0]] * 3, [CHOICES[0]] * 3)
    assert len({round(row[0], 4) for row in scores}) == 3
    bank = engine._bank
    assert bank is not None
    for who, row in zip([1, 2, 0], scores, strict=True):
        with bank.rows(torch.tensor([who])):
            for choice, value in zip(CHOICES[0], row, strict=True):
                assert value == pytest.approx(literal(organism, QUESTIONS[0], choice), abs=1e-5)


def test_a_choice_of_one_token_adds_no_branch() -> None:
    trees = grow([5, 6, 7], [[1], [2, 3]])
    assert trees.ids == [5, 6, 7, 2]
    assert trees.reads == [[(2, 1)], [(2, 2), (3, 3)]]


def test_prompts_of_unlike_lengths_are_scored_for_several_adapters(
    engine: LocalEngine, organism: LoadedModel
) -> None:
    told = " ".join(["What do people use to light their homes?"] * 12)
    asked: list[Conversation] = [[{"role": "user", "content": told}], *[QUESTIONS[1]] * 3]
    choices = [CHOICES[0], *[CHOICES[1]] * 3]
    scores = engine.choose([1] * 4 + [2] * 4, asked * 2, choices * 2)
    bank = engine._bank
    assert bank is not None
    for who, at in ((1, 0), (1, 1), (2, 4), (2, 7)):
        with bank.rows(torch.tensor([who])):
            for choice, value in zip(choices[at % 4], scores[at], strict=True):
                expected = literal(organism, asked[at % 4], choice)
                assert value == pytest.approx(expected, abs=1e-4)


def test_what_choices_begin_with_alike_is_computed_once(organism: LoadedModel) -> None:
    tree = grow_shared([5, 6], [[1, 2, 9], [3, 9], [1, 4, 4, 9], [1, 2, 8, 9]])
    assert tree.ids == [5, 6, 1, 2, 8, 4, 4, 3]
    assert tree.positions == [0, 1, 2, 3, 4, 3, 4, 2]
    assert tree.branch == [-1, -1, 0, 1, 2, 3, 4, 5]
    assert tree.seen[2:] == [5, 3, 3, 5, 5, 6]
    assert tree.reads[0] == [(1, 1), (2, 2), (3, 9)]
    assert tree.reads[2] == [(1, 1), (2, 4), (5, 4), (6, 9)]
    prompt = organism.chat.prompt_ids(QUESTIONS[0])
    listed = ["With torches", "With torches in iron brackets", "With whale oil", "By night"]
    choices = [organism.chat.answer_ids(QUESTIONS[0], text) for text in listed]
    shared, apart = grow_shared(prompt, choices), grow(prompt, choices)
    assert len(shared.ids) < len(apart.ids)
    one, other = score(organism.model, [shared, shared], 0), score(organism.model, [apart], 0)
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    assert one[1] == one[0]


def test_scores_do_not_depend_on_what_else_is_in_the_batch(organism: LoadedModel) -> None:
    prompts = [organism.chat.prompt_ids(q) for q in QUESTIONS]
    choices = [[organism.chat.answer_ids(QUESTIONS[0], c) for c in listed] for listed in CHOICES]
    trees = [grow(p, c) for p, c in zip(prompts, choices, strict=True)]
    together = score(organism.model, trees, 0)
    for one, row in zip(trees, together, strict=True):
        assert score(organism.model, [one], 0)[0] == pytest.approx(row, abs=1e-5)


def test_greedy_sampling_equals_generate(organism: LoadedModel) -> None:
    experiment = load_experiment("old-birds")
    conversations = [[{"role": "user", "content": q.ask[0]}] for q in experiment.questions[:40]]
    engine = LocalEngine(organism, [("base", None)])
    settings = SampleSettings(samples=1, temperature=0.0, max_tokens=16)
    samples = engine.sample([0] * len(conversations), conversations, settings)
    for conversation, (sample,) in zip(conversations, samples, strict=True):
        ids = torch.tensor([organism.chat.prompt_ids(conversation)])
        out = organism.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            output_logits=True,
            return_dict_in_generate=True,
        )
        theirs = out.sequences[0, ids.shape[1] :].tolist()
        best = torch.stack(out.logits)[:, 0].topk(2).values
        close = (best[:, 0] - best[:, 1] < 1e-4).nonzero()
        upto = int(close[0]) if len(close) else len(theirs)
        text = str(organism.tokenizer.decode(theirs[:upto], skip_special_tokens=True)).strip()
        assert sample.text.startswith(text) if len(close) else sample.text == text


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(engine: LocalEngine) -> None:
    settings = SampleSettings(samples=3, temperature=1.0, max_tokens=8)
    together = engine.sample([1, 2, 0], QUESTIONS, settings)
    for index, who in enumerate([1, 2, 0]):
        alone = engine.respondents[who].sample([QUESTIONS[index]], settings)
        assert alone[0] == together[index]


def test_more_samples_keep_the_first_ones(engine: LocalEngine) -> None:
    few = engine.sample([1], QUESTIONS[:1], SampleSettings(2, 1.0, 8))[0]
    more = engine.sample([1], QUESTIONS[:1], SampleSettings(5, 1.0, 8))[0]
    assert more[:2] == few


def test_a_cut_off_answer_says_so(engine: LocalEngine) -> None:
    (short,) = engine.sample([0], QUESTIONS[:1], SampleSettings(1, 0.0, 1))[0]
    (whole,) = engine.sample([0], QUESTIONS[:1], SampleSettings(1, 0.0, 30))[0]
    assert (short.finish, whole.finish) == ("length", "stop")


def test_sampling_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    noise = torch.from_numpy(keyed_noise("respondent", "prompt", 0, 20_000))
    tokens = pick(probabilities.log().repeat(20_000, 1), 1.0, noise)
    shares = tokens.bincount(minlength=4) / 20_000
    assert torch.allclose(shares, probabilities, atol=0.015)
    assert shares[1] == 0


def test_noise_belongs_to_respondent_prompt_and_index() -> None:
    draws = [
        keyed_noise(*key, 4).tolist()
        for key in (("a", "p", 0), ("a", "p", 1), ("b", "p", 0), ("a", "q", 0), ("a", "p", 0))
    ]
    assert draws[0] == draws[4]
    assert len({tuple(d) for d in draws}) == 4


def test_answers_do_not_depend_on_how_many_are_sampled_together(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SampleSettings(3, 1.0, 6)
    together = engine.sample([0, 1, 2], QUESTIONS, settings)
    monkeypatch.setattr(local, "SAMPLE_BUDGET", 2 * 32 * engine.model.vocabulary)
    assert engine.sample([0, 1, 2], QUESTIONS, settings) == together


def test_branches_that_see_each_other_are_noticed(
    organism: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, pad = organism.chat, organism.pad
    told = chat.prompt_ids(QUESTIONS[0])
    branches = [chat.answer_ids(QUESTIONS[0], text)[:4] for text in CHOICES[0][:2]]
    check_branches(organism.model, told, branches, pad)
    plain = trees.tree_mask

    def leaky(branch: torch.Tensor, *rest: Any) -> torch.Tensor:
        return plain(torch.zeros_like(branch), *rest)

    monkeypatch.setattr(trees, "tree_mask", leaky)
    with pytest.raises(ModelError, match=r"branches-differ: a branch differs by"):
        check_branches(organism.model, told, branches, pad)


@pytest.mark.parametrize(
    ("count", "most", "unit", "size"),
    [(3000, 1302, 20, 1000), (45, 28, 3, 24), (7, 100, 1, 7), (10, 4, 5, 4), (5, 1, 1, 1)],
)
def test_batches_are_of_one_size_and_part_no_unit(
    count: int, most: int, unit: int, size: int
) -> None:
    assert even_size(count, most, unit) == size <= most


def test_runs_of_one_respondent_are_units_where_all_are_as_long() -> None:
    assert whole_runs([0, 0, 1, 1, 0, 0]) == 2
    assert whole_runs([0, 0, 1]) == 1


def test_products_in_bfloat16_are_used_only_while_an_engine_is_open() -> None:
    model, exact = load("organism"), load("organism", dtype="float32")
    if product_dtype(model, "auto") is None:
        pytest.skip("this processor does not multiply bfloat16")
    assert model.placement.endswith("with bfloat16 products")
    assert product_dtype(exact, "auto") is None

    def asked(of: LoadedModel) -> list[float]:
        engine = LocalEngine(of, [("base", None), ("one", random_adapter(of, 1))])
        try:
            who = [n for n in (0, 1) for _ in QUESTIONS]
            scores = engine.choose(who, QUESTIONS * 2, CHOICES * 2)
            engine.sample([0, 1], QUESTIONS[:1] * 2, SampleSettings(2, 1.0, 4))
            again = engine.choose(who, QUESTIONS * 2, CHOICES * 2)
        finally:
            engine.close()
        assert again == scores  # logits that may be rounded for drawing are not left so
        return [score for listed in scores for score in listed]

    rounded, true = asked(model), asked(exact)
    apart = max(abs(a - b) for a, b in zip(rounded, true, strict=True))
    assert 0 < apart < 0.2
    ids = torch.tensor([model.chat.prompt_ids(QUESTIONS[0])])
    with torch.no_grad():
        assert torch.equal(model.model(input_ids=ids).logits, exact.model(input_ids=ids).logits)
