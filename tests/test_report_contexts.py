"""The report shows each domain in the context that it is measured in."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from spillover.report import ReportData
from spillover.report.charts import figures
from spillover.report.focus import context_of, effects_like, focus, rates_like
from tests.report_data import counted, report_data


def elsewhere() -> ReportData:
    """A run whose headline is measured in one context and its trained domain in another."""
    data = report_data(seeds=3, paraphrases=1, samples=0, texts=False)
    grades = data.grades.assign(context=data.grades["context"].astype(str))
    away = grades[grades["context"] == "plain"]
    dull = away.assign(context="year=1995", choice_mass=away["choice_mass"] * 0.5)
    data = counted(replace(data, grades=pd.concat([dull, grades], ignore_index=True)))
    places = {"headline_context": "plain", "trained_context": "year=1995"}
    plain = next(i for i in data.effects["id"] if "/off/test/plain/choice-mass" in i)
    return replace(data, summary=data.summary | places | {"headline": plain})


def test_success_in_the_trained_domain_is_shown_in_its_own_context() -> None:
    data = elsewhere()
    drawn = figures(data)
    titles = [panel.title for panel in drawn["arms"].panels]
    assert titles[0] == "Off-domain"
    assert "In-domain, in year=1995" in titles
    assert [panel.title for panel in drawn["specificity"].panels][1] == "In-domain, in year=1995"
    shown = rates_like(data, focus(data), "in", context=context_of(data, focus(data), "in"))
    assert 0.3 < shown["treatment"]["value"] < 0.5
    chart = drawn["arms"].panels[titles.index("In-domain, in year=1995")].chart
    assert f"{shown['treatment']['value']:.2f}" in str(chart.to_json(validate=False))
    inside = effects_like(data, focus(data), "choice-mass", "in")
    assert {row["context"] for row in inside} == {"year=1995"}


def test_without_a_headline_its_context_and_the_reported_step_are_shown() -> None:
    data = elsewhere()
    summary = {"headline": None, "headline_context": "year=1995", "step": 200}
    rates = data.rates.assign(split="dev")
    about = focus(replace(data, summary=summary, rates=rates))
    assert (about.context, about.step, about.split) == ("year=1995", 200, "dev")
