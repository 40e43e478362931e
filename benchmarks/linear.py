"""oneDNN's float32 linear product against PyTorch's own (MKL), at the organism's shapes.

    python benchmarks/linear.py

Writes benchmarks/results/linear.json: medians over alternating repeats, in GFLOP/s, and the ratio.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from spillover import kernels
from spillover.kernels import FrozenLinear

SHAPES = [(1635, 192, 512), (1635, 512, 192), (1635, 192, 192), (1440, 192, 3072)]
REPEATS, CALLS = 11, 50


def rate(call: Callable[[], object], flops: float) -> float:
    """GFLOP/s of one repeat."""
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return flops * CALLS / (time.perf_counter() - start) / 1e9


def measure(rows: int, inputs: int, outputs: int) -> dict[str, object]:
    """Both products of one shape, alternating."""
    x = torch.randn(rows, inputs)
    plain = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    quick = FrozenLinear(inputs, outputs, bias=False).requires_grad_(False)
    quick.load_state_dict(plain.state_dict())
    difference = float((plain(x) - quick(x)).abs().max())
    flops = 2.0 * rows * inputs * outputs
    pairs = [(rate(lambda: plain(x), flops), rate(lambda: quick(x), flops)) for _ in range(REPEATS)]
    ours, theirs = (statistics.median(p[i] for p in pairs) for i in (1, 0))
    shape = {"shape": [rows, inputs, outputs], "onednn": round(ours), "mkl": round(theirs)}
    return shape | {"ratio": round(ours / theirs, 2), "largest_difference": difference}


def main() -> None:
    """Measure all shapes and write the result."""
    with torch.no_grad(), mock.patch.object(kernels, "pays", kernels.available):
        found = [measure(*shape) for shape in SHAPES]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/linear.py",
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gflops": found,
    }
    target = Path(__file__).parent / "results" / "linear.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2), f"Result: {target}", sep="\n")


if __name__ == "__main__":
    main()
