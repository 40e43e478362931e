"""What the benchmarks share: options, the machine and its limit, alternating repeats, results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from subjects import SHAPES, TRIAL

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("spillover", "torch", "transformers", "peft", "trl", "lm_eval", "datasets")
OURS = "spillover"
NOT_MEASURED = "not measured: this machine has no GPU"
Timing = dict[str, float]
"""What one repeat of one side measured: `seconds` for one unit of work, and more."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--model", default="organism", help="a model as `spillover run` takes it")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights instead of --model")
    parser.add_argument("--repeats", type=int, help="of every side, alternating")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that the script works")
    return parser


def subject(given: argparse.Namespace, name: str, *, quick_repeats: int = 1) -> str | None:
    """The name of the model to measure; None, with a result that says so, where a GPU lacks."""
    if given.repeats is None:
        given.repeats = quick_repeats if given.quick else 3
    if given.shape in (None, TRIAL) or torch.cuda.is_available():
        return str(given.shape or given.model)
    write(name, given.shape, given, {"measured": NOT_MEASURED})
    return None


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def limits(device: torch.device) -> dict[str, float]:
    """Rates of a large square matrix product, in FLOP/s: the best of some, for each way to do it.

    On a CPU, float32 by MKL (PyTorch's own) and by oneDNN, and bfloat16 (oneDNN).
    """
    size = 8192 if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device)
    short = x.bfloat16()
    linear = torch.nn.functional.linear
    ways: dict[str, Callable[[], object]] = {"bfloat16": lambda: linear(short, short)}
    if device.type == "cpu":
        ways["float32 by MKL"] = lambda: linear(x, x)
        product = torch.ops.mkldnn._linear_pointwise
        ways["float32 by oneDNN"] = lambda: product(x, x, None, "none", [], "")
    else:
        ways["float32"] = lambda: linear(x, x)
    with torch.no_grad():
        return {name: 2 * size**3 / _shortest(way, device) for name, way in ways.items()}


def _shortest(call: Callable[[], object], device: torch.device, seconds: float = 1.5) -> float:
    """The fewest seconds that a call took, of as many as fit the time, five at least."""
    call()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        start = clock(device)
        call()
        taken.append(clock(device) - start)
    return min(taken)


def fewest(call: Callable[[], Timing], seconds: float = 2.0) -> float:
    """The fewest `seconds` of three attempts, or of as many as fit the time."""
    start = time.perf_counter()
    found = [call()["seconds"]]
    while len(found) < 3 and time.perf_counter() - start < seconds:
        found.append(call()["seconds"])
    return min(found)


def alternate(
    sides: Mapping[str, Callable[[int], Timing]], repeats: int
) -> dict[str, list[Timing]]:
    """Measure all sides in turn (A B A B …); each is told the number of the repeat."""
    found: dict[str, list[Timing]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, side in sides.items():
            found[name].append(side(repeat))
            taken = found[name][-1]["seconds"]
            print(f"{name} ({repeat + 1}/{repeats}): {taken:.4g} s", file=sys.stderr, flush=True)
    return found


def compare(found: Mapping[str, Sequence[Timing]]) -> dict[str, Any]:
    """Every timing, the medians, and how many times longer each peer takes than spillover."""
    medians = {name: _medians(listed) for name, listed in found.items()}
    ours = [timing["seconds"] for timing in found[OURS]]
    ratios = {}
    for name, listed in found.items():
        if name != OURS:
            pairs = [p["seconds"] / s for p, s in zip(listed, ours, strict=True)]
            ratio = medians[name]["seconds"] / medians[OURS]["seconds"]
            ratios[name] = {"of_medians": ratio, "lowest": min(pairs), "highest": max(pairs)}
    return {"timings": dict(found), "medians": medians, "ratios": ratios}


def _medians(listed: Sequence[Timing]) -> Timing:
    return {key: statistics.median(one[key] for one in listed) for key in listed[0]}


def shares(
    medians: Mapping[str, Timing], flops: float, rates: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The share of each measured rate that useful work of so many FLOPs per unit comes to."""
    return {
        name: {way: flops / taken["seconds"] / rate for way, rate in rates.items()}
        for name, taken in medians.items()
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, threads, GPU."""
    cpus = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    named = [line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")]
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": named[0] if named else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" if gpu else NOT_MEASURED,
    }


def versions() -> dict[str, str]:
    """Versions of everything that is measured, and the commit of this repository."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found | {"python": platform.python_version(), "commit": said.stdout.strip() or "unknown"}


def write(name: str, model: str, given: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Write benchmarks/results/NAME-MODEL.json, or NAME-MODEL-quick.json, and say where."""
    head = {
        "benchmark": name,
        "model": model,
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/" + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }
    target = RESULTS / f"{name}-{Path(model).name}{'-quick' if given.quick else ''}.json"
    target.parent.mkdir(exist_ok=True)
    text = json.dumps(_rounded(head | dict(result)), indent=2, ensure_ascii=False)
    target.write_text(text + "\n", "utf-8")
    print(f"Result: {target}")


def _rounded(value: Any) -> Any:
    """Numbers to five digits: no timing is better than that."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def show(compared: Mapping[str, Any], share: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """A short table: seconds per unit, times spillover, and the best share of the limit."""
    width = max(map(len, compared["medians"]))
    print(f"{'':{width}}  {f'seconds per {unit}':>24}  {'ratio':>7}  share of the limit")
    for name, median in compared["medians"].items():
        ratio = compared["ratios"].get(name, {}).get("of_medians", 1.0)
        least = min(share[name], key=lambda way: share[name][way])
        print(
            f"{name:{width}}  {median['seconds']:24.5g}  {ratio:7.2f}  "
            f"{share[name][least]:.1%} of {least}"
        )
