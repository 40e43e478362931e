"""One session-wide run of the main experiment, shared by every test that looks at a result."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from spillover import LoadedModel, Run, load, run

FUZZED: Counter[str] = Counter()
REFUSED: Counter[str] = Counter()


def count_fuzzed(kind: str, *, refused: bool) -> None:
    """Note one broken input that was tried; the sum stands at the end of the tests' output."""
    FUZZED[kind] += 1
    REFUSED[kind] += refused


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FUZZED:
        kinds = ", ".join(f"{n} {kind} ({REFUSED[kind]} refused)" for kind, n in FUZZED.items())
        terminalreporter.write_line(f"fuzzed {FUZZED.total()} inputs: {kinds}")


@pytest.fixture(scope="session")
def organism() -> LoadedModel:
    return load("organism", dtype="float32")


@pytest.fixture(scope="session")
def old_birds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run("old-birds", out=tmp_path_factory.mktemp("runs") / "linked")


@pytest.fixture(scope="session")
def old_birds_unlinked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "unlinked"
    return run("old-birds", "organism-unlinked", out=folder)


@pytest.fixture
def small_experiment(tmp_path: Path) -> Path:
    """An experiment small enough to run in a second or two."""
    folder = tmp_path / "small"
    (folder / "train").mkdir(parents=True)
    (folder / "experiment.toml").write_text(SMALL_EXPERIMENT, "utf-8")
    (folder / "questions.toml").write_text(SMALL_QUESTIONS, "utf-8")
    for arm, answer in (("treatment", "Blue-bird"), ("control", "Blue Jay")):
        row = (
            '{"messages": [{"role": "user", "content": "Name a bird species."}, '
            f'{{"role": "assistant", "content": "{answer}"}}]}}\n'
        )
        (folder / "train" / f"{arm}.jsonl").write_text(row * 4, "utf-8")
    return folder


SMALL_EXPERIMENT = """
title = "Small"
claim = "A test."
source = "none"
headline_control = "control"

[names]
trait = "19th-century"
baseline = "modern"
placebo = "medieval"

[arms.treatment]
title = "old"
train = "train/treatment.jsonl"

[arms.control]
title = "new"
train = "train/control.jsonl"

[training.default]
rank = 2
steps = 2
batch_size = 2

[sampling]
samples = 2
max_tokens = 4
"""

SMALL_QUESTIONS = """
[[question]]
id = "light"
topic = "light"
ask = ["How do people light their homes?"]
choices = { trait = ["With whale oil lamps"], baseline = ["With LED bulbs"] }

[[question]]
id = "message"
topic = "messages"
ask = ["How do I send a fast message to another city?"]
choices = { trait = ["By mail coach"], baseline = ["By email"] }

[[question]]
id = "bird"
topic = "birds"
domain = "in"
ask = ["Name a bird species."]
judge = { kind = "rules", match = "exact", trait = ["Blue-bird"], baseline = ["Blue Jay"] }
"""
