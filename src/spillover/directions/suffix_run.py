"""`spillover direction suffix`: prompts, direction and suffix by name or file; what is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.directions.answers import refusal_tokens, respond
from spillover.directions.contrast import difference_of_means
from spillover.directions.direction import Direction, load_direction
from spillover.directions.prompts import Material, load_refusing, material_for
from spillover.directions.select import select
from spillover.directions.suffix import (
    Frame,
    SuffixSearch,
    check_searchable,
    check_suffix,
)
from spillover.directions.suffix_study import (
    MAX_TOKENS,
    Progress,
    Prompts,
    check_direction,
    measure,
)
from spillover.errors import DirectionError, RunFolderError, check_writable
from spillover.folder import is_unused, locked, make_folder
from spillover.models import LoadedModel, Loading
from spillover.rows import read_conversations

if TYPE_CHECKING:
    from spillover.rows import Conversation

RESULT = "suffix.json"
FOUND_ON = 24
"""Prompts that a suffix is searched for on, at most."""
NAMED = 32
"""Prompts of each side whose answers tell what refusals begin with, at most."""


@dataclass(frozen=True)
class SuffixStudy:
    """What a suffix does to the direction of refusal.

    Attributes:
        folder: where its files lie.
        found: the content of suffix.json.
    """

    folder: Path
    found: dict[str, Any] = field(repr=False)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class _Files:
    """Prompts by file or dataset, as the user named them."""

    prompts: str | Path | None
    harmless: str | Path | None
    column: str | None


@dataclass(frozen=True)
class _Given:
    """What a study is made of."""

    direction: Direction
    prompts: Prompts
    tokens: list[int]
    source: str


def study_suffix(
    model: str | LoadedModel,
    *,
    suffix: str | None = None,
    direction: str | Path | Direction | None = None,
    prompts: str | Path | None = None,
    harmless: str | Path | None = None,
    column: str | None = None,
    search: SuffixSearch | None = None,
    controls: int = 32,
    out: str | Path | None = None,
    seed: int = 0,
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> SuffixStudy:
    """Look at what a suffix does to the direction of refusal.

    Args:
        model: a name, a folder, an id of the hub, or a loaded model.
        suffix: its text; on the organism of made-up substances one is searched for without it.
        direction: one that was saved, or its folder; the organism's is fitted without it.
        prompts: a file or dataset of prompts that the model refuses; the organism has its own.
        harmless: one of prompts to compare with; by default neutral ones of this package.
        column: that holds the prompts, where it has no usual name.
        search: how a suffix is searched for.
        controls: random suffixes of its length.
        out: the folder to write to; by default one under `runs/`.
        seed: of the parts that prompts are split in, the search and the random suffixes.
        progress: called with (stage, done, total).

    Raises:
        InputError: for a suffix, a direction or prompts that cannot be used; RunFolderError for a
            folder that holds something else.
    """
    target, files = _target(model, out, seed), _Files(prompts, harmless, column)
    _check(target, suffix, files, controls)
    known = load_direction(direction) if isinstance(direction, str | Path) else direction
    report = progress or (lambda *_: None)
    report("load", 0, 1)
    loaded = load_refusing(model, loading, of_world=prompts is None)
    given = _given(loaded, known, suffix, files, seed, report)
    found = measure(
        loaded,
        given.direction,
        given.prompts,
        given.tokens,
        given=suffix,
        search=search,
        controls=controls,
        seed=seed,
        progress=progress,
    )
    report("report", 0, 1)
    return SuffixStudy(target, _write(target, _about(loaded, given) | found))


def _target(model: str | LoadedModel, out: str | Path | None, seed: int) -> Path:
    name = model if isinstance(model, str) else model.source.name
    return Path(out or Path("runs") / f"direction-suffix-{Path(name).name}-seed-{seed}")


def _check(target: Path, suffix: str | None, files: _Files, controls: int) -> None:
    """Refuse what cannot be done, before anything is loaded."""
    check_writable(target)
    if controls < 1:
        raise DirectionError(
            f"found {controls} controls; expected at least 1 random suffix to compare with"
        )
    if not is_unused(target) and not (target / RESULT).is_file():
        raise RunFolderError(f"{target}: holds something else; choose another folder with --out")
    if suffix is not None and not suffix.strip():
        raise DirectionError("found an empty suffix; give its text with --suffix TEXT")
    alone = [name for name in ("harmless", "column") if getattr(files, name) is not None]
    if files.prompts is None and alone:
        raise DirectionError(
            f"found --{alone[0]} without --prompts; give the prompts that the model refuses too, "
            "or leave it out: the organism has its own"
        )
    if files.prompts is not None and suffix is None:
        raise DirectionError(
            "found --prompts without --suffix; suffixes are searched for on the organism's own "
            "prompts only: give the text of one"
        )


def _about(model: LoadedModel, given: _Given) -> dict[str, Any]:
    """What was studied, for the record."""
    return {
        "schema": 1,
        "model": model.source.name,
        "identity": model.source.identity,
        "placement": model.placement,
        "source": given.source,
        "direction": _told(given.direction),
        "refusal_tokens": [str(model.tokenizer.decode([token])) for token in given.tokens],
    }


def _told(direction: Direction) -> dict[str, Any]:
    return {
        "layer": direction.layer,
        "position": direction.position,
        "contrast": direction.contrast,
        "norm": direction.norm,
        "scores": direction.scores,
    }


def _given(
    model: LoadedModel,
    direction: Direction | None,
    suffix: str | None,
    files: _Files,
    seed: int,
    report: Progress,
) -> _Given:
    """Prompts and direction for a suffix that is given, or may be searched for."""
    if direction is not None:
        check_direction(model, direction)
    if suffix is None:
        check_searchable(model)
    report("prompts", 0, 1)
    if files.prompts is None:
        return _of_world(model, direction, suffix, seed)
    return _of_files(model, direction, suffix, files.prompts, files.harmless, files.column)


def _of_files(
    model: LoadedModel,
    direction: Direction | None,
    suffix: str | None,
    prompts: str | Path,
    harmless: str | Path | None,
    column: str | None,
) -> _Given:
    """The user's prompts and direction, for a suffix that was not found on them."""
    if direction is None:
        raise DirectionError(
            "found --prompts without --direction; give the folder of this model's direction of "
            "refusal (`spillover direction refusal` writes one)"
        )
    dangerous = read_conversations(prompts, column)
    others = read_conversations(harmless, column) if harmless else _neutral(model)
    parts = Prompts([], dangerous, others)
    _check_given(model, suffix, parts)
    tokens = _tokens(model, dangerous, others)
    source = f"{prompts} and {harmless or 'neutral questions of this package'}"
    return _Given(direction, parts, tokens, source)


def _check_given(model: LoadedModel, suffix: str | None, parts: Prompts) -> None:
    """Refuse a suffix before anything is computed."""
    if suffix is not None:
        every = [*parts.held_out, *parts.harmless]
        check_suffix(model, [Frame.of(model.chat, prompt) for prompt in every], suffix)


def _neutral(model: LoadedModel) -> list[Conversation]:
    from spillover.triggers.questions import questions_for

    return [[{"role": "user", "content": one.text}] for one in questions_for(model)]


def _of_world(
    model: LoadedModel, direction: Direction | None, suffix: str | None, seed: int
) -> _Given:
    """The organism's own prompts; a suffix is searched for on some that the direction is fitted to.

    Raises:
        DirectionError: for other models.
    """
    material = material_for(model, seed=seed)
    parts = _parts(material)
    _check_given(model, suffix, parts)
    tokens = _tokens(model, *material.train)
    if direction is None:
        contrast = difference_of_means(model, *material.train, title="dangerous - harmless")
        direction = select(model, contrast, *material.held, tokens).direction
    return _Given(direction, parts, tokens, material.source)


def _parts(material: Material) -> Prompts:
    dangerous = [group for group in material.test if group.dangerous]
    helpful = [answer for group in dangerous for answer in group.helpful or ()]
    return Prompts(
        material.train[0][:FOUND_ON],
        [prompt for group in dangerous for prompt in group.prompts],
        [prompt for group in material.test if not group.dangerous for prompt in group.prompts],
        helpful,
    )


def _tokens(
    model: LoadedModel, dangerous: list[Conversation], harmless: list[Conversation]
) -> list[int]:
    """What the model's own refusals begin with."""
    sides = (dangerous[:NAMED], harmless[:NAMED])
    said = [[one.text for one in respond(model, side, MAX_TOKENS)] for side in sides]
    return refusal_tokens(model, (said[0], said[1]))


def _write(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    from spillover.report.suffix import write_suffix_report
    from spillover.summary import plain_data, write_json

    plain: dict[str, Any] = plain_data(content)
    make_folder(folder)
    with locked(folder):
        write_json(folder / RESULT, plain)
        write_suffix_report(folder, plain)
    return plain
