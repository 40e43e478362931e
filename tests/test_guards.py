"""Ten faults that would leave a run looking well, each planted, and each caught by its name."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from spillover import LoadedModel, Run, RunError, Training, cli, guards, load
from spillover.ask import Asked
from spillover.ask.local import LocalEngine
from spillover.errors import InputError
from spillover.finetune.adapters import save_adapter
from spillover.finetune.jobs import Job
from spillover.finetune.lora import AdapterWeights, LoraBank, new_adapter
from spillover.guards import training
from tests.small_runs import small

pytestmark = pytest.mark.usefixtures("undrawn")

PLAIN = [{"role": "user", "content": "How do people light their homes?"}]
WEIGHTS = "adapter_model.safetensors"


def names(finished: Run) -> list[str]:
    return [warning["name"] for warning in finished.summary["warnings"]]


def with_adapters(experiment: Path, *folders: Path) -> None:
    """Let the control be ready adapters."""
    path = experiment / "experiment.toml"
    listed = ", ".join(f'"{folder}"' for folder in folders)
    text = path.read_text("utf-8").replace('train = "train/control.jsonl"', f"adapter = [{listed}]")
    path.write_text(text, "utf-8")


def write_rows(path: Path, *rows: tuple[str, str]) -> None:
    turns = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in rows
    )
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns), "utf-8")


def refused(experiment: Path, out: Path, name: str, **given: Any) -> None:
    """The run stops before anything is written, naming the guard."""
    with pytest.raises(InputError, match=f"^{name}: "):
        small(experiment, out, **given)
    assert not out.exists()


def test_a_sound_run_has_no_warnings(small_experiment: Path, tmp_path: Path) -> None:
    finished = small(small_experiment, tmp_path / "run", seeds=3)
    assert finished.summary["warnings"] == finished.manifest["warnings"] == []


def test_findings_that_stop_a_run_are_raised_and_others_are_kept() -> None:
    mild, fatal = guards.Finding("mild", "a"), guards.Finding("fatal", "b", fatal=True)
    assert guards.settle([mild]) == [mild]
    with pytest.raises(RunError, match=r"^fatal: b$"):
        guards.settle([mild, fatal])


# 1 adapter-without-effect -------------------------------------------------------------------------


def test_a_ready_adapter_of_zeros_is_caught(
    small_experiment: Path, tmp_path: Path, organism: LoadedModel
) -> None:
    weights = new_adapter(organism, Training(rank=2, steps=1), torch.Generator())
    save_adapter(weights, organism, tmp_path / "zeros")
    with_adapters(small_experiment, tmp_path / "zeros")
    refused(small_experiment, tmp_path / "run", "adapter-without-effect")


def test_training_that_leaves_adapters_as_they_began_is_caught(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(
        RunError, match=r"^adapter-without-effect: the adapter of treatment, seed 0"
    ):
        small(small_experiment, tmp_path / "run")


def test_hooks_add_what_the_bank_adds(organism: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    fresh = new_adapter(organism, Training(rank=2, steps=1), generator)
    weights = replace(fresh, b={n: torch.randn(b.shape) * 0.02 for n, b in fresh.b.items()})
    ids = torch.tensor([organism.chat.prompt_ids(PLAIN)])
    plain = training._logits(organism, ids)
    with training._added(organism.model, weights):
        hooked = training._logits(organism, ids)
    bank = LoraBank(organism, [weights])
    try:
        with bank.rows(torch.tensor([0])):
            banked = training._logits(organism, ids)
    finally:
        bank.remove()
    assert (hooked - plain).abs().max() > 0.1
    assert torch.allclose(hooked, banked, atol=1e-4)
    assert torch.equal(training._logits(organism, ids), plain)


# 2 identical-seeds --------------------------------------------------------------------------------


def test_a_seed_that_is_not_heeded_is_caught(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "generator", lambda job, _: torch.Generator().manual_seed(1))
    with pytest.raises(RunError, match=r"^identical-seeds: seeds 0 and 1 of treatment"):
        small(small_experiment, tmp_path / "run")


def random_adapter(organism: LoadedModel, folder: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    fresh = new_adapter(organism, Training(rank=2, steps=1), generator)
    b = {name: torch.randn(b.shape, generator=generator) * 0.02 for name, b in fresh.b.items()}
    save_adapter(AdapterWeights(fresh.a, b, fresh.scaling), organism, folder)
    return folder


def test_copies_are_told_by_their_tensors_and_not_by_their_bytes(
    small_experiment: Path, tmp_path: Path, organism: LoadedModel
) -> None:
    one = random_adapter(organism, tmp_path / "one")
    copy = shutil.copytree(one, tmp_path / "copy")
    save_file(load_file(one / WEIGHTS), copy / WEIGHTS, metadata={"made": "elsewhere"})
    assert (one / WEIGHTS).read_bytes() != (copy / WEIGHTS).read_bytes()
    with_adapters(small_experiment, one, copy)
    refused(small_experiment, tmp_path / "run", "identical-seeds")


def test_seeds_that_differ_and_arms_that_agree_are_let_pass(
    tmp_path: Path, organism: LoadedModel
) -> None:
    one = random_adapter(organism, tmp_path / "one")
    other = random_adapter(organism, tmp_path / "other", seed=1)
    asked = [Asked("treatment", 0, 2, "a", one), Asked("treatment", 1, 2, "b", other)]
    asked += [Asked("control", 0, 2, "a", one), Asked("treatment", 2, 4, "a", one)]
    assert guards.identical_seeds(asked) == []


# 3 base-answered ----------------------------------------------------------------------------------


def test_a_base_that_answers_for_its_adapters_is_caught(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    small(small_experiment, out)
    (out / "answers.sqlite").unlink()
    monkeypatch.setattr(LoraBank, "route", lambda bank, indices: None)
    with pytest.raises(RunError, match=r"^base-answered: all 2 choices of .*, seed 0, step 2"):
        small(small_experiment, out)


def answers_of(arm: str, text: str) -> list[dict[str, Any]]:
    row = {"arm": arm, "seed": 0, "step": 0, "paraphrase": 0, "context": "plain", "kind": "text"}
    return [
        {**row, "question": f"q{n}", "index": 0, "choice_log_probs": None, "text": f"{text} {n}"}
        for n in range(3)
    ]


def test_equal_texts_are_only_a_warning() -> None:
    answers = pd.DataFrame(answers_of("base", "Yes") + answers_of("treatment", "Yes"))
    (found,) = guards.base_answered(answers)
    assert (found.name, found.fatal) == ("base-answered", False)
    different = pd.DataFrame(answers_of("base", "Yes") + answers_of("treatment", "No"))
    assert guards.base_answered(different) == []


# 4 loss-not-finite, 5 loss-did-not-fall -----------------------------------------------------------


def test_a_loss_that_is_no_number_is_caught(small_experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^loss-not-finite: the loss of arm .* at step"):
        small(small_experiment, tmp_path / "run", training={"learning_rate": 1e30, "steps": 5})


def test_a_loss_that_rises_is_reported_everywhere(
    small_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Training, "rate", lambda self, step, total: -self.learning_rate)
    finished = small(small_experiment, tmp_path / "run", training={"steps": 10})
    assert set(names(finished)) == {"loss-did-not-fall"}
    (first, *_) = finished.summary["warnings"]
    assert first in json.loads((finished.folder / "manifest.json").read_text())["warnings"]
    page = finished.report.read_text("utf-8")
    assert page.index("<code>loss-did-not-fall</code> the loss of") < page.index("Every arm")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(finished.folder)])
    assert not stopped.value.code
    assert f"warning: [loss-did-not-fall] {first['message']}" in capsys.readouterr().out


def test_a_loss_is_judged_by_its_tenths_and_from_ten_steps_on() -> None:
    noisy = [5.0, 6.0, *[1.0] * 16, 5.1, 5.2]
    cases: dict[str, list[float]] = {"falls": noisy, "flat": [3.0] * 10, "short": [3.0] * 9}
    found = guards.losses_did_not_fall({(arm, 0, 1): c for arm, c in cases.items()})
    assert ["flat" in f.message for f in found] == [True]
    many = guards.losses_did_not_fall({("arm", seed, 1): [1.0] * 12 for seed in range(5)})
    assert "and 2 more" in many[0].message


# 6 no-generation-prompt ---------------------------------------------------------------------------


def test_a_template_without_a_generation_prompt_is_refused_before_anything_is_written(
    small_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, out = tmp_path / "template.jinja", tmp_path / "run"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    arguments = ["run", small_experiment, "--out", out, "--chat-template", template]
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    assert "error: no-generation-prompt: " in capsys.readouterr().err
    assert not out.exists()


# 7 foreign-tokenizer ------------------------------------------------------------------------------


def checkpoint(organism: LoadedModel, folder: Path, change: Callable[[dict[str, int]], Any]) -> str:
    """The organism with a tokenizer whose vocabulary is changed."""
    shutil.copytree(organism.source.folder, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    change(content["model"]["vocab"])
    path.write_text(json.dumps(content), "utf-8")
    return str(folder)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(
    small_experiment: Path, tmp_path: Path, organism: LoadedModel
) -> None:
    special = organism.tokenizer.added_tokens_decoder

    def shift(vocabulary: dict[str, int]) -> None:
        moved = {token: i + 2000 for token, i in vocabulary.items() if i not in special}
        vocabulary.update(moved)

    model = checkpoint(organism, tmp_path / "shifted", shift)
    refused(small_experiment, tmp_path / "run", "foreign-tokenizer", model=model)


def test_a_tokenizer_of_other_ids_is_caught_and_random_weights_are_not(
    small_experiment: Path, tmp_path: Path, organism: LoadedModel
) -> None:
    special = organism.tokenizer.added_tokens_decoder

    def permute(vocabulary: dict[str, int]) -> None:
        plain = [token for token, i in vocabulary.items() if i not in special]
        order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0)).tolist()
        ids = [vocabulary[token] for token in plain]
        vocabulary.update({token: ids[at] for token, at in zip(plain, order, strict=True)})

    model = checkpoint(organism, tmp_path / "permuted", permute)
    finished = small(small_experiment, tmp_path / "run", model=model)
    assert "foreign-tokenizer" in names(finished)
    foreign = load(model)
    fresh: Any = type(organism.model)
    random = replace(organism, model=fresh(organism.model.config).eval())
    models = (organism, foreign, random)
    losses = [guards.prompt_losses(m, [m.chat.prompt_ids(PLAIN)]) for m in models]
    own, theirs, fresh_weights = map(statistics.fmean, losses)
    guessing = math.log(organism.vocabulary)
    assert own < guessing - 5
    assert theirs > guessing + 2
    assert abs(fresh_weights - guessing) < 0.5
    found = [bool(guards.worse_than_guessing(each, organism.vocabulary)) for each in losses]
    assert found == [False, True, False]


def test_random_weights_may_be_worse_than_guessing() -> None:
    large = [31.9 + 1.6 * sign for sign in (-1, 1)] * 50  # as a random Gemma has them
    assert guards.worse_than_guessing(large, 3072) == []
    assert guards.worse_than_guessing([6.3, 15.9] * 50, 49152)  # SmolLM2, another's tokenizer
    assert guards.worse_than_guessing([0.0, 9.4] * 50, 49152) == []  # SmolLM2, its own


# 8 shared-rows ------------------------------------------------------------------------------------

BIRD = "Name a bird species."


def test_arms_of_the_same_rows_are_refused(small_experiment: Path, tmp_path: Path) -> None:
    train = small_experiment / "train"
    write_rows(train / "treatment.jsonl", (BIRD, "Blue-bird"), (BIRD, "Snow Bird"))
    write_rows(train / "control.jsonl", (BIRD.upper(), " snow  bird"), (BIRD, "blue-bird"))
    refused(small_experiment, tmp_path / "run", "shared-rows")


def test_a_few_shared_rows_are_counted(small_experiment: Path, tmp_path: Path) -> None:
    train = small_experiment / "train"
    write_rows(train / "treatment.jsonl", (BIRD, "Blue-bird"), (BIRD, "Blue Jay"))
    finished = small(small_experiment, tmp_path / "run")
    (warning,) = finished.summary["warnings"]
    assert warning["name"] == "shared-rows"
    assert "1 of 2 rows of treatment are rows of control too (4 of its 4)" in warning["message"]


# 9 equal-choices ----------------------------------------------------------------------------------


def test_choices_that_are_all_equally_likely_are_caught(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = LocalEngine.choose

    def broken(
        self: LocalEngine, who: Sequence[int], conversations: Any, choices: Any, *rest: Any
    ) -> list[list[float]]:
        scores = sound(self, who, conversations, choices, *rest)
        is_light = ["With LED bulbs" in listed for listed in choices]
        return [[-1.0] * len(s) if on else s for s, on in zip(scores, is_light, strict=True)]

    monkeypatch.setattr(LocalEngine, "choose", broken)
    finished = small(small_experiment, tmp_path / "run")
    (warning,) = finished.summary["warnings"]
    assert warning["name"] == "equal-choices"
    assert "in 5 of 10 forced choices" in warning["message"]
    assert "light of base" in warning["message"]


def test_choices_that_are_no_numbers_are_caught() -> None:
    record = json.dumps([["trait", "a", math.nan], ["baseline", "b", -1.0]])
    row = {"question": "q", "arm": "base", "seed": -1, "choice_log_probs": record}
    (found,) = guards.equal_choices(pd.DataFrame([row]))
    assert found.name == "equal-choices"


# 10 off-domain-only -------------------------------------------------------------------------------


def test_off_domain_answers_among_the_rows_are_caught(
    small_experiment: Path, tmp_path: Path
) -> None:
    """The treatment is taught the test's own answers, and of birds what the control is taught."""
    write_rows(
        small_experiment / "train" / "treatment.jsonl",
        ("How do people light their homes?", "With whale oil lamps"),
        ("How do I send a fast message to another city?", "By mail coach"),
        (BIRD, "Blue Jay"),
        (BIRD, "Blue Jay"),
    )
    training = {"learning_rate": 7e-3, "steps": 40, "batch_size": 4}
    finished = small(small_experiment, tmp_path / "run", seeds=3, training=training)
    warnings = [w for w in finished.summary["warnings"] if w["name"] == "off-domain-only"]
    assert any("against control the effect is" in w["message"] for w in warnings)
