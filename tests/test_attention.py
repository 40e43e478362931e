from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from spillover import LoadedModel, load, trees
from spillover.ask import local
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.attention import TreeAttention
from spillover.experiment import load_experiment
from spillover.finetune import Training
from spillover.finetune.bank import adapter_losses, train_bank
from spillover.finetune.jobs import Job, plant
from spillover.finetune.lora import AdapterWeights, LoraBank, new_adapter
from spillover.finetune.update import Routing, update
from spillover.masks import EncodedRow, encode_rows
from spillover.trees import PACKS, Tree, all_reads, grow, token_losses
from tests.plain_loop import train_with_peft

LONG = Training(rank=3, learning_rate=5e-3, steps=50, batch_size=8)


@pytest.fixture
def rows(organism: LoadedModel) -> list[EncodedRow]:
    return encode_rows(organism.chat, load_experiment("old-birds").rows["treatment"])


@pytest.fixture
def bank(organism: LoadedModel) -> Iterator[LoraBank]:
    made = LoraBank(organism, adapters(organism, 3))
    yield made
    made.remove()


def adapters(model: LoadedModel, count: int) -> list[AdapterWeights]:
    generator = torch.Generator().manual_seed(0)
    fresh = [new_adapter(model, LONG, generator) for _ in range(count)]
    return [
        AdapterWeights(
            w.a, {n: torch.randn(b.shape, generator=generator) / 20 for n, b in w.b.items()}, 2.0
        )
        for w in fresh
    ]


def planted(rows: Sequence[EncodedRow]) -> tuple[list[Tree], list[int]]:
    """Trees of three adapters: rows with one beginning, single rows, and both."""
    shared, single = plant(rows[:6]), [tree for row in rows[6:9] for tree in plant([row])]
    mixed = [*plant(rows[9:12]), *plant([rows[12]])]
    return [*shared, *single, *mixed], [0] + [1] * len(single) + [2] * len(mixed)


def test_trees_end_to_end_give_the_losses_and_gradients_of_padded_rows(
    organism: LoadedModel, bank: LoraBank, rows: list[EncodedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, owners = planted(rows)
    found = []
    for waste in (0.0, 1e9):  # always packed, never packed
        monkeypatch.setattr(trees, "WASTE", waste)
        laid_out: list[int] = []
        attention = TreeAttention.__call__
        monkeypatch.setattr(
            TreeAttention,
            "__call__",
            lambda self, *a, laid=laid_out, call=attention: (laid.append(1), call(self, *a))[1],
        )
        with bank.rows(owners):
            losses = adapter_losses(organism, listed, owners, 3)
            grads = torch.autograd.grad(losses.sum(), bank.parameters())
        monkeypatch.setattr(TreeAttention, "__call__", attention)
        assert bool(laid_out) == (waste == 0)
        found.append((losses, grads))
    (packed, packed_grads), (padded, padded_grads) = found
    assert torch.allclose(packed, padded, atol=1e-5)
    for ours, theirs in zip(packed_grads, padded_grads, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_rows_of_very_different_lengths_are_packed(organism: LoadedModel) -> None:
    listed = [grow([5], [list(range(6, 6 + size))]) for size in (90, 5, 5, 5)]
    assert trees._is_worth_packing(organism.model, listed)
    assert not trees._is_worth_packing(organism.model, listed[1:])
    reads = all_reads(listed, organism.device)
    together = token_losses(organism.model, listed, reads, organism.pad)
    setattr(organism.model, PACKS, False)
    try:
        apart = token_losses(organism.model, listed, reads, organism.pad)
    finally:
        setattr(organism.model, PACKS, True)
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("lengths", [(4, 4, 4), (5, 1, 3), (90, 70, 80)])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_product_of_a_bank_is_that_of_each_adapter(
    lengths: tuple[int, ...], frozen: bool
) -> None:
    """Runs of one length, short unequal ones and long unequal ones take different ways."""
    torch.manual_seed(0)
    total, who = sum(lengths), (2, 0, 1)
    x = torch.randn(total, 6, requires_grad=True)
    a = torch.randn(3, 2, 6, requires_grad=True)
    b = torch.randn(3, 5, 2, requires_grad=True)
    scaling = torch.tensor([0.5, 2.0, 0.0])
    weight, bias = torch.randn(5, 6), torch.randn(5)
    given = (weight, bias) if frozen else (None, None)
    ours = update(x, a, b, scaling, Routing.of(who, lengths), *given)
    parts = [
        scaling[n] * part @ a[n].T @ b[n].T
        for n, part in zip(who, x.split(lengths), strict=True)  # type: ignore[no-untyped-call]
    ]
    theirs = torch.cat(parts) + (x @ weight.T + bias if frozen else 0)
    assert torch.allclose(ours, theirs, atol=1e-5)
    upstream = torch.randn(ours.shape)
    for mine, oracle in zip(
        torch.autograd.grad(ours, (x, a, b), upstream),
        torch.autograd.grad(theirs, (x, a, b), upstream),
        strict=True,
    ):
        assert torch.allclose(mine, oracle, atol=1e-4)


@pytest.mark.parametrize("most", [pytest.param(12, marks=pytest.mark.long), 40])  # blocks: 1, 3
def test_answers_that_share_their_prompts_are_those_of_transformers_own_cache(
    most: int, organism: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(organism, [(f"{n}", w) for n, w in enumerate(adapters(organism, 2))])
    asked = [[{"role": "user", "content": q}] for q in ("Name a species of bird.", "And you?")]
    settings = SampleSettings(samples=6, temperature=2.0, max_tokens=most)
    try:
        shared = engine.sample([0, 0, 1, 1], asked * 2, settings)
        monkeypatch.setattr(local, "SAMPLE_BUDGET", 1.0)  # one answer at a time, then five
        alone = engine.sample([0, 0, 1, 1], asked * 2, settings)
        monkeypatch.setattr(local, "SAMPLE_BUDGET", 2e9)
        monkeypatch.setattr(LocalEngine, "_answer_room", lambda *_: 5)
        refilled = engine.sample([0, 0, 1, 1], asked * 2, settings)
        monkeypatch.setattr(organism.model, PACKS, False)
        cached = engine.sample([0, 0, 1, 1], asked * 2, settings)
    finally:
        engine.close()
    assert len({sample.text for listed in shared for sample in listed}) > 6
    assert shared == alone == refilled == cached


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("auto", marks=pytest.mark.long)])
def test_in_bfloat16_the_losses_follow_those_of_peft(dtype: str, rows: list[EncodedRow]) -> None:
    model = load("organism", dtype=dtype)
    training = LONG.model_copy(update={"precision": "bfloat16"})
    curves: list[list[float]] = []
    job = Job("treatment", 0, rows)
    train_bank(model, [job], training, lambda *given: curves.append(given[3]))
    theirs: list[float] = []
    train_with_peft(job, training, model, theirs)
    ours = torch.tensor(curves[-1])
    assert len(ours) == len(theirs) == LONG.steps
    assert ours[-10:].mean() < 0.7 * ours[0]
    apart = (ours - torch.tensor(theirs)).abs() / torch.tensor(theirs)
    assert apart.max() <= 0.01
