"""Answers in bfloat16 through the fused kernel, against the same in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spillover import load
from spillover.ask import fused
from spillover.ask.decode import SharedPrompts
from spillover.ask.fused import FusedPrompts, attend
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.aten, fused.KERNEL), reason="this PyTorch has no such kernel"
)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]
LONGEST = 6


def test_attention_and_log_sum_exps_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(5, 2, size, 8, generator=generator).bfloat16() for size in (3, 7, 7)
    )
    mask = torch.zeros(5, 1, 1, 7).index_fill_(3, torch.tensor([0, 4]), -torch.inf).bfloat16()
    for hidden in (None, mask):
        out, size = attend(query, key, value, hidden, 0.3)
        scores = 0.3 * query.float() @ key.float().mT + (0 if hidden is None else hidden.float())
        assert torch.allclose(out.float(), scores.softmax(-1) @ value.float(), atol=0.02)
        assert torch.allclose(size.float(), scores.logsumexp(-1, keepdim=True), atol=1e-3)


def said(batch: SharedPrompts) -> list[torch.Tensor]:
    """Logits of answers that begin and end at several times; more steps than there are slots."""
    generator = torch.Generator().manual_seed(1)
    found = [batch.prefill()]
    batch.select([], [0, 0, 1, 2, 2])
    for refilled in ([0, 2, 3], [1, 2], [0, 1, 2, 3]):
        for _ in range(LONGEST - 2):
            tokens = torch.randint(5, 60, (len(batch.owner),), generator=generator)
            found.append(batch.step(tokens))
        batch.select(refilled, [2, 0])
    found.append(batch.step(torch.full((len(batch.owner),), 9)))
    return found


@torch.no_grad()
def test_answers_are_those_of_float32_but_for_rounding(tmp_path: Path) -> None:
    model = load(str(save_tiny("llama", tmp_path / "tiny"))).model  # two heads for each key head
    kinds = SharedPrompts, FusedPrompts
    exact, short = (said(kind(model, PROMPTS, 0, LONGEST)) for kind in kinds)
    assert [x.shape for x in exact] == [x.shape for x in short]
    for plain, rounded in zip(exact, short, strict=True):
        assert (plain - rounded).norm() <= 0.02 * plain.norm()
    assert any((a != b).any() for a, b in zip(exact[1:], short[1:], strict=True))


@torch.no_grad()
def test_what_is_hidden_in_the_kernel_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(save_tiny("llama", tmp_path / "tiny"))).model
    exact = said(SharedPrompts(model, PROMPTS, 0, LONGEST))
    monkeypatch.setattr(fused, "_hiding", lambda _: None)
    seen = said(FusedPrompts(model, PROMPTS, 0, LONGEST))
    assert max(float((a - b).norm() / a.norm()) for a, b in zip(exact, seen, strict=True)) > 0.1
