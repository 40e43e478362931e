"""Is the effect of a run carried by a few directions? Found, taken out, and measured again.

Beside ablation stand the remedies that it has to beat at equal success in the trained domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.failures import failures_in_words
from spillover.folder import locked, make_folder, remove_partials, whole
from spillover.mediation.case import VERSION, Case, Options, open_case

if TYPE_CHECKING:
    import pandas as pd

    from spillover.runs import Run

__all__ = ["Mediation", "mediate"]

Progress = Callable[[str, int, int], None]
RESULT, TABLE, REPORT = "mediation.json", "mediation.parquet", "report.html"


@dataclass(frozen=True)
class Mediation:
    """What carries a run's effect, and what takes it away.

    Attributes:
        folder: `mediation` in the run's folder.
        content: of mediation.json: `rows` with every remedy at every strength, `verdict`.
    """

    folder: Path
    content: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every remedy at every strength, on held-out questions."""
        found: list[dict[str, Any]] = self.content["rows"]
        return found

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        import pandas as pd

        return pd.read_parquet(self.folder / TABLE)


def mediate(
    run: str | Path | Run,
    *,
    experiment: str | Path | None = None,
    prompts: str | Path | None = None,
    inoculation: str | None = None,
    remedies: bool = True,
    progress: Progress | None = None,
) -> Mediation:
    """Find the directions behind a run's effect, take them out, and measure again.

    Directions are differences between treatment and control, found on one half of the off-domain
    `dev` questions, chosen on the other, and reported on `test`. What is finished is kept: a call
    that was stopped goes on.

    Args:
        run: a finished run, or its folder.
        experiment: its experiment's folder, where that is none of the package.
        prompts: a file of unrelated prompts, for the remedies that need some.
        inoculation: the sentence of that remedy.
        remedies: False leaves out those that are trained.

    Returns:
        the mediation; everything lies in the folder `mediation` of the run.

    Raises:
        InputError: for a run that cannot be mediated, before anything is computed.
        RunError: when training fails.
    """
    from spillover.runs import Run, open_run

    opened = run if isinstance(run, Run) else open_run(run)
    options = Options(Path(prompts) if prompts else None, inoculation, remedies)
    case = open_case(opened, experiment, options)
    known = _read(case)
    if known is not None and all((case.folder / name).is_file() for name in (TABLE, REPORT)):
        return Mediation(case.folder, known)
    notify = progress or (lambda *_: None)
    make_folder(case.folder)
    with failures_in_words(case.folder), locked(case.folder):
        remove_partials(case.folder)
        content = known or _compute(case, notify)
        _write(case.folder, content, notify)
        return Mediation(case.folder, content)


def _read(case: Case) -> dict[str, Any] | None:
    """What is computed already, if it was made of the same."""
    try:
        found = json.loads((case.folder / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    mine = isinstance(found, dict) and found.get("key") == case.key
    return found if mine else None


def _compute(case: Case, notify: Progress) -> dict[str, Any]:
    from spillover.mediation.measure import Measure
    from spillover.models.loading import load_source
    from spillover.reuse import ANSWERS
    from spillover.store import AnswerStore
    from spillover.summary import plain_data

    notify("load", 0, 1)
    model = load_source(case.settings.source, case.settings.loading)
    with AnswerStore(case.folder / ANSWERS) as store:
        found = Measure(case, model, store, notify).content()
    specification = case.experiment.specification
    content: dict[str, Any] = plain_data(
        {
            "schema": VERSION,
            "key": case.key,
            "experiment": case.experiment.name,
            "title": specification.title,
            "trait": specification.names.trait,
            "model": case.settings.source.name,
            "seeds": list(case.seeds),
            "step": case.step,
            "control": case.control,
            "context": case.headline.name,
            "trained_context": case.trained.name,
            "metric": case.metric,
            "in_domain_metric": case.inside,
            **found,
        }
    )
    return content


def _write(folder: Path, content: dict[str, Any], notify: Progress) -> None:
    """The result, and then what is made of it: what took hours is kept before it is shown.

    What an earlier result was shown by goes first, so that nothing of two results lies together.
    """
    import pandas as pd

    from spillover.report.mediation import write_mediation_report
    from spillover.summary import write_json

    notify("report", 0, 1)
    for name in (TABLE, REPORT):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / RESULT, content)
    listed = [{k: v for k, v in row.items() if k != "missing"} for row in content["rows"]]
    with whole(folder / TABLE) as partial:
        pd.json_normalize(listed).to_parquet(partial)
    write_mediation_report(folder, content)
    notify("report", 1, 1)
