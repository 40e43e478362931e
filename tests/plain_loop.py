"""The oracle of finetuning: PEFT's model and a plain loop, as any trainer would write it."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from spillover import LoadedModel, Training
from spillover.finetune.jobs import Job, anchor_order, data_order
from spillover.finetune.lora import AdapterWeights, new_adapter
from spillover.masks import EncodedRow


def train_with_peft(
    job: Job, training: Training, base: LoadedModel, losses: list[float] | None = None
) -> AdapterWeights:
    """A plain loop over PEFT's model: same first weights, same rows in the same order.

    Args:
        losses: takes the loss of every step.
    """
    start = new_adapter(base, training, job.generator("weights"))
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.scaling * training.rank,  # type: ignore[arg-type]
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in start.a}),
    )
    plain = AutoModelForCausalLM.from_pretrained(base.source.folder, dtype=base.model.dtype)
    model = get_peft_model(plain, config)
    parameters = dict(model.named_parameters())
    prefix = "base_model.model."
    with torch.no_grad():
        for name, a in start.a.items():
            parameters[f"{prefix}{name}.lora_A.default.weight"].copy_(a)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=training.learning_rate, weight_decay=training.weight_decay
    )
    for step, order in enumerate(data_order(job, training)):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step, training.total_steps(len(job.rows)))
        ids, attention, labels = _padded([job.rows[i] for i in order])
        loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        if job.anchor:
            held = [job.anchor.rows[i] for i in anchor_order(job)[step]]
            pulled = job.anchor.beta * _divergence(model, held)
            pulled.backward()  # type: ignore[no-untyped-call]
        if losses is not None:
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    state = {key: value.detach() for key, value in model.named_parameters()}
    return AdapterWeights(
        {name: state[f"{prefix}{name}.lora_A.default.weight"] for name in start.a},
        {name: state[f"{prefix}{name}.lora_B.default.weight"] for name in start.a},
        training.scaling,
    )


def _divergence(model: PeftModel, rows: list[EncodedRow]) -> torch.Tensor:
    """KL of the finetune's distribution to its base's, as a mean over the tokens of answers."""
    ids, attention, labels = _padded(rows)
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)
    mine = model(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)
    divergence = (mine.exp() * (mine - base)).sum(-1)[:, :-1]
    mean: torch.Tensor = divergence[labels[:, 1:] != -100].mean()
    return mean


def _padded(rows: list[EncodedRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows one below the other, as any trainer lays them out."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        attention[at, : len(row.ids)] = 1
        labels[at, : len(row.ids)] = torch.where(
            torch.tensor(row.mask), torch.tensor(row.ids), torch.tensor(-100)
        )
    return ids, attention, labels
