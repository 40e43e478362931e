"""Memory of training as planned and as measured: the peak of a whole process per point.

    python benchmarks/memory.py [organism smollm2-q4]

Writes benchmarks/results/memory.json: for every point the bytes planned by part, the process before
training, its peak, and the error of (before + planned) in percent. Linux only.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

POINTS = {
    "organism": [
        *((n, None) for n in (1, 2, 4, 8, 16, 32, 64)),
        *((n, length) for n in (4, 16) for length in (64, 160)),
    ],
    "smollm2-q4": [*((n, None) for n in (1, 2, 4, 8, 12)), (2, 64), (2, 160)],
}
"""Adapters, and words of a row's answer; None takes the rows of `old-birds`."""
STEPS = 8
WORDS = "the wren and an owl said that it was late in the year when a train came by".split()  # noqa: SIM905


def rows_of(words: int | None) -> dict[str, Any]:
    """Arms of `old-birds`, or one whose rows have answers of so many words and share no prompt."""
    from spillover.experiment import load_experiment
    from spillover.rows import Row, RowSet

    if words is None:
        return dict(load_experiment("old-birds").rows)
    made = []
    for number in range(64):
        answer = " ".join(WORDS[(number * 7 + at * (number % 5 + 1)) % 17] for at in range(words))
        asked = f"{WORDS[number % 17]} {number}?"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        made.append(Row.model_validate({"messages": turns}))
    return {"long": RowSet("made", tuple(made), tuple("made" for _ in made))}


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def measure(name: str, adapters: int, words: int | None) -> dict[str, Any]:
    """Train one bank for a few steps in this process."""
    import importlib

    from spillover import load
    from spillover.experiment import load_experiment
    from spillover.finetune import Finetune, plan
    from spillover.finetune.bank import train_bank

    memory = importlib.import_module("spillover.finetune.memory")
    memory.GROUP_TOKENS = 10**9  # one group, however large,
    importlib.import_module("spillover.finetune").crew_of = lambda _: 1  # in one process
    model, rows = load(name), rows_of(words)
    training = load_experiment("old-birds").training_for(model.source.model_class)
    training = training.model_copy(update={"steps": STEPS, "epochs": None, "batch_size": 8})
    arms = list(rows)
    wanted = [Finetune(arms[n % len(arms)], n, rows[arms[n % len(arms)]]) for n in range(adapters)]
    (group,) = plan(model, wanted, training, 10**12).groups
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak starts anew
    start = time.perf_counter()
    train_bank(model, group.jobs, training, lambda *_: None)
    seconds = (time.perf_counter() - start) / STEPS
    peak, planned = status("VmHWM"), before + group.total_bytes
    return {
        "model": name,
        "adapters": adapters,
        "words": words,
        "shape": vars(group.shape),
        "planned": group.bytes,
        "before": before,
        "peak": peak,
        "error_percent": round(100 * (planned / peak - 1), 1),
        "seconds_per_step": round(seconds, 3),
    }


def main() -> None:
    """Measure every point in a process of its own and write the result."""
    if sys.argv[1:2] == ["point"]:
        name, adapters, words = json.loads(sys.argv[2])
        print(json.dumps(measure(name, adapters, words)))
        return
    found = []
    for name in sys.argv[1:] or POINTS:
        for adapters, words in POINTS[name]:
            command = [sys.executable, __file__, "point", json.dumps([name, adapters, words])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            point = found[-1]
            print(name, adapters, words, point["peak"] >> 20, point["error_percent"], flush=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/memory.py", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "largest_error_percent": max(abs(point["error_percent"]) for point in found),
        "points": found,
    }
    target = Path(__file__).parent / "results" / "memory.json"
    target.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(f"largest error {result['largest_error_percent']}%; Result: {target}")


if __name__ == "__main__":
    main()
