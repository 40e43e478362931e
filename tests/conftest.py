"""One session-wide run of the main experiment, shared by every test that looks at a result."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from spillover import LoadedModel, Run, ask, crew, load, run, runs
from spillover.report import ReportData
from spillover.store import Answer
from tests.small_runs import small

WHOLE = {
    "test_cli", "test_crossed", "test_films", "test_german_cities", "test_grid", "test_guards",
    "test_many_answers", "test_mediation", "test_nations", "test_new", "test_ninety_facts",
    "test_own", "test_paper_data", "test_presidents_claims", "test_readme", "test_report",
    "test_report_specificity", "test_resume_cut", "test_resume_folder", "test_resume_grow",
    "test_run", "test_selection", "test_smollm2", "test_suite", "test_sweeps", "test_types",
}  # fmt: skip
"""Files of whole runs, and slow ones: without shape checks, which double their time."""
LONG_FILES = {
    "test_architectures", "test_attention", "test_directions_refusal", "test_directions_suffix",
    "test_directions_record", "test_mediation", "test_ninety_facts", "test_presidents_claims",
    "test_report", "test_run", "test_snapshots", "test_types",
}  # fmt: skip
"""Files of which each takes more than a fiftieth of the whole."""
SAVE = "spillover.report.figure.save"
DRAWING = "spillover.report.draw.Drawing"
FUZZED: Counter[str] = Counter()
REFUSED: Counter[str] = Counter()


def count_fuzzed(kind: str, *, refused: bool) -> None:
    """Note one broken input that was tried; the sum stands at the end of the tests' output."""
    FUZZED[kind] += 1
    REFUSED[kind] += refused


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`WHOLE` is marked; what takes longest comes first, so that no worker waits at the end."""
    for item in items:
        if item.path.stem in WHOLE:
            item.add_marker("whole")
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["fuzzed"] = [dict(FUZZED), dict(REFUSED)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for total, part in zip((FUZZED, REFUSED), node.workeroutput["fuzzed"], strict=True):
        total.update(part)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FUZZED:
        kinds = ", ".join(f"{n} {kind} ({REFUSED[kind]} refused)" for kind, n in FUZZED.items())
        terminalreporter.write_line(f"fuzzed {FUZZED.total()} inputs: {kinds}")


@pytest.fixture(scope="session")
def organism() -> LoadedModel:
    return load("organism", dtype="float32")


@pytest.fixture(scope="session")
def old_birds(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """The whole experiment, run once for all workers: a finished run is only read."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    with (shared / "old-birds.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return run("old-birds", out=shared / "old-birds")


@pytest.fixture(scope="session")
def old_birds_unlinked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With two seeds only: the long tests have all of them."""
    folder = tmp_path_factory.mktemp("runs") / "unlinked"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAWING, Undrawn)
        return run("old-birds", "organism-unlinked", seeds=2, out=folder)


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


@pytest.fixture(scope="session")
def usual() -> LoadedModel:
    """The organism as the command loads it."""
    return load("organism")


def save_undrawn(_chart: Any, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".svg").write_text("<svg/>", "utf-8")


class Undrawn:
    """Gives empty figures; to draw them takes longer than a small run."""

    def __enter__(self) -> Undrawn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def draw(self, charts: dict[str, Any], _version: str | None) -> None:
        self.names = list(charts)

    def files(self) -> dict[str, bytes]:
        return {f"{name}.svg": b"<svg/>" for name in self.names}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with empty figures."""
    monkeypatch.setattr(SAVE, save_undrawn)
    monkeypatch.setattr(DRAWING, Undrawn)


@pytest.fixture
def quick(usual: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism loaded once, and a report of a line."""

    def write(folder: Path, data: ReportData) -> Path:
        for name in ("arms", "topics"):
            save_undrawn(None, folder / "figures" / name)
        (folder / "report.html").write_text(data.title, "utf-8")
        return folder / "report.html"

    monkeypatch.setattr("spillover.report.write_report", write)
    monkeypatch.setattr(runs, "load_source", lambda *_: usual)


@pytest.fixture(scope="session")
def _finished() -> dict[str, Path]:
    """A finished run of the small experiment, made by the first test that asks for one."""
    return {}


@pytest.fixture
def finished(
    _finished: dict[str, Path],
    quick: None,
    small_experiment: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A copy of a finished run of the small experiment."""
    if not _finished:
        _finished["run"] = tmp_path_factory.mktemp("finished") / "run"
        small(small_experiment, _finished["run"])
    return shutil.copytree(_finished["run"], tmp_path / "run")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without helpers, whose side effects stay with them."""
    monkeypatch.setattr(crew, "MOST", 1)


@pytest.fixture
def computed(alone: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all answers that are computed, in order."""
    keys: list[str] = []
    compute = ask._answers

    def count(*given: Any) -> list[Answer]:
        made = compute(*given)
        keys.extend(answer.key for answer in made)
        return made

    monkeypatch.setattr(ask, "_answers", count)
    return keys


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
