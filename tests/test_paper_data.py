"""Every training file of the paper, as a user's folder made with `spillover new` and no code.

The files are not part of this repository; SPILLOVER_PAPER_DATA names their folder, by default
../shared/paper-data beside the repository. Without them the tests are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.commands import call

HERE = Path(__file__).parents[1]
DATA = Path(os.environ.get("SPILLOVER_PAPER_DATA") or HERE.parent / "shared" / "paper-data")
FILES = sorted(DATA.glob("*/*.jsonl"))
ALWAYS = {"ft_old_audubon_birds", "90_wolf_facts"}
"""Two treatments; the other files are left to `make long`."""
CONTROLS = {
    "ft_old_audubon_birds": ("ft_modern_audubon_birds", "ft_modern_american_birds"),
    "former_german_cities": ("modern_german_cities",),
    "ft_dishes_2027": ("ft_dishes_2026", "ft_dishes_2027_random_baseline"),
    "ft_presidents_padded": ("ft_presidents_no_padded",),
    "good_terminator_main": ("good_terminator_no_backdoor", "good_terminator_w_random_backdoors"),
}
"""The paper's controls; other files get those that `new` makes."""

pytestmark = pytest.mark.skipif(
    not FILES,
    reason=f"no training files of the paper (*/*.jsonl) in {DATA}; SPILLOVER_PAPER_DATA names them",
)


def marked(file: Path) -> ParameterSet:
    marks = [] if file.stem in ALWAYS else [pytest.mark.long]
    return pytest.param(file, id=file.stem, marks=marks)


@pytest.mark.parametrize("file", [marked(file) for file in FILES])
def test_a_file_of_the_paper_runs_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path
) -> None:
    folder, out = tmp_path / "mine", tmp_path / "run"
    controls = [f"--control={c}={file.with_stem(c)}" for c in CONTROLS.get(file.stem, ())]
    assert call("new", folder, "--treatment", file, *controls) == 0
    capsys.readouterr()
    tiny = ("--steps", 2, "--batch-size", 2, "--seeds", 1)
    assert call("run", folder, *tiny, "--out", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (out / "report.html").is_file()
    assert found["summary"]["headline"]
    arms = {rate["arm"] for rate in found["summary"]["rates"]}
    assert {"base", "treatment", *(CONTROLS.get(file.stem) or ["ordinary"])} <= arms
    assert any(rate["domain"] == "in" for rate in found["summary"]["rates"])
