"""A whole `spillover run old-birds` in a process of its own: seconds and peak memory by stage.

    python benchmarks/run.py
    python benchmarks/run.py --model smollm2-q4 --seeds 4 --repeats 1

Seconds by stage are the manifest's. Memory is the resident size of the process and its children,
read every 50 ms; a stage's peak is the largest reading between its beginning and its end, which
are told from when the manifest was last written and the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

EVERY = 0.05
PAGE = os.sysconf("SC_PAGE_SIZE")
START = "start"
"""What comes before the first stage: the interpreter and its imports."""


def resident(process: int) -> int:
    """Bytes that a process and its children hold; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * PAGE + sum(resident(int(child)) for child in children)


def watch(command: list[str]) -> tuple[list[tuple[float, int]], float]:
    """Run a command: (time, bytes) of every reading, and its seconds; raises when it fails."""
    readings: list[tuple[float, int]] = []
    start = time.time()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None:
            readings.append((time.time(), resident(process.pid)))
            time.sleep(EVERY)
        seconds = time.time() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-2000:]}")
    return readings, seconds


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = ["--model", given.model, "--seeds", str(given.seeds), "--out", str(out)]
        options += ["--steps", "4"] if given.quick else []
        readings, total = watch(
            [sys.executable, "-m", "spillover", "run", given.experiment, *options]
        )
        manifest = out / "manifest.json"
        seconds: dict[str, float] = json.loads(manifest.read_text("utf-8"))["seconds"]
        end = manifest.stat().st_mtime
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    ends = _ends(seconds, end)
    begin = readings[0][0]
    stages = {START: round(ends[START] - begin, 2), **seconds}
    return {
        "seconds": total,
        "stages": stages,
        "peak_mb": max(held for _, held in readings) / 1e6,
        "peak_mb_by_stage": _peaks(readings, ends),
        "folder_mb": size / 1e6,
    }


def _ends(seconds: dict[str, float], last: float) -> dict[str, float]:
    """When each stage ended, counted back from the last."""
    ends, at = {}, last
    for name, taken in reversed(seconds.items()):
        ends[name] = at
        at -= taken
    return {START: at, **dict(reversed(ends.items()))}


def _peaks(readings: list[tuple[float, int]], ends: dict[str, float]) -> dict[str, float]:
    """The largest reading of every stage, in megabytes; the nearest one for the shortest."""
    peaks, begin = {}, 0.0
    for name, end in ends.items():
        within = [held for at, held in readings if begin < at <= end]
        peaks[name] = max(within or [min(readings, key=lambda r: abs(r[0] - end))[1]]) / 1e6
        begin = end
    return peaks


def middle(found: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Medians by stage."""
    return {name: statistics.median(one[key][name] for one in found) for name in found[0][key]}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--experiment", default="old-birds")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    if given.shape:
        parser.error("a run needs a model that can answer; --shape has none")
    name = common.subject(given, "run")
    assert name
    given.seeds = 1 if given.quick else given.seeds
    found = [measure(given) for _ in range(given.repeats)]
    seconds, peaks = middle(found, "stages"), middle(found, "peak_mb_by_stage")
    whole = statistics.median(one["seconds"] for one in found)
    width = max(map(len, seconds))
    for stage in seconds:
        print(f"{stage:{width}}  {seconds[stage]:8.1f} s  {peaks[stage]:8.0f} MB")
    print(f"{'whole':{width}}  {whole:8.1f} s")
    result = {
        "work": {"experiment": given.experiment, "seeds": given.seeds},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "runs": found,
        "medians": {"seconds": whole, "stages": seconds, "peak_mb_by_stage": peaks},
        "peer": "none: no other tool does the whole of it; see train, sample and choose",
    }
    common.write("run", name, given, result)


if __name__ == "__main__":
    main()
