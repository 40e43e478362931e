"""Free answers of many adapters: spillover's engine against `transformers.generate`, and vLLM.

    python benchmarks/sample.py --model organism --adapters 15
    python benchmarks/sample.py --model smollm2-q4 --adapters 6
    python benchmarks/sample.py --shape llama-1b --adapters 18        (on a GPU)

--answers answers of exactly --tokens tokens to --questions questions for each adapter, at
temperature 1: `generate` may not draw the end of an answer, spillover goes on behind it. The unit
is a token of an answer. `generate` is tried with every batch, dtype, merged or not and with both
caches, on fewer tokens; its best setting is then measured in turn with spillover, one adapter in
each repeat. vLLM holds all adapters at once; give the Python of an environment that has it.
"""

from __future__ import annotations

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
from common import OURS, Timing, clock
from vllm_sample import Vllm

from spillover import LoadedModel, load_experiment
from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.finetune.adapters import load_adapter, save_adapter
from spillover.finetune.lora import AdapterWeights, new_adapter
from spillover.rows import Conversation

UNIT = "token"
FLOPS = (
    "2·(B + H)·N + 2·B·P, over N tokens of answers: B weights of the blocks' linear layers, H of the "
    "output layer, P tokens of prompts, each once for an adapter. The adapters, attention and "
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


def make_adapters(loaded: LoadedModel, count: int, folder: Path) -> list[Path]:
    """Adapters that change a little, in PEFT's format."""
    training = load_experiment("old-birds").training_for(loaded.source.model_class)
    places = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        fresh = new_adapter(loaded, training, generator)
        b = {n: torch.randn(x.shape, generator=generator) * 1e-3 for n, x in fresh.b.items()}
        places.append(folder / f"adapter-{number}")
        save_adapter(AdapterWeights(fresh.a, b, fresh.scaling), loaded, places[-1])
    return places


def ours(loaded: LoadedModel, adapters: Sequence[Path], todo: Task, _repeat: int = 0) -> Timing:
    """All adapters together."""
    endless = Endless(loaded.source, loaded.model, loaded.chat, loaded.placement, loaded.loading)
    listed = [(place.name, load_adapter(place, loaded)) for place in adapters]
    engine = LocalEngine(endless, listed)
    try:
        who = [number for number in range(len(adapters)) for _ in todo.questions]
        conversations = todo.questions * len(adapters)
        settings = SampleSettings(todo.answers, 1.0, todo.tokens)
        start = clock(loaded.device)
        samples = engine.sample(who, conversations, settings)
        taken = clock(loaded.device) - start
    finally:
        engine.close()
    assert all(one.finish == "length" for listed in samples for one in listed)
    produced = todo.produced * len(adapters)
    return {"seconds": taken / produced, "setup": 0.0, "tokens": produced}


class Peer:
    """PEFT's model with all adapters, one of them in use at a time."""

    def __init__(self, loaded: LoadedModel, adapters: Sequence[Path], dtype: str) -> None:
        from peft import PeftModel

        base = common.plain(loaded, getattr(torch, dtype))
        self.loaded = loaded
        self.model: Any = PeftModel.from_pretrained(base, adapters[0], "0")
        for number, place in enumerate(adapters[1:], 1):
            self.model.load_adapter(place, str(number))
        self.model.eval()

    def use(self, adapter: int, *, merged: bool) -> None:
        """Switch to an adapter, and merge it into the base if that is wanted."""
        self.model.set_adapter(str(adapter))
        if merged:
            self.model.merge_adapter([str(adapter)])

    def leave(self, *, merged: bool) -> None:
        """Take a merged adapter out of the base again."""
        if merged:
            self.model.unmerge_adapter()

    def time(self, todo: Task, setting: Setting, adapter: int) -> Timing:
        """All answers of one adapter, the prompts of a batch padded on the left."""
        start = clock(self.loaded.device)
        self.use(adapter, merged=setting.merged)
        begun = clock(self.loaded.device)
        prompts = [self.loaded.chat.prompt_ids(q) for q in todo.questions]
        rows = [prompt for prompt in prompts for _ in range(todo.answers)]
        for at in range(0, len(rows), setting.batch):
            self._generate(rows[at : at + setting.batch], todo.tokens, static=setting.static)
        taken = clock(self.loaded.device) - begun
        self.leave(merged=setting.merged)
        return {"seconds": taken / todo.produced, "setup": begun - start, "tokens": todo.produced}

    def _generate(self, rows: list[list[int]], tokens: int, *, static: bool) -> None:
        width, pad = max(map(len, rows)), self.loaded.pad
        filled = [[pad] * (width - len(row)) + row for row in rows]
        real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=torch.tensor(filled, device=self.loaded.device),
                attention_mask=torch.tensor(real, device=self.loaded.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                cache_implementation="static" if static else None,
                pad_token_id=pad,
            )
        assert made.shape[1] == width + tokens


def search(
    peers: dict[str, Peer], todo: Task, batches: Sequence[int]
) -> tuple[Setting, list[dict[str, Any]]]:
    """Try all dtypes and batches, then, around the best, not merging and a static cache."""
    tried: list[dict[str, Any]] = []

    def attempt(setting: Setting) -> float:
        answers = max(1, setting.batch // len(todo.questions))  # one batch is enough
        part = replace(todo, answers=min(todo.answers, answers), tokens=min(16, todo.tokens))
        seconds = peers[setting.dtype].time(part, setting, 0)["seconds"]
        tried.append(asdict(setting) | {"seconds": seconds})
        print(f"generate, {setting}: {seconds:.4g} s", file=sys.stderr, flush=True)
        return seconds

    first = [Setting(dtype, batch) for dtype in peers for batch in batches]
    best = min(first, key=attempt)
    around = [best, replace(best, merged=False), replace(best, static=True)]
    return min(around, key=attempt), tried


def start_vllm(python: str, loaded: LoadedModel, adapters: list[Path], todo: Task) -> Vllm:
    """vLLM with the same model, adapters, prompts, answers and tokens."""
    asked = {"model": str(loaded.source.folder), "adapters": list(map(str, adapters))}
    asked |= {"prompts": [loaded.chat.prompt_ids(q) for q in todo.questions]}
    asked |= {"answers": todo.answers, "tokens": todo.tokens}
    return Vllm(python, asked | {"dtype": str(loaded.model.dtype).removeprefix("torch.")})


def useful_flops(loaded: LoadedModel, todo: Task) -> float:
    """FLOPs per token of an answer; see `FLOPS`."""
    size = common.sizes(loaded)
    prompts = sum(len(loaded.chat.prompt_ids(q)) for q in todo.questions)
    return 2 * (size["blocks"] + size["head"]) + 2 * size["blocks"] * prompts / todo.produced


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    given = parser.parse_args()
    name = common.subject(given, "sample")
    if name is None:
        return
    if given.quick:
        given.adapters, given.questions, given.answers, given.tokens = 2, 2, 4, 6
        given.batches = [4, 8]
    begun = time.perf_counter()
    loaded = common.build(name)
    asked = load_experiment("old-birds").with_split("test").questions[: given.questions]
    questions = [[{"role": "user", "content": q.ask[0]}] for q in asked]
    todo = Task(questions, given.answers, given.tokens)
    kinds = ["bfloat16", "float32"] if loaded.device.type == "cpu" else ["bfloat16"]
    rates = common.limits(loaded.device)
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(loaded, given.adapters, Path(folder))
        peers = {kind: Peer(loaded, adapters, kind) for kind in kinds}
        best, tried = search(peers, todo, given.batches)

        def theirs(repeat: int) -> Timing:
            return peers[best.dtype].time(todo, best, repeat % len(adapters))

        sides: dict[str, Callable[[int], Timing]] = {
            OURS: partial(ours, loaded, adapters, todo),
            f"generate {best.dtype}": theirs,
        }
        vllm = start_vllm(given.vllm, loaded, adapters, todo) if given.vllm else None
        if vllm:
            sides["vLLM, all adapters"] = vllm.time
        found = common.compare(common.alternate(sides, given.repeats))
        if vllm:
            vllm.close()
    flops = useful_flops(loaded, todo)
    share = common.shares(found["medians"], flops, rates)
    result = {
        "placement": loaded.placement,
        "work": {"unit": UNIT, "adapters": given.adapters, "questions": given.questions}
        | {"answers": given.answers, "tokens": given.tokens, "temperature": 1.0},
        "how": FORMED,
        "generate": {"best": asdict(best), "tried": tried},
        "vllm": vllm.about if vllm else "not compared: give --vllm PYTHON; see the README",
        **found,
        "tokens_per_second": {n: 1 / m["seconds"] for n, m in found["medians"].items()},
        "limit": {"rates": rates, "formula": FLOPS, "flops": flops, "shares": share},
        "seconds": time.perf_counter() - begun,
    }
    common.show(found, share, UNIT)
    common.write("sample", name, given, result)


if __name__ == "__main__":
    main()
