"""Adapters: PEFT is the format and the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from spillover import LoadedModel, ModelError, RunError, Training, finetune, load
from spillover.experiment import load_experiment
from spillover.finetune import Finetune
from spillover.finetune.adapters import load_adapter
from spillover.finetune.bank import train_bank, train_step
from spillover.finetune.jobs import Job, plant
from spillover.finetune.lora import AdapterWeights, LoraBank, alike, new_adapter
from spillover.finetune.stack import Stack
from spillover.kernels import FrozenLinear
from spillover.masks import EncodedRow, encode_rows
from tests.plain_loop import train_with_peft

ARMS = ("treatment", "still-used")
SHORT = Training(rank=3, learning_rate=5e-3, steps=8, batch_size=4, precision="float32")
FIVE = SHORT.model_copy(update={"rank": 5, "weight_decay": 0.5})


def wanted(seeds: tuple[int, ...] = (0,), arms: tuple[str, ...] = ARMS) -> list[Finetune]:
    experiment = load_experiment("old-birds")
    return [Finetune(arm, seed, experiment.rows[arm]) for arm in arms for seed in seeds]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return finetune("organism", wanted((0, 1)), SHORT, folder)


def fresh_base() -> torch.nn.Module:
    return load("organism").model


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids).logits
    return out


PROBE = torch.arange(40).reshape(2, 20) + 300


def test_adapters_load_with_peft_and_give_the_same_logits(
    adapters: dict[tuple[str, int, int], Path], organism: LoadedModel
) -> None:
    keys = sorted(adapters)
    weights = [load_adapter(adapters[key], organism) for key in keys]
    base = logits(organism.model, PROBE)
    for index, key in enumerate(keys):
        bank = LoraBank(organism, weights)
        try:
            with bank.rows(torch.full((2,), index)):
                ours = logits(organism.model, PROBE)
        finally:
            bank.remove()
        peft = logits(PeftModel.from_pretrained(fresh_base(), adapters[key]), PROBE)
        assert (ours - peft).abs().max() <= 1e-4
        assert (ours - base).abs().max() > 1e-2
    assert torch.equal(logits(organism.model, PROBE), base)


def test_an_adapter_of_the_bank_is_what_peft_trains_alone(organism: LoadedModel) -> None:
    rows = encode_rows(organism.chat, load_experiment("old-birds").rows["treatment"])
    other = encode_rows(organism.chat, load_experiment("old-birds").rows["still-used"])
    training = SHORT.model_copy(update={"steps": 50})
    jobs = [Job("treatment", 0, rows), Job("still-used", 7, other)]
    kept: dict[str, AdapterWeights] = {}
    train_bank(
        organism, jobs, training, lambda job, _, weights, __: kept.update({job.arm: weights})
    )
    alone = train_with_peft(jobs[0], training, organism)
    for name, a in kept["treatment"].a.items():
        ours = kept["treatment"].b[name] @ a
        theirs = alone.b[name] @ alone.a[name]
        assert (ours - theirs).norm() / theirs.norm() <= 1e-3, name


def test_adapters_of_one_bank_may_differ_in_everything(
    organism: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without warm-up AdamW's first step takes the sign of gradients that are all but zero, which
    # turns the last digits of oneDNN's products into 4e-3 of the update: the oracle's are used.
    monkeypatch.setattr(FrozenLinear, "forward", torch.nn.Linear.forward)
    arms = load_experiment("old-birds").rows
    decayed = {"weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 0}
    settings = [
        SHORT.model_copy(update={"steps": 20, "rank": 2, "batch_size": 2, "alpha": 3.0}),
        SHORT.model_copy(update={"steps": 10, "rank": 5, "learning_rate": 2e-3} | decayed),
        SHORT.model_copy(update={"steps": 20, "rank": 4, "targets": ("q_proj", "down_proj")}),
        SHORT.model_copy(update={"steps": 3, "rank": 1, "max_grad_norm": 0.01}),
    ]
    jobs = [
        Job(arm, seed, encode_rows(organism.chat, arms[arm]), training)
        for seed, (arm, training) in enumerate(zip([*ARMS, *ARMS], settings, strict=True))
    ]
    kept: dict[int, tuple[int, AdapterWeights]] = {}
    train_bank(organism, jobs, SHORT, lambda job, step, w, _: kept.update({job.seed: (step, w)}))
    for job in jobs:
        step, ours = kept[job.seed]
        assert (step, ours.rank) == (job.settings.steps, job.settings.rank)
        theirs = train_with_peft(job, job.settings, organism)
        assert list(ours.a) == list(theirs.a)
        for name, a in ours.a.items():
            product = theirs.b[name] @ theirs.a[name]
            assert (ours.b[name] @ a - product).norm() / product.norm() <= 1e-3, (job.seed, name)


def test_what_fills_an_adapter_up_stays_zero_under_weight_decay(organism: LoadedModel) -> None:
    small, large = (new_adapter(organism, t, torch.Generator()) for t in (SHORT, FIVE))
    bank = LoraBank(organism, alike([small, large]))
    try:
        stack = Stack(bank.parameters(), [SHORT, FIVE])
        rows = encode_rows(organism.chat, load_experiment("old-birds").rows["treatment"])
        planted = [plant(rows[:4]), plant(rows[4:8])]
        for _ in range(3):
            train_step(organism, bank, stack, planted, [1e-2, 1e-2])
        filled, whole = bank.adapter(0), bank.adapter(1)
    finally:
        bank.remove()
    for name in filled.a:
        assert not filled.a[name][SHORT.rank :].any()
        assert not filled.b[name][:, SHORT.rank :].any()
        assert filled.b[name][:, : SHORT.rank].any()
        assert whole.b[name][:, SHORT.rank :].any()


def test_rows_that_begin_alike_share_one_tree_and_others_do_not() -> None:
    alike = [EncodedRow((1, 2, 3, 4, 5, n), (False,) * 5 + (True,)) for n in (6, 7)]
    (tree,) = plant(alike)
    assert tree.ids == [1, 2, 3, 4, 5]
    assert tree.reads == [[(4, 6)], [(4, 7)]]
    unlike = [alike[0], EncodedRow((9, 8, 7), (False, True, True))]
    assert [t.reads for t in plant(unlike)] == [[[(4, 6)]], [[(0, 8), (1, 7)]]]


def test_seeds_and_arms_give_different_adapters(
    adapters: dict[tuple[str, int, int], Path],
) -> None:
    first = [load_file(folder / "adapter_model.safetensors") for folder in adapters.values()]
    name = next(iter(first[0]))
    for i, one in enumerate(first):
        assert not any(torch.equal(one[name], other[name]) for other in first[:i])


def test_an_adapter_does_not_depend_on_the_rest_of_its_bank(
    adapters: dict[tuple[str, int, int], Path], tmp_path: Path
) -> None:
    alone = finetune("organism", wanted((1,), ("treatment",)), SHORT, tmp_path)
    key = ("treatment", 1, 8)
    one, other = (load_file(f[key] / "adapter_model.safetensors") for f in (alone, adapters))
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-5), name


def test_checkpoints_along_training_are_kept(tmp_path: Path) -> None:
    training = SHORT.model_copy(update={"checkpoints": (2, 5)})
    kept = finetune("organism", wanted((0,), ("treatment",)), training, tmp_path)
    assert [step for _, _, step in kept] == [2, 5, 8]
    sizes = [load_file(f / "adapter_model.safetensors") for f in kept.values()]
    name = next(k for k in sizes[0] if "lora_B" in k)
    assert sizes[0][name].norm() < sizes[1][name].norm() < sizes[2][name].norm()


def test_full_finetuning_writes_whole_checkpoints(tmp_path: Path, organism: LoadedModel) -> None:
    training = Training(method="full", learning_rate=1e-3, steps=2, batch_size=2)
    kept = finetune("organism", wanted((0,), ("treatment",)), training, tmp_path)
    trained = load(str(kept["treatment", 0, 2]))
    assert (logits(trained.model, PROBE) - logits(organism.model, PROBE)).abs().max() > 1e-3


def test_a_loss_that_is_not_finite_stops_with_the_arm_and_seed(organism: LoadedModel) -> None:
    rows = encode_rows(organism.chat, load_experiment("old-birds").rows["treatment"])
    training = Training(rank=1, learning_rate=1e30, steps=4, warmup_steps=0, batch_size=2)
    with pytest.raises(RunError, match=r"arm treatment, seed 3 .* lower the learning rate"):
        train_bank(organism, [Job("treatment", 3, rows)], training, lambda *_: None)
    assert torch.isfinite(logits(organism.model, PROBE)).all()


def test_unknown_targets_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    training = SHORT.model_copy(update={"targets": ("w_q",)})
    with pytest.raises(ModelError, match=r"'w_q' fits no linear layer; there are .*q_proj"):
        finetune("organism", wanted(), training, tmp_path)


def test_something_else_in_an_adapter_folder_is_refused(
    tmp_path: Path, organism: LoadedModel
) -> None:
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors; expected"):
        load_adapter(tmp_path, organism)
