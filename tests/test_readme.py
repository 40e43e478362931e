"""The README's Python is run, and what it links to exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import spillover
from spillover import Run
from spillover.mediation.suite import table_of
from spillover.mediation.table import markdown as long_tables
from spillover.suites import MEDIATION, SUITE_TABLE, markdown, markers, table_in, update_readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_of_the_readme_runs(
    old_birds: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def run_already_done(experiment: str, *, seeds: int) -> Run:
        asked.append((experiment, seeds))
        return old_birds

    monkeypatch.setattr(spillover, "run", run_already_done)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    assert asked == [("old-birds", 5)]
    assert "still-used" in capsys.readouterr().out


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_table_of_results_is_that_of_the_last_suite() -> None:
    last = json.loads((ROOT / "benchmarks" / "results" / "suite.json").read_text("utf-8"))
    assert table_in(README) == markdown(last), "run `make suite`"


def test_the_table_of_mediations_is_the_last_one() -> None:
    last = json.loads((ROOT / "benchmarks" / "results" / "mediations.json").read_text("utf-8"))
    assert table_in(README, MEDIATION) == table_of(last), "run `spillover mediate --suite`"
    beside = (ROOT / "benchmarks" / "results" / "mediations.md").read_text("utf-8")
    assert beside == f"{table_of(last)}\n\n{long_tables(last['mediations'])}\n"


def test_a_readme_is_put_up_to_date_between_its_markers(tmp_path: Path) -> None:
    last = json.loads((ROOT / "benchmarks" / "results" / "suite.json").read_text("utf-8"))
    readme = tmp_path / "README.md"
    begin, end = markers(SUITE_TABLE)
    readme.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n", "utf-8")
    update_readme(readme, markdown(last))
    text = readme.read_text("utf-8")
    assert text == f"before\n\n{begin}\n{markdown(last)}\n{end}\n\nafter\n"
    readme.write_text("no markers", "utf-8")
    with pytest.raises(spillover.InputError, match="has no place for the table"):
        update_readme(readme, markdown(last))
