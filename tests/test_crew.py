"""Work that is shared out to processes: done once, with one result, whatever becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spillover import LoadedModel, crew, failpoints
from spillover.ask import in_groups
from spillover.crew import crew_of, share_out
from spillover.errors import MachineError, RunError
from spillover.failpoints import VARIABLE
from spillover.folder import PARTIAL
from tests.small_runs import (
    SEEDS,
    adapters_of,
    answers_of,
    edit,
    end,
    is_training,
    small,
    spillover,
    wait_for,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="helpers are forked")


def shared(parts: int, processes: int) -> tuple[dict[int, int], set[int]]:
    """What came of some parts, and which processes worked on them."""
    found: dict[int, int] = {}
    workers: set[int] = set()

    def do(part: int) -> tuple[int, int]:
        time.sleep(0.02)
        return part * part, os.getpid()

    def took(number: int, result: tuple[int, int]) -> None:
        assert number not in found
        found[number] = result[0]
        workers.add(result[1])

    share_out(range(parts), do, took, processes)
    return found, workers


@pytest.mark.parametrize(
    ("parts", "processes"), [(0, 1), (0, 2), (1, 2), (20, 1), (20, 2), (20, 3)]
)
def test_every_part_is_done_once_by_as_many_processes_as_there_are(
    parts: int, processes: int
) -> None:
    found, workers = shared(parts, processes)
    assert found == {number: number * number for number in range(parts)}
    alone = processes == 1 or parts < 2
    assert (workers <= {os.getpid()}) == alone or not parts
    assert len(workers) <= min(parts, processes)


def test_helpers_work_at_the_same_time() -> None:
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    workers: set[int] = set()

    def do(_: int) -> int:
        both.wait(30)  # until the other one is here
        return os.getpid()

    share_out(range(2), do, lambda _, who: workers.add(who), 2)
    assert len(workers) == 2
    assert os.getpid() not in workers


def test_no_more_helpers_work_than_there_is_room_for() -> None:
    workers: set[int] = set()
    share_out(range(6), lambda _: os.getpid(), lambda _, who: workers.add(who), 4, room=1)
    assert len(workers) == 1
    assert os.getpid() not in workers


def test_what_arrives_is_taken_in_at_once() -> None:
    """A kill of this process loses the part that each helper is at, no more."""
    late: list[float] = []

    def do(part: int) -> float:
        time.sleep(1.5 if part == 0 else 0.01)
        return time.monotonic()

    def took(part: int, ended: float) -> None:
        if part:
            late.append(time.monotonic() - ended)

    share_out(range(12), do, took, 2)
    assert max(late) < 1


def test_a_part_that_is_lost_without_a_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_taken", lambda *_: iter([0, 1]))
    with pytest.raises(MachineError, match="without a word"):
        share_out(range(8), lambda part: part, lambda *_: None, 2)


def test_a_result_that_cannot_be_sent_is_an_error_of_its_part() -> None:
    with pytest.raises(Exception, match="pickle"):
        share_out(range(4), lambda _: lambda: 0, lambda *_: None, 2)


def test_parts_are_computed_with_one_thread_and_the_number_is_restored() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        share_out(range(6), lambda _: torch.get_num_threads(), lambda _, n: seen.append(n), 2)
        assert seen == [1] * 6
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_large_result_and_many_of_them_arrive_while_this_process_is_busy() -> None:
    sizes: list[int] = []

    def do(part: int) -> bytes:
        time.sleep(0.3 if part == 0 else 0)
        return bytes(1_000_000)

    share_out(range(12), do, lambda _, result: sizes.append(len(result)), 2)
    assert sizes == [1_000_000] * 12


class UnsendableError(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


@pytest.mark.parametrize(
    ("error", "seen", "said"),
    [
        (RunError("the loss is nan"), RunError, "the loss is nan"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
        (UnsendableError(1, 2), RunError, "UnsendableError: 1 and 2"),
    ],
)
def test_what_a_helper_raises_is_raised_here_and_no_helper_is_left(
    error: Exception, seen: type[Exception], said: str
) -> None:
    def do(part: int) -> int:
        time.sleep(0.02)
        if part > 2:
            raise error
        return part

    with pytest.raises(seen, match=said) as caught:
        share_out(range(1000), do, lambda *_: None, 2)
    assert len(str(caught.value).splitlines()) == 1
    assert "raise error" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_what_is_raised_here_ends_the_helpers() -> None:
    helpers: set[int] = set()

    def do(_: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    def took(_: int, who: int) -> None:
        helpers.add(who)
        if len(helpers) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share_out(range(1000), do, took, 2)
    assert_gone(helpers)


def test_a_helper_that_the_system_ends_is_a_machine_error_with_a_way_out() -> None:
    def do(part: int) -> None:
        if part == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MachineError, match="OMP_NUM_THREADS=1 to work without helpers"):
        share_out(range(20), do, lambda *_: None, 2)


ENDLESS = """
import os, time
from spillover.crew import share_out

def do(part):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: both write to the same pipe
    time.sleep(60)

share_out(range(2), do, lambda *_: None, 2)
"""


def test_helpers_end_with_the_process_that_they_help() -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    workers = {int(process.stdout.readline()) for _ in range(2)}
    assert process.pid not in workers
    process.kill()
    process.communicate(timeout=10)  # its output ends when nobody can write to it any more
    assert_gone(workers)


def children_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8")


def assert_gone(processes: set[int]) -> None:
    assert processes
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), seconds=5)


def test_only_small_models_on_several_threads_are_shared(
    organism: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for threads, size in ((1, 1), (2, 2), (64, crew.MOST)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert crew_of(organism) == size
    monkeypatch.setattr(crew, "SMALL", 1000)
    assert crew_of(organism) == 1
    monkeypatch.undo()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert crew_of(organism) == 1


class CutError(Exception):
    """Stands for a power cut."""


def cut(where: str) -> None:
    raise CutError(where)


@pytest.mark.usefixtures("quick")
def test_answers_are_the_same_whoever_computes_them(
    small_experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same adapters, asked by two processes and by one."""
    out, alone = tmp_path / "shared", tmp_path / "alone"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(crew, "_held", [0])
    monkeypatch.setattr("spillover.ask.CHOICES", 4)
    monkeypatch.setattr("spillover.ask.ANSWERS", 4)
    try:
        monkeypatch.setenv(VARIABLE, "plan")
        monkeypatch.setattr(failpoints, "stop", cut)
        with pytest.raises(CutError):
            small(small_experiment, out)
        monkeypatch.delenv(VARIABLE)
        shutil.copytree(out, alone)
        small(small_experiment, out)
        assert crew.most_held() > 0  # there were helpers
        monkeypatch.setattr(crew, "MOST", 1)
        torch.set_num_threads(1)
        small(small_experiment, alone)
    finally:
        torch.set_num_threads(threads)
    assert (out / "summary.json").read_bytes() == (alone / "summary.json").read_bytes()
    both = [{key: row[1] for key, row in answers_of(place).items()} for place in (out, alone)]
    assert both[0] == both[1]


@pytest.mark.long
def test_a_run_with_a_helper_that_is_stopped_or_killed_goes_on_to_the_same_bytes(
    small_experiment: Path, tmp_path: Path
) -> None:
    edit(small_experiment / "experiment.toml", "steps = 2", "steps = 30")
    out, unbroken = tmp_path / "run", tmp_path / "unbroken"

    def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
        given = ("run", small_experiment, "--seeds", SEEDS, "--out", folder)
        return spillover(*given, OMP_NUM_THREADS="2", **environment)

    process = start(out)
    wait_for(lambda: is_training(out) and bool(children_of(process.pid)))
    end(process, signal.SIGTERM, seconds=5)
    assert not list(out.rglob(f"*{PARTIAL}"))
    killed = start(out, **{VARIABLE: "chunk:2"})
    killed.communicate(timeout=120)
    assert killed.returncode == 137
    trained = adapters_of(out)
    for folder in (out, unbroken):
        process = start(folder)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert adapters_of(out) == trained
    summaries = [(folder / "summary.json").read_bytes() for folder in (out, unbroken)]
    assert summaries[0] == summaries[1]


def test_groups_are_even_and_keep_their_order() -> None:
    for sizes, enough in (([300] * 10, 512), ([16] * 31, 48), ([5, 90, 5, 1], 40), ([1] * 95, 48)):
        groups = in_groups(range(len(sizes)), sizes, enough)
        assert [part for group in groups for part in group] == list(range(len(sizes)))
        assert all(groups)
    assert [len(group) for group in in_groups(range(12), [100] * 12, 256)] == [3, 3, 3, 3]
    assert [len(group) for group in in_groups(range(95), [1] * 95, 48)] == [95]
    assert in_groups([], [], 4) == []
