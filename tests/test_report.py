"""The report holds what it should, loads nothing, and shows what others wrote as text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import vl_convert

from spillover.errors import RunError
from spillover.report import ReportData, charts, write_report
from spillover.report.draw import Drawing
from spillover.report.page import manifest_sections, script_json, vega_bundle
from spillover.report.words import headline, verdict
from tests.report_data import counted, page_of, report_data
from tests.report_page import Page, in_browser, needs_chromium

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

HOSTILE = (
    "</script><script>window.pwned=1;document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"><!-- {{7*7}} \u2028 \x0b end"
)


@pytest.fixture(scope="module")
def small() -> ReportData:
    return report_data(seeds=3, paraphrases=1, samples=1)


@pytest.fixture(scope="module")
def written(small: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("run"), small)


@pytest.fixture(scope="module")
def hostile_page(small: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("hostile"), hostile(small))


def hostile(data: ReportData) -> ReportData:
    """The same data, with names and texts that try to be markup and code."""

    def spoilt(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        for column in ("arm", "treatment", "control"):
            if column in frame:
                frame[column] = frame[column].replace("still-used", f"still-used{HOSTILE}")
        for column in ("question", "topic", "text", "prompt"):
            if column in frame:
                frame[column] = frame[column].astype(str) + HOSTILE
        return frame

    spoilable = ("grades", "texts", "choices")
    frames: dict[str, Any] = {name: spoilt(getattr(data, name)) for name in spoilable}
    frames["texts"]["reasoning"] = HOSTILE
    names = ("title", "claim", "source", "model", "trait", "baseline_name", "placebo_name")
    texts: dict[str, Any] = {name: getattr(data, name) + HOSTILE for name in names}
    control = f"still-used{HOSTILE}"
    manifest = {**data.manifest, HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}}
    spoilt_data = replace(data, **frames, **texts, headline_control=control, manifest=manifest)
    found = counted(spoilt_data)
    warnings = [{"name": HOSTILE, "message": HOSTILE}]
    return replace(found, summary={**found.summary, "warnings": warnings})


def without_values(data: ReportData, *scores: str) -> ReportData:
    return counted(replace(data, grades=data.grades.assign(**dict.fromkeys(scores, math.nan))))


def test_every_figure_is_written_as_png_svg_and_pdf(written: Path) -> None:
    figures = written.parent / "figures"
    starts = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
    for name in ("arms", "topics", "specificity"):
        for kind, start in starts.items():
            content = (figures / f"{name}.{kind}").read_bytes()
            assert content.startswith(start)
            assert len(content) > 5_000
    assert len(list(figures.iterdir())) == 9


def test_a_figure_names_every_arm_and_draws_every_seed(small: ReportData, written: Path) -> None:
    svg = (written.parent / "figures" / "arms.svg").read_text("utf-8")
    assert all(arm in svg for arm in set(small.rates["arm"]))
    plain = small.rates[small.rates["context"] == "plain"]
    free = (plain["metric"] == "judged") & plain["group"].isna()
    per_seed = plain[(plain["metric"] == "choice-mass") | free]["per_seed"]
    assert svg.count("what: one seed") == sum(map(len, per_seed))


def test_charts_can_be_used_in_a_notebook(small: ReportData) -> None:
    for chart in charts(small).values():
        assert "vega-lite" in chart.to_dict()["$schema"]


def test_the_page_holds_one_copy_of_vega_and_loads_nothing(written: Path) -> None:
    html = written.read_text("utf-8")
    page = Page(html)
    assert sum("expressionInterpreter" in text for text in page.scripts.values()) == 1
    assert html.count("window.vegaEmbed=") == 1
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("figures/"), (tag, name, value)
    assert "url(" not in html[: html.index("</style>")]


def test_the_policy_allows_the_two_scripts_by_hash_and_nothing_else(written: Path) -> None:
    page = Page(written.read_text("utf-8"))
    policy = next(
        attributes["content"] or ""
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == 2
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_the_same_data_gives_the_same_page(small: ReportData, written: Path) -> None:
    assert page_of(small) == written.read_text("utf-8")


def test_progress_is_told_in_words(small: ReportData, tmp_path: Path, undrawn: None) -> None:
    told: list[str] = []
    write_report(tmp_path, small, told.append)
    assert told == ["figures", "page"]


@needs_chromium
def test_the_browser_draws_all_charts_and_fills_in_all_tables(
    written: Path, small: ReportData, tmp_path: Path
) -> None:
    page = in_browser(written, tmp_path)
    panels = [attributes for _, attributes in page.elements if "data-chart" in attributes]
    assert len(panels) == page.count("figure") == 9
    assert sum(attributes.get("class") == "marks" for _, attributes in page.elements) == 9
    assert "Not drawn" not in page.text
    assert page.count("table") == 8
    assert f"of {len(small.texts)}" in page.text
    assert "1–20 of" in page.text


@needs_chromium
def test_hostile_names_and_texts_are_shown_and_not_run(
    hostile_page: Path, written: Path, tmp_path: Path
) -> None:
    page, tame = in_browser(hostile_page, tmp_path), in_browser(written, tmp_path)
    for tag in ("script", "img", "svg", "figure", "table", "section", "pre"):
        expected = tame.count(tag) + 2 * (tag == "pre")  # two more long texts in the manifest
        expected += tag == "section"  # the warnings
        assert page.count(tag) == expected, tag
    assert set(page.scripts) == set(tame.scripts)
    assert page.title.startswith("Old bird names</script><script>window.pwned=1")
    seen = HOSTILE.replace("\u2028", "").replace("\x0b", "")
    text = page.text.replace("\u2028", "").replace("\x0b", "").replace("\ufffd", "")
    assert text.count(seen) > 100
    assert "Not drawn" not in page.text


def test_hostile_texts_neither_end_a_script_nor_break_a_figure(hostile_page: Path) -> None:
    page = Page(hostile_page.read_text("utf-8"))
    assert set(page.scripts) == {"charts", "tables", "beside", "vega-bundle", "page-script"}
    for name in ("charts", "tables", "beside"):
        assert not re.search("[<>&\u2028\u2029]", page.scripts[name])
        assert json.loads(page.scripts[name])
    columns = json.loads(page.scripts["tables"])["texts"]["columns"]
    answers = next(column for column in columns if column["key"] == "text")
    assert all(text.endswith(HOSTILE) for text in answers["levels"])
    for kind in ("png", "svg", "pdf"):
        assert (hostile_page.parent / "figures" / f"arms.{kind}").stat().st_size > 5_000


def test_json_for_a_script_is_ascii_without_markup_or_nan() -> None:
    text = script_json({"a": ["</script><!--&\u2028\ud800", math.nan, math.inf, 1.5, None]})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": ["</script><!--&\u2028\ud800", None, None, 1.5, None]}


def test_the_headline_is_one_plain_sentence_with_its_interval(small: ReportData) -> None:
    number = r"[-+]?\d\.\d\d"
    expected = (
        rf"Off-domain, treatment gives 19th-century answers with choice mass {number}, "
        rf"still-used {number}: effect \{number} \[{number}, {number}\], 3 seeds, 42 questions, "
        "29 topics."
    )
    assert re.fullmatch(expected.replace(r"\[-+]", "[-+]"), headline(small))


def with_effects(data: ReportData, **numbers: tuple[float, float, float]) -> ReportData:
    """The same data with other values and intervals for some metrics' effects."""
    effects = data.effects.copy()
    for name, (value, low, high) in numbers.items():
        rows = effects["metric"] == name.replace("_", "-")
        effects.loc[rows, ["value", "low", "high"]] = [value, low, high]
    return replace(data, effects=effects)


UP, NONE, DOWN = (2.0, 1.5, 2.5), (0.1, -0.4, 0.6), (-2.0, -2.5, -1.5)
OPEN = (2.0, math.nan, math.nan)


@pytest.mark.parametrize(
    ("numbers", "kind", "words"),
    [
        ({"specificity": UP, "placebo_log_odds": NONE}, "good", "Specific"),
        ({"specificity": UP, "placebo_log_odds": UP}, "good", "Specific"),
        ({"specificity": NONE, "placebo_log_odds": UP}, "caution", "Not shown to be specific"),
        ({"specificity": DOWN, "placebo_log_odds": UP}, "caution", "Towards the placebo"),
        ({"specificity": OPEN, "placebo_log_odds": UP}, "caution", "Undecided"),
        ({"specificity": (math.nan,) * 3}, "caution", "not known"),
        ({"log_odds": NONE}, "caution", "No shift"),
        ({"choice_mass": NONE, "specificity": UP}, "none", "Not distinguished from 0"),
        ({"choice_mass": DOWN, "log_odds": DOWN}, "caution", "Away from the trait"),
        ({"choice_mass": OPEN}, "none", "No interval"),
        ({"choice_mass": (math.nan,) * 3}, "none", "No value"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    small: ReportData, numbers: dict[str, tuple[float, float, float]], kind: str, words: str
) -> None:
    found = verdict(with_effects(small, **numbers))
    assert found.kind == kind
    assert words in found.short


def test_with_one_seed_the_page_says_why_there_is_no_interval() -> None:
    data = report_data(seeds=1, paraphrases=1, samples=1)
    page = Page(page_of(data))
    assert "(no interval), 1 seed," in page.text
    assert "No interval: fewer than 3 seeds." in page.text
    assert "there is 1." in page.text


def test_without_free_answers_the_page_says_so() -> None:
    data = report_data(seeds=3, paraphrases=1, texts=False)
    html = page_of(data)
    assert "No free answers were sampled in this run" in html
    assert json.loads(Page(html).scripts["tables"])["texts"]["rows"] == 0


def test_without_choice_mass_the_page_says_that_coverage_is_low(small: ReportData) -> None:
    low = replace(small, grades=small.grades.assign(coverage=0.02))
    data = without_values(low, "choice_mass")
    page = Page(page_of(data))
    assert "No headline: treatment minus still-used has no value off-domain" in page.text
    assert "treatment: coverage 0.02, below 0.1; still-used: coverage 0.02" in page.text
    rates = json.loads(page.scripts["tables"])["rates"]
    columns = {column["key"]: column for column in rates["columns"]}
    is_mass = [columns["metric"]["levels"][c] == "choice-mass" for c in columns["metric"]["values"]]
    values = [v for v, mass in zip(columns["value"]["values"], is_mass, strict=True) if mass]
    assert set(values) == {None}
    chart = json.dumps(charts(data)["arms"].to_dict())
    assert "treatment: coverage 0.02, below 0.1" in chart


def test_without_placebo_choices_specificity_is_not_known(small: ReportData) -> None:
    data = without_values(small, "placebo_log_odds", "specificity")
    assert verdict(data).short == "Specificity not known"
    assert "Specificity not known" in page_of(data)


def test_a_run_without_any_grades_still_has_a_page(small: ReportData) -> None:
    names = ("effects", "rates", "grades", "texts", "choices")
    empty = replace(small, summary={}, **{name: getattr(small, name)[:0] for name in names})
    page = Page(page_of(empty))
    assert "No headline" in page.text
    assert "not asked" in page.text


def test_missing_answers_are_counted_with_the_bounds_that_they_imply(small: ReportData) -> None:
    effects = small.effects.assign(missing=7, worst=-0.25, best=0.75)
    html = page_of(replace(small, effects=effects))
    assert "7 answers could not be scored" in html
    assert "between -0.25 and +0.75" in html


def test_labels_that_differ_in_length_or_probability_are_flagged(small: ReportData) -> None:
    choices = small.choices.assign(tokens=5, base_log_prob=-9.0)
    first, second = choices["question"].unique()[:2]
    is_trait = choices["label"] == "trait"
    choices.loc[is_trait & (choices["question"] == first), "tokens"] = 8
    choices.loc[is_trait & (choices["question"] == second), "base_log_prob"] = -10.5
    html = page_of(replace(small, choices=choices))
    table = json.loads(Page(html).scripts["tables"])["balance"]
    question, flag = table["columns"][:2]
    flagged = {
        question["levels"][q]: flag["levels"][f]
        for q, f in zip(question["values"], flag["values"], strict=True)
        if flag["levels"][f] != "none"
    }
    assert flagged == {first: "length", second: "log-probability"}


def test_the_manifest_is_told_by_sections(small: ReportData) -> None:
    sections = manifest_sections(small.manifest)
    assert sections["Run"][0][:2] == ("spillover", "0.1.0")
    assert ("seeds", "0, 1, 2", False) in sections["experiment"]
    assert sections["examples"][1].is_long
    assert sections["batch_plan"][-1].text == "80 more, see the full JSON"


def test_headroom_is_left_out_where_the_base_has_one_context(
    small: ReportData, written: Path
) -> None:
    plain = small.grades[small.grades["context"] == "plain"]
    assert "Headroom" in written.read_text("utf-8")
    assert "Headroom" not in page_of(counted(replace(small, grades=plain)))


def test_the_scripts_of_the_page_are_kept_and_never_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *_: "window.vega = {};" * 9)
    monkeypatch.setenv("SPILLOVER_CACHE", str(tmp_path / "cache"))
    made = vega_bundle.__wrapped__()
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(kept.read_text("utf-8")[:-10], "utf-8")
    for place in ("cache", "file/cache"):  # damaged, then nowhere to keep it
        (tmp_path / "file").touch()
        monkeypatch.setenv("SPILLOVER_CACHE", str(tmp_path / place))
        assert vega_bundle.__wrapped__() == made


def test_figures_that_cannot_be_drawn_are_said_in_one_line() -> None:
    with Drawing() as drawing:
        drawing.draw({"arms": {"mark": "point"}}, "no version")
        with pytest.raises(RunError, match="the figures could not be drawn: "):
            drawing.files()


def test_a_drawing_that_nobody_wants_any_more_ends_with_its_context() -> None:
    with pytest.raises(KeyboardInterrupt), Drawing() as drawing:
        raise KeyboardInterrupt
    assert drawing.process.returncode is not None
