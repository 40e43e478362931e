"""What train.py measures: the finetunes, and the peers that do one of them after another."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import Timing, clock

from spillover import Finetune, LoadedModel, Training, load_experiment
from spillover.finetune.jobs import Job, data_order
from spillover.finetune.lora import target_layers
from spillover.masks import EncodedRow, encode_rows


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


def peft(
    loaded: LoadedModel, model: Any, todo: Task, steps: int, repeat: int, *, auto: bool
) -> Timing:
    """A plain loop over PEFT's model; adapters in float32, as PEFT makes them.

    Args:
        auto: under autocast to bfloat16, which the adapters are computed in then.
    """
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
        with torch.autocast(device.type, torch.bfloat16, enabled=auto):
            given = {"input_ids": ids, "attention_mask": attention, "labels": labels}
            loss = wrapped(**given, use_cache=False).loss
        loss.backward()
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
    from trl import SFTConfig, SFTTrainer

    marks = [clock(loaded.device)]
    batches = itertools.islice(todo.batches(todo.per_arm(repeat)), steps)
    rows = [row for batch in batches for row in batch]
    columns = {
        "input_ids": [list(row.ids) for row in rows],
        "completion_mask": [[int(on) for on in row.mask] for row in rows],
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = sft_settings(todo.training, folder, steps)
        settings |= {"padding_free": flat, "use_cpu": loaded.device.type == "cpu"}
        settings["bf16"] = model.dtype == torch.bfloat16  # autocast, as TRL does by default
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_dict(columns),
            processing_class=loaded.tokenizer,
            peft_config=lora(todo, loaded),
            callbacks=[watch(marks, loaded.device)],
        )
        trainer.train()
        trainer.accelerator.unwrap_model(trainer.model).unload()
    return split(marks)


def sft_settings(training: Training, folder: str, steps: int) -> dict[str, Any]:
    """The settings of a finetune in TRL's words; rows come in the order in which they are given."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_steps,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "completion_only_loss": True,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def watch(marks: list[float], device: torch.device) -> Any:
    """A callback that notes when the first step begins and when every step ends."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if len(marks) == 1:
                marks.append(clock(device))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(clock(device))

    return Watch()
