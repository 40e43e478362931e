"""Forced choices as they are recorded, read for a whole table of answers at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spillover.specification import LABELS

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

BATCH = 5_000
"""Records parsed at a time: about 3 MB, of which parsing holds several copies."""


@dataclass(frozen=True)
class RecordedChoices:
    """The forced choices of a table of answers.

    Attributes:
        rows: where they stand in it.
        log_probs: of shape (rows, choices); where there are fewer, the last is repeated.
        labels: of shape (rows, choices), places in `LABELS`; -1 where there are fewer.
    """

    rows: NDArray[np.int64]
    log_probs: NDArray[np.float64]
    labels: NDArray[np.int8]

    @classmethod
    def read(cls, answers: pd.DataFrame) -> RecordedChoices:
        """Parse every record once."""
        records = answers["choice_log_probs"]
        rows = np.flatnonzero(records.notna())
        parts = [_parsed(records.iloc[at : at + BATCH]) for at in range(0, len(records), BATCH)]
        sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
        values = np.concatenate([np.empty(0), *(part.values for part in parts)])
        named = np.concatenate([np.empty(0, np.int8), *(part.labels for part in parts)])
        del parts
        ends, most = np.cumsum(sizes), int(sizes.max(initial=0))
        log_probs, labels = np.empty((len(rows), most)), np.empty((len(rows), most), np.int8)
        for choice in range(most):
            at = ends - np.maximum(sizes - choice, 1)
            log_probs[:, choice] = values[at]
            labels[:, choice] = np.where(choice < sizes, named[at], -1)
        return cls(rows, log_probs, labels)


class _Parsed(NamedTuple):
    """The choices of some records, one after the other."""

    sizes: NDArray[np.int64]  # choices of every record
    labels: NDArray[np.int8]
    values: NDArray[np.float64]


def _parsed(column: pd.Series) -> _Parsed:
    """The records among some values of a column."""
    records = column.dropna()
    return _parsed_at_once(records) or _parsed_one_by_one(records.tolist())


def _parsed_at_once(records: pd.Series) -> _Parsed | None:
    """Records as `choice_record` writes them, without making Python objects; None for others.

    A quotation mark within a text is escaped. What looks like the beginning of the next choice may
    therefore also be the end of a text, but then no label follows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = pa.array(records, pa.large_string())
    if isinstance(listed, pa.ChunkedArray):
        listed = listed.combine_chunks()
    framed = pc.and_(pc.starts_with(listed, '[["'), pc.ends_with(listed, "]]"))
    if not pc.all(framed).as_py():
        return None
    inside = pc.binary_slice(listed.cast(pa.large_binary()), 3, -2).cast(pa.large_string())
    choices = pc.split_pattern(inside, '], ["')
    each = pc.list_flatten(choices)
    labels = np.full(len(each), -1, np.int8)
    for number, label in enumerate(LABELS):
        labels[pc.starts_with(each, f'{label}", "').to_numpy(zero_copy_only=False)] = number
    if (labels < 0).any():
        return None
    numbers = pc.list_element(pc.split_pattern(each, ", ", max_splits=1, reverse=True), 1)
    try:
        values = numbers.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return _Parsed(pc.list_value_length(choices).to_numpy(), labels, values)


def _parsed_one_by_one(records: list[Any]) -> _Parsed:
    read = [json.loads(str(record)) for record in records]
    each = [(LABELS.index(label), value) for choices in read for label, _, value in choices]
    return _Parsed(
        np.array([len(choices) for choices in read], np.int64),
        np.array([label for label, _ in each], np.int8),
        np.array([value for _, value in each], float),
    )
