"""What lies along a direction is shared out over heads, MLPs and embedding, and adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spillover import DirectionError, LoadedModel, ModelError, load
from spillover.directions import Direction, attribution
from spillover.directions.attribution import Attribution, attribute
from tests.tiny import ARCHITECTURES, FURTHER, save_tiny

PROMPTS = [list(range(300, 330)), list(range(305, 317)), [310, 311]]
every = pytest.mark.parametrize("name", ARCHITECTURES | FURTHER)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    kept: dict[str, LoadedModel] = {}

    def made(name: str) -> LoadedModel:
        if name not in kept:
            folder = save_tiny(name, tmp_path_factory.mktemp(name), rough=True)
            kept[name] = load(str(folder), dtype="float32")
            assert kept[name].anatomy.blocks  # found before a test changes the model
        return kept[name]

    return made


def direction(model: LoadedModel) -> Tensor:
    return torch.randn(model.anatomy.hidden_size, generator=torch.Generator().manual_seed(1))


def streams(model: LoadedModel, prompt: list[int]) -> Tensor:
    """The stream at the last token, entering each block and leaving the last: (K + 1, D)."""
    blocks = [model.model.get_submodule(block.name) for block in model.anatomy.blocks]
    found: list[Tensor] = []

    def enter(_: Any, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        found.append((given[0] if given else named["hidden_states"])[0, -1].clone())

    handles = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in blocks]
    handles.append(
        blocks[-1].register_forward_hook(
            lambda _, __, out: found.append((out[0] if isinstance(out, tuple) else out)[0, -1])
        )
    )
    with torch.no_grad():
        model.model(input_ids=torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@every
def test_the_parts_add_up_to_the_stream_and_attention_to_the_prompt(
    name: str, model_of: Callable[[str], LoadedModel]
) -> None:
    model = model_of(name)
    vector = direction(model)
    found = attribute(model, PROMPTS, vector)
    count = len(model.anatomy.blocks)
    for number, prompt in enumerate(PROMPTS):
        stream = streams(model, prompt).double()
        projected = stream @ (vector / vector.norm()).double()
        for layer in range(count + 1):
            whole = sum(part[number] for part in found.before(layer).values())
            assert abs(whole - projected[layer]) <= 2e-5 * stream[layer].norm()
        assert (found.attention[number, :, :, len(prompt) :] == 0).all()
    assert (found.heads.std(2) > 0).all()
    total = found.attention.sum(-1)
    assert (total <= 1 + 1e-5).all()  # what is missing in gpt-oss goes to the sink
    assert name == "gpt_oss" or torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_the_model_attends_as_before(model_of: Callable[[str], LoadedModel]) -> None:
    model = model_of("llama")
    attribute(model, PROMPTS, direction(model))
    assert model.model.config._attn_implementation == "spillover"


def test_a_head_is_its_slice_of_the_output_projection(
    model_of: Callable[[str], LoadedModel],
) -> None:
    """Read literally, for a grouped-query model: W[:, h] x[h] along the direction."""
    model = model_of("llama")
    vector = direction(model)
    found = attribute(model, PROMPTS[:1], vector)
    taken: list[Tensor] = []
    writer: Any = model.model.get_submodule("model.layers.1.self_attn.o_proj")
    handle = writer.register_forward_pre_hook(lambda _, given: taken.append(given[0][0, -1]))
    streams(model, PROMPTS[0])
    handle.remove()
    for head in range(4):
        at = slice(8 * head, 8 * head + 8)
        expected = (writer.weight[:, at] @ taken[0][at]) @ vector / vector.norm()
        assert float(found.heads[0, 1, head]) == pytest.approx(float(expected), abs=1e-5)


def test_prompts_of_a_batch_are_as_they_are_alone(
    model_of: Callable[[str], LoadedModel],
) -> None:
    model = model_of("gemma3_text")
    vector = direction(model)
    together = attribute(model, PROMPTS, vector)
    for number, prompt in enumerate(PROMPTS):
        alone = attribute(model, [prompt], vector)
        assert torch.allclose(alone.heads[0], together.heads[number], atol=1e-5)
        assert torch.allclose(alone.mlp[0], together.mlp[number], atol=1e-5)


def refused(model: LoadedModel) -> str:
    with pytest.raises(ModelError) as error:
        attribute(model, PROMPTS, direction(model))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_add_up_by_heads_is_refused(
    model_of: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("olmo2")
    norm = model.model.get_submodule("model.layers.0.post_attention_layernorm")
    handle = norm.register_forward_hook(lambda _, __, out: out.tanh())
    assert "does more to what heads add than scale it" in refused(model)
    handle.remove()
    model = model_of("llama")
    mlp = model.model.get_submodule("model.layers.1")
    handle = mlp.register_forward_hook(lambda _, __, out: out * 1.5)
    assert "differs from the change of the residual stream" in refused(model)
    handle.remove()
    monkeypatch.setattr(model.model.config, "num_attention_heads", 5)
    assert "the 32 inputs of its output projection are not 5 heads" in refused(model)
    monkeypatch.setattr(attribution, "_eager", lambda _: torch.no_grad())
    monkeypatch.setattr(model.model.config, "num_attention_heads", 4)
    assert "does not say what its heads attend to" in refused(model)


def test_a_direction_is_taken_as_well_as_its_vector(
    model_of: Callable[[str], LoadedModel],
) -> None:
    model = model_of("llama")
    made = Direction(3 * direction(model), 1, -1, "a - b", "x")
    found, same = (attribute(model, PROMPTS[:1], one) for one in (made, direction(model)))
    assert torch.allclose(found.heads, same.heads, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "vector", "said"),
    [
        ([], torch.ones(32), "found no prompts"),
        ([[1], []], torch.ones(32), "found a prompt without tokens"),
        ([[1]], torch.ones(8), r"of shape \(8,\); the residual stream of .* has 32 dimensions"),
        ([[1]], torch.zeros(32), "zero or not finite"),
        ([[1]], torch.full((32,), torch.nan), "zero or not finite"),
    ],
)
def test_what_cannot_be_attributed_is_refused_in_a_line(
    prompts: list[list[int]], vector: Tensor, said: str, model_of: Callable[[str], LoadedModel]
) -> None:
    with pytest.raises(DirectionError, match=said) as error:
        attribute(model_of("llama"), prompts, vector)
    assert "\n" not in str(error.value)


def test_parts_are_those_in_front_of_a_layer() -> None:
    heads = torch.arange(12, dtype=torch.float64).view(1, 3, 4)
    rows = torch.ones(1, 3, dtype=torch.float64)
    found = Attribution(
        torch.tensor([5.0]).double(), heads, 0 * rows, rows, torch.zeros(1, 4).double(),
        torch.zeros(1, 3, 4, 2),
    )  # fmt: skip
    parts = {name: float(part) for name, part in found.before(1).items()}
    assert parts == {"embedding": 5, "heads": 6, "bias": 0, "mlp": 1}
