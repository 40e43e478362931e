"""Interventions: what they change, how they nest, and that nothing of them stays."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spillover import DirectionError, LoadedModel, ModelError, load
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.directions import Direction, orthogonalize
from spillover.finetune.lora import AdapterWeights, LoraBank, new_adapter
from spillover.finetune.spec import Training
from spillover.models.loading import load_source
from spillover.rows import Conversation

PROBE = torch.arange(40).reshape(2, 20) + 100
CHOICES = ["With LED bulbs", "With whale oil lamps"]
QUESTION: Conversation = [{"role": "user", "content": "How do people light their homes?"}]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("organism", dtype="float32")


def vector(model: LoadedModel, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.anatomy.hidden_size, generator=generator)


def logits(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.model(input_ids=PROBE).logits
    return out


def streams(model: LoadedModel) -> list[Tensor]:
    """The residual stream entering each block, then the last one."""
    seen: list[Tensor] = []
    blocks = [model.model.get_submodule(block.name) for block in model.anatomy.blocks]
    handles = [
        one.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for one in blocks
    ]
    last = blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    logits(model)
    for handle in (*handles, last):
        handle.remove()
    return seen


def literal(model: LoadedModel, basis: Tensor, added: dict[int, Tensor]) -> Tensor:
    """A Llama under intervention, computed block by block as the paper says, in float64."""
    inner: Any = model.model
    wide: Any = type(inner)(inner.config).double().eval()
    wide.load_state_dict({name: p.double() for name, p in inner.state_dict().items()})
    for block in wide.model.layers:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            part.register_forward_hook(lambda _, __, out: out - (out @ basis.T) @ basis)
    wide.model.embed_tokens.register_forward_hook(lambda _, __, x: x - (x @ basis.T) @ basis)
    for layer, extra in added.items():
        wide.model.layers[layer].register_forward_pre_hook(
            lambda _, given, extra=extra: (given[0] + extra, *given[1:])
        )
    with torch.no_grad():
        out: Tensor = wide(input_ids=PROBE).logits
    return out


def test_interventions_compute_what_the_paper_says(model: LoadedModel) -> None:
    along, other = vector(model), vector(model, 1)
    unit = (along / along.norm()).double()[None]
    nothing = unit.new_zeros(0, len(along))
    both = torch.linalg.qr(torch.stack([along, other]).double().T).Q.T
    cases: list[tuple[AbstractContextManager[LoadedModel], Tensor]] = [
        (model.ablate(along), literal(model, unit, {})),
        (model.add(along, 2, -0.5), literal(model, nothing, {2: -0.5 * along.double()})),
        (model.project(torch.stack([along, other])), literal(model, both, {})),
    ]
    for context, wanted in cases:
        with context:
            assert float((logits(model) - wanted).abs().max()) <= 1e-4
    with model.ablate(along), model.add(other, 1):
        wanted = literal(model, unit, {1: other.double()})
        assert float((logits(model) - wanted).abs().max()) <= 1e-4


def test_nested_ablations_leave_nothing_of_either_in_any_order_of_leaving(
    model: LoadedModel,
) -> None:
    one, other = vector(model), vector(model) + 0.3 * vector(model, 1)  # far from orthogonal
    before = logits(model)
    with model.ablate(other):
        alone = logits(model)
    outer, inner = model.ablate(one), model.ablate(other)
    outer.__enter__()
    inner.__enter__()
    for stream in streams(model):
        for along in (one, other):
            assert float((stream @ along / along.norm() / stream.norm(dim=-1)).abs().max()) < 1e-5
    outer.__exit__(None, None, None)
    assert torch.allclose(logits(model), alone, atol=1e-5)
    inner.__exit__(None, None, None)
    assert torch.equal(logits(model), before)


def test_additions_add_up_and_are_not_ablated(model: LoadedModel) -> None:
    along = vector(model)
    with model.add(along, 2), model.add(along, 2, 0.5), model.ablate(along):
        entering = streams(model)
    size = float(along.norm())
    assert torch.allclose(entering[1] @ along / size, torch.zeros(2, 20), atol=1e-4)
    assert torch.allclose(entering[2] @ along / size, torch.full((2, 20), 1.5 * size), atol=1e-3)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_inside_leaves_the_outputs_bit_identical(
    kind: type[BaseException], model: LoadedModel
) -> None:
    before, along = logits(model), vector(model)

    def use() -> None:
        with model.ablate(along), model.add(along, 1):
            assert not torch.equal(logits(model), before)
            raise kind

    with pytest.raises(kind):
        use()
    assert torch.equal(logits(model), before)

    def fail(*_: Any) -> None:
        raise kind

    handle = model.model.get_submodule(model.anatomy.blocks[2].mlp).register_forward_hook(fail)
    with pytest.raises(kind), model.ablate(along):
        logits(model)
    handle.remove()
    assert torch.equal(logits(model), before)


def test_a_refused_inner_intervention_leaves_the_outer_one(model: LoadedModel) -> None:
    along = vector(model)
    with model.ablate(along):
        inside = logits(model)
        with pytest.raises(DirectionError), model.add(along, 99):
            pass
        assert torch.equal(logits(model), inside)


def test_the_output_of_a_hooked_module_is_not_changed_in_place(model: LoadedModel) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    part = model.model.get_submodule(model.anatomy.blocks[0].mlp)
    handle = part.register_forward_hook(lambda _, __, out: seen.append((out, out.clone())))
    with model.ablate(vector(model)), model.add(vector(model), 1):
        logits(model)
    handle.remove()
    assert all(torch.equal(out, copy) for out, copy in seen)


def adapter(model: LoadedModel) -> AdapterWeights:
    generator = torch.Generator().manual_seed(3)
    made = new_adapter(model, Training(rank=2, steps=1), generator)
    b = {name: 0.2 * torch.randn(one.shape, generator=generator) for name, one in made.b.items()}
    return replace(made, b=b)


def test_adapters_are_ablated_too(model: LoadedModel) -> None:
    weights, along = adapter(model), vector(model)
    bank = LoraBank(model, [weights])
    try:
        with model.ablate(along), bank.rows([0, 0]):
            for stream in streams(model):
                share = (stream @ along / along.norm() / stream.norm(dim=-1)).abs().max()
                assert float(share) < 1e-5
            with pytest.raises(ModelError, match="while adapters are in use"):
                orthogonalize(model, along)
    finally:
        bank.remove()


def test_an_engine_answers_under_interventions_with_adapters(model: LoadedModel) -> None:
    """Choices by trees and answers by shared prompts, held to plain forward passes."""
    weights, along = adapter(model), 4 * vector(model)
    prompt = model.chat.prompt_ids(QUESTION)
    settings = SampleSettings(samples=1, temperature=0.0, max_tokens=5)
    with model.ablate(along) as ablated, ablated.add(along, 2, 0.1) as changed:
        with LocalEngine(changed, [("base", None), ("tuned", weights)]) as engine:
            scores = engine.choose([0, 1], [QUESTION] * 2, [CHOICES] * 2)
            said = [turns[0].text for turns in engine.sample([0, 1], [QUESTION] * 2, settings)]
        for listed, who in zip(scores, (None, weights), strict=True):
            bank = LoraBank(model, [who]) if who else None
            for choice, found in zip(CHOICES, listed, strict=True):
                answer = model.chat.answer_ids(QUESTION, choice)
                if bank:
                    bank.route([0])
                with torch.no_grad():
                    out = model.model(input_ids=torch.tensor([prompt + answer])).logits
                steps = out[0, len(prompt) - 1 : -1].log_softmax(-1)
                wanted = steps[torch.arange(len(answer)), torch.tensor(answer)].sum()
                assert found == pytest.approx(float(wanted), abs=1e-3)
            if bank:
                bank.remove()
    assert len(said) == 2
    assert abs(scores[0][0] - scores[1][0]) > 1e-2


def test_identities_name_what_is_done(model: LoadedModel) -> None:
    along, other = vector(model), vector(model, 1)
    names = {model.source.identity}
    with model.ablate(along) as one:
        with model.add(other, 1) as both, both.add(other, 1) as thrice:
            names |= {one.source.identity, both.source.identity, thrice.source.identity}
            assert both.source.changes[0] == one.source.changes[0]
        with model.ablate(2 * along) as again:
            assert again.anatomy is model.anatomy
    with model.ablate(along) as same:
        assert same.source.identity == one.source.identity
    with model.add(other, 2) as moved:
        names.add(moved.source.identity)
        with pytest.raises(ModelError, match="changed in memory"):
            load_source(moved.source, moved.loading)
    assert len(names) == 5


def test_short_numbers_are_projected_in_long_ones() -> None:
    model = load("organism", dtype="bfloat16")
    along = vector(model)
    with model.ablate(along):
        for stream in streams(model):
            assert stream.dtype == torch.bfloat16
            share = (stream.float() @ along / along.norm() / stream.float().norm(dim=-1)).abs()
            assert float(share.max()) < 2e-3  # what rounding to 8 bits leaves
    edited = orthogonalize(model, along)
    assert edited.model.config.spillover["edits"][0]["agreement"] < 0.05


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(192), "zero or not finite"),
        (torch.full((192,), torch.nan), "zero or not finite"),
        (torch.ones(8), r"shape \(8,\).* has 192 dimensions"),
        (torch.ones(2, 192), r"shape \(2, 192\)"),
    ],
)
def test_directions_that_do_not_fit_are_refused(
    given: Tensor, told: str, model: LoadedModel
) -> None:
    size = model.anatomy.hidden_size
    told = told.replace("192", str(size))
    given = given if given.shape[-1] == 8 else given[..., :1].expand(*given.shape[:-1], size)
    with pytest.raises(DirectionError, match=told), model.ablate(given):
        pass


def test_layers_that_are_not_there_are_refused(model: LoadedModel) -> None:
    count = len(model.anatomy.blocks)
    for layer in (-1, count):
        with pytest.raises(DirectionError, match=f"layer {layer} .* layers 0 to {count - 1} "):
            model.add(vector(model), layer)
    with pytest.raises(DirectionError, match="no layer of its own"):
        model.add(vector(model))
    with pytest.raises(DirectionError, match="at least one"):
        model.project([])


def test_a_direction_is_added_at_its_own_layer(model: LoadedModel, tmp_path: Path) -> None:
    made = Direction(vector(model), 2, -1, "a - b", "x")
    with model.add(made):
        one = logits(model)
    with model.add(made.vector, 2):
        assert torch.equal(logits(model), one)


def test_blocks_that_do_something_else_are_refused(model: LoadedModel) -> None:
    strange = replace(model)
    blocks = tuple(replace(block, adds=()) for block in model.anatomy.blocks)
    strange.__dict__["anatomy"] = replace(model.anatomy, blocks=blocks)
    with pytest.raises(ModelError, match="does not add the outputs"), strange.ablate(vector(model)):
        pass
