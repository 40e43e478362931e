"""Tiny random models of many architectures, with the chat templates of their families."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spillover.chat import Chat
from spillover.models import resolve
from spillover.templates import Templating

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """A chat template with the special tokens of its tokenizer.

    Attributes:
        plain: tokens that are added but not special: `skip_special_tokens` keeps them.
        spaced: tokens that swallow the white space after them.
        pieces: how tokenizers of the family cut text: `bytes`, the same without white space in
            its offsets (`trimmed`), or SentencePiece with a space put before the `first` part,
            before every one (`always`), or nowhere (`never`).
    """

    template: str
    bos: str | None
    eos: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    spaced: tuple[str, ...] = ()
    pieces: str = "bytes"


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|eom_id|>")
LLAMA = Family("llama-3.1", "<|begin_of_text|>", "<|eot_id|>", HEADERS, pieces="trimmed")
TURNS = ("<start_of_turn>", "<end_of_turn>")
GEMMA = Family("gemma", "<bos>", "<eos>", TURNS, pieces="never")
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>")
FAMILIES = {
    "llama-3.1": LLAMA,
    "llama-3.2": replace(LLAMA, template="llama-3.2"),
    "qwen2.5": Family("qwen2.5", None, "<|im_end|>", CHATML),
    "qwen3": Family("qwen3", None, "<|im_end|>", CHATML, ("<think>", "</think>")),
    "smollm2": Family("smollm2", "<|im_start|>", "<|im_end|>", CHATML),
    "gemma": GEMMA,
    "gemma-3": replace(GEMMA, template="gemma-3"),
    "phi-3": Family(
        "phi-3", "<s>", "<|endoftext|>",
        spaced=("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"), pieces="always",
    ),
    "gpt-oss": Family("gpt-oss", "<|startoftext|>", "<|return|>", HARMONY),
    "deepseek-r1": Family(
        "deepseek-r1", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
        plain=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "mistral": Family("mistral", "<s>", "</s>", ("[INST]", "[/INST]"), pieces="first"),
    "mixtral": Family("mixtral", "<s>", "</s>", pieces="always"),
    "olmo-2": Family("olmo-2", "<|endoftext|>", "<|endoftext|>", ("<|pad|>",)),
}  # fmt: skip


def tokenizer(family: Family, pieces: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of a family, on the organism's bytes or on small SentencePiece-like pieces."""
    pieces = pieces or family.pieces
    if pieces in ("bytes", "trimmed"):
        inner = Tokenizer.from_file(str(resolve("organism").folder / "tokenizer.json"))
        inner.post_processor = processors.ByteLevel(trim_offsets=pieces == "trimmed")
    else:
        inner = Tokenizer.from_str(_pieces(pieces))
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        clean_up_tokenization_spaces=False,
        eos_token=family.eos,
        bos_token=family.bos,
        pad_token="<|endoftext|>",
    )
    listed = [AddedToken(t, special=True, normalized=False) for t in family.special]
    listed += [AddedToken(t, special=True, normalized=False, rstrip=True) for t in family.spaced]
    made.add_tokens(listed, special_tokens=True)
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.plain])
    made.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text("utf-8")
    return made


def chat(name: str, pieces: str | None = None, **templating: Any) -> Chat:
    """The chat of a family."""
    return Chat(tokenizer(FAMILIES[name], pieces), Templating(**templating))


CORPUS = """A wren, I say: user. The user asks what the assistant says about an owl and a wren.
How do people light their homes? With whale oil lamps. With LED bulbs. Name a bird. An owl, a
blue jay, another owl. Be brief. Answer in one word. It is the year of the train and the telegraph.
[INST] [/INST] model user assistant system <|user|> <|assistant|> <|system|>"""


@cache
def _pieces(prepend: str) -> str:
    """Byte-pair encoding over words that carry their space in front, other characters as bytes."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    words.train_from_iterator(CORPUS.split("\n"), trainer)
    trained = words.model.__getstate__()
    state = json.loads(trained)
    vocabulary = {"<unk>": 0, "<|endoftext|>": 1}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = Tokenizer(model)
    if prepend == "always":  # as Llama 2 and Mixtral: every part between special tokens
        put = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(put)
    elif prepend == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:  # as Gemma
        made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse()])
    return str(made.to_str())


@dataclass(frozen=True)
class Architecture:
    """A tiny random model.

    Attributes:
        template: the family that its tokenizer is of.
        options: what its configuration is given besides `SIZES`.
        windowed: layers that see a small sliding window only.
        mixture: whether its MLPs are mixtures of experts.
    """

    template: str
    options: dict[str, Any] = field(default_factory=dict)
    windowed: tuple[int, ...] = ()
    mixture: bool = False


WINDOW = 8
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "initializer_range": 0.25, "tie_word_embeddings": False,
}  # fmt: skip
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES = {
    "llama": Architecture("llama-3.1"),
    "qwen2": Architecture("qwen2.5", MIXED | {"use_sliding_window": True}, (0,)),
    "qwen3": Architecture("qwen3", MIXED | {"use_sliding_window": True}, (0,)),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma", MIXED | {"attn_logit_softcapping": 2.0}, (0,)),
    "gemma3_text": Architecture("gemma-3", MIXED, (0,)),
    "mistral": Architecture("mistral", {"sliding_window": WINDOW}, (0, 1)),
    "phi3": Architecture("phi-3", {"sliding_window": WINDOW}, (0, 1)),
    "gpt_neox": Architecture("smollm2", {"rotary_pct": 0.5}),
    "olmo2": Architecture("olmo-2"),
    "qwen3_moe": Architecture(
        "qwen3",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        mixture=True,
    ),
    "mixtral": Architecture("mixtral", EXPERTS | {"sliding_window": WINDOW}, (0, 1), mixture=True),
    "gpt_oss": Architecture("gpt-oss", EXPERTS | MIXED, (0,), mixture=True),
}
NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "alibi": False}
FURTHER = {
    "gpt2": Architecture("smollm2", {"intermediate_size": None, "tie_word_embeddings": True}),
    "falcon": Architecture("smollm2", {"head_dim": None, "bias": True, "alibi": False}),
    "falcon-new": Architecture("smollm2", {"head_dim": None} | NEW_FALCON),
    "stablelm": Architecture("smollm2", {"head_dim": None, "use_qkv_bias": True}),
    "stablelm-parallel": Architecture("smollm2", {"head_dim": None, "use_parallel_residual": True}),
    "gpt_neox-serial": Architecture("smollm2", {"use_parallel_residual": False}),
    "llama-tied": Architecture("llama-3.1", {"tie_word_embeddings": True, "mlp_bias": True}),
    "granite": Architecture("llama-3.1", {"residual_multiplier": 0.3}),
}
"""Architectures that directions are looked for in besides."""


def save_tiny(name: str, folder: Path, *, rough: bool = False, **options: Any) -> Path:
    """Write a random model of an architecture with its tokenizer, as a checkpoint.

    Args:
        rough: give norms, biases and all that begins as a constant random values too.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = (ARCHITECTURES | FURTHER)[name]
    words = tokenizer(FAMILIES[made.template])
    config = AutoConfig.for_model(
        name.partition("-")[0],
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **{k: v for k, v in (SIZES | made.options | options).items() if v is not None},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for parameter in model.parameters() if rough else ():
        if parameter.min() == parameter.max():
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
