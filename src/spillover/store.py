"""Answers on disk: one SQLite file is the record; nothing that was computed is lost to a crash."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
"""Raised when the columns change; a file of another version is refused, never misread."""

CHOICE, TEXT, SHOWN = "choice", "text", "shown"
"""Kinds of answers: a forced choice, a free answer that is graded, one that is only read."""


@dataclass(frozen=True)
class Answer:
    """One answer as it is recorded.

    Attributes:
        key: hash of respondent, messages, parameters and index: what makes answers equal.
        kind: `choice`, `text` or `shown`.
        choice_log_probs: JSON list of [label, choice, log-probability], for a choice.
        reasoning: what was written before the answer or choice, kept apart from it.
        text, finish: a free answer and why it ended.
    """

    key: str
    respondent: str
    arm: str
    seed: int
    step: int
    question: str
    paraphrase: int
    context: str
    index: int
    kind: str
    choice_log_probs: str | None = None
    text: str | None = None
    reasoning: str | None = None
    finish: str | None = None


COLUMNS = [field.name for field in fields(Answer)]
NUMBERS = ("seed", "step", "paraphrase", "index")
REPEATED = ("respondent", "arm", "question", "context", "kind", "finish")
"""Columns of few different texts."""
BATCH = 20_000
"""Answers that a piece of a table's columns holds."""
FETCHED = 500
"""Rows read at a time: too few for Python's collector to look at them before they are freed."""


def answer_key(respondent: str, messages: Any, parameters: Any, index: int) -> str:
    """The primary key of an answer."""
    content = json.dumps([respondent, messages, parameters, index], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


class AnswerStore:
    """The file `answers.sqlite` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise RunFolderError(
                    f"{path}: written by another version (found {version}, expected {VERSION}); "
                    "choose another --out"
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            columns = ", ".join(f'"{c}"' for c in COLUMNS[1:])
            self._db.execute(
                f'CREATE TABLE IF NOT EXISTS answers ("key" TEXT PRIMARY KEY, {columns})'
            )
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self._db.commit()
        except sqlite3.OperationalError:
            raise  # no room, no permission: the file is sound
        except sqlite3.DatabaseError as error:
            raise RunFolderError(_damaged(path, error)) from None

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def recorded(self, keys: Sequence[str]) -> set[str]:
        """Those of these keys whose answers are recorded; looked up in the index of keys."""
        found: set[str] = set()
        for at in range(0, len(keys), 500):
            part = keys[at : at + 500]
            marks = ",".join("?" * len(part))
            query = f'SELECT "key" FROM answers WHERE "key" IN ({marks})'
            found.update(key for (key,) in self._db.execute(query, part))
        return found

    def count(self) -> int:
        """How many answers are recorded."""
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def add(self, answers: Iterable[Answer]) -> None:
        """Record answers in one transaction, all of them or none; what is there stays as it is."""
        marks = ",".join("?" * len(COLUMNS))
        with self._db:
            self._db.executemany(
                f"INSERT OR IGNORE INTO answers VALUES ({marks})", map(astuple, answers)
            )

    def frame(self, keys: Collection[str] | None = None) -> pd.DataFrame:
        """Answers as a table, in an order that does not depend on when they were recorded.

        Read in batches: at no time is more than one of them held as Python objects. Columns of few
        different texts are categorical, in the order of the texts.

        Args:
            keys: the answers wanted; all, where not given.
        """
        import pandas as pd

        order = 'arm, seed, step, question, context, paraphrase, "index", "key"'
        rows = self._db.execute(f"SELECT * FROM answers ORDER BY {order}")
        wanted = None if keys is None else frozenset(keys)
        parts: dict[str, list[Any]] = {name: [_column(name, ())] for name in COLUMNS}
        while columns := _fetched(rows, wanted):
            for name, values in columns.items():
                parts[name].append(_column(name, values))
        return pd.DataFrame({name: _joined(parts.pop(name)) for name in COLUMNS})


def _fetched(rows: sqlite3.Cursor, wanted: Collection[str] | None) -> dict[str, list[Any]] | None:
    """The columns of the next batch, of the answers that are wanted; None after the last."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for start in range(0, BATCH, FETCHED):
        fetched = rows.fetchmany(min(FETCHED, BATCH - start))
        if not (start or fetched):
            return None
        kept = [row for row in fetched if wanted is None or row[0] in wanted]
        for name, values in zip(COLUMNS, zip(*kept, strict=True), strict=False):
            columns[name].extend(values)
    return columns


def _column(name: str, values: Sequence[Any]) -> Any:
    """Some values of a column as Arrow holds them."""
    import pyarrow as pa

    kind = pa.int64() if name in NUMBERS else pa.large_string()
    # Arrow's own pool holds a third more for many pieces of this size.
    made = pa.array(values, kind, memory_pool=pa.system_memory_pool())
    return made.dictionary_encode() if name in REPEATED else made


def _joined(parts: list[Any]) -> pd.Series:
    """A whole column, its categories in order."""
    import pandas as pd
    import pyarrow as pa

    column = pa.chunked_array(parts)
    if pa.types.is_large_string(column.type):
        return pd.Series(pd.array(column, dtype="str"))
    made: pd.Series = column.unify_dictionaries().to_pandas()
    categorical = pa.types.is_dictionary(column.type)
    return made.cat.reorder_categories(sorted(made.cat.categories)) if categorical else made


def check_answers_file(path: Path) -> None:
    """Look at every page of a record of answers, where there is one; half a second per million.

    Raises:
        RunFolderError: when it is damaged.
    """
    if not path.is_file():
        return
    is_closed = not path.with_name(f"{path.name}-wal").exists()  # then reading leaves no trace
    uri = f"{path.absolute().as_uri()}{'?immutable=1' if is_closed else ''}"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        try:
            found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            found = str(error)
    if found != "ok":
        raise RunFolderError(_damaged(path, found))


def _damaged(path: Path, reason: object) -> str:
    line = str(reason).replace("\n", " ")
    return (
        f"{path}: damaged, not a readable record of answers ({line}); remove it and repeat the "
        "command: its questions are asked again"
    )


def choice_record(labelled: Sequence[tuple[str, str]], log_probs: Sequence[float]) -> str:
    """The JSON of a forced choice."""
    rows = [[label, text, value] for (label, text), value in zip(labelled, log_probs, strict=True)]
    return json.dumps(rows, ensure_ascii=False)
