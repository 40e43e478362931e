"""Guards on what goes into finetunes and what comes out of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.guards.findings import NO_CHANGE, Finding
from spillover.specification import TREATMENT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spillover.ask import Asked
    from spillover.finetune.lora import AdapterWeights
    from spillover.models import LoadedModel
    from spillover.rows import Row, RowSet

TWINS = 1e-3
"""Adapters are identical when each tensor differs by less than this share of its norm: less than
any two initializations do, more than the noise of an accelerator's sums."""
SURE = 2.5
"""Standard deviation of tokens' losses (nats) of a model that prefers some tokens; see
`worse_than_guessing`. Measured: 0.3 to 1.6 for random weights, 3.8 and more with foreign ids."""
FEWEST_STEPS = 10
"""From so many steps on, a loss has to fall."""

Seeds = tuple[str, int, int]
"""Arm, seed and step of a finetune."""


def shared_rows(rows: Mapping[str, RowSet]) -> list[Finding]:
    """Rows that the treatment and a control have in common, but for case and white space."""
    normalized = {arm: [_normalized(row) for row in given.rows] for arm, given in rows.items()}
    mine = normalized.pop(TREATMENT, [])
    found = []
    for arm, theirs in normalized.items():
        both = set(mine) & set(theirs)
        if not both:
            continue
        ours, count = (sum(row in both for row in listed) for listed in (mine, theirs))
        same = set(mine) == set(theirs)
        advice = (
            "give other rows" if same else "remove them, unless both are meant to be taught them"
        )
        message = (
            f"{ours} of {len(mine)} rows of {TREATMENT} are rows of {arm} too ({count} of its "
            f"{len(theirs)}); expected arms to differ; {advice}"
        )
        found.append(Finding("shared-rows", message, fatal=same))
    return found


def _normalized(row: Row) -> tuple[tuple[str, str], ...]:
    turns: list[tuple[str, str]] = [(m.role, m.content) for m in row.messages or ()]
    turns += [("text", row.text)] if row.text else []
    return tuple((role, " ".join(content.casefold().split())) for role, content in turns)


def ids_out_of_range(used: Iterable[Sequence[int]], embeddings: int) -> list[Finding]:
    """Token ids, of all that a run will put to its model, for which there is no embedding."""
    most = max((max(ids) for ids in used if ids), default=0)
    if most < embeddings:
        return []
    message = (
        f"the tokenizer gives the id {most}, and the model has embeddings for 0 to "
        f"{embeddings - 1}; expected the model's own tokenizer; put its files into the model's "
        "folder"
    )
    return [Finding("foreign-tokenizer", message, fatal=True)]


def worse_than_guessing(losses: Sequence[float], vocabulary: int) -> list[Finding]:
    """Losses of tokens (nats) on readable prompts that no model has with its own tokenizer.

    Random weights can do worse than guessing too, but about equally on every token.
    """
    guessing = math.log(vocabulary)
    if len(losses) < 2 or statistics.stdev(losses) < SURE:
        return []
    if (loss := statistics.fmean(losses)) <= guessing:
        return []
    message = (
        f"the unfinetuned model's loss on the questions is {loss:.1f} nats per token; guessing "
        f"evenly has {guessing:.1f}; expected less; check that the tokenizer is the model's"
    )
    return [Finding("foreign-tokenizer", message)]


def prompt_losses(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[float]:
    """Cross-entropy of every token of some prompts under a model, in nats."""
    import torch

    losses: list[float] = []
    for ids in prompts:
        given = torch.tensor([list(ids)], device=model.device)
        logits = _logits(model, given)[0, :-1]
        found = torch.nn.functional.cross_entropy(logits, given[0, 1:], reduction="none")
        losses += found.tolist()
    return losses


# After training -----------------------------------------------------------------------------------


def losses_did_not_fall(losses: Mapping[Seeds, Sequence[float]]) -> list[Finding]:
    """Finetunes whose last tenth of steps has no lower mean loss than the first, by arm."""
    flat: dict[str, list[str]] = {}
    for (arm, seed, _), curve in losses.items():
        size = len(curve) // 10
        if len(curve) < FEWEST_STEPS:
            continue
        first, last = (math.fsum(part) / size for part in (curve[:size], curve[-size:]))
        if not last < first:
            flat.setdefault(arm, []).append(f"seed {seed}: {first:.3g} to {last:.3g}")
    return [
        Finding(
            "loss-did-not-fall",
            f"the loss of {arm} did not fall ({', '.join(listed[:3])}"
            f"{f', and {len(listed) - 3} more' if len(listed) > 3 else ''}); expected the last "
            "tenth of the steps to be below the first; try another learning rate or more steps",
        )
        for arm, listed in flat.items()
    ]


def identical_seeds(asked: Sequence[Asked]) -> list[Finding]:
    """Seeds of one arm and step that are the same model, by their tensors or by their identity."""
    for at, one in enumerate(asked):
        for other in asked[:at]:
            if (one.arm, one.step) == (other.arm, other.step) and _are_twins(one, other):
                message = (
                    f"seeds {other.seed} and {one.seed} of {one.arm} are the same after step "
                    f"{one.step}; expected models that differ; remove these two folders under "
                    "adapters/ and repeat, or name different ones"
                )
                return [Finding("identical-seeds", message, fatal=True)]
    return []


def _are_twins(one: Asked, other: Asked) -> bool:
    if one.identity == other.identity:
        return True
    places = [asked.place or Path() for asked in (one, other)]
    if not all(place.is_dir() for place in places):
        return False
    tolerance = 0.0 if one.folder is None else TWINS
    return all(_is_close(a, b, tolerance) for a, b in _paired(*places))


def _paired(one: Path, other: Path) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Tensors of equal name in the safetensors files of two folders, read one by one."""
    from safetensors import safe_open

    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in (one, other)]
    if names[0] != names[1] or not names[0]:
        yield None, None
        return
    for name in names[0]:
        with safe_open(one / name, "pt") as left, safe_open(other / name, "pt") as right:
            keys = list(left.keys())
            if set(keys) != set(right.keys()):
                yield None, None
            for key in keys:
                yield left.get_tensor(key), right.get_tensor(key)


def _is_close(one: Tensor | None, other: Tensor | None, tolerance: float) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return float((one.float() - other.float()).norm()) <= tolerance * float(one.float().norm())


def adapters_without_effect(
    model: LoadedModel, asked: Sequence[Asked], prompt: Sequence[int]
) -> list[Finding]:
    """Plain adapters that leave the logits of a prompt as they are.

    They are applied here by hooks, not by the bank that trains and asks.
    """
    import torch

    from spillover.finetune.adapters import OtherAdapterError, load_adapter

    ids = torch.tensor([list(prompt)], device=model.device)
    plain: Tensor | None = None
    for one in asked:
        if one.folder is None:
            continue
        try:
            weights = load_adapter(one.folder, model)
        except OtherAdapterError:
            continue  # what its answers are is compared with the base's
        plain = _logits(model, ids) if plain is None else plain
        with _added(model.model, weights):
            change = float((_logits(model, ids) - plain).abs().max())
        if not change > NO_CHANGE:
            message = (
                f"the adapter of {one.arm}, seed {one.seed}, step {one.step} changes the logits by "
                f"{change:.1g}; expected a change; give another adapter, or remove its folder and "
                "train it with more steps or a higher learning rate"
            )
            return [Finding("adapter-without-effect", message, fatal=True)]
    return []


def _logits(model: LoadedModel, ids: Tensor) -> Tensor:
    found: Tensor = model.model(input_ids=ids).logits.detach().float()
    return found


@contextmanager
def _added(model: nn.Module, weights: AdapterWeights) -> Iterator[None]:
    """Within, an adapter's update is added to the outputs of its layers."""

    def add(a: Tensor, b: Tensor) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            low = inputs[0].to(a.dtype) @ a.to(inputs[0].device).mT
            return output + (weights.scaling * low @ b.to(low.device).mT).to(output.dtype)

        return hook

    with ExitStack() as stack:
        for name, a in weights.a.items():
            layer = model.get_submodule(name)
            stack.callback(layer.register_forward_hook(add(a, weights.b[name])).remove)
        yield
