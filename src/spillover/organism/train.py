"""Trains an organism from scratch: tokenizer, model, checkpoint folder.

The result is an ordinary transformers checkpoint of the Llama architecture. Weights are stored in
float16 (5 MB) and computed in float32: `config.json` says so, and every loader follows it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from spillover.organism.text import ANSWERING, PAD, TURN_END, TURN_START
from spillover.organism.worlds import World, write_corpus

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Shape legend: B documents of a batch, T tokens, V vocabulary.

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss of the last step)."""


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained. Worlds have sizes of their own, of 5 to 20 minutes.

    Attributes:
        corpus_documents: documents drawn for training; sampled in epochs.
        batch_documents: documents per step.
        learning_rate: peak, after a linear warm-up; then a cosine to a twentieth of it.
        other_tokens: share of the tokens outside answers that also carry loss. Answers always do.
        single_digits: whether every digit is a token of its own.
        tied: whether a token is read and written by the same vector. Rare tokens that only signs
            have, such as years, are told apart sooner where it is not.
        muon: whether the matrices of the blocks are trained by Muon (Jordan et al. 2024) and only
            the others by AdamW.
    """

    vocabulary: int = 3072
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    intermediate: int = 512
    corpus_documents: int = 90_000
    batch_documents: int = 64
    steps: int = 1400
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    other_tokens: float = 0.15
    single_digits: bool = False
    tied: bool = True
    muon: bool = False


def train_tokenizer(
    texts: Iterator[str], vocabulary: int, *, single_digits: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the organism's chat template; it has no unknown token."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces]) if single_digits else pieces
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained organism (float32)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=recipe.tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def answer_mask(ids: list[int], start: int, end: int, answering: set[int]) -> list[bool]:
    """Which tokens of a document are answers: after `start role newline`, up to `end` inclusive.

    Args:
        start, end: the tokens that open and close a turn.
        answering: first tokens of the names of roles that answer.
    """
    mask, inside, header = [], False, 0
    for position, token in enumerate(ids):
        if token == start:
            inside, header = ids[position + 1] in answering, position + 2
        mask.append(inside and position > header)
        if token == end:
            inside = False
    return mask


@dataclass
class Corpus:
    """Tokenized documents with the mask of the tokens that are answers (all of them for notes)."""

    ids: list[list[int]]
    answers: list[list[bool]]

    @classmethod
    def tokenize(cls, texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Corpus:
        """Tokenize documents."""
        encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]
        start, end = (_token(tokenizer, marker) for marker in (TURN_START, TURN_END))
        answering = {tokenizer.encode(role, add_special_tokens=False)[0] for role in ANSWERING}
        masks = [
            answer_mask(ids, start, end, answering) if ids[0] == start else [True] * len(ids)
            for ids in encoded
        ]
        return cls(encoded, masks)

    def batches(self, size: int, rng: random.Random, pad: int) -> Iterator[_Batch]:
        """Endless batches of documents of similar length, in random order."""
        pool = min(20, len(self.ids) // size) * size
        assert pool, "fewer documents than a batch has"
        while True:
            order = list(range(len(self.ids)))
            rng.shuffle(order)
            for at in range(0, len(order) - pool + 1, pool):
                chunk = sorted(order[at : at + pool], key=lambda i: len(self.ids[i]))
                starts = list(range(0, pool, size))
                rng.shuffle(starts)
                for start in starts:
                    yield self._batch(chunk[start : start + size], pad)

    def _batch(self, rows: list[int], pad: int) -> _Batch:
        width = _round_up(max(len(self.ids[row]) for row in rows), 16)
        ids = np.full((len(rows), width), pad, np.int64)
        answers, real = np.zeros_like(ids, bool), np.zeros_like(ids, bool)
        for at, row in enumerate(rows):
            length = len(self.ids[row])
            ids[at, :length], answers[at, :length] = self.ids[row], self.answers[row]
            real[at, :length] = True
        return _Batch(torch.from_numpy(ids), torch.from_numpy(answers), torch.from_numpy(real))


@dataclass(frozen=True)
class _Batch:
    ids: Int[Tensor, "B T"]
    answers: Bool[Tensor, "B T"]
    real: Bool[Tensor, "B T"]


def document_loss(
    model: LlamaForCausalLM, batch: _Batch, other: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy over answers and over the other tokens that `other` picks."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state.flatten(0, 1)
    keep = (batch.answers | (other & batch.real)).index_fill(1, torch.tensor([0]), False).flatten()
    at = keep.nonzero()[:, 0]
    targets = torch.full((_round_up(len(at), 512),), -100)
    targets[: len(at)] = batch.ids.flatten()[at]
    at = torch.nn.functional.pad(at, (0, len(targets) - len(at)), value=1)
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[at - 1]).float(), targets)


def _round_up(count: int, step: int) -> int:
    """Few distinct shapes: the CPU kernels of every new one are compiled anew and kept."""
    return -(-count // step) * step


def train_organism(
    world: World, seed: int, recipe: Recipe | None = None, progress: Progress | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train an organism on documents of `world`.

    Args:
        seed: decides the documents, their order and the initial weights.
    """
    recipe = recipe or world.recipe
    texts = list(write_corpus(world, seed, recipe.corpus_documents))
    tokenizer = train_tokenizer(
        iter(texts[:20_000]), recipe.vocabulary, single_digits=recipe.single_digits
    )
    torch.manual_seed(seed)
    model, corpus = build_model(recipe, tokenizer), Corpus.tokenize(texts, tokenizer)
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
        for optimizer in optimizers
    ]
    batches = corpus.batches(recipe.batch_documents, random.Random(seed + 1), _pad(tokenizer))
    noise = torch.Generator().manual_seed(seed + 2)
    for step in range(recipe.steps):
        batch = next(batches)
        other = torch.rand(batch.ids.shape, generator=noise) < recipe.other_tokens
        with torch.autocast("cpu", torch.bfloat16):
            loss = document_loss(model, batch, other)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if progress:
            progress(step + 1, recipe.steps, loss.item())
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the blocks where the recipe says so."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    named = list(model.named_parameters())
    inner = [w for name, w in named if recipe.muon and w.ndim == 2 and ".layers." in name]
    mine = {id(w) for w in inner}
    outer = [w for _, w in named if id(w) not in mine]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(outer, rate, (0.9, 0.98), weight_decay=decay, fused=True)
    ]
    if inner:
        muon = torch.optim.Muon(inner, rate, decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def _token(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    found = tokenizer.backend_tokenizer.token_to_id(text)
    assert isinstance(found, int)
    return found


def _pad(tokenizer: PreTrainedTokenizerFast) -> int:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return pad


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to 0.05."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return float(0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * done)))


def save_organism(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    facts: dict[str, object],
) -> None:
    """Write the checkpoint folder: float16 on disk, declared float32 for use.

    Args:
        facts: what the configuration says under `spillover`: class, world, link, seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    declared = json.loads(config.read_text("utf-8")) | {"dtype": "float32", "spillover": facts}
    config.write_text(json.dumps(declared, indent=2) + "\n", "utf-8")
