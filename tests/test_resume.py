"""Runs that break off, and folders that grow: nothing is computed twice, nothing is half there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import SafetensorError

from spillover import (
    InputError,
    LoadedModel,
    Run,
    RunError,
    RunFolderError,
    ask,
    load,
    run,
    runs,
    stages,
)
from spillover import folder as folders
from spillover.failpoints import VARIABLE
from spillover.failures import failures_in_words
from spillover.folder import locked, whole
from spillover.manifest import Job, Manifest
from spillover.report import ReportData
from spillover.settings import resolve_settings
from spillover.store import Answer
from tests.commands import call

SEEDS = 2
COMMAND = [sys.executable, "-m", "spillover", "run"]
LIKE_OTHERS = [
    *(f"{when} {name}.parquet" for name in ("grades", "rates") for when in ("before", "after")),
    "after answers.parquet",
    "before effects.parquet",
    "after manifest.json",
]
"""Places that are left to the long tests, like all but the first passing of any place."""
Rows = dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def usual() -> LoadedModel:
    """The organism as the command loads it."""
    return load("organism")


@pytest.fixture(autouse=True)
def _quick(usual: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism loaded once, and a report without drawings."""

    def write(folder: Path, data: ReportData) -> Path:
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "arms.svg").write_text("<svg/>", "utf-8")
        (folder / "figures" / "topics.svg").write_text("<svg/>", "utf-8")
        (folder / "report.html").write_text(data.title, "utf-8")
        return folder / "report.html"

    monkeypatch.setattr("spillover.report.write_report", write)
    monkeypatch.setattr(runs, "load_source", lambda *_: usual)


def small(experiment: Path, out: Path, **given: Any) -> Run:
    return run(experiment, out=out, **({"seeds": SEEDS} | given))


def content(folder: Path) -> dict[str, str]:
    """A hash of every file, apart from the lock."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != folders.LOCK
    }


def answers_of(folder: Path) -> Rows:
    """What is recorded, by key: its place in the file, and all that it says."""
    with sqlite3.connect(folder / "answers.sqlite") as db:
        rows = db.execute("SELECT key, rowid, * FROM answers").fetchall()
    db.close()
    return {row[0]: (row[1], repr(row[2:])) for row in rows}


def adapters_of(folder: Path) -> dict[str, int]:
    """When each adapter's weights were written."""
    root = folder / "adapters"
    found = root.rglob("step-*/adapter_model.safetensors")
    kept = (p for p in found if ".partial" not in p.as_posix())
    return {p.relative_to(root).as_posix(): p.stat().st_mtime_ns for p in kept}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@pytest.fixture(scope="module")
def _finished() -> dict[str, Path]:
    """A finished run of the small experiment, made by the first test that asks for one."""
    return {}


@pytest.fixture
def finished(
    _finished: dict[str, Path],
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
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all answers that are computed, in order."""
    keys: list[str] = []
    compute = ask._answers

    def count(*given: Any) -> list[Answer]:
        made = compute(*given)
        keys.extend(answer.key for answer in made)
        return made

    monkeypatch.setattr(ask, "_answers", count)
    return keys


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


def test_a_real_kill_leaves_no_lock_and_the_command_goes_on(
    small_experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed = spillover(small_experiment, out, **{VARIABLE: "chunk:2"})
    killed.communicate(timeout=120)
    assert killed.returncode == 137
    assert json.loads((out / ".lock").read_text())["pid"] == killed.pid
    before = answers_of(shutil.copytree(out, tmp_path / "look"))
    trained = adapters_of(out)
    assert before
    small(small_experiment, out)
    small(small_experiment, tmp_path / "unbroken")
    summaries = [(f / "summary.json").read_bytes() for f in (out, tmp_path / "unbroken")]
    assert summaries[0] == summaries[1]
    assert adapters_of(out) == trained
    assert before.items() <= answers_of(out).items()


def spillover(experiment: Path, out: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, str(experiment), "--seeds", str(SEEDS), "--out", str(out)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_signal_ends_a_run_within_seconds_and_loses_nothing(
    small_experiment: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    edit(small_experiment / "experiment.toml", "steps = 2", "steps = 5000")
    out = tmp_path / "run"
    process = spillover(small_experiment, out)
    wait_for(lambda: '"plans": [\n    [' in text_of(out / "manifest.json"))
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert process.returncode == code
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("stopped; everything that is finished is kept")
    assert not list(out.rglob("*.partial"))


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


DEAF = """
import hashlib, sys
from spillover import stopping
stopping.GRACE = 0.3
try:
    with stopping.stoppable("last words"):
        print("ready", flush=True)
        {deaf}
except stopping.Stopped as stopped:
    sys.exit(99)
"""


@pytest.mark.parametrize(
    "deaf",
    [
        "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)",  # native, for a quarter of an hour
        "exec('while True:\\n try:\\n  while True: len(str())\\n except BaseException: pass')",
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
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143
    assert said.strip() == "last words"


def log_probs_of(answers: pd.DataFrame) -> list[float]:
    records = answers["choice_log_probs"].dropna()
    return [value for record in records for _, _, value in json.loads(record)]


# Folders that grow --------------------------------------------------------------------------------


def test_a_changed_question_asks_only_itself_again(
    small_experiment: Path, tmp_path: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before, trained = answers_of(out), adapters_of(out)
    computed.clear()
    edit(small_experiment / "questions.toml", "How do people light their homes?", "Which lamps?")
    again = small(small_experiment, out)
    assert len(computed) == 2 * SEEDS + 1
    assert adapters_of(out) == trained
    assert before.items() < answers_of(out).items()
    assert len(again.answers) == len(before)
    assert again.manifest["sessions"][-1]["answers"]["asked"] == len(computed)
    fresh = small(small_experiment, tmp_path / "fresh")  # where it is asked beside its neighbours
    apart = ["choice_log_probs"]
    assert again.answers.drop(columns=apart).equals(fresh.answers.drop(columns=apart))
    scores, expected = (log_probs_of(run.answers) for run in (again, fresh))
    assert len(scores) == len(expected) > 0
    assert np.allclose(scores, expected, atol=1e-4)


def test_more_samples_ask_only_for_the_new_ones(
    small_experiment: Path, tmp_path: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before = answers_of(out)
    computed.clear()
    edit(small_experiment / "experiment.toml", "samples = 2", "samples = 5")
    again = small(small_experiment, out)
    assert len(computed) == len(set(computed)) == 3 * (2 * SEEDS + 1)
    assert before.items() < answers_of(out).items()
    texts = again.answers[again.answers["kind"] == "text"]
    assert set(texts["index"]) == set(range(5))
    fresh = small(small_experiment, tmp_path / "fresh").answers
    assert list(texts["text"]) == list(fresh[fresh["kind"] == "text"]["text"])


def test_more_seeds_finetune_and_ask_only_the_new_ones(
    small_experiment: Path, computed: list[str], finished: Path
) -> None:
    out = finished
    before, trained = answers_of(out), adapters_of(out)
    computed.clear()
    grown = small(small_experiment, out, seeds=3)
    assert grown.manifest["sessions"][-1]["adapters"] == {"trained": 2, "kept": 2 * SEEDS}
    assert trained.items() < adapters_of(out).items()
    assert before.items() < answers_of(out).items()
    assert len(computed) == len(answers_of(out)) - len(before)
    assert {r["arm"]: len(r["per_seed"]) for r in grown.summary["rates"]}["treatment"] == 3
    fewer = small(small_experiment, out)
    assert len(fewer.answers) == len(before)
    assert len(computed) == len(answers_of(out)) - len(before)


def test_an_arm_can_be_added_and_the_others_stay(small_experiment: Path, finished: Path) -> None:
    out = finished
    trained = adapters_of(out)
    rows = (small_experiment / "train" / "control.jsonl").read_text("utf-8")
    other = small_experiment / "train" / "other.jsonl"
    other.write_text(rows.replace("Blue Jay", "Owl") * 3, "utf-8")
    more = '[arms.other]\ntitle = "owls"\ntrain = "train/other.jsonl"\n\n[training.default]'
    edit(small_experiment / "experiment.toml", "[training.default]", more)
    small(small_experiment, out)
    assert trained.items() < adapters_of(out).items()
    assert len(adapters_of(out)) == 3 * SEEDS


def test_finetunes_that_were_begun_together_stay_together(tmp_path: Path) -> None:
    def planned(*wanted: Job, done: tuple[Job, ...] = ()) -> list[list[Job]]:
        return manifest.plan(wanted, lambda job: job in done)

    manifest = Manifest(tmp_path, {"plans": []})
    a, b, c = ("a", 0), ("b", 0), ("c", 0)
    assert planned(a, b) == [[a, b]]
    assert planned(a, b, c, done=(a,)) == [[a, b], [c]]  # broken off after a
    assert planned(a, c, done=(a, b)) == [[a], [c]]
    assert planned(b, done=(a,)) == [[b]]  # c was begun, and is not wanted any more
    assert planned(a, b, c, done=(a, b)) == [[a, b], [c]]
    assert manifest.content["plans"] == [[["a", 0], ["b", 0]], [["c", 0]]]


def test_a_folder_is_not_gone_on_with_in_another_dtype(
    small_experiment: Path, finished: Path
) -> None:
    found = json.loads((finished / "manifest.json").read_text("utf-8"))
    found["sessions"][0]["placement"] = "cuda:0 in bfloat16"
    (finished / "manifest.json").write_text(json.dumps(found), "utf-8")
    before = content(finished)
    with pytest.raises(
        RunFolderError, match=r"in bfloat16, and this would be cpu in float32.*; go on"
    ):
        small(small_experiment, finished, seeds=3)
    assert content(finished) == before


def test_a_finished_run_is_read_and_no_model_loaded(
    small_experiment: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    monkeypatch.delattr(runs, "load_source")
    again = small(small_experiment, out)
    assert again.folder == finished
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_the_default_folder_belongs_to_what_cannot_change_in_it(small_experiment: Path) -> None:
    def chosen(**given: Any) -> Path:
        return resolve_settings(small_experiment, **given).default_folder

    first = chosen()
    assert chosen(seeds=7) == chosen(split="all") == first
    edit(small_experiment / "questions.toml", "fast message", "quick message")
    assert chosen() == first
    assert chosen(training={"rank": 3}) != first
    assert chosen(model="organism-unlinked") != first
    edit(small_experiment / "train" / "control.jsonl", "Blue Jay", "Owl")
    assert chosen() != first


def test_the_seconds_of_all_sessions_add_up(small_experiment: Path, finished: Path) -> None:
    manifest = small(small_experiment, finished, seeds=3).manifest
    sessions = manifest["sessions"]
    assert [session["finished"] for session in sessions] == [True, True]
    for stage, seconds in manifest["seconds"].items():
        parts = [session["seconds"].get(stage, 0) for session in sessions]
        assert seconds == pytest.approx(sum(parts), abs=0.011)
    assert "seconds" not in (finished / "summary.json").read_text("utf-8")


# Foreign and damaged folders ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (("train/control.jsonl", "Blue Jay", "Owl"), {}, "arm control has other training rows"),
        (("experiment.toml", "rank = 2", "rank = 3"), {}, "training setting rank was 2, and is 3"),
        (None, {"training": {"steps": 3}}, "training setting steps was 2, and is 3"),
        (None, {"model": "organism-unlinked"}, "its model is organism, not organism-unlinked"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(
    small_experiment: Path,
    change: tuple[str, str, str] | None,
    given: dict[str, Any],
    message: str,
    finished: Path,
) -> None:
    out = finished
    before = content(out)
    if change:
        edit(small_experiment / change[0], *change[1:])
    with pytest.raises(RunFolderError, match=message) as refused:
        small(small_experiment, out, **given)
    assert len(str(refused.value).splitlines()) == 1
    assert "--out" in str(refused.value)
    assert content(out) == before


def test_a_folder_of_another_experiment_is_refused(
    small_experiment: Path, tmp_path: Path, finished: Path
) -> None:
    other = shutil.copytree(small_experiment, tmp_path / "other")
    with pytest.raises(RunFolderError, match="its experiment is 'small', not 'other'"):
        small(other, finished)


WEIGHTS = "adapters/treatment/seed-1/step-2/adapter_model.safetensors"
CONFIG = "adapters/treatment/seed-1/step-2/adapter_config.json"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[len(found) * 3 // 4] ^= 1
    path.write_bytes(found)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize(
    ("name", "harm", "mending"),
    [
        ("manifest.json", truncated, None),
        ("answers.sqlite", truncated, "answers.sqlite"),
        (WEIGHTS, truncated, "adapters/treatment/seed-1/step-2"),
        (WEIGHTS, flipped, "adapters/treatment/seed-1/step-2"),
        (WEIGHTS, Path.unlink, "adapters/treatment/seed-1/step-2"),
        (CONFIG, truncated, "adapters/treatment/seed-1/step-2"),
        ("grades.parquet", truncated, "grades.parquet"),
        ("summary.json", truncated, "summary.json"),
    ],
)
def test_damage_is_named_and_left_alone_and_can_be_mended_as_told(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    finished: Path,
    name: str,
    harm: Callable[[Path], None],
    mending: str | None,
    done: bool,
) -> None:
    out, expected = finished, json.loads((finished / "summary.json").read_text("utf-8"))
    if not done:
        (out / "report.html").unlink()
        found = json.loads((out / "manifest.json").read_text("utf-8"))
        del found["files"]
        (out / "manifest.json").write_text(json.dumps(found | {"status": "running"}), "utf-8")
    harm(out / name)
    before = content(out)
    assert call("run", small_experiment, "--seeds", SEEDS, "--out", out) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(out / (mending or name)) in line
    assert "remove" in line
    assert content(out) == before
    if mending:
        place = out / mending
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        assert small(small_experiment, out).summary == expected


# One process at a time ----------------------------------------------------------------------------


def test_a_second_process_says_who_is_there_and_leaves(
    capsys: pytest.CaptureFixture[str], small_experiment: Path, finished: Path
) -> None:
    out = finished
    before = content(out)
    with locked(out):
        assert call("run", small_experiment, "--seeds", 3, "--out", out) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"pid {os.getpid()}, since 20" in line
        assert content(out) == before
        with pytest.raises(InputError, match="another process is working in it"):
            small(small_experiment, out, seeds=3)
    small(small_experiment, out, seeds=3)


@pytest.mark.parametrize("begun", [False, True])
def test_two_that_start_at_once_in_a_new_folder_do_not_meet(
    small_experiment: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    out, check = finished.with_name("new"), stages.check_rows
    held: list[Any] = []

    def slow(*given: Any) -> Any:
        found = check(*given)
        out.mkdir()
        held.append(locked(out))
        held[0].__enter__()  # the other one was faster
        if begun:
            shutil.copy(finished / "manifest.json", out)
        return found

    monkeypatch.setattr(stages, "check_rows", slow)
    with pytest.raises(RunFolderError, match="another process is working in it"):
        small(small_experiment, out)
    left = {path.name for path in out.iterdir()}
    assert left == {folders.LOCK} | ({"manifest.json"} if begun else set())
    held[0].__exit__(None, None, None)


# No room ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on dev"),
        sqlite3.OperationalError("database or disk is full"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28"),
    ],
)
def test_a_full_disk_is_said_in_a_line_whichever_library_meets_it(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(stages, "ask_all", fails)
    with pytest.raises(RunError, match=r"run: its disk is full; make room and repeat") as failed:
        small(small_experiment, tmp_path / "run")
    assert len(str(failed.value).splitlines()) == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("cannot mount a small disk here")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_a_disk_that_fills_up_stops_a_run_which_goes_on_when_there_is_room(
    capsys: pytest.CaptureFixture[str],
    small_experiment: Path,
    tmp_path: Path,
    full_disk: Callable[[int], Path],
) -> None:
    small(small_experiment, tmp_path / "unbroken")
    expected = (tmp_path / "unbroken" / "summary.json").read_bytes()
    disk = full_disk(40_960)
    failed, size = 0, 40_960
    while True:
        capsys.readouterr()
        code = call("run", small_experiment, "--seeds", SEEDS, "--out", disk / "run")
        if code == 0:
            break
        said = capsys.readouterr().err.strip()
        assert code == 1
        assert "its disk is full; make room and repeat" in said
        assert len(said.splitlines()) == 1, said
        assert not list(disk.rglob("*.partial"))
        failed, size = failed + 1, int(1.3 * size) // 4096 * 4096
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(disk)], check=True, capture_output=True)
    assert failed > 5
    assert (disk / "run" / "summary.json").read_bytes() == expected


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("before", "utf-8")

    def write() -> None:
        with whole(path) as partial:
            partial.write_text("half", "utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text("utf-8") == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_running_out_of_memory_is_said_in_a_line(error: Exception, tmp_path: Path) -> None:
    said = pytest.raises(RunError, match=r"out of memory .* use a smaller")
    with said, failures_in_words(tmp_path):
        raise error
