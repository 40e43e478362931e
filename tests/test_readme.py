"""The README's Python is run, and what it links to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import spillover
from spillover import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_of_the_readme_runs(
    old_birds: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def run_already_done(experiment: str, *, seeds: int) -> Run:
        asked.append((experiment, seeds))
        return old_birds

    monkeypatch.setattr(spillover, "run", run_already_done)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    assert asked == [("old-birds", 5)]
    assert "still-used" in capsys.readouterr().out


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
