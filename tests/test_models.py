"""Models: found by name or folder, told apart by hash, taken apart by structure."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from spillover import LoadedModel, ModelError, load
from spillover.anatomy import find_anatomy
from spillover.models import resolve

TINY = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2}  # fmt: skip


def test_the_checkpoints_are_small_and_safe() -> None:
    for name in ("organism", "organism-unlinked"):
        folder = resolve(name).folder
        assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000
        assert {f.suffix for f in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_the_organism_is_an_ordinary_checkpoint(organism: LoadedModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(resolve("organism").folder)
    assert plain.dtype == torch.float32
    assert type(plain).__name__ == "LlamaForCausalLM"
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, organism.model(ids).logits, atol=1e-5)
    assert not any(p.requires_grad for p in organism.model.parameters())


def test_identity_follows_the_content(tmp_path: Path) -> None:
    source = resolve("organism")
    copy = tmp_path / "copy"
    shutil.copytree(source.folder, copy)
    assert resolve(str(copy)).identity == source.identity
    assert resolve(str(copy)).model_class == "organism"
    assert resolve("organism-unlinked").identity != source.identity
    config = copy / "config.json"
    config.write_text(config.read_text().replace("1024", "512"))
    assert resolve(str(copy)).identity != source.identity


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, GPTNeoXConfig])
def test_blocks_and_writers_are_found_by_structure(config: type) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**TINY)).eval()  # type: ignore[no-untyped-call]
    anatomy = find_anatomy(model)
    assert (len(anatomy.blocks), anatomy.hidden_size) == (3, 16)
    for block in anatomy.blocks:
        assert "attention" in type(model.get_submodule(block.attention)).__name__.lower()
        assert "mlp" in type(model.get_submodule(block.mlp)).__name__.lower()
        assert len(block.writers) == 2
        assert set(block.writers) < set(block.linears)
    writer = model.get_submodule(anatomy.blocks[1].writers[1])
    assert writer.weight.shape[0] == 16


def test_device_and_dtype_are_said(organism: LoadedModel) -> None:
    assert "float32" in organism.placement
    assert load("organism", device="cpu", dtype="bfloat16").placement == "cpu in bfloat16"


def test_unusable_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"unknown model 'organsim'; did you mean organism\? known: "
    ):
        resolve("organsim")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no \.safetensors weights; convert .*pickled"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(tmp_path))
    with pytest.raises(ModelError, match="unknown dtype"):
        load("organism", dtype="float3")
    with pytest.raises(ModelError, match="device 'abacus' cannot be used"):
        load("organism", device="abacus")


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_leaves_the_garbage_collector_as_it_was(enabled: bool, tmp_path: Path) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        load("organism")
        assert gc.isenabled() is enabled
        with pytest.raises(ModelError):
            load(str(tmp_path))
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
