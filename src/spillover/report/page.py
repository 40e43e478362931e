"""The page: one HTML file that holds its charts, tables, style and scripts, and loads nothing.

What others wrote (titles, names, questions, answers) reaches the page in two ways only: through the
template, which escapes it, and as JSON in script elements that the browser does not run, whose
values the page's script shows as text. A Content-Security-Policy allows the two scripts of the
page by their hashes, no other script, and no request to anywhere; Vega interprets its expressions
instead of compiling them, and so needs no ``eval``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spillover.folder import cache_folder, whole
from spillover.judge import MOST_NATS, MOST_TOKENS
from spillover.report import over, tables, words
from spillover.report.answers import MOST_ANSWERS, answers_beside
from spillover.report.figure import Figure, vegalite_version
from spillover.report.focus import Record, focus
from spillover.report.strip import style

if TYPE_CHECKING:
    from spillover.report import ReportData

HERE = Path(__file__).parent

LONG = 100
"""Texts of the manifest that are longer than this are shown as a block."""

MOST_ENTRIES = 40
"""As many entries of a section of the manifest are shown; the rest is in its full JSON."""


class Entry(NamedTuple):
    """One fact of the manifest: its dotted name, and its value as text."""

    name: str
    text: str
    is_long: bool


def render(data: ReportData, drawn: dict[str, Figure]) -> str:
    """The page of a run with its figures, as HTML."""
    beside = answers_beside(data)
    return fill(
        "page.html.j2",
        drawn,
        page_tables(data),
        title=data.title,
        data=data,
        about=focus(data),
        words=words,
        sweeps={name: over.figure_name(name) for name in over.variables(data)},
        beside=beside,
        most_answers=MOST_ANSWERS,
        most_texts=tables.MOST_TEXTS,
        beside_json=script_json(beside),
        flags=(MOST_TOKENS, MOST_NATS),
        sections=manifest_sections(data.manifest),
        manifest=json.dumps(plain(data.manifest), indent=2, ensure_ascii=False),
    )


def fill(template: str, drawn: dict[str, Figure], listed: dict[str, Record], **values: Any) -> str:
    """A page with its figures and tables, its style and its scripts, as HTML.

    Args:
        template: a file beside this one that extends ``base.html.j2``.
        drawn: the figures by the names that the template places them by; likewise the tables.
        values: what else the template names.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bundle, script = vega_bundle(), (HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        figures=drawn,
        charts_json=script_json(specifications(drawn)),
        tables_json=script_json(listed),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        bundle=bundle,
        script=script,
        policy=content_policy(bundle, script),
        **values,
    )


SNIPPET = "window.vegaEmbed = vegaEmbed;"


@functools.cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the copy inside vl-convert.

    Bundling takes a second and gives the same every time, so it is kept, below its hash.
    """
    import vl_convert

    made = (metadata.version("vl-convert-python"), vegalite_version(), SNIPPET)
    name = f"vega-{hashlib.sha256(repr(made).encode()).hexdigest()[:16]}.js"
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):  # no home: no cache
        digest, _, kept = (cache_folder() / name).read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(kept.encode()).hexdigest() == digest:
            return kept
    bundle: str = vl_convert.javascript_bundle(SNIPPET, vegalite_version())
    with contextlib.suppress(OSError, RuntimeError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(bundle.encode()).hexdigest()
        with whole(cache_folder() / name) as partial:
            partial.write_text(f"{digest}\n{bundle}", encoding="utf-8", newline="\n")
    return bundle


def content_policy(*scripts: str) -> str:
    """A Content-Security-Policy that allows these inline scripts, and nothing from elsewhere."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def specifications(drawn: dict[str, Figure]) -> dict[str, Any]:
    """The Vega-Lite specification of every panel, as wide as its place on the page.

    Not validated: the figures on disk hold the same, and are.
    """
    return {
        f"{name}-{index}": panel.chart.properties(
            width="container", autosize={"type": "fit-x", "contains": "padding"}
        )
        .configure(**style(legend=False))
        .to_dict(validate=False)
        for name, figure in drawn.items()
        for index, panel in enumerate(figure.panels)
    }


def page_tables(data: ReportData) -> dict[str, Record]:
    """The tables of the page, by the name under which the template places them."""
    return {
        "effects": tables.effects_table(data),
        "rates": tables.rates_table(data),
        "headroom": tables.headroom_table(data),
        "bimodality": tables.bimodality_table(data),
        "texts": tables.texts_table(data),
        "balance": tables.balance_table(data),
        "choices": tables.choices_table(data),
    }


def script_json(value: object) -> str:
    """JSON that cannot end or comment out the script element that holds it.

    Only ASCII, so that neither U+2028 nor half a surrogate pair reaches the page, and without the
    characters that mean something to an HTML parser.
    """
    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def plain(value: object) -> Any:
    """A value as JSON can hold it: arrays as lists, NaN as null, what is unknown as its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return plain(value.tolist())
    return str(value)


def manifest_sections(manifest: dict[str, Any]) -> dict[str, list[Entry]]:
    """The manifest by sections, each a list of facts; what is not in any section comes first."""
    sections: dict[str, list[Entry]] = {"Run": []}
    for name, value in plain(manifest).items():
        if isinstance(value, dict | list) and value:
            entries = list(_entries("", value))
            left = len(entries) - MOST_ENTRIES
            if left > 0:
                entries[MOST_ENTRIES:] = [Entry("…", f"{left} more, see the full JSON", False)]
            sections[name] = entries
        else:
            sections["Run"] += _entries(name, value)
    return {name: entries for name, entries in sections.items() if entries}


def _entries(name: str, value: Any) -> list[Entry]:
    """The facts of a part of the manifest, with dotted names."""
    if isinstance(value, dict) and value:
        prefix = f"{name}." if name else ""
        return [entry for key, item in value.items() for entry in _entries(f"{prefix}{key}", item)]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [
            entry
            for index, item in enumerate(value, start=1)
            for entry in _entries(f"{name} {index}".strip(), item)
        ]
    if isinstance(value, list):
        text = ", ".join(map(_text, value)) or words.NO_VALUE
    else:
        text = _text(value)
    return [Entry(name, text, len(text) > LONG or "\n" in text)]


def _text(value: object) -> str:
    if value is None or value == {}:
        return words.NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
