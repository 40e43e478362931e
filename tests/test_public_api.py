"""The public names, so that none appears or vanishes by accident."""

from __future__ import annotations

import spillover

PUBLIC = {
    "ChatError",
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
}


def test_the_public_names_are_these() -> None:
    assert set(spillover.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(spillover, name).__doc__, name


def test_every_error_is_a_spillover_error_and_bad_input_a_value_error() -> None:
    for name in PUBLIC:
        if name.endswith("Error"):
            assert issubclass(getattr(spillover, name), spillover.SpilloverError)
    assert issubclass(spillover.RunFolderError, ValueError)
    assert issubclass(spillover.RunError, RuntimeError)
