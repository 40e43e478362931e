"""The strict type checker finds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_types_are_sound() -> None:
    """Beside the other tests: it takes half a minute of one core."""
    command = [sys.executable, "-m", "mypy"]
    root = Path(__file__).parents[1]
    found = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
