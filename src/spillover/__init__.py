"""Spillover: what else did a finetune change?

It makes narrow finetunes generalize on demand, measures that against controls and placebo, and
reports it with intervals over seeds and questions.
"""

from spillover import directions
from spillover.errors import (
    ChatError,
    DirectionError,
    ExperimentError,
    InputError,
    ModelError,
    RunError,
    RunFolderError,
    SpilloverError,
)
from spillover.experiment import Experiment, load_experiment
from spillover.finetune import Finetune, Training, finetune
from spillover.grids import Grid, grid
from spillover.mediation import Mediation, mediate
from spillover.models import LoadedModel, Loading, load
from spillover.rows import read_rows
from spillover.runs import Run, open_run, run
from spillover.suites import Suite, suite
from spillover.sweeps import sweep
from spillover.templates import Templating
from spillover.triggers import Triggers, find_triggers

__version__ = "0.1.0"

__all__ = [
    "ChatError",
    "DirectionError",
    "Experiment",
    "ExperimentError",
    "Finetune",
    "Grid",
    "InputError",
    "LoadedModel",
    "Loading",
    "Mediation",
    "ModelError",
    "Run",
    "RunError",
    "RunFolderError",
    "SpilloverError",
    "Suite",
    "Templating",
    "Training",
    "Triggers",
    "directions",
    "find_triggers",
    "finetune",
    "grid",
    "load",
    "load_experiment",
    "mediate",
    "open_run",
    "read_rows",
    "run",
    "suite",
    "sweep",
]
