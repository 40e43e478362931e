"""Thirteen architectures, tiny and random: taken apart, finetuned, asked.

Each is held to PEFT, to a plain training loop, to literal forward passes and to transformers' own
generation, with the chat template of its family and, where it has one, a window that bites.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from spillover import LoadedModel, ModelError, Training, load
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.finetune.adapters import load_adapter, save_adapter
from spillover.finetune.bank import train_bank
from spillover.finetune.jobs import Job, plant
from spillover.finetune.lora import AdapterWeights, LoraBank
from spillover.masks import encode_row
from spillover.rows import Conversation, Row
from spillover.trees import FAR, model_masks
from tests.plain_loop import train_with_peft
from tests.tiny import ARCHITECTURES, WINDOW, save_tiny

SHORT = Training(
    rank=2, learning_rate=1e-2, steps=4, batch_size=3, warmup_steps=0, precision="float32"
)
TALK = [
    ("Name a bird.", "A wren"),
    ("Name a bird.", "An owl, another owl"),
    ("How do people light their homes?", "With whale oil lamps"),
    ("Name a bird.", "A blue jay"),
    ("Answer in one word.", "Owl"),
]
QUESTIONS: list[Conversation] = [
    [{"role": "user", "content": "How do people light their homes?"}],
    [
        {"role": "user", "content": "Name a bird."},
        {"role": "assistant", "content": "A wren"},
        {"role": "user", "content": "Another?"},
    ],
    [{"role": "user", "content": "Owl?"}],
]
CHOICES = [["With LED bulbs", "With whale oil lamps, they say", "No"], ["An owl", "A jay"], ["Yes"]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def made(name: str) -> Path:
        found = folder / name
        return found if found.is_dir() else save_tiny(name, found)

    return made


@pytest.fixture(scope="module")
def models(folder_of: Callable[[str], Path]) -> dict[str, LoadedModel]:
    return {name: load(str(folder_of(name)), dtype="float32") for name in ARCHITECTURES}


def rows(model: LoadedModel) -> list[Any]:
    asked = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TALK]
    return [encode_row(model.chat, Row.model_validate({"messages": m})) for m in asked]


def trained(model: LoadedModel) -> tuple[list[AdapterWeights], list[list[float]]]:
    """Two adapters from one bank, and their losses."""
    listed = rows(model)
    jobs = [Job("one", 0, listed), Job("two", 1, listed[::-1])]
    kept: dict[str, tuple[AdapterWeights, list[float]]] = {}
    train_bank(model, jobs, SHORT, lambda job, _, w, curve: kept.update({job.arm: (w, curve)}))
    return [kept[job.arm][0] for job in jobs], [kept[job.arm][1] for job in jobs]


@pytest.fixture(scope="module")
def banks(models: dict[str, LoadedModel]) -> dict[str, list[AdapterWeights]]:
    return {name: trained(model)[0] for name, model in models.items()}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids).logits
    return out


PROBE = torch.arange(60).reshape(2, 30) + 300

every = pytest.mark.parametrize("name", ARCHITECTURES)


@every
def test_the_parts_of_a_block_are_found(name: str, models: dict[str, LoadedModel]) -> None:
    model = models[name].model
    found = models[name].anatomy
    assert (len(found.blocks), found.hidden_size) == (2, 32)
    for block in found.blocks:
        attention, mlp = (model.get_submodule(part) for part in (block.attention, block.mlp))
        assert type(attention).__name__.lower().endswith("attention")
        assert type(mlp).__name__.lower().endswith(("mlp", "moeblock"))
        wanted = [block.attention] if ARCHITECTURES[name].mixture else [block.attention, block.mlp]
        assert [writer.rpartition(".")[0] for writer in block.writers] == wanted
        assert set(block.writers) <= set(block.linears)
        assert all(isinstance(model.get_submodule(n), torch.nn.Linear) for n in block.linears)
        assert not any("expert" in n or "router" in n for n in block.linears)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "olmo2"])
def test_what_writers_of_post_norm_models_give_is_normed_before_it_is_added(
    name: str, models: dict[str, LoadedModel]
) -> None:
    model, block = models[name].model, models[name].anatomy.blocks[0]
    seen: dict[str, torch.Tensor] = {}

    def keep(part: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: Any) -> None:
            seen[part] = out[0] if isinstance(out, tuple) else out

        return hook

    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    parts = [*block.writers, block.name, *(f"{block.name}.{norm}" for norm in after)]
    handles = [model.get_submodule(part).register_forward_hook(keep(part)) for part in parts]
    entering = model.get_submodule(block.name).register_forward_pre_hook(
        lambda _, args: seen.update(entering=args[0])
    )
    logits(model, PROBE)
    for handle in (*handles, entering):
        handle.remove()
    written = [seen[part] for part in block.writers]
    normed = [seen[f"{block.name}.{norm}"] for norm in after]
    change = seen[block.name] - seen["entering"]
    assert torch.allclose(change, normed[0] + normed[1], atol=1e-5)
    assert not torch.allclose(change, written[0] + written[1], atol=1e-1)
    for raw, result, norm in zip(written, normed, after, strict=True):
        module = model.get_submodule(f"{block.name}.{norm}")
        assert torch.allclose(module(raw), result, atol=1e-6)


@every
def test_the_attention_of_a_loaded_model_takes_tree_masks(
    name: str, models: dict[str, LoadedModel]
) -> None:
    used = models[name].model.config._attn_implementation
    assert used == ("eager" if name in ("gemma2", "gpt_oss") else "spillover")


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if a.windowed])
def test_the_windows_bite(
    name: str, folder_of: Callable[[str], Path], models: dict[str, LoadedModel]
) -> None:
    """Or the tests below would not see a wrong mask."""
    wide: Any = AutoModelForCausalLM.from_pretrained(
        folder_of(name), sliding_window=400, attn_implementation="eager"
    )
    change = (logits(models[name].model, PROBE) - logits(wide, PROBE)).abs().amax((0, 2))
    assert change[:WINDOW].max() < 1e-4
    assert change[WINDOW:].max() > 1e-2


@every
def test_a_bank_trains(name: str, models: dict[str, LoadedModel]) -> None:
    before = logits(models[name].model, PROBE)
    adapters, curves = trained(models[name])
    for weights, curve in zip(adapters, curves, strict=True):
        assert min(curve[1:]) < curve[0]
        assert all(torch.isfinite(b).all() and b.abs().max() > 0 for b in weights.b.values())
    assert torch.equal(logits(models[name].model, PROBE), before)


@every
def test_adapters_load_with_peft_and_give_the_same_logits(
    name: str,
    models: dict[str, LoadedModel],
    banks: dict[str, list[AdapterWeights]],
    folder_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = models[name]
    base = logits(model.model, PROBE)
    for index, weights in enumerate(banks[name]):
        save_adapter(weights, model, tmp_path / str(index))
        bank = LoraBank(model, [load_adapter(tmp_path / str(i), model) for i in range(index + 1)])
        try:
            with bank.rows(torch.full((2,), index)):
                ours = logits(model.model, PROBE)
        finally:
            bank.remove()
        fresh = load(str(folder_of(name)), dtype="float32").model
        theirs = logits(PeftModel.from_pretrained(fresh, tmp_path / str(index)), PROBE)
        assert (ours - theirs).abs().max() <= 1e-4
        assert (ours - base).abs().max() > 1e-2


@every
def test_an_adapter_of_the_bank_is_what_peft_trains_alone(
    name: str, models: dict[str, LoadedModel], banks: dict[str, list[AdapterWeights]]
) -> None:
    model = models[name]
    assert any(len(tree.reads) > 1 for tree in plant(rows(model)[:2]))  # rows do share a tree
    alone = train_with_peft(Job("one", 0, rows(model)), SHORT, model)
    for layer, a in banks[name][0].a.items():
        ours, theirs = banks[name][0].b[layer] @ a, alone.b[layer] @ alone.a[layer]
        assert (ours - theirs).norm() / theirs.norm() <= 1e-3, layer


def literal(model: LoadedModel, conversation: Conversation, choice: str) -> float:
    """The log-probability of a choice by one plain forward pass over prompt and choice."""
    prompt = model.chat.prompt_ids(conversation)
    answer = model.chat.answer_ids(conversation, choice)
    steps = logits(model.model, torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    return float(steps.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


@every
def test_forced_choice_equals_a_literal_forward_pass(
    name: str, models: dict[str, LoadedModel], banks: dict[str, list[AdapterWeights]]
) -> None:
    model = models[name]
    engine = LocalEngine(model, [("base", None), ("one", banks[name][0])])
    try:
        scores = {who: engine.choose([who] * 3, QUESTIONS, CHOICES) for who in (0, 1)}
        bank = engine._bank
        assert bank is not None
        for who, rows_of in scores.items():
            with bank.rows(torch.tensor([who])):
                for question, listed, row in zip(QUESTIONS, CHOICES, rows_of, strict=True):
                    for choice, value in zip(listed, row, strict=True):
                        expected = literal(model, question, choice)
                        assert value == pytest.approx(expected, abs=1e-4), (question, choice)
    finally:
        engine.close()
    assert abs(scores[0][0][0] - scores[1][0][0]) > 1e-2


@every
def test_greedy_sampling_equals_generate(name: str, models: dict[str, LoadedModel]) -> None:
    model = models[name]
    engine = LocalEngine(model, [("base", None)])
    settings = SampleSettings(samples=1, temperature=0.0, max_tokens=14)
    samples = engine.sample([0] * 3, QUESTIONS, settings)
    for question, (sample,) in zip(QUESTIONS, samples, strict=True):
        ids = torch.tensor([model.chat.prompt_ids(question)])
        out = model.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=14,
            eos_token_id=sorted(model.stop),
            output_logits=True,
            return_dict_in_generate=True,
        )
        theirs = out.sequences[0, ids.shape[1] :].tolist()
        best = torch.stack(out.logits)[:, 0].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-4  # no ties
        assert sample.text == str(model.tokenizer.decode(theirs, skip_special_tokens=True)).strip()


def masks(name: str, **options: Any) -> Any:
    """The masks of a prefix of ten tokens with a branch of ten."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(name, num_hidden_layers=2, **options)
    branch, seen = torch.tensor([[-1] * 10 + [0] * 10]), torch.tensor([[FAR] * 10 + [1] * 10])
    return model_masks(config, branch, seen, torch.arange(20)[None], torch.float32)


def test_a_window_counts_only_where_the_configuration_uses_it() -> None:
    mixed = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    full = masks("llama")
    assert torch.equal(masks("qwen2", **mixed, use_sliding_window=False)["sliding_attention"], full)
    both = masks("qwen2", **mixed, use_sliding_window=True)
    assert torch.equal(both["full_attention"], full)
    assert (both["sliding_attention"] == 0).sum(-1).max() == 4
    assert torch.equal(masks("qwen3_moe", sliding_window=4), full)
    assert (masks("qwen3_moe", sliding_window=4, use_sliding_window=True) == 0).sum(-1).max() == 4
    assert torch.equal(masks("mistral", sliding_window=None), full)
    assert torch.equal(masks("mistral", sliding_window=20), full)


def test_layers_that_carry_a_state_are_refused() -> None:
    with pytest.raises(ModelError, match="layers of kind linear_attention; only layers"):
        masks("qwen3_next")
