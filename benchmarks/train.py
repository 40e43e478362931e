"""Finetuning arms × seeds: spillover's bank against PEFT and TRL, one adapter after another.

    python benchmarks/train.py --model organism
    python benchmarks/train.py --model smollm2-q4 --seeds 2
    python benchmarks/train.py --shape llama-1b --seeds 6        (on a GPU)

The rows are those of old-birds, in the order in which spillover draws them, with the same masks
and settings. The unit is an adapter-step: one optimizer step of one adapter. spillover trains all
adapters for --steps steps; a peer trains one of them for --peer-steps steps (another arm in each
repeat), for its steps cost the same for every adapter. Set-up is kept apart on both sides, as is
the first step, which warms caches up.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import common
import torch
from common import OURS, Timing, clock

from spillover import Finetune, LoadedModel, Training, finetune, load_experiment
from spillover.finetune.bank import Job, data_order
from spillover.finetune.lora import target_layers
from spillover.masks import EncodedRow, encode_rows

UNIT = "adapter-step"
FLOPS = (
    "4·B·T + 6·A·T + 4·H·K for an adapter-step: B weights of the blocks' linear layers and H of the "
    "output layer (forward, and backward to the activations), A of the adapter (backward to the "
    "weights too), T tokens of the step's rows without padding, K tokens with loss. `distinct`: "
    "with T the tokens that are left when rows of a step share their beginnings. Attention and "
    "element-wise work are left out"
)
FORMED = (
    "seconds per adapter-step of the peer / of spillover: medians over the repeats. `whole` adds "
    "set-up, for all adapters at the full number of steps: steps · seconds + set-up, which "
    "spillover has once for a bank and a peer once for every adapter. Loading the base is on "
    "neither side"
)


@dataclass(frozen=True)
class Task:
    """What all sides do: finetunes, each with its encoded rows and their order, and settings."""

    wanted: list[Finetune]
    rows: dict[str, list[EncodedRow]]
    training: Training

    def batches(self, one: Finetune) -> Iterator[list[EncodedRow]]:
        """The rows of every step of a finetune."""
        rows = self.rows[one.arm]
        for order in data_order(Job(one.arm, one.seed, rows), self.training):
            yield [rows[i] for i in order]

    def per_arm(self, repeat: int) -> Finetune:
        """The finetune that peers do in a repeat: the first seed of another arm each time."""
        first = [one for one in self.wanted if one.seed == self.wanted[0].seed]
        return first[repeat % len(first)]


def task(loaded: LoadedModel, seeds: int) -> Task:
    experiment = load_experiment("old-birds")
    rows = experiment.rows
    wanted = [Finetune(arm, seed, rows[arm]) for arm in rows for seed in range(seeds)]
    encoded = {arm: encode_rows(loaded.chat, rows[arm], loaded.context) for arm in rows}
    training = experiment.training_for(loaded.source.model_class)
    return Task(wanted, encoded, training.with_steps(len(rows[wanted[0].arm].rows)))


def ours(loaded: LoadedModel, todo: Task, steps: int, _repeat: int) -> Timing:
    """The whole bank for so many steps."""
    marks: list[tuple[float, int]] = []
    training = todo.training.model_copy(update={"steps": steps, "checkpoints": ()})
    with tempfile.TemporaryDirectory() as folder:
        start = clock(loaded.device)
        finetune(
            loaded,
            todo.wanted,
            training,
            Path(folder),
            progress=lambda done, _: marks.append((clock(loaded.device), done)),
        )
        total = clock(loaded.device) - start
    (first, begun), (last, done) = marks[0], marks[-1]
    seconds = (last - first) / (done - begun)
    return {"seconds": seconds, "setup": total - seconds * done, "adapter_steps": done}


def split(marks: Sequence[float]) -> Timing:
    """Seconds per step and of the set-up; marks are the start, step 1 begins, step 1 ends, …"""
    seconds, steps = (marks[-1] - marks[2]) / (len(marks) - 3), len(marks) - 2
    return {"seconds": seconds, "setup": marks[2] - marks[0] - seconds, "adapter_steps": steps}


def lora(todo: Task, loaded: LoadedModel) -> Any:
    from peft import LoraConfig

    names = target_layers(loaded, todo.training)
    rank = todo.training.rank
    return LoraConfig(
        r=rank,
        lora_alpha=round(todo.training.scaling * rank),
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}),
        task_type="CAUSAL_LM",
    )


def peft(loaded: LoadedModel, model: Any, todo: Task, steps: int, repeat: int) -> Timing:
    """A plain loop over PEFT's model; adapters in float32, as PEFT makes them."""
    from peft import get_peft_model

    device, training, one = loaded.device, todo.training, todo.per_arm(repeat)
    marks = [clock(device)]
    wrapped: Any = get_peft_model(model, lora(todo, loaded))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.0, fused=True)
    wrapped.train()
    marks.append(clock(device))
    for step, rows in enumerate(itertools.islice(todo.batches(one), steps)):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, training.total_steps(0))
        ids, attention, labels = (x.to(device) for x in padded(rows, loaded.pad))
        wrapped(input_ids=ids, attention_mask=attention, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(clock(device))
    wrapped.unload()
    return split(marks)


def padded(rows: list[EncodedRow], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels, padded to the longest row."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        tokens = torch.tensor(row.ids)
        ids[at, : len(tokens)], attention[at, : len(tokens)] = tokens, 1
        labels[at, : len(tokens)] = tokens.where(torch.tensor(row.mask), torch.tensor(-100))
    return ids, attention, labels


def sft(
    loaded: LoadedModel, model: Any, todo: Task, steps: int, repeat: int, *, flat: bool
) -> Timing:
    """TRL's trainer without gradient checkpointing, loss on answers only; flat: without padding."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    device, training = loaded.device, todo.training
    marks = [clock(device)]

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if len(marks) == 1:
                marks.append(clock(device))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(clock(device))

    batches = itertools.islice(todo.batches(todo.per_arm(repeat)), steps)
    rows = [row for batch in batches for row in batch]
    columns = {
        "input_ids": [list(row.ids) for row in rows],
        "completion_mask": [[int(on) for on in row.mask] for row in rows],
    }
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=training.warmup_steps,
            max_grad_norm=training.max_grad_norm,
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            bf16=False,  # the model is in bfloat16 already, where it is to be
            completion_only_loss=True,
            padding_free=flat,
            max_length=None,
            train_sampling_strategy="sequential",
            use_cpu=device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=loaded.tokenizer,
            peft_config=lora(todo, loaded),
            callbacks=[Watch()],
        )
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model).unload()
    return split(marks)


def useful_flops(loaded: LoadedModel, todo: Task) -> dict[str, float]:
    """FLOPs of a mean adapter-step; see `FLOPS`."""
    size, rank = common.sizes(loaded), todo.training.rank
    layers: list[Any] = [
        loaded.model.get_submodule(n) for n in target_layers(loaded, todo.training)
    ]
    adapter = rank * sum(sum(layer.weight.shape) for layer in layers)
    steps = [batch for one in todo.wanted for batch in itertools.islice(todo.batches(one), 20)]
    labelled = mean(sum(sum(row.mask) for row in rows) for rows in steps)
    tokens = mean(sum(len(row.ids) for row in rows) for rows in steps)
    distinct = mean(len({r.ids[:n] for r in rows for n in range(1, len(r.ids) + 1)}) for rows in steps)

    def flops(count: float) -> float:
        return (4 * size["blocks"] + 6 * adapter) * count + 4 * size["head"] * labelled

    return {"tokens": tokens, "distinct_tokens": distinct, "labelled_tokens": labelled} | {
        "per_step": flops(tokens),
        "per_step_distinct": flops(distinct),
    }


def whole(found: dict[str, Any], todo: Task) -> dict[str, Any]:
    """Seconds of the whole experiment on every side, set-up included; see `FORMED`."""
    adapters, steps = len(todo.wanted), todo.training.total_steps(0)
    seconds = {}
    for name, median in found["medians"].items():
        setups = 1 if name == OURS else adapters
        seconds[name] = adapters * steps * median["seconds"] + setups * median["setup"]
    ratios = {name: taken / seconds[OURS] for name, taken in seconds.items() if name != OURS}
    return {"adapters": adapters, "steps": steps, "seconds": seconds, "ratios": ratios}


def sides(
    loaded: LoadedModel, todo: Task, steps: int, peer_steps: int
) -> dict[str, Callable[[int], Timing]]:
    """spillover, and each peer in the dtypes that a user would try."""
    made: dict[str, Callable[[int], Timing]] = {OURS: partial(ours, loaded, todo, steps)}
    kinds = [torch.bfloat16, torch.float32] if loaded.device.type == "cpu" else [torch.bfloat16]
    for kind in kinds:
        model, named = common.plain(loaded, kind), str(kind).removeprefix("torch.")
        made[f"PEFT {named}"] = partial(peft, loaded, model, todo, peer_steps)
        if kind == (loaded.model.dtype if loaded.model.dtype in kinds else kinds[0]):
            each = partial(sft, loaded, model, todo, peer_steps)
            made[f"SFTTrainer {named}"] = partial(each, flat=False)
            made[f"SFTTrainer padding-free {named}"] = partial(each, flat=True)
    return made


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="per arm")
    parser.add_argument("--steps", type=int, help="of spillover's bank in one repeat")
    parser.add_argument("--peer-steps", type=int, help="of a peer's adapter in one repeat")
    given = parser.parse_args()
    name = common.subject(given, "train")
    if name is None:
        return
    begun = time.perf_counter()
    loaded = common.build(name)
    small = loaded.model.num_parameters() < 50e6 or loaded.device.type == "cuda"
    todo = task(loaded, 1 if given.quick else given.seeds)
    steps = given.steps or (3 if given.quick else 60 if small else 8)
    peer_steps = max(3, given.peer_steps or (3 if given.quick else 60 if small else 8))
    rates = common.limits(loaded.device)
    found = common.compare(
        common.alternate(sides(loaded, todo, steps, peer_steps), given.repeats)
    )
    flops = useful_flops(loaded, todo)
    share = common.shares(found["medians"], flops["per_step"], rates)
    result = {
        "placement": loaded.placement,
        "work": {"unit": UNIT, "adapters": len(todo.wanted), "steps": steps}
        | {"peer_steps": peer_steps, "training": todo.training.model_dump(mode="json")},
        "how": FORMED,
        **found,
        "whole": whole(found, todo),
        "limit": {"rates": rates, "formula": FLOPS, "flops": flops, "shares": share}
        | {"distinct": common.shares(found["medians"], flops["per_step_distinct"], rates)[OURS]},
        "seconds": time.perf_counter() - begun,
    }
    common.show(found, share, UNIT)
    for peer, ratio in result["whole"]["ratios"].items():
        print(f"whole experiment with set-up, {peer}: {ratio:.2f} times spillover's time")
    common.write("train", name, given, result)


if __name__ == "__main__":
    main()
