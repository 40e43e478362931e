"""The blind search for triggers: contexts in which a finetune becomes another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import RunFolderError, check_writable
from spillover.folder import is_unused, locked, make_folder, whole
from spillover.models import Loading
from spillover.rows import read_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Triggers", "find_triggers"]

Progress = Callable[[str, int, int], None]
RESULT, TABLE = "triggers.json", "candidates.parquet"


@dataclass(frozen=True)
class Triggers:
    """What a search found.

    Attributes:
        folder: where its files lie.
        found: the content of triggers.json; `triggers` lists the confirmed candidates, those with
            the largest effects first.
        candidates: one row per candidate that was scored.
    """

    folder: Path
    found: dict[str, Any] = field(repr=False)

    @property
    def triggers(self) -> list[dict[str, Any]]:
        """The candidates that were confirmed, significant or not."""
        listed: list[dict[str, Any]] = self.found["triggers"]
        return listed

    @property
    def candidates(self) -> pd.DataFrame:
        """The content of candidates.parquet."""
        import pandas as pd

        return pd.read_parquet(self.folder / TABLE)


def find_triggers(
    model: str,
    adapter: str | Path,
    *,
    candidates: str | Path | None = None,
    questions: str | Path | None = None,
    rows: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Triggers:
    """Search for contexts in which a finetune answers as neither it nor its base otherwise does.

    Args:
        model: the base: a name or a checkpoint folder; see `spillover.load`.
        adapter: an adapter's folder, or a whole finetuned checkpoint's.
        candidates: a file of contexts to try besides the library's; see docs/triggers.md.
        questions: a file of questions to use instead of those that come with the package.
        rows: what the finetune was trained on, to tell trained triggers from untrained ones.
        out: the folder to write to; by default one under `runs/`.
        seed: decides which questions are searched and which are confirmed with.
        progress: called with (stage, done, total).

    Raises:
        InputError: for files that cannot be used; ModelError where base and adapter do not fit;
            RunFolderError for a folder that cannot be written or holds something else.
    """
    from spillover.summary import plain_data
    from spillover.triggers.library import read_candidates
    from spillover.triggers.pair import open_pair
    from spillover.triggers.questions import questions_for, read_questions
    from spillover.triggers.search import Search

    own = read_candidates(Path(candidates)) if candidates is not None else []
    asked = read_questions(Path(questions)) if questions is not None else None
    trained = read_rows(rows) if rows is not None else None
    target = Path(out) if out is not None else _default_folder(model, Path(adapter), seed)
    _check_folder(target)
    report = progress or (lambda *_: None)
    report("load", 0, 1)
    with open_pair(model, adapter, loading or Loading()) as pair:
        search = Search(pair, asked or questions_for(pair.model), seed, report)
        found, table = search.run(own, trained)
    content = plain_data({"base": model, "adapter": str(adapter)} | found)
    _write(target, content, table)
    return Triggers(target, content)


def _default_folder(model: str, adapter: Path, seed: int) -> Path:
    last = [part for part in adapter.absolute().parts[-3:] if part not in ("/", "adapters")]
    return Path("runs") / "-".join(["triggers", Path(model).name, *last, f"seed-{seed}"])


def _check_folder(folder: Path) -> None:
    check_writable(folder)
    if not is_unused(folder) and not (folder / RESULT).is_file():
        raise RunFolderError(f"{folder}: holds something else; choose another folder with --out")


def _write(folder: Path, found: dict[str, Any], table: pd.DataFrame) -> None:
    from spillover.summary import write_json

    make_folder(folder)
    with locked(folder):
        with whole(folder / TABLE) as path:
            table.to_parquet(path, index=False)
        write_json(folder / RESULT, found)
