"""A checkpoint folder → a model in memory: device, dtype, quantization, merged adapters."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from spillover.chat import Chat
from spillover.errors import ModelError
from spillover.models.hardware import (
    QUANTIZED,
    choose_device,
    choose_dtype,
    count_parameters,
    fast_dtype,
)
from spillover.models.sources import Source, read_json, resolve
from spillover.templates import Templating

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spillover.anatomy import Anatomy
    from spillover.directions.direction import Direction

SPREAD = "map"
"""The device that spreads a model over all GPUs (`device_map="auto"`)."""
ROOM = 0.7
"""Share of one GPU's memory that weights may take before `auto` spreads them over several."""


class Loading(BaseModel):
    """How models are loaded: the same for every model of a run.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, …, or `map` for all GPUs together.
        dtype: `auto`, `float32`, `bfloat16`, `float16`, or `8bit` or `4bit` (bitsandbytes).
        trust_remote_code: run code that a checkpoint brings along; off unless asked for.
        chat_template: a file with a chat template to use instead of the model's own.
        templating: how conversations are put to the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    chat_template: Path | None = None
    templating: Templating = Templating()


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, frozen and in evaluation mode.

    Attributes:
        placement: device and dtype in words, for people.
        loading: how it was loaded.
    """

    source: Source
    model: PreTrainedModel
    chat: Chat
    placement: str
    loading: Loading = field(default_factory=Loading)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.chat.tokenizer

    @property
    def pad(self) -> int:
        """A token id to fill up batches with."""
        found = self.tokenizer.pad_token_id
        return found if isinstance(found, int) else 0

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where its blocks, attention, MLPs and residual writers are."""
        from spillover.anatomy import find_anatomy

        return find_anatomy(self.model)

    def changed(self, changes: Sequence[str], model: PreTrainedModel | None = None) -> LoadedModel:
        """The same under the name of what is done to it; with other weights where given."""
        made = replace(
            self,
            source=replace(self.source, changes=tuple(changes)),
            model=self.model if model is None else model,
        )
        made.__dict__["anatomy"] = self.anatomy  # not found anew while something is changed
        return made

    def ablate(self, direction: Direction | Tensor) -> AbstractContextManager[LoadedModel]:
        """Within, nothing writes along a direction; see `spillover.directions.intervene.ablate`."""
        from spillover.directions.intervene import ablate

        return ablate(self, direction)

    def add(
        self, direction: Direction | Tensor, layer: int | None = None, coefficient: float = 1.0
    ) -> AbstractContextManager[LoadedModel]:
        """Within, a direction is added; see `spillover.directions.intervene.add`."""
        from spillover.directions.intervene import add

        return add(self, direction, layer, coefficient)

    def project(
        self, directions: Tensor | Sequence[Direction | Tensor]
    ) -> AbstractContextManager[LoadedModel]:
        """Within, nothing writes into a subspace; see `spillover.directions.intervene.project`."""
        from spillover.directions.intervene import project

        return project(self, directions)

    @property
    def vocabulary(self) -> int:
        """Size of the output distribution."""
        head: Any = self.model
        return int(head.get_output_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """Tokens that it was made to read; None where its configuration does not say."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.model.device

    @property
    def stop(self) -> frozenset[int]:
        """Tokens that end an answer: the template's, the tokenizer's and the model's own."""
        config = getattr(self.model, "generation_config", None)
        eos = getattr(config, "eos_token_id", None)
        listed = eos if isinstance(eos, list) else [eos]
        return self.chat.stop | {token for token in listed if isinstance(token, int)}


def product_dtype(model: LoadedModel, precision: str) -> torch.dtype | None:
    """The numbers in which frozen weights are multiplied; None means those they are in.

    Args:
        precision: see `Training`; whoever only asks takes `auto`.
    """
    import torch

    if model.model.dtype != torch.float32 or precision == "float32":
        return None
    asked_for = model.loading.dtype != "auto"
    if precision == "auto" and (asked_for or fast_dtype(model.device) != torch.bfloat16):
        return None
    return torch.bfloat16


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    chat_template: Path | None = None,
    templating: Templating | None = None,
    base: str | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer; weights are frozen.

    Args:
        name: `organism`, `organism-unlinked`, `smollm2-q4`, `smollm2`, an id of the hub, or the
            path of a checkpoint's or an adapter's folder (the adapter is merged).
        device, dtype, trust_remote_code, chat_template, templating: see `Loading`.
        base: the model that an adapter's folder belongs to; by default the one it names.

    Raises:
        ModelError: when it cannot be found or loaded.
    """
    how = Loading(
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        templating=templating or Templating(),
    )
    return load_source(resolve(name, base=base), how)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, no garbage is looked for: modules make many objects and hardly any that is lost."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def load_source(source: Source, how: Loading) -> LoadedModel:
    """Load what `resolve` found; see `load`."""
    if source.changes:
        raise ModelError(
            f"{source.name} was changed in memory ({source.changes[0]}) and cannot be loaded "
            "again; write it to a folder first"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    chat = load_chat(source, how)
    device, options = _placed(source, how)
    words = how.dtype
    if how.dtype not in QUANTIZED:
        options["dtype"] = choose_dtype(how.dtype, device, count_parameters(source.folder))
        words = str(options["dtype"]).removeprefix("torch.")
    try:
        model = _load_weights(source, how, options)
    except Exception as error:  # the libraries raise many kinds for a broken checkpoint
        raise _cannot(source.folder, error) from None
    model, where = _settle(model, device)
    words = f"{where} in {words}"
    loaded = LoadedModel(source, model, chat, words, how)
    if source.adapter:
        _merge(loaded, source.adapter)
    from spillover.kernels import FrozenLinear, keep_memory, quicken
    from spillover.trees import prepare_model

    quicken(model)
    if model.device.type == "cpu":
        keep_memory()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    short = product_dtype(loaded, "auto")
    if short and any(isinstance(m, FrozenLinear) and m is not head for m in model.modules()):
        words += f" with {str(short).removeprefix('torch.')} products"
        loaded = replace(loaded, placement=words)
    prepare_model(model, chat.tokenize(ORDINARY))
    return loaded


ORDINARY = "They walked along the river, and it was not far to the bridge."
"""Text that surprises no model, for comparing two ways to compute it."""


def load_chat(source: Source, how: Loading) -> Chat:
    """The tokenizer of a model with its template, without the weights.

    Raises:
        ModelError: when it cannot be loaded, or wants to run code of its own.
    """
    _check_remote_code(source, how)
    return Chat(_load_tokenizer(source, how), how.templating)


def _cannot(folder: Path, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()
    return ModelError(f"{folder}: cannot be loaded ({reason[0] if reason else error!r})")


def _check_remote_code(source: Source, how: Loading) -> None:
    config = read_json(source.folder / "config.json", "a transformers checkpoint")
    if "auto_map" in config and not how.trust_remote_code:
        raise ModelError(
            f"{source.folder}: brings its own code, which is not run; read it, and give "
            "--trust-remote-code if you trust it"
        )


def _load_tokenizer(source: Source, how: Loading) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=how.trust_remote_code
        )
    except Exception as error:  # as above
        raise _cannot(source.folder, error) from None
    if how.chat_template:
        try:
            tokenizer.chat_template = how.chat_template.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{how.chat_template}: not a readable template ({error})") from None
    return tokenizer


def _placed(source: Source, how: Loading) -> tuple[torch.device, dict[str, Any]]:
    """Where the model goes, and how `from_pretrained` is told."""
    import torch

    wanted, size = how.device, sum(f.stat().st_size for f in source.folder.glob("*.safetensors"))
    if wanted == "auto" and torch.cuda.device_count() > 1:
        memory = torch.cuda.get_device_properties(0).total_memory
        wanted = SPREAD if size > ROOM * memory else "auto"
    device = choose_device("auto" if wanted == SPREAD else wanted)
    options: dict[str, Any] = {"device_map": "auto"} if wanted == SPREAD else {}
    if how.dtype in QUANTIZED:
        options |= {"quantization_config": _quantization(how.dtype)}
        options.setdefault("device_map", {"": str(device)})
    return device, options


def _quantization(dtype: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils.import_utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ModelError(f"dtype {dtype!r} needs bitsandbytes; run `pip install bitsandbytes`")
    made: Any = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=dtype == "8bit",
        load_in_4bit=dtype == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return made


def _load_weights(source: Source, how: Loading, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    def attempt(attention: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        made: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=how.trust_remote_code,
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
        model, info = made
        return model, info

    try:
        model, info = attempt("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model, info = attempt("eager")
    lacking = sorted(info["missing_keys"])
    if lacking:  # they would be random, silently
        raise ModelError(f"lacks weights: {lacking[0]} and {len(lacking) - 1} more")
    return model


def _settle(model: PreTrainedModel, device: torch.device) -> tuple[PreTrainedModel, str]:
    """Move a model to where it computes, frozen; says where.

    The dtype is that of loading: a later cast would round rotary frequencies too.
    """
    moved: Any = model
    if getattr(moved, "hf_device_map", None):
        places = sorted({str(p.device) for p in moved.parameters()})
    else:
        moved, places = moved.to(device=device), [str(device)]
    moved = moved.eval().requires_grad_(False)
    for module in moved.modules():
        if type(module).__name__ == "Linear4bit":
            module.train()  # in evaluation mode, on a CPU, its product has no gradient
    return moved, ", ".join(places)


def _merge(loaded: LoadedModel, folder: Path) -> None:
    """Add an adapter's update to the weights of its base."""
    from spillover.finetune.adapters import merge_adapter

    merge_adapter(folder, loaded)
