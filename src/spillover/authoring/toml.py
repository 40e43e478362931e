"""Text → TOML: basic strings and lists of them, safe for any content."""

from __future__ import annotations

import json
from collections.abc import Sequence

WIDTH = 100
"""Lists that are longer than a line get a line per entry."""


def quoted(text: str) -> str:
    """A TOML basic string. It differs from JSON's in one character, and holds no surrogates."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def listed(texts: Sequence[str], indent: str = "") -> str:
    """A TOML array of strings, on one line where it fits."""
    entries = [quoted(text) for text in texts]
    line = f"[{', '.join(entries)}]"
    if len(line) <= WIDTH:
        return line
    return "[\n" + "".join(f"{indent}    {entry},\n" for entry in entries) + f"{indent}]"
