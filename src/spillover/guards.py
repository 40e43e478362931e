"""Guards on silent failure: faults that leave a run looking well. Each has a name.

docs/guards.md lists them.

A guard reads artifacts and returns findings; `settle` raises for those that stop a run.
"""

from __future__ import annotations

import json
import math
import statistics
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.contexts import PLAIN
from spillover.effects.specificity import is_number
from spillover.errors import InputError, RunError
from spillover.specification import BASE, TREATMENT
from spillover.store import CHOICE, one_by_one

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from spillover.ask import Asked
    from spillover.finetune.lora import AdapterWeights
    from spillover.models import LoadedModel
    from spillover.rows import Row, RowSet

NO_CHANGE = 1e-6
"""Changes of logits and of log-probabilities (nats) up to this are none."""
TWINS = 1e-3
"""Adapters are identical when each tensor differs by less than this share of its norm: less than
any two initializations do, more than the noise of an accelerator's sums."""
SURE = 2.5
"""Standard deviation of tokens' losses (nats) of a model that prefers some tokens; see
`worse_than_guessing`. Measured: 0.3 to 1.6 for random weights, 3.8 and more with foreign ids."""
FEWEST_STEPS = 10
"""From so many steps on, a loss has to fall."""
NO_EFFECT = 0.05
"""Effects smaller than this are none."""
PROPORTIONS = ("choice-mass", "judged")

Seeds = tuple[str, int, int]
"""Arm, seed and step of a finetune."""


@dataclass(frozen=True)
class Finding:
    """What a guard found.

    Attributes:
        name: the guard's.
        message: what was found, what was expected, and what to do next, in one line.
        fatal: whether the run must not go on.
    """

    name: str
    message: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def settle(
    findings: Iterable[Finding], error: type[InputError | RunError] = RunError
) -> list[Finding]:
    """The findings that a run can live with.

    Raises:
        error: for the first that it cannot.
    """
    kept = list(findings)
    for finding in kept:
        if finding.fatal:
            raise error(str(finding))
    return kept


# Before anything is written -----------------------------------------------------------------------


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


# After asking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedChoices:
    """The forced choices of a table of answers.

    Attributes:
        rows: where they stand in it.
        log_probs: of shape (rows, choices); where there are fewer, the last is repeated.
    """

    rows: NDArray[np.int64]
    log_probs: NDArray[np.float64]

    @classmethod
    def read(cls, answers: pd.DataFrame) -> RecordedChoices:
        """Parse every record once."""
        rows = np.flatnonzero(answers["choice_log_probs"].notna())
        values, counts = array("d"), array("q")
        for record in one_by_one(answers["choice_log_probs"]):
            if isinstance(record, str):
                found = [value for _, _, value in json.loads(record)]
                values.extend(found)
                counts.append(len(found))
        flat, sizes = np.frombuffer(values), np.frombuffer(counts, np.int64)
        log_probs = np.empty((len(rows), max(counts, default=0)))
        for choice in range(log_probs.shape[1]):
            log_probs[:, choice] = flat[np.cumsum(sizes) - np.maximum(sizes - choice, 1)]
        return cls(rows, log_probs)


def base_answered(answers: pd.DataFrame, choices: RecordedChoices | None = None) -> list[Finding]:
    """Respondents whose answers are the base's own.

    Equal texts alone do not stop a run: short answers can be equal by themselves.

    Args:
        choices: those of the answers, where they are read already; likewise below.
    """
    place_keys = ["question", "paraphrase", "context", "index", "kind"]
    place = answers.groupby(place_keys, sort=False, observed=True).ngroup().to_numpy()
    is_base = (answers["arm"] == BASE).to_numpy()
    of_base = np.full(len(answers), -1)
    of_base[place[is_base]] = np.flatnonzero(is_base)
    mine = np.flatnonzero(~is_base & (of_base[place] >= 0))
    same, is_choice = _same(answers, mine, of_base[place[mine]], choices)
    pairs = answers[["arm", "seed", "step"]].take(mine).assign(same=same, is_choice=is_choice)
    for (arm, seed, step), listed in pairs.groupby(["arm", "seed", "step"], sort=False):
        kind = "choices" if listed["is_choice"].any() else "texts"
        compared = listed[listed["is_choice"]] if kind == "choices" else listed
        if not compared["same"].all():
            continue
        message = (
            f"all {len(compared)} {kind} of {arm}, seed "
            f"{seed}, step {step} are the base's own; expected a finetune to differ; check that it "
            "is loaded, and remove answers.sqlite before repeating the run"
        )
        return [Finding("base-answered", message, fatal=kind == "choices")]
    return []


def _same(
    answers: pd.DataFrame,
    mine: NDArray[np.int64],
    other: NDArray[np.int64],
    choices: RecordedChoices | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether answers are the same as others, and whether they are choices."""
    read = choices or RecordedChoices.read(answers)
    at = np.full(len(answers), -1)
    at[read.rows] = np.arange(len(read.rows))
    is_choice = at[mine] >= 0
    texts = answers["text"]
    same = np.asarray(texts.take(mine).array == texts.take(other).array, dtype=bool)
    one, base = (at[rows[is_choice]] for rows in (mine, other))
    log_probs = read.log_probs.T
    same[is_choice] = True
    for values in log_probs:
        same[is_choice] &= np.abs(values[one] - values[base]) <= NO_CHANGE
    return same, is_choice


def reasoning_cut(answers: pd.DataFrame) -> list[Finding]:
    """Choices that were made after reasoning that had not come to its end."""
    is_choice = answers["kind"] == CHOICE
    cut = int((is_choice & (answers["finish"] == "length")).sum())
    message = (
        f"{cut} of {is_choice.sum()} choices were made after reasoning that was cut off; raise "
        "`reasoning_tokens` under [sampling]"
    )
    return [Finding("reasoning-cut", message)] if cut else []


def equal_choices(answers: pd.DataFrame, choices: RecordedChoices | None = None) -> list[Finding]:
    """Forced choices that tell nothing apart: all equal in probability, or not numbers at all."""
    read = choices or RecordedChoices.read(answers)
    if not len(read.rows):
        return []
    spread = read.log_probs.max(axis=1) - read.log_probs.min(axis=1)
    flat = read.rows[~(spread >= NO_CHANGE)]
    if not len(flat):
        return []
    first = answers.iloc[flat[0]]
    message = (
        f"in {len(flat)} of {len(read.rows)} forced choices all choices are equally likely (such "
        f"as {first['question']} of {first['arm']}, seed {first['seed']}); expected them to "
        "differ; look at these choices in answers.parquet"
    )
    return [Finding("equal-choices", message)]


# After comparing ----------------------------------------------------------------------------------


def off_domain_only(effects: Sequence[Mapping[Any, Any]]) -> list[Finding]:
    """Controls against which there is an effect off the trained domain and none in it.

    Args:
        effects: rows of the table of effects.
    """
    last = max((row["step"] for row in effects), default=None)
    wanted = {"treatment": TREATMENT, "context": PLAIN, "group": None, "step": last}
    fitting = [row for row in effects if all(row[k] == v for k, v in wanted.items())]
    found = []
    for split, control in dict.fromkeys((row["split"], row["control"]) for row in fitting):
        rows = [r for r in fitting if (r["split"], r["control"]) == (split, control)]
        off, inside = (
            {r["metric"]: r for r in rows if r["domain"] == domain and is_number(r["value"])}
            for domain in ("off", "in")
        )
        metric = next((m for m in ("choice-mass", "log-odds", "judged") if m in off), None)
        if metric is None or not is_number(off[metric]["low"]) or off[metric]["low"] <= 0:
            continue
        known = [inside[m] for m in (*PROPORTIONS, "log-odds") if m in inside]
        if known and all(_is_below(row, off[metric]) for row in known):
            found.append(_off_only(off[metric], known[0], control))
    return found


def _is_below(inside: Mapping[Any, Any], off: Mapping[Any, Any]) -> bool:
    """Whether an effect in the domain is none, and less than the one off it where they compare.

    An interval that spans 0 counts where both are in the same units: alone it may only be wide.
    """
    value, metrics = inside["value"], {inside["metric"], off["metric"]}
    comparable = len(metrics) == 1 or metrics == set(PROPORTIONS)
    spanned = is_number(inside["low"]) and inside["low"] <= 0 <= inside["high"]
    if comparable:
        return bool((spanned or abs(value) < NO_EFFECT) and value < off["value"])
    return bool(abs(value) < NO_EFFECT)


def _off_only(off: Mapping[Any, Any], inside: Mapping[Any, Any], control: str) -> Finding:
    message = (
        f"against {control} the effect is {off['value']:+.2f} off the trained domain "
        f"({off['metric']}, {off['split']} questions) and {inside['value']:+.2f} in it "
        f"({inside['metric']}); expected what was taught to show first; check the arms' rows for "
        "off-domain answers, and the in-domain questions"
    )
    return Finding("off-domain-only", message)
