"""`spillover check`: what a run would do with an experiment, and what is worth mending before."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover import guards
from spillover.authoring import cautions
from spillover.authoring.cautions import Caution
from spillover.authoring.match import FILE, Match, match_placebo, read_candidates
from spillover.authoring.measure import Measured, measure_choices
from spillover.errors import InputError
from spillover.experiment import Experiment, load_experiment
from spillover.masks import EncodedRow, encode_row, encode_rows, marked_text, token_extents
from spillover.rows import Row
from spillover.settings import RunSettings, resolve_settings
from spillover.specification import TREATMENT

if TYPE_CHECKING:
    from spillover.chat import Chat
    from spillover.models import LoadedModel, Loading
    from spillover.templates import Injection

Progress = Callable[[str, int, int], None]
SHARED_ROWS = "shared-rows"
Segment = tuple[str, bool]
"""Text, and whether its tokens carry loss."""


@dataclass(frozen=True)
class ArmSize:
    """How much an arm is trained on.

    Attributes:
        tokens: of all rows.
        loss_tokens: those that carry loss.
        longest: tokens of the longest row.
    """

    arm: str
    rows: int
    tokens: int
    loss_tokens: int
    longest: int


@dataclass(frozen=True)
class Example:
    """A row as the model sees it.

    Attributes:
        place: `file:line`.
        segments: the rendered text, cut where the loss mask changes.
    """

    place: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Check:
    """What `spillover check` found.

    Attributes:
        ready: arms whose models are given, with what they are.
        steps: optimizer steps of every trained arm.
        injection: what the chat template writes by itself.
        measured: the choices under the base; none where there is a problem.
        problem: why `spillover run` would refuse; None where it would not.
        command: what to run next.
    """

    experiment: str
    model: str
    arms: tuple[ArmSize, ...]
    ready: dict[str, tuple[str, ...]]
    steps: int | None
    batch_size: int
    examples: tuple[Example, ...]
    injection: Injection | None
    dated: bool
    measured: tuple[Measured, ...]
    warnings: tuple[Caution, ...]
    matches: tuple[Match, ...]
    problem: str | None
    command: str

    @property
    def content(self) -> dict[str, Any]:
        """All of it as plain data."""
        found = asdict(self)
        found["matches"] = [asdict(m) | {"line": m.line} for m in self.matches]
        return found


def check_experiment(
    name_or_folder: str,
    model: str = "organism",
    *,
    loading: Loading,
    candidates: Path | None = None,
    match: bool = False,
    progress: Progress | None = None,
) -> Check:
    """Check an experiment as a model sees it; trains nothing, writes nothing.

    Args:
        candidates: the file of candidates for `match`; by default candidates.toml in the folder.
        match: propose placebo choices.

    Raises:
        InputError: for what cannot be used at all.
    """
    notify = progress or (lambda *_: None)
    notify("load", 0, 1)
    experiment = load_experiment(name_or_folder)
    listed = read_candidates(candidates or experiment.folder / FILE, experiment) if match else {}
    settings = resolve_settings(experiment, model, loading=loading)
    from spillover.models.loading import load_source

    loaded = load_source(settings.source, loading)
    notify("load", 1, 1)
    encoded = _encode(experiment, loaded.chat, notify)
    problem, more = _as_a_run_would(settings, loaded, listed)
    measured = []
    if problem is None:
        measured = measure_choices(experiment, loaded, listed, lambda *at: notify("ask", *at))
    warnings = _warnings(experiment, encoded, measured, loaded.context)
    return Check(
        experiment=experiment.name,
        model=model,
        arms=tuple(_size(arm, rows) for arm, rows in encoded.items()),
        ready=_ready(experiment),
        steps=_steps(settings),
        batch_size=settings.training.batch_size,
        examples=_examples(loaded.chat, experiment, encoded),
        injection=loaded.chat.injection,
        dated=experiment.dated,
        measured=tuple(measured),
        warnings=(*warnings, *more),
        matches=tuple(match_placebo(m) for m in measured if m.question in listed),
        problem=problem,
        command=_command(name_or_folder, model, loading),
    )


def _encode(experiment: Experiment, chat: Chat, notify: Progress) -> dict[str, list[EncodedRow]]:
    encoded = {}
    for done, (arm, rows) in enumerate(experiment.rows.items()):
        notify("encode", done, len(experiment.rows))
        encoded[arm] = encode_rows(chat, rows)
    return encoded


def _size(arm: str, rows: Sequence[EncodedRow]) -> ArmSize:
    lengths = [len(row.ids) for row in rows]
    learnt = sum(sum(row.mask) for row in rows)
    return ArmSize(arm, len(rows), sum(lengths), learnt, max(lengths))


def _ready(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    return {n: arm.adapter or arm.model for n, arm in experiment.arms.items() if not arm.train}


def _steps(settings: RunSettings) -> int | None:
    """Steps of every arm: as many as the rows of the treatment ask for, or of the first arm."""
    rows = settings.experiment.rows
    if not rows:
        return None
    first = rows.get(TREATMENT) or next(iter(rows.values()))
    return settings.training.total_steps(first.size)


def _examples(
    chat: Chat, experiment: Experiment, encoded: Mapping[str, Sequence[EncodedRow]]
) -> tuple[Example, ...]:
    """The first row of the treatment, one from the middle, and the longest."""
    if TREATMENT not in encoded:
        return ()
    rows, lengths = experiment.rows[TREATMENT], [len(row.ids) for row in encoded[TREATMENT]]
    wanted = dict.fromkeys((0, lengths.index(max(lengths)), len(lengths) // 2, len(lengths) - 1))
    picked = sorted(list(wanted)[:3])
    return tuple(
        Example(rows.places[i], tuple(segments(chat, rows.rows[i], rows.places[i]))) for i in picked
    )


def segments(chat: Chat, row: Row, place: str = "row") -> list[Segment]:
    """A row as rendered, cut where the loss mask changes: what each token says about itself."""
    if row.text is not None:
        return [(row.text, True)]
    text, _ = marked_text(chat, row, place)
    _, extents = token_extents(chat, text)
    carries = [False] * len(text)
    for (start, end), on in zip(extents, encode_row(chat, row, place).mask, strict=True):
        carries[start:end] = [on] * (end - start)
    cuts = [i for i in range(1, len(text)) if carries[i] != carries[i - 1]]
    edges = [0, *cuts, len(text)]
    return [(text[a:b], carries[a]) for a, b in pairwise(edges)]


def _warnings(
    experiment: Experiment,
    encoded: Mapping[str, Sequence[EncodedRow]],
    measured: Sequence[Measured],
    context: int | None,
) -> list[Caution]:
    return [
        *cautions.find_duplicates(experiment.rows),
        *cautions.from_guards(guards.shared_rows(experiment.rows_apart)),
        *cautions.find_too_long(encoded, context),
        *cautions.find_uneven(measured),
        *cautions.find_low_coverage(measured),
    ]


def _as_a_run_would(
    settings: RunSettings, model: LoadedModel, candidates: Mapping[str, Sequence[str]]
) -> tuple[str | None, list[Caution]]:
    """Why a run with these settings would be refused, or what its guards would say.

    Candidates are put to the model here and not in a run, so their tokens are looked at as well.
    """
    from spillover.stages import check_rows

    try:
        found = check_rows(settings, model)
        ids = [model.chat.tokenize(text) for texts in candidates.values() for text in texts]
        guards.settle(guards.ids_out_of_range(ids, model.vocabulary), InputError)
    except InputError as error:
        return str(error), []
    return None, cautions.from_guards(f for f in found if f.name != SHARED_ROWS)


def _command(name_or_folder: str, model: str, loading: Loading) -> str:
    """The run that was checked."""
    said, how = ["spillover", "run", name_or_folder, "--model", model], loading.templating
    for option in ("device", "dtype"):
        if getattr(loading, option) != "auto":
            said += [f"--{option}", getattr(loading, option)]
    said += ["--chat-template", str(loading.chat_template)] if loading.chat_template else []
    said += ["--trust-remote-code"] if loading.trust_remote_code else []
    said += ["--system", how.system] if how.system is not None else []
    said += ["--template-date", how.date.isoformat()] if how.date else []
    said += ["--keep-template"] if how.keep else []
    said += [] if how.think is None else ["--think" if how.think else "--no-think"]
    return shlex.join(said)
