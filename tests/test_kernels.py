"""Frozen linear layers: the same numbers and gradients as PyTorch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spillover import LoadedModel, kernels
from spillover.kernels import FrozenLinear, available


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_outputs_and_gradients_are_those_of_a_plain_layer(
    bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "pays", lambda: onednn and available())
    torch.manual_seed(0)
    plain = torch.nn.Linear(7, 5, bias=bias).requires_grad_(False)
    quick = FrozenLinear(7, 5, bias=bias).requires_grad_(False)
    quick.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 7, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    weights = torch.randn(2, 3, 5)
    (plain(x) * weights).sum().backward()
    (quick(y) * weights).sum().backward()
    assert torch.allclose(plain(x), quick(y), atol=1e-6)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad, y.grad, atol=1e-6)


def test_weights_that_train_get_their_gradient() -> None:
    layer = FrozenLinear(4, 3)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, torch.full((3, 4), 2.0))


@pytest.mark.parametrize(("vendor", "expected"), [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_onednn_multiplies_where_mkl_is_slow(
    vendor: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\n", "utf-8")
    kernels.pays.cache_clear()
    assert kernels.pays() is (expected and available())
    kernels.pays.cache_clear()


def test_loaded_models_on_the_cpu_use_it(organism: LoadedModel) -> None:
    layer = organism.model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, FrozenLinear)
