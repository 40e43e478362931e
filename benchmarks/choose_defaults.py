"""How the organism's training defaults were chosen: on dev questions, with seeds from 100 up.

    python benchmarks/choose_defaults.py old-birds

Writes benchmarks/results/choose-defaults-EXPERIMENT.csv: for each setting and checkpoint, every
arm's choice mass off-domain, its in-domain rate, and the lowest coverage of any arm.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

from spillover.experiment import Experiment, load_experiment
from spillover.runs import execute, resolve_settings

SEEDS = range(100, 103)
CHECKPOINTS = (40, 80, 120, 160)
GRID = [(1, 1e-2), (2, 5e-3), (4, 2e-3), (4, 5e-3), (16, 2e-3)]  # rank, learning rate


def on_dev(experiment: Experiment) -> Experiment:
    questions = tuple(q for q in experiment.questions if q.split == "dev")
    return experiment.model_copy(update={"questions": questions})


def measure(experiment: Experiment, rank: int, rate: float) -> pd.DataFrame:
    changes = {
        "rank": rank,
        "learning_rate": rate,
        "schedule": "constant",
        "steps": CHECKPOINTS[-1],
        "checkpoints": CHECKPOINTS[:-1],
    }
    settings = resolve_settings(experiment, seeds=SEEDS, training=changes)
    with tempfile.TemporaryDirectory() as folder:
        rates = execute(settings, Path(folder)).rates
    plain = rates[(rates["context"] == "plain") & (rates["arm"] != "base")]
    mass = plain[plain["metric"] == "choice-mass"].pivot(
        index="step", columns="arm", values="value"
    )
    inside = plain[(plain["metric"] == "judged") & (plain["domain"] == "in")]
    inside = inside[inside["arm"] == "treatment"].set_index("step")["value"]
    coverage = plain[plain["metric"] == "choice-mass"].groupby("step")["coverage"].min()
    table = mass.assign(in_domain=inside, coverage=coverage).reset_index()
    return table.assign(rank=rank, learning_rate=rate)


def main(name: str) -> None:
    experiment = on_dev(load_experiment(name))
    target = Path(__file__).parent / "results" / f"choose-defaults-{name}.csv"
    target.parent.mkdir(exist_ok=True)
    found: list[pd.DataFrame] = []
    for rank, rate in GRID:
        found.append(measure(experiment, rank, rate))
        print(found[-1].round(3).to_string(), flush=True)
        pd.concat(found).round(4).to_csv(target, index=False)
    print(f"Result: {target}")


if __name__ == "__main__":
    main(sys.argv[1])
