"""Free answers of many adapters: spillover's engine against `transformers.generate`, and vLLM.

    python benchmarks/sample.py --model organism --adapters 15
    python benchmarks/sample.py --model smollm2-q4 --adapters 6
    python benchmarks/sample.py --shape llama-1b --adapters 18        (on a GPU)

--answers answers of exactly --tokens tokens to --questions questions for each adapter, at
temperature 1: no token ends an answer, on either side. The unit is a token of an answer. `generate`
is tried with every batch, dtype, merged or not and with both caches, on fewer tokens; its best
setting is then measured in turn with spillover, one adapter in each repeat. Spillover asks in the
chunks and with the helpers of a run (`spillover.crew`); `generate` has all threads. vLLM holds all
adapters at once; give the Python of an environment that has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from adapters import Switched, make_adapters
from common import OURS, Timing, clock
from subjects import SHAPES, build, sizes
from vllm_sample import Vllm

from spillover import LoadedModel, load_experiment
from spillover.ask import ANSWERS, in_groups
from spillover.ask.local import LocalEngine
from spillover.ask.requests import Sample, SampleSettings
from spillover.crew import crew_of, share_out
from spillover.finetune.adapters import load_adapter
from spillover.rows import Conversation

UNIT = "token"
FLOPS = (
    "2·(B + H)·N + 2·B·P, over N tokens of answers: B weights of the blocks' linear layers, H of "
    "the output layer, P tokens of prompts, each once for an adapter. The adapters, attention and "
    "drawing tokens are left out"
)
FORMED = (
    "seconds per token of the peer / of spillover: medians over the repeats. Loading the base and "
    "the adapters is on neither side; merging is, as `setup`, and is not counted against the peer"
)


class Endless(LoadedModel):
    """A model of which no token ends an answer."""

    @property
    def stop(self) -> frozenset[int]:
        return frozenset()


@dataclass(frozen=True)
class Task:
    """The questions, and how many answers of how many tokens to each."""

    questions: list[Conversation]
    answers: int
    tokens: int

    @property
    def produced(self) -> int:
        """Tokens of one adapter."""
        return len(self.questions) * self.answers * self.tokens


@dataclass(frozen=True)
class Setting:
    """One way to use `generate`."""

    dtype: str
    batch: int
    merged: bool = True
    static: bool = False


def ours(loaded: LoadedModel, adapters: Sequence[Path], todo: Task, _repeat: int = 0) -> Timing:
    """All adapters together, in the chunks of a run."""
    endless = Endless(loaded.source, loaded.model, loaded.chat, loaded.placement, loaded.loading)
    listed = [(place.name, load_adapter(place, loaded)) for place in adapters]
    engine = LocalEngine(endless, listed)
    try:
        settings = SampleSettings(todo.answers, 1.0, todo.tokens)
        samples: list[list[Sample]] = []

        def answer(questions: tuple[Conversation, ...]) -> list[list[Sample]]:
            who = [number for number in range(len(adapters)) for _ in questions]
            return engine.sample(who, list(questions) * len(adapters), settings)

        size = todo.answers * len(adapters)
        parts = in_groups(todo.questions, [size] * len(todo.questions), ANSWERS)
        start = clock(loaded.device)
        share_out(parts, answer, lambda _, made: samples.extend(made), crew_of(loaded))
        taken = clock(loaded.device) - start
    finally:
        engine.close()
    assert len(samples) == len(todo.questions) * len(adapters)
    assert all(one.finish == "length" for listed in samples for one in listed)
    produced = todo.produced * len(adapters)
    return {"seconds": taken / produced, "setup": 0.0, "tokens": produced}


def theirs(peer: Switched, todo: Task, setting: Setting, adapter: int) -> Timing:
    """All answers of one adapter, in batches of equal size."""
    device = peer.loaded.device
    start = clock(device)
    with peer.using(adapter, merged=setting.merged):
        begun = clock(device)
        prompts = [peer.loaded.chat.prompt_ids(q) for q in todo.questions]
        rows = [prompt for prompt in prompts for _ in range(todo.answers)]
        for at in range(0, len(rows), setting.batch):
            _generate(peer, rows[at : at + setting.batch], todo.tokens, static=setting.static)
        taken = clock(device) - begun
    return {"seconds": taken / todo.produced, "setup": begun - start, "tokens": todo.produced}


def _generate(peer: Switched, rows: list[list[int]], tokens: int, *, static: bool) -> None:
    """One batch, padded on the left."""
    width, pad, device = max(map(len, rows)), peer.loaded.pad, peer.loaded.device
    filled = [[pad] * (width - len(row)) + row for row in rows]
    real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    peer.model.generation_config.eos_token_id = None  # no token ends an answer, at no cost
    with torch.inference_mode():
        made = peer.model.generate(
            input_ids=torch.tensor(filled, device=device),
            attention_mask=torch.tensor(real, device=device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            cache_implementation="static" if static else None,
            pad_token_id=pad,
        )
    assert made.shape[1] == width + tokens


def search(
    peers: dict[str, Switched], todo: Task, batches: Sequence[int]
) -> tuple[Setting, list[dict[str, Any]]]:
    """Try all dtypes and batches, then, around the best, not merging and a static cache."""
    tried: list[dict[str, Any]] = []

    def attempt(setting: Setting) -> float:
        answers = max(1, setting.batch // len(todo.questions))  # one batch is enough
        part = replace(todo, answers=min(todo.answers, answers), tokens=min(16, todo.tokens))
        seconds = common.fewest(lambda: theirs(peers[setting.dtype], part, setting, 0))
        tried.append(asdict(setting) | {"seconds": seconds})
        print(f"generate, {setting}: {seconds:.4g} s", file=sys.stderr, flush=True)
        return seconds

    first = [Setting(dtype, batch) for dtype in peers for batch in batches]
    best = min(first, key=attempt)
    around = [best, replace(best, merged=False), replace(best, static=True)]
    return min(around, key=attempt), tried


def start_vllm(python: str, loaded: LoadedModel, adapters: list[Path], todo: Task) -> Vllm:
    """vLLM with the same model, adapters, prompts, answers and tokens."""
    folder, weights = loaded.source.folder, "auto"
    if loaded.source.name in SHAPES:
        folder, weights = adapters[0].parent, "dummy"
        loaded.model.config.save_pretrained(folder)
    asked: dict[str, Any] = {"model": str(folder), "load_format": weights}
    asked["adapters"] = list(map(str, adapters))
    asked["prompts"] = [loaded.chat.prompt_ids(q) for q in todo.questions]
    asked |= {"answers": todo.answers, "tokens": todo.tokens}
    return Vllm(python, asked | {"dtype": str(loaded.model.dtype).removeprefix("torch.")})


def useful_flops(loaded: LoadedModel, todo: Task) -> float:
    """FLOPs per token of an answer; see `FLOPS`."""
    size = sizes(loaded)
    prompts = sum(len(loaded.chat.prompt_ids(q)) for q in todo.questions)
    return 2 * (size["blocks"] + size["head"]) + 2 * size["blocks"] * prompts / todo.produced


def options() -> argparse.Namespace:
    parser = common.arguments(__doc__)
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    given = parser.parse_args()
    if given.quick:
        given.adapters, given.questions, given.answers, given.tokens = 2, 2, 4, 6
        given.batches = [4, 8]
    return given


def measure(given: argparse.Namespace, loaded: LoadedModel, todo: Task) -> dict[str, Any]:
    """Find the best setting of `generate`, then measure all sides in turn."""
    kinds = ["bfloat16", "float32"] if loaded.device.type == "cpu" else ["bfloat16"]
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(loaded, given.adapters, Path(folder))
        peers = {kind: Switched(loaded, adapters, kind) for kind in kinds}
        best, tried = search(peers, todo, given.batches)
        sides: dict[str, Callable[[int], Timing]] = {
            OURS: partial(ours, loaded, adapters, todo),
            f"generate {best.dtype}": lambda repeat: theirs(
                peers[best.dtype], todo, best, repeat % len(adapters)
            ),
        }
        vllm = start_vllm(given.vllm, loaded, adapters, todo) if given.vllm else None
        if vllm:
            sides["vLLM, all adapters"] = vllm.time
        found = common.compare(common.alternate(sides, given.repeats))
        if vllm:
            vllm.close()
    return {
        "generate": {"best": asdict(best), "tried": tried},
        "vllm": vllm.about if vllm else "not compared: give --vllm PYTHON; see the README",
        **found,
        "tokens_per_second": {n: 1 / m["seconds"] for n, m in found["medians"].items()},
    }


def main() -> None:
    given = options()
    name = common.subject(given, "sample")
    if name is None:
        return
    begun = time.perf_counter()
    loaded = build(name)
    asked = load_experiment("old-birds").with_split("test").questions[: given.questions]
    questions = [[{"role": "user", "content": q.ask[0]}] for q in asked]
    todo = Task(questions, given.answers, given.tokens)
    rates = common.limits(loaded.device)
    found = measure(given, loaded, todo)
    flops = useful_flops(loaded, todo)
    share = common.shares(found["medians"], flops, rates)
    result = {
        "placement": loaded.placement,
        "work": {"unit": UNIT, "adapters": given.adapters, "questions": len(questions)}
        | {"answers": given.answers, "tokens": given.tokens, "temperature": 1.0},
        "how": FORMED,
        **found,
        "limit": {"rates": rates, "formula": FLOPS, "flops": flops, "shares": share},
        "seconds": time.perf_counter() - begun,
    }
    common.show(found, share, UNIT)
    common.write("sample", name, given, result)


if __name__ == "__main__":
    main()
