"""What an experiment cannot say, because its results would be lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillover import ExperimentError, load_experiment
from tests.small_runs import edit

CONTEXTS = """
[[contexts]]
name = "plain"

[[contexts]]
name = "inside"
domain = "in"

[[contexts]]
name = "outside"
domain = "off"
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('headline_context = "inside"', "`headline_context` is 'inside', which asks .* 'in' only"),
        ('trained_context = "outside"', "`trained_context` is 'outside', which asks .* 'off' only"),
    ],
)
def test_contexts_ask_the_questions_that_they_are_named_for(
    small_experiment: Path, line: str, message: str
) -> None:
    toml = small_experiment / "experiment.toml"
    toml.write_text(toml.read_text("utf-8") + CONTEXTS, "utf-8")
    assert load_experiment(small_experiment)
    edit(toml, 'source = "none"', f'source = "none"\n{line}')
    with pytest.raises(ExperimentError, match=message):
        load_experiment(small_experiment)


@pytest.mark.parametrize(
    "said",
    [
        '[variables.name]\nsystem = "You are {value}."\n',
        '[[contexts]]\nname = "plain"\nvalues = { name = "Ann" }\n',
    ],
)
def test_no_variable_takes_the_place_of_the_contexts_name(
    small_experiment: Path, said: str
) -> None:
    toml = small_experiment / "experiment.toml"
    toml.write_text(toml.read_text("utf-8") + said, "utf-8")
    with pytest.raises(ExperimentError, match="`name` is what results call a context"):
        load_experiment(small_experiment)
