"""What the benchmarks share: models, the machine and its limit, alternating repeats, results."""

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
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from spillover.anatomy import find_anatomy
from spillover.models import LoadedModel, Loading, load, resolve
from spillover.models.loading import choose_device, choose_dtype, load_chat

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("spillover", "torch", "transformers", "peft", "trl", "lm_eval", "datasets")
OURS = "spillover"
NOT_MEASURED = "not measured: this machine has no GPU"
LLAMA = {"vocab_size": 128_256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-tiny": {  # for trying the scripts out without a GPU
        **LLAMA,
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
"""Llama shapes with random weights; they read with the organism's tokenizer."""

Timing = dict[str, float]
"""What one repeat of one side measured: `seconds` for one unit of work, and more."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--model", default="organism", help="a model as `spillover run` takes it")
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of --model")
    parser.add_argument("--repeats", type=int, help="of every side, alternating")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that the script works")
    return parser


def subject(given: argparse.Namespace, name: str, *, quick_repeats: int = 1) -> str | None:
    """The name of the model to measure; None, with a result that says so, where a GPU lacks."""
    if given.repeats is None:
        given.repeats = quick_repeats if given.quick else 3
    if given.shape in (None, "llama-tiny") or torch.cuda.is_available():
        return str(given.shape or given.model)
    write(name, given.shape, given, {"measured": NOT_MEASURED})
    return None


def build(name: str, dtype: str = "auto") -> LoadedModel:
    """A model by name, or one of `SHAPES`: built on its device, the same weights every time."""
    if name not in SHAPES:
        return load(name, dtype=dtype)
    source = replace(resolve("organism"), name=name, model_class="default")
    model = _random(name, choose_dtype(dtype, choose_device("auto"), 10**9))
    placement = f"{model.device} in {str(model.dtype).removeprefix('torch.')}"
    return LoadedModel(source, model, load_chat(source, Loading()), placement, Loading(dtype=dtype))


def _random(name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[name], bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with choose_device("auto"):
        made: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return made.eval().requires_grad_(False)


def plain(loaded: LoadedModel, dtype: torch.dtype) -> Any:
    """The same model as a script without spillover has it: transformers and sdpa."""
    from transformers import AutoModelForCausalLM

    if loaded.source.name in SHAPES:
        return _random(loaded.source.name, dtype)
    made: Any = AutoModelForCausalLM.from_pretrained(
        loaded.source.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return made.to(loaded.device).eval().requires_grad_(False)


def sizes(loaded: LoadedModel) -> dict[str, int]:
    """Weights that multiply: of the blocks' linear layers, and of the output layer."""
    names = [name for block in find_anatomy(loaded.model).blocks for name in block.linears]
    layers: list[Any] = [loaded.model.get_submodule(name) for name in names]
    head: Any = loaded.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {"blocks": sum(x.weight.numel() for x in layers), "head": head.weight.numel()}


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
