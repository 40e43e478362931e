"""A direction's figures by layer and position, as a chart for notebooks and reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from spillover.errors import DirectionError
from spillover.report.figure import TREATMENT_COLOUR
from spillover.report.strip import style

if TYPE_CHECKING:
    import altair as alt

    from spillover.directions.direction import Direction

PLACES = ("position", "layer")


def plot(direction: Direction, score: str | None = None) -> alt.LayerChart:
    """A curve over layers for each position; the direction that was chosen is marked.

    Args:
        score: one of the figures of the candidates; by default that by which it was chosen.

    Raises:
        DirectionError: where no candidates were compared, or none has a value of this score.
    """
    import altair as alt

    names = [name for name in (direction.candidates or ({},))[0] if name not in PLACES]
    wanted = score or next((name for name in direction.scores if name in names), "")
    values = {name: points for name in names if (points := _points(direction, name))}
    if wanted not in values:
        raise DirectionError(
            f"there is no score {wanted!r} by layer and position to plot; known: "
            f"{', '.join(values) or 'none, for this direction was not chosen among candidates'}"
        )
    rows = values[wanted]
    chosen = [
        row
        for row in rows
        if row["layer"] == direction.layer and row["position"] == str(direction.position)
    ]
    layer = alt.X("layer:Q", title="layer (the stream entering block)").axis(tickMinStep=1)
    value = alt.Y("value:Q", title=wanted).scale(zero=False)
    order = list(dict.fromkeys(row["position"] for row in rows))
    colour = alt.Color("position:N", sort=order).scale(scheme="viridis").legend(title="position")
    lines = alt.Chart(alt.InlineData(values=rows)).mark_line(point=True)
    mark = alt.Chart(alt.InlineData(values=chosen)).mark_point(
        size=160, color=TREATMENT_COLOUR, strokeWidth=2.5
    )
    told = [alt.Tooltip(f"{name}:Q") for name in ("layer", "value")]
    told.append(alt.Tooltip("position:N"))
    drawn: Any = alt.layer(
        lines.encode(x=layer, y=value, color=colour, tooltip=told), mark.encode(x=layer, y=value)
    )
    chart: alt.LayerChart = drawn.properties(width=360, height=220).configure(**style(legend=True))
    return chart


def _points(direction: Direction, name: str) -> list[dict[str, Any]]:
    """The values of a score that were computed; none where they are no numbers."""
    return [
        {"layer": row["layer"], "position": str(row["position"]), "value": value}
        for row in direction.candidates
        if (value := row[name]) is not None and not isinstance(value, bool) and math.isfinite(value)
    ]
