"""How time and memory grow with the number of adapters, rows, prompts and answers.

    python benchmarks/growth.py             (under eight minutes on two cores)
    python benchmarks/growth.py --quick     (tiny, to see that it works)

Every point is measured in a process of its own: one warm-up, then the median of some repeats, and
the most memory that the process has held. Adapters and rows are trained, prompts are forced
choices, answers are sampled. Writes benchmarks/results/growth.json and growth.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, machine, versions

from spillover.ask.local import LocalEngine
from spillover.ask.requests import SampleSettings
from spillover.experiment import load_experiment
from spillover.finetune import Finetune, Training, finetune
from spillover.finetune.adapters import load_adapter
from spillover.models import LoadedModel, load
from spillover.rows import RowSet

Point = dict[str, Any]
FULL = {
    "organism": {
        "adapters": [1, 2, 4, 8, 16, 32, 64],
        "rows": [32, 64, 128, 256, 512],
        "prompts": [16, 32, 64, 128, 256, 512],
        "answers": [32, 64, 128, 256, 512, 1024],
    },
    "smollm2-q4": {"adapters": [1, 2, 4], "prompts": [4, 8, 16], "answers": [4, 8, 16]},
}
QUICK = {"organism": {over: [4, 8, 16] for over in FULL["organism"]}}
REPEATS, ENOUGH = 3, 4.0
"""Repeats of a point, fewer where they take more than so many seconds together."""
ADAPTERS = 4
"""Adapters that share rows, prompts or answers, where these are what grows."""
STEPS, BATCH, TOKENS = 6, 8, 24
MEASURES = {"seconds": "seconds", "gigabytes": "gigabytes at most"}


# One point, in a process of its own ---------------------------------------------------------------


def measure(model_name: str, over: str, number: int) -> Point:
    """Seconds and memory of one point."""
    model = load(model_name)
    with tempfile.TemporaryDirectory() as place:
        call = {"adapters": _train, "rows": _train_rows, "prompts": _choose, "answers": _sample}
        work = call[over](model, number, Path(place))
        before = memory(anew=True)
        work()  # warm-up
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < ENOUGH:
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    found = {"seconds": statistics.median(taken), "gigabytes": memory(), "before": before}
    return {"model": model_name, "over": over, "number": number, **found, "all_seconds": taken}


def memory(*, anew: bool = False) -> float:
    """The most memory that this process has held, in gigabytes of 10^9 bytes (Linux).

    Args:
        anew: forget what it held before; what it holds now is then the most.
    """
    if anew:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    said = Path("/proc/self/status").read_text("utf-8")
    return int(said.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def _rows(count: int) -> RowSet:
    """So many rows of old-birds' treatment, from the first again where they do not suffice."""
    given = load_experiment("old-birds").rows["treatment"]
    times = math.ceil(count / len(given.rows))
    rows, places = ((tuple(x) * times)[:count] for x in (given.rows, given.places))
    return replace(given, rows=rows, places=places)


def _training(**length: Any) -> Training:
    return Training(rank=8, batch_size=BATCH, learning_rate=1e-3, **length)


def _train(
    model: LoadedModel, number: int, place: Path, rows: int = 64, **length: Any
) -> Callable[[], object]:
    wanted = [Finetune("treatment", seed, _rows(rows)) for seed in range(number)]
    training = _training(**(length or {"steps": STEPS}))

    def work() -> object:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            return finetune(model, wanted, training, Path(folder))

    return work


def _train_rows(model: LoadedModel, number: int, place: Path) -> Callable[[], object]:
    return _train(model, ADAPTERS, place, rows=number, epochs=1)


def _engine(model: LoadedModel, place: Path) -> LocalEngine:
    wanted = [Finetune("treatment", seed, _rows(BATCH)) for seed in range(ADAPTERS)]
    made = finetune(model, wanted, _training(steps=1), place / "adapters")
    return LocalEngine(model, [(str(f), load_adapter(f, model)) for f in made.values()])


def _conversations(count: int) -> tuple[list[int], list[Any], list[list[str]]]:
    """Who is asked, what, and with which choices: no prompt twice."""
    asked = [q for q in load_experiment("old-birds").questions if q.choices]
    who, said, choices = [], [], []
    for n in range(count):
        question = asked[n // ADAPTERS % len(asked)]
        again = n // (ADAPTERS * len(asked))
        text = question.ask[again % len(question.ask)]
        who.append(n % ADAPTERS)
        said.append([{"role": "user", "content": text if again < 3 else f"{text} ({again})"}])
        assert question.choices is not None
        choices.append([choice for _, choice in question.choices.labelled])
    return who, said, choices


def _choose(model: LoadedModel, number: int, place: Path) -> Callable[[], object]:
    engine = _engine(model, place)
    who, said, choices = _conversations(number)
    return lambda: engine.choose(who, said, choices)


def _sample(model: LoadedModel, number: int, place: Path) -> Callable[[], object]:
    engine = _engine(model, place)
    who, said, _ = _conversations(min(number, ADAPTERS))
    settings = SampleSettings(max(1, number // len(who)), temperature=1.0, max_tokens=TOKENS)
    return lambda: engine.sample(who, said, settings)


# All points ---------------------------------------------------------------------------------------


def apart(model: str, over: str, number: int) -> Point:
    """One point, measured in a process of its own."""
    command = [sys.executable, __file__, "--measure", model, over, str(number)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Point = json.loads(said.splitlines()[-1])
    print(f"{model}, {number} {over}: {found['seconds']:.3g} s, {found['gigabytes']:.2f} GB")
    return found


def slopes(points: Sequence[Point], fewest: int = 3) -> list[Point]:
    """For every line the exponent of its growth: the log-log slope, with its 95% interval.

    1 is linear. What does not grow with the number (loading, start) makes it smaller, so that of
    the upper half of the line is given as well.
    """
    found = []
    for model, over in dict.fromkeys((p["model"], p["over"]) for p in points):
        line = [p for p in points if (p["model"], p["over"]) == (model, over)]
        middle = statistics.median(sorted({p["number"] for p in line}))
        upper = [p for p in line if p["number"] >= middle]
        if len({p["number"] for p in line}) < fewest:
            continue
        growth = {
            key: {"all": _slope(line, key), "upper_half": _slope(upper, key)} for key in MEASURES
        }
        found.append({"model": model, "over": over, **growth})
    return found


def _slope(line: Sequence[Point], key: str) -> dict[str, float | None]:
    from scipy.stats import linregress, t

    x, y = ([math.log(p[name]) for p in line] for name in ("number", key))
    if len(set(x)) < 2:
        return {"slope": None, "low": None, "high": None}
    fit = linregress(x, y)
    half = float(t.ppf(0.975, len(x) - 2) * fit.stderr) if len(x) > 2 else math.nan
    low, high = (None, None) if math.isnan(half) else (fit.slope - half, fit.slope + half)
    return {"slope": float(fit.slope), "low": low, "high": high}


def picture(points: Sequence[Point], target: Path) -> None:
    """Seconds and gigabytes over the numbers, both axes logarithmic, as SVG."""
    import altair as alt
    import vl_convert

    panels = []
    for key, title in MEASURES.items():
        for over in dict.fromkeys(p["over"] for p in points):
            values = [p for p in points if p["over"] == over]
            chart = alt.Chart(alt.InlineData(values=values)).encode(
                x=alt.X("number:Q", scale=alt.Scale(type="log", base=2), title=over),
                y=alt.Y(f"{key}:Q", scale=alt.Scale(type="log"), title=title),
                color=alt.Color("model:N", title=None),
            )
            middle = chart.mark_line().encode(y=alt.Y(f"median({key}):Q", title=title))
            panels.append(alt.layer(middle, chart.mark_point()).properties(width=220, height=180))
    drawn = alt.concat(*panels, columns=len(panels) // len(MEASURES))
    target.write_text(vl_convert.vegalite_to_svg(drawn.to_dict()), "utf-8")


def write(name: str, points: Sequence[Point], about: dict[str, Any]) -> None:
    """Write results/NAME.json with the growth of every line, and results/NAME.svg."""
    script = Path(sys.argv[0]).name
    result = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        **about,
        "growth": slopes(points),
        "points": list(points),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(rounded(result), indent=2, ensure_ascii=False, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    picture(points, RESULTS / f"{name}.svg")
    print(json.dumps(rounded(result["growth"]), indent=2), f"Result: {name}.json", sep="\n")


def rounded(value: Any) -> Any:
    """Numbers to four digits: no timing is better than that."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Measure all points and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that the script works")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        model, over, number = given.measure
        print(json.dumps(measure(model, over, int(number))))
        return
    lines = QUICK if given.quick else FULL
    points = [
        apart(model, over, number)
        for model, numbers in lines.items()
        for over, listed in numbers.items()
        for number in listed
    ]
    about = {"adapters": ADAPTERS, "steps": STEPS, "batch": BATCH, "tokens": TOKENS}
    write("growth-quick" if given.quick else "growth", points, about)


if __name__ == "__main__":
    main()
