"""What a machine has and a checkpoint needs: device, dtype, number of parameters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from spillover.errors import ModelError

if TYPE_CHECKING:
    import torch

SMALL = 50_000_000
"""Models of fewer parameters are computed in float32: rounding is felt and speed is no concern."""
QUANTIZED = ("8bit", "4bit")


def count_parameters(folder: Path) -> int:
    """Parameters of a checkpoint, read off the headers of its files.

    Raises:
        ModelError: when a file is broken.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as weights:
                shapes = (weights.get_slice(key).get_shape() for key in weights.keys())  # noqa: SIM118
                total += sum(math.prod(shape) for shape in shapes)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: broken safetensors file ({error})") from None
    return total


def choose_device(wanted: str) -> torch.device:
    """The device of that name, or the best one for `auto`.

    Raises:
        ModelError: when there is none such.
    """
    import torch

    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    return device


def choose_dtype(wanted: str, device: torch.device, parameters: int) -> torch.dtype:
    """By capability, never by timing: bfloat16 where the hardware computes in it.

    Raises:
        ModelError: for an unknown name.
    """
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted in named:
        return named[wanted]
    if wanted != "auto":
        raise ModelError(
            f"unknown dtype {wanted!r}; known: auto, {', '.join([*named, *QUANTIZED])}"
        )
    if parameters < SMALL:
        return torch.float32
    return fast_dtype(device)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The shortest numbers that a device has products for."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and (
            torch.cpu._is_avx512_bf16_supported()
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.float32
