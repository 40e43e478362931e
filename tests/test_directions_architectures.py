"""Directions in twenty architectures, tiny and random, with norms and biases that are random too.

Blocks and what they add are found by structure; ablation leaves nothing; edited weights are held to
ablation, or an error says why an architecture cannot be edited.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from spillover import LoadedModel, ModelError, RunFolderError, load
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.directions import Direction
from spillover.directions.weights import EDITS, KEY, orthogonalize, write_edited
from spillover.directions.writers import find_writers
from spillover.rows import Conversation
from tests.tiny import ARCHITECTURES, FURTHER, save_tiny

NAMES = [*ARCHITECTURES, *FURTHER]
POST_NORM = ("gemma2", "gemma3_text", "olmo2")
EDITABLE = [name for name in NAMES if name not in POST_NORM]
PROBE = torch.arange(60).reshape(2, 30) + 300
NOTHING = 1e-5
QUESTION: Conversation = [{"role": "user", "content": "Name a bird."}]

Loaded = Callable[[str], LoadedModel]
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models")
    models: dict[str, LoadedModel] = {}

    def made(name: str) -> LoadedModel:
        if name not in models:
            save_tiny(name, folder / name, rough=True)
            models[name] = load(str(folder / name), dtype="float32")
        return models[name]

    return made


def direction(model: LoadedModel, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.anatomy.hidden_size, generator=generator)


def logits(model: Any, ids: Tensor = PROBE) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=ids).logits
    return out


def share(x: Tensor, along: Tensor) -> float:
    """The largest share of the norm of a vector that lies along a direction."""
    size = x.norm(dim=-1).clamp(min=1e-20)  # the embedding of padding is zero
    return float(((x @ (along / along.norm())).abs() / size).max())


@contextmanager
def watched(model: LoadedModel, names: list[str]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Within: the residual streams between blocks, and the outputs of some modules."""
    streams: list[Tensor] = []
    outputs: list[Tensor] = []

    def first(out: Any) -> Tensor:
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found.clone()

    handles = []
    for block in model.anatomy.blocks:
        module = model.model.get_submodule(block.name)
        handles += [
            module.register_forward_pre_hook(lambda _, given: streams.append(given[0].clone())),
            module.register_forward_hook(lambda _, __, out: streams.append(first(out))),
        ]
    for name in names:
        module = model.model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda _, __, out: outputs.append(first(out))))
    try:
        yield streams, outputs
    finally:
        for handle in handles:
            handle.remove()


@every
def test_what_a_block_adds_to_the_stream_is_found(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    for block in model.anatomy.blocks:
        with watched(model, list(block.adds)) as (streams, outputs):
            logits(model.model)
        at = model.anatomy.blocks.index(block)
        before, after = streams[2 * at : 2 * at + 2]
        factor = 0.3 if name == "granite" else 1.0
        assert torch.allclose(after - before, factor * (outputs[0] + outputs[1]), atol=1e-4)
        parts = {block.attention, block.mlp}
        assert (set(block.adds) == parts) == (name not in POST_NORM)


@every
def test_ablation_leaves_nothing_in_the_stream(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    along, before = direction(model), logits(model.model)
    adds = [one for block in model.anatomy.blocks for one in block.adds]
    with watched(model, adds) as (streams, _):
        logits(model.model)
    assert min(share(x, along) for x in streams) > 0.1  # there is something to take out
    ids = model.chat.prompt_ids(QUESTION)
    with model.ablate(along), watched(model, adds) as (streams, outputs):
        prompt = torch.tensor([ids])
        said: Any = model.model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert len(outputs) == 6 * len(adds)  # every step, with a cache
        assert min(x.shape[1] for x in outputs) == 1
        literal = logits(model.model, said.sequences)
    assert max(share(x, along) for x in [*streams, *outputs]) <= NOTHING
    steps = torch.stack(said.logits, 1)
    assert torch.allclose(steps, literal[:, len(ids) - 1 : -1], atol=1e-3)
    assert torch.equal(logits(model.model), before)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "qwen3_moe"])
def test_answers_under_ablation_are_those_of_generate(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    settings = SampleSettings(samples=1, temperature=0.0, max_tokens=8)
    with model.ablate(direction(model)) as ablated:
        with LocalEngine(ablated, [(ablated.source.identity, None)]) as engine:
            ((sample,),) = engine.sample([0], [QUESTION], settings)
        ids = torch.tensor([model.chat.prompt_ids(QUESTION)])
        said = model.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=sorted(model.stop),
        )
    tokens = said[0, ids.shape[1] :].tolist()
    assert sample.text == str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


@pytest.mark.parametrize("name", EDITABLE)
def test_edited_weights_agree_with_ablation(name: str, loaded: Loaded, tmp_path: Path) -> None:
    model = loaded(name)
    before = logits(model.model)
    rows = torch.stack([direction(model, seed) for seed in (0, 1)])
    edited = orthogonalize(model, rows)
    with model.project(rows):
        wanted = logits(model.model)
    size = float(wanted.max() - wanted.min())
    assert float((logits(edited.model) - wanted).abs().max()) <= 1e-4 * size
    assert float((before - wanted).abs().max()) > 1e-2 * size
    assert torch.equal(logits(model.model), before)
    (told,) = getattr(edited.model.config, KEY)[EDITS]
    assert told["agreement"] <= 1e-4
    assert told["untied_embeddings"] == model.model.config.tie_word_embeddings
    assert edited.source.identity != model.source.identity

    folder = write_edited(edited, tmp_path / "edited")
    again = load(str(folder), dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    for one in (again.model, plain):
        assert float((logits(one) - wanted).abs().max()) <= 1e-4 * size
    assert told["subspace"] in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", EDITABLE)
def test_without_any_one_writer_edited_weights_would_not_agree(
    name: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the check of agreement can fail: every writer that is found matters."""
    model = loaded(name)
    writers = find_writers(model)
    assert len(writers) >= 1 + 2 * len(model.anatomy.blocks)
    for left_out in range(len(writers)):
        kept = [writer for at, writer in enumerate(writers) if at != left_out]
        monkeypatch.setattr("spillover.directions.weights.find_writers", lambda _, kept=kept: kept)
        with pytest.raises(ModelError, match="something else writes to the residual stream"):
            orthogonalize(model, direction(model))


@pytest.mark.parametrize("name", POST_NORM)
def test_norms_in_front_of_the_stream_are_a_reason_not_to_edit(name: str, loaded: Loaded) -> None:
    model = loaded(name)
    with pytest.raises(ModelError, match=f"norm in front of the residual stream.*{name}.*ablate"):
        orthogonalize(model, direction(model))


def test_weights_that_are_not_in_memory_are_a_reason_not_to_edit(loaded: Loaded) -> None:
    model = loaded("llama")
    empty: Any = copy.deepcopy(model.model)
    elsewhere = replace(model, model=empty.to("meta"))
    with pytest.raises(ModelError, match="is not in memory; load the model with --device cpu"):
        find_writers(elsewhere)


def test_only_edited_models_are_written_and_only_to_empty_folders(
    loaded: Loaded, tmp_path: Path
) -> None:
    model = loaded("llama")
    with pytest.raises(ModelError, match="were not edited"):
        write_edited(model, tmp_path / "a")
    edited = orthogonalize(model, direction(model))
    (tmp_path / "kept").write_text("x", "utf-8")
    with pytest.raises(RunFolderError, match="holds something else"):
        write_edited(edited, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_model_is_edited_twice(loaded: Loaded, tmp_path: Path) -> None:
    model = loaded("llama-tied")
    rows = torch.stack([direction(model, 0), direction(model, 1)])
    rows[1] -= (rows[0] @ rows[1]) / (rows[0] @ rows[0]) * rows[0]
    twice = orthogonalize(orthogonalize(model, rows[0]), rows[1])
    assert torch.allclose(logits(twice.model), logits(orthogonalize(model, rows).model), atol=1e-3)
    text = (write_edited(twice, tmp_path / "twice") / "README.md").read_text("utf-8")
    assert text.count("orthogonalized") == 2


def test_the_card_shows_the_words_of_others_as_data(loaded: Loaded, tmp_path: Path) -> None:
    model = loaded("llama")
    strange = Direction(direction(model), 1, -1, "a\n# `<b>` - c", "x")
    text = (write_edited(orthogonalize(model, strange), tmp_path / "d") / "README.md").read_text()
    assert "`a # '<b>' - c` at position -1, entering layer 1" in text
