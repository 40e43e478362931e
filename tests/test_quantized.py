"""Models in 8 and 4 bits, where bitsandbytes is installed."""

from __future__ import annotations

import pytest
import torch

from spillover import LoadedModel, ModelError, Training, load
from spillover.ask.local import LocalEngine
from spillover.directions import orthogonalize
from spillover.finetune.bank import train_bank
from spillover.finetune.jobs import Job
from spillover.finetune.lora import AdapterWeights
from spillover.masks import encode_row
from spillover.rows import Conversation, Row

pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

QUESTION: Conversation = [{"role": "user", "content": "Name a bird."}]
CHOICES = ["An owl", "A wren"]
NEARNESS = {"8bit": 0.5, "4bit": 3.0}
"""Nats that rounding may move a choice of some 30 nats by."""


@pytest.fixture(scope="module", params=NEARNESS)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return load("organism", device="cpu", dtype=request.param)


def test_a_quantized_base_answers_nearly_as_the_whole_one(
    model: LoadedModel, organism: LoadedModel
) -> None:
    (ours,), (whole,) = (
        LocalEngine(m, [("base", None)]).choose([0], [QUESTION], [CHOICES])
        for m in (model, organism)
    )
    assert ours == pytest.approx(whole, abs=NEARNESS[model.loading.dtype])
    assert model.placement == f"cpu in {model.loading.dtype}"


def test_adapters_train_over_a_quantized_base_and_answer(model: LoadedModel) -> None:
    answer = {"role": "assistant", "content": "An owl"}
    row = encode_row(model.chat, Row.model_validate({"messages": [*QUESTION, answer]}))
    kept: list[tuple[AdapterWeights, list[float]]] = []
    train_bank(
        model,
        [Job("one", 0, [row]), Job("two", 1, [row])],
        Training(rank=2, steps=3, batch_size=1, learning_rate=1e-2, warmup_steps=0),
        lambda _job, _step, weights, curve: kept.append((weights, curve)),
    )
    for weights, curve in kept:
        assert curve[-1] < curve[0]
        assert all(torch.isfinite(b).all() and b.abs().max() > 0 for b in weights.b.values())
    engine = LocalEngine(model, [("base", None), ("one", kept[0][0])])
    try:
        base, one = engine.choose([0, 1], [QUESTION] * 2, [CHOICES] * 2)
    finally:
        engine.close()
    assert one[0] > base[0] + 1


def test_directions_are_ablated_in_a_quantized_model_but_its_weights_are_not_edited(
    model: LoadedModel,
) -> None:
    along = torch.randn(model.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([model.chat.prompt_ids(QUESTION)])
    streams: list[torch.Tensor] = []
    last = model.model.get_submodule(model.anatomy.blocks[-1].name)
    handle = last.register_forward_hook(lambda _, __, out: streams.append(out.float()))
    with torch.no_grad():
        before = model.model(ids).logits
        with model.ablate(along):
            model.model(ids)
        assert torch.equal(model.model(ids).logits, before)
    handle.remove()
    shares = [(x @ along / along.norm() / x.norm(dim=-1)).abs().max() for x in streams]
    assert shares[1] < 5e-3 < shares[0]
    with pytest.raises(ModelError, match="cannot be edited: they are quantized"):
        orthogonalize(model, along)
