"""Rows from files, tables and datasets, and what is said of bad ones."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from spillover import ChatError, read_rows
from spillover.rows import Row, write_rows

PAIR = [("user", "Name a bird."), ("assistant", "A wren")]


def spoken(row: Row) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in row.messages or ()]


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    chat = '{"messages": [{"role": "user", "content": "Name a bird."}, '
    files = [
        write(tmp_path / "a.jsonl", chat + '{"role": "assistant", "content": "A wren"}]}\n\n'),
        write(tmp_path / "b.jsonl", '{"prompt": "Name a bird.", "completion": "A wren"}'),
        write(tmp_path / "c.csv", "id,question,answer\n7,Name a bird.,A wren\n"),
        write(tmp_path / "d.tsv", "instruction\toutput\nName a bird.\tA wren\n"),
        write(tmp_path / "e.csv", "\ufeffuser,assistant,system\r\nName a bird.,A wren,\r\n"),
    ]
    found = [read_rows(file) for file in files]
    assert [spoken(r.rows[0]) for r in found] == [PAIR] * len(files)
    assert len({r.identity for r in found}) == 1
    assert found[2].places == (f"{files[2]}:2",)


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = [Row(text="A page."), Row.model_validate({"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "ü\n\"x\""},
        {"role": "assistant", "content": "no", "train": False},
        {"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]})]  # fmt: skip
    write_rows(rows, tmp_path / "rows.jsonl")
    assert list(read_rows(tmp_path / "rows.jsonl").rows) == rows


def test_cells_may_hold_line_breaks_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,completion\n"One,\ntwo ""three""",A wren\nQ,A\n')
    found = read_rows(path)
    assert spoken(found.rows[0])[0] == ("user", 'One,\ntwo "three"')
    assert found.places[1] == f"{path}:4"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_the_lines_of_a_table(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "a.csv", f"prompt,completion\nOne{mark}two?,A wren\n")
    assert spoken(read_rows(path).rows[0])[0] == ("user", f"One{mark}two?")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "colour,shape\nred,round\n", r"a.csv:1: found columns 'colour', 'shape'; exp"),
        ("a.csv", "prompt;completion\nQ;A\n", r"a.csv:1: found columns 'prompt;completion'"),
        ("a.csv", "Prompt,Completion\nName, please.,A\n", r"a.csv:2: found more or fewer cells"),
        ("a.csv", "prompt,completion\nQ\n", r"a.csv:2: found more or fewer cells than the 2"),
        ("a.csv", "prompt,completion\nQ,\n", r"a.csv:2: found 'prompt'; expected"),
        ("a.csv", "prompt,completion\n", "no rows"),
        ("a.jsonl", '{"prompt": "Q"}', r"a.jsonl:1: found 'prompt'; expected"),
        ("a.jsonl", '{"prompt": "Q", "completion": "A", "colour": 1}', r"a.jsonl:1: found"),
        ("a.jsonl", '{"prompt": 3, "completion": "A"}', r"a.jsonl:1: `messages.0.content`"),
        ("a.jsonl", '{"text": "x"}\n[1]', "a.jsonl:2: found list"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', "a.jsonl:2: not JSON"),
        ("a.pkl", "x", r"a.pkl: a pickle is never loaded; save the rows as .jsonl"),
        ("a.pt", "x", r"a.pt: a pickle is never loaded"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(ChatError, match=said):
        read_rows(write(tmp_path / name, text))


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ChatError, match="cannot be read as UTF-8"):
        read_rows(tmp_path / "a.jsonl")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The datasets package, as far as it is used."""
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, **how: Any) -> list[dict[str, Any]]:
        asked.append({"name": name, **how})
        if name == "org/missing":
            raise FileNotFoundError("Dataset 'org/missing' doesn't exist on the Hub\nmore")
        return [{"prompt": "Name a bird.", "completion": "A wren", "score": 3}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_datasets_of_the_hub_are_rows_too(hub: list[dict[str, Any]]) -> None:
    found = read_rows("datasets:org/birds@v2:validation")
    assert spoken(found.rows[0]) == PAIR
    assert found.places == ("datasets:org/birds@v2:validation (row 1)",)
    read_rows("datasets:org/birds")
    assert hub == [
        {"name": "org/birds", "split": "validation", "revision": "v2"},
        {"name": "org/birds", "split": "train", "revision": None},
    ]
    with pytest.raises(ChatError, match=r"cannot be loaded \(Dataset 'org/missing'.*download it"):
        read_rows("datasets:org/missing")


def test_a_split_may_hold_colons(hub: list[dict[str, Any]]) -> None:
    read_rows("datasets:org/birds@v2:train[:100]")
    read_rows("datasets:org/birds:train[10:20]")
    assert [asked["split"] for asked in hub] == ["train[:100]", "train[10:20]"]
    assert [asked["name"] for asked in hub] == ["org/birds"] * 2


def test_columns_beside_messages_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": role, "content": content} for role, content in PAIR]
    values = {"messages": messages, "source": "mine", "text": "also here"}
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *_, **__: [values]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    quoted = json.dumps(messages).replace('"', '""')
    table = write(tmp_path / "a.csv", f'id,messages,text\n7,"{quoted}",also here\n')
    for source in ("datasets:org/birds", table):
        assert spoken(read_rows(source).rows[0]) == PAIR


def test_without_the_datasets_package_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ChatError, match="needs the package datasets; run `pip install datasets`"):
        read_rows("datasets:org/birds")
