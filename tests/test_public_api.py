"""The public names, so that none appears or vanishes by accident."""

from __future__ import annotations

import spillover

PUBLIC = {
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


def test_directions_has_these_names() -> None:
    assert set(spillover.directions.__all__) == {
        "Attribution",
        "Contrast",
        "Direction",
        "SuffixStudy",
        "attribute",
        "difference_of_means",
        "difference_of_models",
        "find_refusal",
        "fit",
        "load_direction",
        "orthogonalize",
        "study_suffix",
        "write_edited",
    }
    for name in spillover.directions.__all__:
        assert getattr(spillover.directions, name).__doc__, name
        assert callable(getattr(spillover.directions, name))
