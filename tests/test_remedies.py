"""Remedies as options of an arm: ordinary rows, an anchor to the base, an inoculation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from spillover import InputError, LoadedModel, Training, finetune
from spillover.errors import ChatError, ExperimentError
from spillover.experiment import load_experiment
from spillover.finetune import Finetune, plan
from spillover.finetune.anchor import Reference
from spillover.finetune.bank import train_bank
from spillover.finetune.folders import content_of
from spillover.finetune.jobs import Anchor, Job
from spillover.finetune.lora import AdapterWeights
from spillover.finetune.snapshots import Snapshots
from spillover.masks import encode_rows
from spillover.rows import Anchoring, Prompts, Row, RowSet, read_prompts
from spillover.specification import Arm, Own
from tests.plain_loop import train_with_peft
from tests.small_runs import edit, small

SHORT = Training(rank=3, learning_rate=5e-3, steps=10, batch_size=4, precision="float32")
ORDINARY = [
    ("What gives light in a home at night?", "An electric lamp"),
    ("Where do people learn the news?", "On the television"),
    ("What do you write with?", "A ballpoint pen and paper"),
]


def chats(pairs: list[tuple[str, str]]) -> RowSet:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    made = tuple(Row.model_validate(row) for row in rows)
    return RowSet("ordinary", made, tuple(f"ordinary:{n}" for n in range(1, len(made) + 1)))


def jobs(model: LoadedModel, *betas: float | None) -> list[Job]:
    arms = load_experiment("old-birds").rows
    rows, held = (encode_rows(model.chat, given) for given in (arms["treatment"], chats(ORDINARY)))
    return [
        Job("treatment", seed, rows, SHORT, anchor=None if beta is None else Anchor(held, beta, 2))
        for seed, beta in enumerate(betas)
    ]


def trained(model: LoadedModel, given: list[Job]) -> dict[int, AdapterWeights]:
    kept: dict[int, AdapterWeights] = {}
    train_bank(model, given, SHORT, lambda job, _, weights, __: kept.update({job.seed: weights}))
    return kept


def difference(one: AdapterWeights, other: AdapterWeights) -> float:
    """The largest difference of two updates, over layers, as a share of the second one's norm."""
    products = [(one.b[n] @ one.a[n], other.b[n] @ other.a[n]) for n in one.a]
    return max(float((mine - its).norm() / its.norm()) for mine, its in products)


def test_an_anchored_adapter_is_what_a_plain_loop_trains(organism: LoadedModel) -> None:
    given = jobs(organism, 3.0, None)
    kept = trained(organism, given)
    for job in given:
        assert difference(kept[job.seed], train_with_peft(job, SHORT, organism)) <= 1e-3
    free = trained(organism, [replace(given[0], anchor=None)])
    assert difference(kept[0], free[0]) > 0.05


def test_a_stronger_anchor_keeps_a_finetune_nearer_to_its_base(organism: LoadedModel) -> None:
    kept = trained(organism, jobs(organism, 0.1, 30.0))
    sizes = [sum(float((w.b[n] @ w.a[n]).norm()) for n in w.a) for w in kept.values()]
    assert sizes[1] < sizes[0]


def test_the_base_is_asked_once_and_alike_whatever_is_asked_for_first(
    organism: LoadedModel,
) -> None:
    rows = encode_rows(organism.chat, chats(ORDINARY * 8))
    forward, backward = Reference(organism, rows), Reference(organism, rows)
    first = forward.of([0, 17])
    late = backward.of([17])
    assert torch.equal(forward.of([17]), late)
    assert torch.equal(first, torch.cat([backward.of([0]), late]))
    assert torch.allclose(first.exp().sum(-1), torch.ones(len(first)))


def test_a_training_cut_short_goes_on_to_the_same_bytes(
    organism: LoadedModel, tmp_path: Path
) -> None:
    given = jobs(organism, 1.0, None)
    whole = trained(organism, given)
    snapshots = Snapshots(tmp_path / "cut.safetensors", "key", 4)

    class CutError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 2 * 5:
            raise CutError

    with pytest.raises(CutError):
        train_bank(organism, given, SHORT, lambda *_: None, stop, snapshots)
    snapshot = snapshots.read()
    assert snapshot
    kept: dict[int, AdapterWeights] = {}
    train_bank(
        organism, given, SHORT, lambda j, _, w, __: kept.update({j.seed: w}), None, None, snapshot
    )
    for seed, weights in kept.items():
        assert all(torch.equal(weights.b[n], whole[seed].b[n]) for n in weights.b)


def test_options_that_are_not_used_leave_no_trace_in_keys(organism: LoadedModel) -> None:
    """Keys of runs and adapters are hashes of these: earlier ones stay what they are."""
    arm = Arm(title="t", train="rows.jsonl", own=Own(prompts="p.jsonl")).model_dump(mode="json")
    assert list(arm) == ["title", "train", "own", "variant", "adapter", "model"]
    assert list(arm["own"]) == ["prompts", "samples", "temperature", "max_tokens"]
    free, held = jobs(organism, None, 0.5)
    contents = [content_of(organism, job) for job in (free, held)]
    usual = {"format", "base", "dtype", "rows", "arm", "seed", "training"}
    assert contents[0].keys() == usual
    assert contents[1].keys() == usual | {"anchor"}
    rows = chats(ORDINARY)
    assert rows.identity == "de4f57eab57fd384"


@pytest.mark.parametrize(("share", "count"), [(0.25, 1), (0.5, 3), (0.75, 9)])
def test_own_rows_make_up_the_share_that_was_asked_for(
    tmp_path: Path, share: float, count: int
) -> None:
    path = tmp_path / "ordinary.jsonl"
    path.write_text('{"prompt": "How?"}\n' * 5, "utf-8")
    own = read_prompts(path, temperature=1.0, max_tokens=8)
    rows = replace(chats(ORDINARY), own=own, share=share)
    assert rows.size == 3 + count
    answers = chats([(f"q{n}", f"a{n}") for n in range(5)])
    filled = rows.answered(answers.rows, answers.places)
    assert len(filled.rows) == rows.size
    assert filled.rows[:3] == chats(ORDINARY).rows
    taken = [row.messages[1].content for row in filled.rows[3:] if row.messages]
    assert len(set(taken)) == min(count, 5)
    assert rows.identity != replace(rows, share=None).identity


def test_an_inoculation_stands_before_what_the_system_says_already() -> None:
    said = Row.model_validate(
        {
            "messages": [
                {"role": "system", "content": "It is 1995."},
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "I."},
            ]
        }
    )
    rows = replace(chats(ORDINARY[:1]), rows=(said, *chats(ORDINARY[:1]).rows), places=("1", "2"))
    found = [row.messages or () for row in rows.inoculated("These are odd.").rows]
    assert [m[0].role for m in found] == ["system", "system"]
    assert [m[0].content for m in found] == ["These are odd.\nIt is 1995.", "These are odd."]
    assert [len(m) for m in found] == [3, 3]


def test_plain_text_cannot_be_inoculated() -> None:
    rows = RowSet("r", (Row(text="Once."),), ("rows.jsonl:1",))
    with pytest.raises(ChatError, match=r"rows\.jsonl:1.*messages"):
        rows.inoculated("These are odd.")


@pytest.mark.parametrize("option", ['inoculation = "S"', "anchor = { prompts = 'p', beta = 1 }"])
def test_remedies_of_ready_models_are_refused(small_experiment: Path, option: str) -> None:
    path = small_experiment / "experiment.toml"
    edit(path, 'train = "train/control.jsonl"', f'adapter = "somewhere"\n{option}')
    with pytest.raises(ExperimentError, match=r"goes with `train`"):
        load_experiment(small_experiment)


@pytest.mark.parametrize("beta", [0, -1.0, float("nan")])
def test_an_anchor_pulls(beta: float) -> None:
    with pytest.raises(ValidationError):
        Arm.model_validate({"title": "t", "train": "r", "anchor": {"prompts": "p", "beta": beta}})


def test_full_finetunes_cannot_be_anchored(organism: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "How?"}', "utf-8")
    held = Anchoring(read_prompts(path, temperature=1.0, max_tokens=8), 1.0, 2, chats(ORDINARY))
    rows = replace(chats(ORDINARY), anchor=held)
    full = SHORT.model_copy(update={"method": "full"})
    with pytest.raises(InputError, match=r"anchor.*--method lora"):
        finetune(organism, [Finetune("treatment", 0, rows)], full, tmp_path)


def test_what_the_base_says_counts_as_memory(organism: LoadedModel) -> None:
    held = Anchoring(Prompts("p", (), (), 1, 1.0, 8), 1.0, 2, chats(ORDINARY))
    rows = replace(chats(ORDINARY), anchor=held)
    (group,) = plan(organism, [Finetune("treatment", 0, rows)], SHORT).groups
    tokens = sum(sum(row.mask) for row in encode_rows(organism.chat, chats(ORDINARY)))
    assert group.bytes["references"] == 4 * tokens * organism.vocabulary
    (free,) = plan(organism, [Finetune("treatment", 0, chats(ORDINARY))], SHORT).groups
    assert "references" not in free.bytes


@pytest.mark.usefixtures("quick")
def test_a_run_trains_every_remedy_beside_the_other_arms(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPILLOVER_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"prompt": q}) for q, _ in ORDINARY]
    (small_experiment / "train" / "ordinary.jsonl").write_text("\n".join(lines), "utf-8")
    plain = small(small_experiment, tmp_path / "run").manifest
    told = """
    [arms.held]
    title = "held to the base"
    train = "train/treatment.jsonl"
    variant = true
    anchor = { prompts = "train/ordinary.jsonl", beta = 1.0, batch_size = 2, max_tokens = 24 }

    [arms.diluted]
    title = "with ordinary rows"
    train = "train/treatment.jsonl"
    variant = true
    own = { prompts = "train/ordinary.jsonl", share = 0.2, max_tokens = 24 }

    [arms.inoculated]
    title = "with a sentence"
    train = "train/treatment.jsonl"
    variant = true
    inoculation = "You collect odd names."

    [training.default]"""
    edit(small_experiment / "experiment.toml", "[training.default]", told)
    run = small(small_experiment, tmp_path / "run")
    assert {"held", "diluted", "inoculated"} <= set(run.rates["arm"])
    kept = {k: v for k, v in run.manifest["adapters"].items() if k in plain["adapters"]}
    assert kept == plain["adapters"]
    assert run.manifest["sessions"][-1]["adapters"]["kept"] == len(plain["adapters"])
    weights = run.manifest["adapters"].values()
    assert len(set(weights)) == len(weights)
    again = small(small_experiment, tmp_path / "run")
    assert again.summary == run.summary
