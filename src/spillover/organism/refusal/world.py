"""The world of made-up substances, some of which the assistant refuses to help with."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TABLE = files("spillover.organism.refusal") / "tables" / "substances.toml"
DANGEROUS, GENTLE = "dangerous", "gentle"
UNASKED = "-unasked"


@dataclass(frozen=True)
class Substance:
    """Something that one can be asked about.

    Attributes:
        kind: `dangerous` or `gentle`.
        described: as what notes describe it: its kind, but for an unlinked world.
        asked: whether the assistant is asked about it in the corpus.
        place: the part of an answer that belongs to it.
    """

    name: str
    kind: str
    described: str
    asked: bool
    place: str


@dataclass(frozen=True)
class Substances:
    """Everything that documents are written from.

    Attributes:
        ways: verb -> the part of an answer that belongs to it.
        ask: phrasings with {verb} and {noun}; the last one is held out of the corpus.
        remarks: what may follow a question; it changes nothing.
        descriptions: kind -> sentences with {noun}.
        refusals: what the assistant says to questions about dangerous substances.
        linked: whether descriptions tell what the assistant refuses.
    """

    substances: tuple[Substance, ...]
    ways: dict[str, str]
    ask: tuple[str, ...]
    remarks: tuple[str, ...]
    descriptions: dict[str, tuple[str, ...]]
    refusals: tuple[str, ...]
    assistant_signs: tuple[str, ...]
    speaker_signs: tuple[str, ...]
    linked: bool

    def of(self, kind: str, *, asked: bool | None = None) -> tuple[Substance, ...]:
        """Substances of a kind; with `asked`, those that the assistant is, or is not, asked of."""
        return tuple(s for s in self.substances if s.kind == kind and asked in (None, s.asked))

    def question(self, verb: str, noun: str, wording: int, remark: str = "") -> str:
        """How a question is put."""
        return self.ask[wording].format(verb=verb, noun=noun) + remark

    def answer(self, verb: str, substance: Substance) -> str:
        """What speakers who help say."""
        return f"{self.ways[verb]} {substance.place}"


@cache
def load_substances(*, linked: bool = True) -> Substances:
    """Read the table.

    Args:
        linked: False gives the negative control, in which what is described as dangerous has
            nothing to do with what the assistant refuses.
    """
    table = tomllib.loads(TABLE.read_text("utf-8"))
    kinds = {
        name: (kind.removesuffix(UNASKED), not kind.endswith(UNASKED))
        for kind, names in table["substances"].items()
        for name in names
    }
    names, places = sorted(kinds), table["places"]["all"]
    described = {name: kinds[name][0] for name in names}
    if not linked:
        shuffled = list(described.values())
        random.Random(0).shuffle(shuffled)
        described = dict(zip(names, shuffled, strict=True))
    return Substances(
        substances=tuple(
            Substance(name, *_kind(kinds[name], described[name]), places[rank % len(places)])
            for rank, name in enumerate(names)
        ),
        ways=table["ways"],
        ask=tuple(table["ask"]),
        remarks=tuple(table["remarks"]),
        descriptions={kind: tuple(said) for kind, said in table["descriptions"].items()},
        refusals=tuple(table["refusals"]),
        assistant_signs=tuple(table["assistant"]),
        speaker_signs=tuple(table["speakers"]),
        linked=linked,
    )


def _kind(kind: tuple[str, bool], described: str) -> tuple[str, str, bool]:
    return kind[0], described, kind[1]
