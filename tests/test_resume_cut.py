"""Runs that break off go on to the same bytes: power cuts, kills and signals."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spillover import ask, run, runs, stages, stopping
from spillover import folder as folders
from spillover.failpoints import VARIABLE
from tests.small_runs import (
    SEEDS,
    adapters_of,
    answers_of,
    content,
    edit,
    end,
    is_training,
    small,
    spillover,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("quick")

LIKE_OTHERS = [
    *(f"{when} {name}.parquet" for name in ("grades", "rates") for when in ("before", "after")),
    "after answers.parquet",
    "before effects.parquet",
    "after manifest.json",
]
"""Places that are left to the long tests, like all but the first passing of any place."""


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_cut_at_any_place_goes_on_to_the_same_bytes_and_repeats_one_unit_at_most(
    small_experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    computed: list[str],
    every: bool,
) -> None:
    out, cuts = tmp_path / "run", tmp_path / "cuts"
    places: list[str] = []

    def snapshot(name: str) -> None:
        """What a power cut would leave here; SQLite's files as they are while it is open."""
        shutil.copytree(out, cuts / str(len(places)))
        places.append(name)

    with monkeypatch.context() as patched:
        for module in (ask, folders, runs, stages):
            patched.setattr(module, "failpoint", snapshot)
        unbroken = small(small_experiment, out)
    expected = (out / "summary.json").read_bytes()
    assert {"begun", "training", "plan", "chunk", "report", "figure"} < set(places)
    assert {"before summary.json", "after manifest.json", "before answers.parquet"} < set(places)
    total = len(answers_of(out))
    assert total == len(computed) == len(set(computed))
    for number, place in enumerate(places):
        if not every and (place in places[:number] or place in LIKE_OTHERS):
            continue
        cut = cuts / str(number)
        computed.clear()
        _resume(small_experiment, cut, total, computed, place)
        assert (cut / "summary.json").read_bytes() == expected, place
        assert content(cut).keys() == content(out).keys(), place
    assert unbroken.manifest["sessions"][0]["answers"] == {"asked": total, "kept": 0}


def _resume(experiment: Path, cut: Path, total: int, computed: list[str], place: str) -> None:
    before = answers_of(shutil.copytree(cut, cut.with_name("look"))) if _asked(cut) else {}
    shutil.rmtree(cut.with_name("look"), ignore_errors=True)
    trained, steps = adapters_of(cut), []

    def progress(stage: str, done: int, _: int) -> None:
        steps.extend([done] if stage == "finetune" else [])

    finished = run(experiment, seeds=SEEDS, out=cut, progress=progress)
    assert len(computed) == total - len(before), place
    after = answers_of(cut)
    assert {key: after[key] for key in before} == before, place
    if len(trained) == 2 * SEEDS:
        assert adapters_of(cut) == trained, place
        assert not steps
    assert finished.manifest["status"] == "done"


def _asked(folder: Path) -> bool:
    return (folder / "answers.sqlite").is_file()


@pytest.mark.long
def test_a_real_kill_leaves_no_lock_and_the_command_goes_on(
    small_experiment: Path, tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "killed"
    given = ("run", small_experiment, "--seeds", SEEDS, "--out", out)
    killed = spillover(*given, **{VARIABLE: "chunk:2"})
    killed.communicate(timeout=120)
    assert killed.returncode == 137
    assert json.loads((out / ".lock").read_text())["pid"] == killed.pid
    before = answers_of(shutil.copytree(out, tmp_path / "look"))
    trained = adapters_of(out)
    assert before
    small(small_experiment, out)
    summaries = [(f / "summary.json").read_bytes() for f in (out, finished)]
    assert summaries[0] == summaries[1]
    assert adapters_of(out) == trained
    assert before.items() <= answers_of(out).items()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal_ends_a_run_within_seconds_and_loses_nothing(
    small_experiment: Path, tmp_path: Path, number: signal.Signals
) -> None:
    edit(small_experiment / "experiment.toml", "steps = 2", "steps = 30")
    out = tmp_path / "run"
    process = spillover("run", small_experiment, "--seeds", SEEDS, "--out", out)
    wait_for(lambda: is_training(out))
    end(process, number, seconds=5)
    assert not list(out.rglob("*.partial"))
    small(small_experiment, out)
    small(small_experiment, tmp_path / "unbroken")
    summaries = [(f / "summary.json").read_bytes() for f in (out, tmp_path / "unbroken")]
    assert summaries[0] == summaries[1]


DEAF = '''
import hashlib, sys, threading
from spillover import stopping
stopping.GRACE = 0.3
SWALLOWS = """
def spin():
    while True: len(str())
while True:
    try: spin()
    except BaseException: pass
"""
try:
    with stopping.stoppable("last words"):
        threading.Timer(0.2, print, ("ready",), {{"flush": True}}).start()
        {deaf}
except stopping.Stopped as stopped:
    sys.exit(99)
'''


@pytest.mark.parametrize(
    "deaf",
    [
        "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)",  # native, for a quarter of an hour
        "exec(SWALLOWS)",
    ],
)
def test_a_process_that_does_not_listen_is_ended_all_the_same(deaf: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF.format(deaf=deaf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143
    assert said.strip() == "last words"


class Dying:
    """Something whose finalizer meets a signal, as those of PyTorch's tensors do."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_up_in_a_finalizer_is_not_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wait() -> None:
        with stopping.stoppable("last words"):
            Dying()
            time.sleep(2)

    with pytest.raises(stopping.Stopped, match="SIGTERM"):
        wait()
    assert capsys.readouterr().err == ""
