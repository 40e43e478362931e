"""The report says whether the shift is specific, and shows warnings and answers beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from spillover.report import ReportData, write_report
from spillover.report.answers import answers_beside
from spillover.report.tables import texts_table
from spillover.report.words import shifts, specificity
from tests.report_data import log_odds_only, page_of, report_data
from tests.report_page import Page, in_browser, needs_chromium

if TYPE_CHECKING:
    from pathlib import Path

UP, NONE = (2.0, 1.5, 2.5), (0.1, -0.4, 0.6)


@pytest.fixture(scope="module")
def small() -> ReportData:
    return report_data(seeds=3, paraphrases=1, samples=1)


def test_controls_that_disagree_are_named(small: ReportData) -> None:
    effects = small.effects.copy()
    for control, numbers in (("still-used", UP), ("modern-american", NONE)):
        rows = (effects["metric"] == "specificity") & (effects["control"] == control)
        effects.loc[rows, ["value", "low", "high"]] = numbers
    data = replace(small, effects=effects)
    found = specificity(data)
    assert found.kind == "mixed"
    assert re.search("Specific: .*against still-used", found.text)
    assert re.search("Not shown to be specific: .*against modern-american", found.text)
    assert [row["says"] for row in shifts(data)] == ["Specific", "Not shown to be specific", ""]


def test_without_choice_mass_the_page_still_says_whether_the_shift_is_specific() -> None:
    data = report_data(seeds=4, paraphrases=1, samples=1)
    as_much = log_odds_only(data, treatment=7.2)  # the placebo moves as the trait does
    more = log_odds_only(data, treatment=14.0)
    expected = ("not-specific", "towards-placebo", "specific")
    for given, kind in zip((as_much, more, log_odds_only(data)), expected, strict=True):
        found = specificity(given)
        assert found.kind == kind
        text = Page(page_of(given)).text
        assert found.detail in text
        assert "gives 19th-century answers with log-odds in nats of" in text
        for row in shifts(given):
            for part in row["parts"]:
                assert f"{part['value']} {part['interval']}" in text.replace("\n", " ")
                assert len(part["seeds"].split()) == 4
    assert "19th-century − modern" in text
    assert "medieval − modern" in text


def test_warnings_stand_right_under_the_headline(small: ReportData) -> None:
    warnings = [{"name": "shared-rows", "message": "3 of <4> rows"}]
    html = page_of(replace(small, summary={**small.summary, "warnings": warnings}))
    place = html.index("<code>shared-rows</code> 3 of &lt;4&gt; rows")
    assert html.index('class="verdict"') < place < html.index("Every arm")
    assert "1 warning<" in html
    assert 'class="warnings"' not in page_of(small)


def test_answers_stand_beside_those_of_the_other_arms(small: ReportData) -> None:
    found = answers_beside(small)
    assert [arm["name"] for arm in found["arms"]] == [
        *("treatment", "still-used", "modern-american", "base"),
    ]
    off = small.texts[small.texts["domain"] == "off"]
    assert [q["prompt"] for q in found["questions"]] == list(off["prompt"].unique())
    for question in found["questions"]:
        treatment, *_, base = question["answers"]
        assert [a["seed"] for a in treatment[:3]] == [0, 1, 2]
        assert {a["seed"] for a in base} == {None}
        assert all(len(answers) <= 6 for answers in question["answers"])
    asked = off[off["prompt"] == found["questions"][0]["prompt"]]
    shown = [a["text"] for a in found["questions"][0]["answers"][0]]
    assert set(shown) <= set(asked[asked["arm"] == "treatment"]["text"])


def test_reasoning_stands_apart_from_the_answer(small: ReportData) -> None:
    assert "reasoning" not in {c["key"] for c in texts_table(small)["columns"]}
    texts = small.texts.assign(reasoning="First I think.")
    data = replace(small, texts=texts)
    (column,) = (c for c in texts_table(data)["columns"] if c["key"] == "reasoning")
    assert column["kind"] == "folded"
    answer = answers_beside(data)["questions"][0]["answers"][0][0]
    assert answer["reasoning"] == "First I think."
    assert "First I think." not in answer["text"]


@needs_chromium
def test_the_browser_shows_answers_side_by_side_with_reasoning_closed(
    small: ReportData, tmp_path: Path, undrawn: None
) -> None:
    data = replace(small, texts=small.texts.assign(reasoning="First I think."))
    page = in_browser(write_report(tmp_path / "run", data), tmp_path / "browser")
    found = answers_beside(data)["questions"]
    assert found[0]["prompt"] in page.text
    assert f"questions 1–3 of {len(found)}" in page.text
    folded = [a for tag, a in page.elements if tag == "details" and "open" not in a]
    shown = sum(len(answers) for q in found[:3] for answers in q["answers"])
    assert len(folded) >= shown


def test_coverage_that_is_tiny_is_not_shown_as_0(small: ReportData) -> None:
    rates = json.loads(Page(page_of(log_odds_only(small))).scripts["tables"])["rates"]
    (coverage,) = (c for c in rates["columns"] if c["key"] == "coverage")
    assert coverage["kind"] == "share"
    assert all(0 < value < 1e-6 for value in coverage["values"] if value is not None)
