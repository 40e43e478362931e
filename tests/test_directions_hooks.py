"""Wherever something breaks off: no hook stays in a model, and outputs are bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spillover import LoadedModel, load
from spillover.anatomy import find_anatomy
from spillover.directions.attribution import attribute
from spillover.directions.contrast import watching
from spillover.directions.passes import Passes, ablating, restarted
from spillover.directions.writers import find_writers

IDS = torch.arange(40).reshape(2, 20) + 100


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    made = load("organism-refusal", dtype="float32")
    assert made.anatomy.blocks  # found before anything is broken
    return made


def vector(model: LoadedModel) -> Tensor:
    size = model.anatomy.hidden_size
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def logits(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.model(input_ids=IDS).logits
    return out


def units(model: LoadedModel) -> Tensor:
    return nn.functional.normalize(torch.stack([vector(model)] * len(IDS)), dim=-1)


def restart(model: LoadedModel) -> AbstractContextManager[None]:
    stream = torch.zeros(*IDS.shape, model.anatomy.hidden_size)
    return restarted(model, 2, stream, [False] * len(model.anatomy.blocks))


def after(call: Callable[[], object]) -> AbstractContextManager[None]:
    call()
    return nullcontext()


Opening = Callable[[LoadedModel], AbstractContextManager[object]]
OPENED: dict[str, Opening] = {
    "ablate": lambda model: model.ablate(vector(model)),
    "add": lambda model: model.add(vector(model), 1),
    "ablating": lambda model: ablating(model, units(model)),
    "restarted": restart,
}
"""What changes a model for as long as it is open."""
LOOKED: dict[str, Opening] = {
    "watching": lambda model: watching(model, lambda _: None),
    "base": lambda model: after(lambda: Passes(model, IDS.tolist()).base([1, 2])),
    "find_writers": lambda model: after(lambda: find_writers(model)),
    "find_anatomy": lambda model: after(lambda: find_anatomy(model.model)),
    "attribute": lambda model: after(lambda: attribute(model, IDS.tolist(), vector(model))),
}
"""What only looks."""


class BrokenError(Exception):
    pass


class Fuse:
    """Functions of classes, of which all together only so many calls go well."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: int, *places: tuple[type, str]) -> None:
        self.left = calls
        for owner, name in places:
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise BrokenError
            return usual(*given, **named)

        return call


def must_be_as_before(model: LoadedModel, before: Tensor, when: str) -> None:
    left = [
        name
        for name, module in model.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]
    assert not left, when
    assert torch.equal(logits(model), before), when


@pytest.mark.parametrize("name", OPENED | LOOKED)
def test_an_error_at_any_point_of_entering_leaves_nothing(
    name: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits(model)
    places = [
        (nn.Module, "register_forward_hook"),
        (nn.Module, "register_forward_pre_hook"),
        (nn.Module, "get_submodule"),
        (type(model.model), "get_input_embeddings"),
    ]
    steps = 0
    for broken in range(1000):
        with monkeypatch.context() as patch, ExitStack() as opened:
            Fuse(patch, broken, *places)
            try:
                opened.enter_context((OPENED | LOOKED)[name](model))
            except BrokenError:
                steps += 1
            else:
                break
        must_be_as_before(model, before, f"after step {broken}")
    assert steps >= len(model.anatomy.blocks)
    must_be_as_before(model, before, "at the end")


@pytest.mark.parametrize("name", OPENED | LOOKED)
def test_an_error_in_a_forward_pass_leaves_nothing(name: str, model: LoadedModel) -> None:
    before, calls = logits(model), 0
    block = model.model.get_submodule(model.anatomy.blocks[-1].mlp)

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        raise BrokenError

    handle = block.register_forward_hook(fail)
    with pytest.raises(BrokenError), (OPENED | LOOKED)[name](model):
        logits(model)
    handle.remove()
    assert calls == 1
    must_be_as_before(model, before, name)


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_inside_leaves_nothing(
    kind: type[BaseException], name: str, model: LoadedModel
) -> None:
    before = logits(model)

    def use() -> None:
        with OPENED[name](model):
            assert not torch.equal(logits(model), before)
            raise kind

    with pytest.raises(kind):
        use()
    must_be_as_before(model, before, name)


def test_a_function_that_a_block_had_of_its_own_is_put_back(model: LoadedModel) -> None:
    """Accelerate replaces `forward` of modules that it moves between devices."""
    before = logits(model)
    block = model.model.get_submodule(model.anatomy.blocks[0].name)
    usual = block.forward

    def moving(*given: Any, **named: Any) -> Any:
        return usual(*given, **named)

    block.forward = moving
    try:
        with restart(model):
            assert block.forward is not moving
            assert not torch.equal(logits(model), before)
        assert vars(block)["forward"] is moving
        assert torch.equal(logits(model), before)
    finally:
        del block.forward
