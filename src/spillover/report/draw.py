"""Draws charts in a process of its own: its JavaScript engine starts while charts are made here.

Run as a script it reads a Vega-Lite version and charts by name, and writes their files, all as JSON
on standard input and output. It imports nothing of this package then.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

SMALLEST = {"data": {"values": [{}]}, "mark": "point"}


class Drawing:
    """A process that draws; it is started at once and ends with the context.

    Attributes:
        process: the process.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self._thread = ThreadPoolExecutor(1)
        self._drawn: Future[tuple[str, str]] | None = None

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._thread.shutdown()
        if self._drawn is None:
            self.process.communicate()

    def draw(self, charts: dict[str, Any], version: str | None) -> None:
        """Begin to draw charts, given by name as Vega-Lite specifications of a version."""
        text = json.dumps({"version": version, "charts": charts})
        self._drawn = self._thread.submit(self.process.communicate, text)

    def files(self) -> dict[str, bytes]:
        """The charts as SVG, PNG and PDF, by the names of their files.

        Raises:
            RunError: when they could not be drawn.
        """
        from spillover.errors import RunError

        assert self._drawn is not None
        said, complaint = self._drawn.result()
        if self.process.returncode:
            last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
            raise RunError(f"the figures could not be drawn: {last}")
        return {name: base64.b64decode(text) for name, text in json.loads(said).items()}


def convert(chart: dict[str, Any], version: str | None) -> dict[str, bytes]:
    """A chart as SVG, PNG (two pixels a point) and PDF, by the ending."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(chart, vl_version=version)
    drawn = {"png": vl_convert.svg_to_png(svg, scale=2), "pdf": vl_convert.svg_to_pdf(svg)}
    return {"svg": svg.encode(), **drawn}


def main() -> None:
    """Draw what standard input lists."""
    convert(SMALLEST, None)  # the engine starts while its charts are still being made
    asked = json.load(sys.stdin)
    found = {
        f"{name}.{ending}": base64.b64encode(content).decode()
        for name, chart in asked["charts"].items()
        for ending, content in convert(chart, asked["version"]).items()
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
