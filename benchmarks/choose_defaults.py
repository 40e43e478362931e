"""How the organism's training defaults were chosen: on dev questions, with seeds from 100 up.

    python benchmarks/choose_defaults.py old-birds [MODEL …]

Several models (organisms of other seeds) guard against settings that suit one model only.
Writes benchmarks/results/choose-defaults-EXPERIMENT.csv: for each model, setting and
checkpoint, every arm's choice mass off-domain, the treatment's in-domain rate, and the lowest
coverage of any arm.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import pandas as pd

from spillover.runs import execute
from spillover.settings import resolve_settings

SEEDS = range(100, 103)
CHECKPOINTS = (40, 80, 160, 240)
GRID = [(1, 1e-2), (4, 5e-3), (8, 4e-3)]  # rank, learning rate


def measure(experiment: str, model: str, rank: int, rate: float) -> pd.DataFrame:
    """One setting's rates at each checkpoint."""
    changes = {
        "rank": rank,
        "learning_rate": rate,
        "steps": CHECKPOINTS[-1],
        "checkpoints": CHECKPOINTS[:-1],
    }
    settings = resolve_settings(experiment, model, seeds=SEEDS, training=changes, split="dev")
    with tempfile.TemporaryDirectory() as folder:
        rates = execute(settings, Path(folder)).rates
    plain = rates[(rates["context"] == "plain") & (rates["arm"] != "base")]
    forced = plain[plain["metric"] == "choice-mass"]
    inside = plain[(plain["domain"] == "in") & (plain["arm"] == "treatment")]
    table = forced.pivot(index="step", columns="arm", values="value").assign(
        in_domain=inside.set_index("step")["value"],
        coverage=forced.groupby("step")["coverage"].min(),
    )
    return table.reset_index().assign(model=Path(model).name, rank=rank, learning_rate=rate)


def main(name: str, models: list[str]) -> None:
    """Measure the grid and write the table after every setting."""
    target = Path(__file__).parent / "results" / f"choose-defaults-{name}.csv"
    target.parent.mkdir(exist_ok=True)
    found: list[pd.DataFrame] = []
    for (rank, rate), model in itertools.product(GRID, models):
        found.append(measure(name, model, rank, rate))
        print(found[-1].round(3).to_string(), flush=True)
        pd.concat(found).round(4).to_csv(target, index=False)
    print(f"Result: {target}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or ["organism"])
