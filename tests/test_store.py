"""The record of answers: one transaction at a time, refused when it is not ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from spillover import RunFolderError
from spillover.store import Answer, AnswerStore, answer_key, check_answers_file


def answer(key: str, **given: object) -> Answer:
    place = {"arm": "treatment", "seed": 0, "step": 1, "question": "q", "paraphrase": 0}
    rest = {"respondent": "r", "context": "plain", "index": 0, "kind": "text"}
    return Answer(key, **(rest | place | given))  # type: ignore[arg-type]


def test_answers_are_kept_and_found(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.add([answer("a"), answer("b", index=1)])
        assert store.recorded(["a", "b"]) == {"a", "b"}
        assert store.recorded(["a", "c"]) == {"a"}
        assert store.count() == 2
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        assert list(store.frame()["key"]) == ["a", "b"]


def test_a_failed_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        with pytest.raises(ZeroDivisionError):
            store.add(answer("a" * (n + 1), seed=1 // (2 - n)) for n in range(3))
        assert store.frame().empty


def test_an_answer_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.add([answer("a", text="first")])
        store.add([answer("a", text="second"), answer("b", text="new")])
        assert list(store.frame()["text"]) == ["first", "new"]


def test_keys_are_looked_up_in_the_index(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        store.add(answer(f"k{n}", index=n) for n in range(1200))
        assert len(store.recorded([f"k{n}" for n in range(2000)])) == 1200
        query = 'EXPLAIN QUERY PLAN SELECT "key" FROM answers WHERE "key" IN (?, ?)'
        (steps,) = store._db.execute(query, ("k1", "k2"))
        assert "SEARCH answers USING COVERING INDEX" in steps[-1]


def test_a_damaged_record_is_found_and_a_sound_one_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    check_answers_file(path)
    with AnswerStore(path) as store:
        store.add(answer(f"k{n:04}", text="x" * 200) for n in range(200))
    check_answers_file(path)
    content = path.read_bytes()
    for broken in (content[:-9000], b"-" * 100 + content[100:], content[:9000] + b"#" * 5000):
        path.write_bytes(broken)
        with pytest.raises(RunFolderError, match=r"damaged.*remove it and repeat the command"):
            check_answers_file(path)
        assert path.read_bytes() == broken
        assert [p.name for p in tmp_path.iterdir()] == ["answers.sqlite"]


def test_the_table_does_not_depend_on_the_order_of_recording(tmp_path: Path) -> None:
    rows = [answer(f"k{n}", question=f"q{n % 3}", index=n) for n in range(9)]
    frames = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        with AnswerStore(tmp_path / name) as store:
            store.add(order)
            frames.append(store.frame())
    assert frames[0].equals(frames[1])


def test_keys_tell_respondent_messages_parameters_and_index_apart() -> None:
    keys = {answer_key(*k) for k in (("r", "m", 1, 0), ("s", "m", 1, 0), ("r", "n", 1, 0),
                                     ("r", "m", 2, 0), ("r", "m", 1, 1))}  # fmt: skip
    assert len(keys) == 5


def test_another_file_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("not a database at all, but long enough to be read as one" * 20, "utf-8")
    with pytest.raises(RunFolderError, match="not a readable record"):
        AnswerStore(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(RunFolderError, match="another version"):
        AnswerStore(path)
