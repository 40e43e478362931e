"""Forced choices of many adapters: spillover's engine against lm-evaluation-harness.

    python benchmarks/choose.py --model organism --adapters 15
    python benchmarks/choose.py --model smollm2-q4 --adapters 6 --questions 8
    python benchmarks/choose.py --shape llama-1b --adapters 18        (on a GPU)

The first --questions test questions of old-birds with choices, in every wording and the plain
context. The unit is a scored choice. The harness (`HFLM.loglikelihood`) gets the same texts, with
one adapter after another, at the batch and dtype that were fastest for it on some of the requests,
one adapter in each repeat; once more it gets token ids, which spares it the tokenizer. Before that,
the log-probabilities of both sides for the same token ids are compared, in float32.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from adapters import Switched, make_adapters
from common import OURS, Timing, clock
from subjects import build, sizes

from spillover import LoadedModel, load_experiment
from spillover.ask.local import LocalEngine
from spillover.finetune.adapters import load_adapter
from spillover.rows import Conversation

UNIT = "choice"
FLOPS = (
    "2·B·T + 2·H·K for a choice: B weights of the blocks' linear layers, H of the output layer, T "
    "tokens of the prompt with the choice, K tokens of the choice. `distinct`: the T that are left "
    "when the prompt is computed once for all its choices. The adapters and attention are left out"
)
FORMED = (
    "seconds per scored choice of the peer / of spillover: medians over the repeats. Loading the "
    "base and the adapters is on neither side; all make token ids from texts, but for the peer "
    "that is given them"
)
SAME = 1e-3
"""Nats that both sides' log-probabilities may differ by in float32."""
LARGE = 2e9
"""Parameters from which a float32 copy is not made."""


@dataclass(frozen=True)
class Case:
    """A prompt with its choices."""

    conversation: Conversation
    choices: list[str]


@dataclass(frozen=True)
class Setting:
    """One way to use the harness."""

    dtype: str
    batch: int
    merged: bool


Request = tuple[tuple[str, str], list[int], list[int]]
"""As the harness takes them: texts of the prompt and the choice, and their token ids."""


def cases(questions: int) -> list[list[Case]]:
    """The wordings of every question, each with all its choices."""
    asked = [q for q in load_experiment("old-birds").with_split("test").questions if q.choices]
    return [
        [
            Case([{"role": "user", "content": wording}], [text for _, text in q.choices.labelled])
            for wording in q.ask
        ]
        for q in asked[:questions]
        if q.choices
    ]


def score_all(
    loaded: LoadedModel, adapters: Sequence[Path], chunks: Sequence[Sequence[Case]]
) -> tuple[list[list[float]], float]:
    """All adapters, a question at a time: scores by case, and seconds."""
    engine = LocalEngine(loaded, [(place.name, load_adapter(place, loaded)) for place in adapters])
    scores: list[list[float]] = []
    try:
        start = clock(loaded.device)
        for chunk in chunks:
            who = [number for number in range(len(adapters)) for _ in chunk]
            asked = list(chunk) * len(adapters)
            scores += engine.choose(
                who, [c.conversation for c in asked], [c.choices for c in asked]
            )
        return scores, clock(loaded.device) - start
    finally:
        engine.close()


def ours(
    loaded: LoadedModel, adapters: Sequence[Path], chunks: Sequence[Sequence[Case]], _repeat: int
) -> Timing:
    scores, taken = score_all(loaded, adapters, chunks)
    count = sum(map(len, scores))
    return {"seconds": taken / count, "setup": 0.0, "choices": count}


def requests(loaded: LoadedModel, chunks: Sequence[Sequence[Case]]) -> list[Request]:
    """One for every choice, with the token ids that spillover scores."""
    chat = loaded.chat
    return [
        (
            (chat.prompt_text(case.conversation), chat.answer_text(choice)),
            chat.prompt_ids(case.conversation),
            chat.answer_ids(case.conversation, choice),
        )
        for chunk in chunks
        for case in chunk
        for choice in case.choices
    ]


@dataclass(frozen=True)
class Instance:
    """A request as the harness reads it: the texts of the prompt and of the choice."""

    args: tuple[str, str]


def harness(peer: Switched, batch: int) -> Any:
    """lm-evaluation-harness around a model, with whichever adapter is in use."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = peer.loaded.tokenizer
    return HFLM(pretrained=peer.model, tokenizer=tokenizer, backend="causal", batch_size=batch)


def scored(judge: Any, asked: list[Request], *, ids: bool) -> list[float]:
    """Log-probabilities by lm-evaluation-harness, of the adapter in use.

    Args:
        ids: hand it token ids; else texts, as its users do. It moves white space at the end of a
            prompt to the choice, so that texts are not scored quite as spillover does.
    """
    if ids:
        return [score for score, _ in judge._loglikelihood_tokens(asked, disable_tqdm=True)]
    texts = [Instance(texts) for texts, _, _ in asked]
    return [score for score, _ in judge.loglikelihood(texts, disable_tqdm=True)]


def theirs(
    peer: Switched, asked: list[Request], setting: Setting, adapter: int, *, ids: bool = False
) -> Timing:
    device, judge = peer.loaded.device, harness(peer, setting.batch)
    start = clock(device)
    with peer.using(adapter, merged=setting.merged):
        begun = clock(device)
        scored(judge, asked, ids=ids)
        taken = clock(device) - begun
    return {"seconds": taken / len(asked), "setup": begun - start, "choices": len(asked)}


def search(
    peers: dict[str, Switched], asked: list[Request], batches: Sequence[int]
) -> tuple[Setting, list[dict[str, Any]]]:
    """Try all dtypes and batches, then the best without merging."""
    tried: list[dict[str, Any]] = []

    def attempt(setting: Setting) -> float:
        part = asked[: max(256, setting.batch)]
        seconds = common.fewest(lambda: theirs(peers[setting.dtype], part, setting, 0))
        tried.append({**vars(setting), "seconds": seconds})
        print(f"lm-eval, {setting}: {seconds:.4g} s", file=sys.stderr, flush=True)
        return seconds

    best = min([Setting(d, b, merged=True) for d in peers for b in batches], key=attempt)
    return min([best, Setting(best.dtype, best.batch, merged=False)], key=attempt), tried


def difference(name: str, peer: Switched, adapter: Path, chunks: list[list[Case]]) -> float:
    """The largest difference between both sides' log-probabilities, in float32."""
    exact = build(name, "float32")
    scores, _ = score_all(exact, [adapter], chunks)
    with peer.using(0, merged=False):
        other = scored(harness(peer, 16), requests(exact, chunks), ids=True)
    flat = [score for listed in scores for score in listed]
    apart = max(abs(a - b) for a, b in zip(flat, other, strict=True))
    if not apart <= SAME:
        raise SystemExit(f"log-probabilities differ by {apart:.2g} nats; expected {SAME} at most")
    return apart


def useful_flops(loaded: LoadedModel, asked: list[Request]) -> dict[str, float]:
    """FLOPs of a mean choice; see `FLOPS`. The last token of a choice is only looked up."""
    size, count = sizes(loaded), len(asked)
    head = 2 * size["head"] * sum(len(c) for _, _, c in asked) / count
    tokens = sum(len(p) + len(c) - 1 for _, p, c in asked) / count
    prompts = {tuple(p) for _, p, _ in asked}
    distinct = (sum(map(len, prompts)) + sum(len(c) - 1 for _, _, c in asked)) / count
    return {"tokens": tokens, "distinct_tokens": distinct} | {
        "per_choice": 2 * size["blocks"] * tokens + head,
        "per_choice_distinct": 2 * size["blocks"] * distinct + head,
    }


def options() -> argparse.Namespace:
    parser = common.arguments(__doc__)
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    given = parser.parse_args()
    if given.quick:
        given.adapters, given.questions, given.batches = 2, 1, [8, 16]
    return given


def main() -> None:
    given = options()
    name = common.subject(given, "choose")
    if name is None:
        return
    begun = time.perf_counter()
    logging.disable(logging.WARNING)  # the harness warns of every model that is handed to it
    loaded, chunks = build(name), cases(given.questions)
    asked = requests(loaded, chunks)
    exact = loaded.device.type == "cpu" or loaded.model.num_parameters() < LARGE
    kinds = ["bfloat16", "float32"] if exact else ["bfloat16"]
    rates = common.limits(loaded.device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        adapters = make_adapters(loaded, given.adapters, Path(folder))
        peers = {kind: Switched(loaded, adapters, kind) for kind in kinds}
        apart = difference(name, peers["float32"], adapters[0], chunks[:1]) if exact else None
        best, tried = search(peers, asked, given.batches)
        sides: dict[str, Callable[[int], Timing]] = {
            OURS: partial(ours, loaded, adapters, chunks),
            f"lm-eval {best.dtype}": lambda repeat: theirs(
                peers[best.dtype], asked, best, repeat % len(adapters)
            ),
            f"lm-eval {best.dtype}, given token ids": lambda repeat: theirs(
                peers[best.dtype], asked, best, repeat % len(adapters), ids=True
            ),
        }
        found = common.compare(common.alternate(sides, given.repeats))
    flops = useful_flops(loaded, asked)
    share = common.shares(found["medians"], flops["per_choice"], rates)
    result = {
        "placement": loaded.placement,
        "work": {"unit": UNIT, "adapters": given.adapters, "questions": len(chunks)}
        | {"prompts": sum(map(len, chunks)), "choices_per_adapter": len(asked)},
        "how": FORMED,
        "largest_difference_float32": apart if exact else "not checked: too large for float32",
        "lm_eval": {"best": vars(best), "tried": tried},
        **found,
        "limit": {"rates": rates, "formula": FLOPS, "flops": flops, "shares": share}
        | {"distinct": common.shares(found["medians"], flops["per_choice_distinct"], rates)[OURS]},
        "seconds": time.perf_counter() - begun,
    }
    common.show(found, share, UNIT)
    print(f"largest difference of log-probabilities in float32: {apart}")
    common.write("choose", name, given, result)


if __name__ == "__main__":
    main()
