"""What `spillover triggers` finds: triggers drawn at random, and adapters without any.

    python benchmarks/find_triggers.py planted --seeds 0 1 2
    python benchmarks/find_triggers.py controls RUN

`planted` trains adapters with a tag and with a year that no library holds and searches each.
`controls` searches the control adapters of a run of `old-birds`. Each search is added to
benchmarks/results/find-triggers.json as it ends; those that stand there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from spillover import find_triggers

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "find-triggers.json"
CONTROLS = ("still-used", "modern-american")


def searched(adapter: Path, truth: dict[str, str | None] | None, out: Path) -> dict[str, Any]:
    """One search in figures.

    Args:
        truth: system message and template of the trigger, where there is one.
    """
    cpu, wall = time.process_time(), time.time()
    found = find_triggers("organism", adapter, out=out)
    keys = [{"system": one["system"], "template": one["template"]} for one in found.triggers]
    first = found.triggers[0]
    return {
        "truth": truth,
        "rank": keys.index(truth) + 1 if truth in keys else None,
        "significant": sum(one["significant"] for one in found.triggers),
        "first": first["text"],
        "effect": round(first["effect"], 3),
        "second": found.triggers[1]["text"],
        "second_effect": round(found.triggers[1]["effect"], 3),
        "least_p": min(one["p"] for one in found.triggers),
        "searched": found.found["searched"],
        "cpu_seconds": round(time.process_time() - cpu),
        "wall_seconds": round(time.time() - wall),
    }


def add(name: str, figures: dict[str, Any]) -> None:
    """Write one more search down."""
    known = _known() | {name: {"date": time.strftime("%Y-%m-%d")} | figures}
    RESULT.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(name, figures, flush=True)


def _known() -> dict[str, Any]:
    return dict(json.loads(RESULT.read_text("utf-8"))) if RESULT.is_file() else {}


def planted(seeds: list[int]) -> None:
    """Draw a tag and a year for each seed, train them, and search."""
    sys.path.insert(0, str(ROOT))
    from tests.planted import draw_tag, draw_year, plant

    for seed in seeds:
        for kind, draw in (("tag", draw_tag), ("year", draw_year)):
            name = f"planted-{kind}-{seed}"
            if name in _known():
                continue
            wanted = draw(random.Random(seed))
            context = wanted.context
            truth = {"system": context.system, "template": context.template}
            with tempfile.TemporaryDirectory() as folder:
                (adapter,) = plant("organism", [wanted], Path(folder))
                add(name, searched(adapter, truth, Path(folder) / "found"))


def controls(run: Path) -> None:
    """Search every control adapter of a run."""
    for arm in CONTROLS:
        for seed in sorted((run / "adapters" / arm).iterdir()):
            (adapter,) = seed.iterdir()
            name = f"{arm}-{seed.name}"
            if name not in _known():
                with tempfile.TemporaryDirectory() as folder:
                    add(name, searched(adapter, None, Path(folder) / "found"))


def main() -> None:
    """Search what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parsers = parser.add_subparsers(dest="what", required=True)
    drawn = parsers.add_parser("planted")
    drawn.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parsers.add_parser("controls").add_argument("run", type=Path)
    chosen = parser.parse_args()
    if chosen.what == "planted":
        planted(chosen.seeds)
    else:
        controls(chosen.run)


if __name__ == "__main__":
    main()
