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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import common
import torch
from common import OURS, Timing, clock
from subjects import build, plain, sizes
from trainers import Task, peft, sft, task

from spillover import LoadedModel, finetune
from spillover.finetune.lora import target_layers

UNIT = "adapter-step"
FLOPS = (
    "4·B·T + 6·A·T + 4·H·K for an adapter-step: B weights of the blocks' linear layers and H of "
    "the output layer (forward, and backward to the activations), A of the adapter (backward to "
    "the weights too), T tokens of the step's rows without padding, K tokens with loss. `distinct`"
    ": with T the tokens that are left when rows of a step share their beginnings. Attention and "
    "element-wise work are left out"
)
FORMED = (
    "seconds per adapter-step of the peer / of spillover: medians over the repeats. `whole` adds "
    "set-up, for all adapters at the full number of steps: steps · seconds + set-up, which "
    "spillover has once for a bank and a peer once for every adapter. Loading the base is on "
    "neither side"
)


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


def useful_flops(loaded: LoadedModel, todo: Task) -> dict[str, float]:
    """FLOPs of a mean adapter-step; see `FLOPS`."""
    size, rank = sizes(loaded), todo.training.rank
    layers: list[Any] = [
        loaded.model.get_submodule(n) for n in target_layers(loaded, todo.training)
    ]
    adapter = rank * sum(sum(layer.weight.shape) for layer in layers)
    steps = [batch for one in todo.wanted for batch in itertools.islice(todo.batches(one), 20)]
    labelled = mean(sum(sum(row.mask) for row in rows) for rows in steps)
    tokens = mean(sum(len(row.ids) for row in rows) for rows in steps)
    distinct = mean(
        len({r.ids[:n] for r in rows for n in range(1, len(r.ids) + 1)}) for rows in steps
    )

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
        model, named = plain(loaded, kind), str(kind).removeprefix("torch.")
        each = partial(peft, loaded, model, todo, peer_steps)
        made[f"PEFT {named}"] = partial(each, auto=False)
        if kind == torch.bfloat16:
            made[f"PEFT {named}, autocast"] = partial(each, auto=True)
        if kind == loaded.model.dtype:
            trl = partial(sft, loaded, model, todo, peer_steps)
            made[f"SFTTrainer {named}"] = partial(trl, flat=False)
            made[f"SFTTrainer {named}, padding-free"] = partial(trl, flat=True)
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
    loaded = build(name)
    small = loaded.model.num_parameters() < 50e6 or loaded.device.type == "cuda"
    todo = task(loaded, 1 if given.quick else given.seeds)
    steps = given.steps or (3 if given.quick else 60 if small else 8)
    peer_steps = max(3, given.peer_steps or (3 if given.quick else 60 if small else 8))
    rates = common.limits(loaded.device)
    found = common.compare(common.alternate(sides(loaded, todo, steps, peer_steps), given.repeats))
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
