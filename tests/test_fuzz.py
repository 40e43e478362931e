"""Broken input of four kinds, 2,000 cases: one clear line and exit code 2, or it is usable.

Never a traceback, never more than five seconds, never a file that was not asked for. Three cases of
four are left to the long tests. How many were tried is printed at the end of the tests.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spillover import LoadedModel, cli, runs, stages
from spillover.finetune.adapters import load_adapter
from spillover.settings import RunSettings
from tests.conftest import SMALL_EXPERIMENT, SMALL_QUESTIONS, count_fuzzed

CASES, FEW = 500, 50
LONGEST = 5.0  # seconds
many = pytest.mark.parametrize(
    "seed", [*range(FEW), *(pytest.param(s, marks=pytest.mark.long) for s in range(FEW, CASES))]
)

ROWS = "\n".join(
    [
        '{"messages": [{"role": "user", "content": "Name a bird."}, '
        '{"role": "assistant", "content": "A wren", "train": true}]}',
        '{"text": "A page of notes."}',
        '{"prompt": "Name a bird.", "completion": "An owl"}',
    ]
)
FRAGMENTS = [
    "", "\0", "\n", '"', "'", "[", "]", "{", "}", "=", ",", ":", "#", "\\", "\\u12", "é", "🦉",
    "\ud7ff", "null", "true", "-1", "0", "1e999", "nan", "9" * 400, "[" * 3000, "../../outside",
    "/etc/passwd", "{{ 1/0 }}", "<|im_end|>", "\ufeff", "\r", "treatment", "base", "plain",
    "placebo", "[arms.x]", "[[question]]", 'train = "/dev/null"', 'model = "organism"',
    'adapter = "."', "A" * 5000,
]  # fmt: skip


def mutate(text: str, draw: random.Random) -> str:
    """A few small harms to a text: cuts, repeats, swaps, foreign pieces."""
    for _ in range(draw.randint(1, 4)):
        lines = text.split("\n")
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        line = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind == 0:
            text = text[:at] + draw.choice(FRAGMENTS) + text[at:]
        elif kind == 1:
            text = text[:at] + draw.choice(FRAGMENTS) + text[min(to, at + 12) :]
        elif kind == 2:
            text = "\n".join(lines[:line] + lines[line + 1 :])
        elif kind == 3:
            text = "\n".join([*lines[:line], lines[line], *lines[line:]])
        elif kind == 4:
            text = text[:at]
        else:
            words = text.split(" ")
            one, other = draw.randrange(len(words)), draw.randrange(len(words))
            words[one] = words[other]
            text = " ".join(words)
        text = text or "\n"
    return text


def replace_values(found: Any, draw: random.Random) -> Any:
    """JSON data with one value exchanged for another kind of value."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1e308,
        "",
        "x",
        [],
        {},
        [[]],
        {"a": {}},
        10**30,
        "lora",
        [None],
        "9",
    ]
    if isinstance(found, dict) and found:
        key = draw.choice(sorted(found))
        if draw.random() < 0.3:
            return {k: v for k, v in found.items() if k != key}
        return found | {key: replace_values(found[key], draw)}
    if isinstance(found, list) and found and draw.random() < 0.7:
        return [*found[:-1], replace_values(found[-1], draw)]
    return draw.choice(odd)


@pytest.fixture
def command(
    organism: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Path, str], None]:
    """`spillover run FOLDER` up to where training would begin; checks how it ends."""

    def check_only(found: RunSettings, *_: object) -> None:
        for ready in found.ready:
            if ready.source.adapter:
                load_adapter(ready.source.adapter, organism)  # first: most are refused here
        stages.check_rows(found, organism)
        raise SystemExit(0)

    monkeypatch.setattr(runs, "execute", check_only)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def attempt(folder: Path, kind: str) -> None:
        before, start = sorted(tmp_path.rglob("*")), time.perf_counter()
        with pytest.raises(SystemExit) as ended:
            cli.main(["run", str(folder), "--out", str(tmp_path / "run")])
        seconds, printed = time.perf_counter() - start, capsys.readouterr().err
        assert ended.value.code in (0, 2), printed
        assert "Traceback" not in printed
        if ended.value.code == 2:
            lines = [line for line in printed.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, printed
        assert seconds < LONGEST
        assert sorted(tmp_path.rglob("*")) == before
        shutil.rmtree(folder)
        count_fuzzed(kind, refused=ended.value.code == 2)

    return attempt


def experiment_in(folder: Path, **changed: str) -> Path:
    """The small experiment with some of its files replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    content = {
        "experiment.toml": SMALL_EXPERIMENT,
        "questions.toml": SMALL_QUESTIONS,
        "train/treatment.jsonl": ROWS,
        "train/control.jsonl": ROWS.replace("owl", "jay"),
    } | changed
    for name, text in content.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return folder


@many
def test_broken_experiments(command: Any, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    name = draw.choice(["experiment.toml", "questions.toml"])
    text = SMALL_EXPERIMENT if name == "experiment.toml" else SMALL_QUESTIONS
    command(experiment_in(tmp_path / "given", **{name: mutate(text, draw)}), "experiment files")


@many
def test_broken_rows(command: Any, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = ROWS.split("\n")
    at = draw.randrange(len(lines))
    changed = json.dumps(replace_values(json.loads(lines[at]), draw))
    text = "\n".join([*lines[:at], changed, *lines[at + 1 :]])
    text = mutate(text if draw.random() < 0.5 else ROWS, draw) if draw.random() < 0.7 else text
    command(experiment_in(tmp_path / "given", **{"train/treatment.jsonl": text}), "JSONL rows")


CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
    "base_model_name_or_path": "organism", "target_modules": ["q_proj"], "use_rslora": False,
    "alpha_pattern": {"q_proj": 3}, "rank_pattern": {}, "modules_to_save": None,
}  # fmt: skip


def with_adapter(folder: Path, config: str, weights: bytes | None = None) -> Path:
    """The small experiment with a ready adapter as its treatment."""
    ready = SMALL_EXPERIMENT.replace('train = "train/treatment.jsonl"', 'adapter = "ready"')
    experiment_in(folder, **{"experiment.toml": ready})
    (folder / "ready").mkdir()
    (folder / "ready/adapter_config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    file = folder / "ready/adapter_model.safetensors"
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{layer}A.weight": torch.ones(2, 192), f"{layer}B.weight": torch.ones(192, 2)}, file
    )
    if weights is not None:
        file.write_bytes(weights)
    return folder


@many
def test_broken_adapter_configurations(command: Any, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    text = json.dumps(replace_values(CONFIG, draw) if draw.random() < 0.6 else CONFIG)
    text = mutate(text, draw) if draw.random() < 0.6 else text
    command(with_adapter(tmp_path / "given", text), "adapter configurations")


@many
def test_broken_safetensors_headers(command: Any, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    folder = with_adapter(tmp_path / "given", json.dumps(CONFIG))
    content = (folder / "ready/adapter_model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length].decode(), content[8 + length :]
    kind = draw.randrange(4)
    if kind == 0:
        header = json.dumps(replace_values(json.loads(header), draw))
    elif kind == 1:
        header = mutate(header, draw)
    elif kind == 2:
        data = data[: draw.randrange(len(data))]
    raw = header.encode("utf-8", "surrogatepass")
    size = draw.choice([0, 1, 2**32, 2**63]) if kind == 3 else len(raw)
    broken = struct.pack("<Q", size) + raw + data
    command(with_adapter(tmp_path / "given", json.dumps(CONFIG), broken), "safetensors headers")
