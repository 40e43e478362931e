"""A base and a finetune of it, side by side: what either would say next along given answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from spillover.ask.local import LocalEngine, bankable
from spillover.ask.requests import SampleSettings
from spillover.errors import ModelError
from spillover.finetune.adapters import OtherAdapterError
from spillover.finetune.lora import AdapterWeights
from spillover.models import LoadedModel, Loading, resolve
from spillover.models.loading import load_source
from spillover.next_tokens import Embed, batches, log_probs
from spillover.rows import Conversation

# Shape legend: N sequences, T tokens of an answer, V vocabulary.

SMALL = 100e6
"""Parameters up to which an adapter is merged into weights of its own: a quarter faster."""
ADAPTED, BASE = 0, 1
"""The two sides."""


@dataclass(frozen=True)
class Sequences:
    """Prompts with answers: the logits wanted are those that predict the answers' tokens.

    Attributes:
        ids: of prompt and answer, the last token of the answer left out.
        length: tokens of each answer; the same for all.
    """

    ids: list[list[int]]
    length: int

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Sequences:
        """Put answers behind prompts; negative tokens, behind the end of an answer, are filled."""
        pairs = zip(prompts, answers, strict=True)
        joined = [[*p, *(max(0, token) for token in a[:-1])] for p, a in pairs]
        return Sequences(joined, len(answers[0]))


@dataclass(frozen=True)
class Pair:
    """The finetune and its base, ready to compute.

    Attributes:
        sides: engine and respondent of the finetune (`ADAPTED`) and of the base (`BASE`).
        identity: a hash of both.
    """

    model: LoadedModel
    sides: tuple[tuple[LocalEngine, int], tuple[LocalEngine, int]]
    identity: str

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation up to where the answer begins."""
        return self.model.chat.prompt_ids(conversation)

    def answers(self, side: int, conversations: Sequence[Conversation], tokens: int) -> list[str]:
        """What one side answers at temperature 0, cut after so many tokens."""
        engine, who = self.sides[side]
        settings = SampleSettings(samples=1, temperature=0.0, max_tokens=tokens)
        said = [""] * len(conversations)
        for batch in batches(self.model, [len(self.prompt(c)) for c in conversations]):
            asked = [conversations[at] for at in batch]
            for at, samples in zip(
                batch, engine.sample([who] * len(asked), asked, settings), strict=True
            ):
                said[at] = samples[0].text
        return said

    def batches(self, sequences: Sequences) -> list[list[int]]:
        """Sequences of about the same length that are computed together, by number."""
        return batches(self.model, [len(ids) for ids in sequences.ids], sequences.length)

    def log_probs(
        self,
        side: int,
        sequences: Sequences,
        numbers: Sequence[int],
        embed: Embed | None = None,
    ) -> Float[Tensor, "N T V"]:
        """Log-probabilities of every next token along the answers of some of the sequences.

        Args:
            embed: makes the embeddings of padded ids; by default the model does.
        """
        engine, who = self.sides[side]
        rows = [sequences.ids[number] for number in numbers]
        with engine.routed([who] * len(rows)):
            return log_probs(engine.model, rows, sequences.length, embed)


def _mergeable(model: LoadedModel, weights: AdapterWeights) -> bool:
    """Whether a second set of weights costs little; none can be made where embeddings are tied."""
    head: Any = model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    changed = [model.model.get_submodule(name) for name in weights.a]
    return model.model.num_parameters() <= SMALL and all(layer is not head for layer in changed)


@contextmanager
def open_pair(base: str, adapter: str | Path, loading: Loading) -> Iterator[Pair]:
    """Load a base and an adapter of it; a plain LoRA of a large one shares its base's weights.

    Raises:
        ModelError: when either cannot be loaded, or they do not fit.
    """
    source = resolve(base)
    tuned = resolve(str(adapter), base=base)
    model = load_source(source, loading)
    identity = f"{source.identity}-{tuned.identity}"
    with ExitStack() as opened:
        try:
            weights = bankable(tuned.adapter, model) if tuned.adapter else None
        except OtherAdapterError:
            weights = None
        if weights and not _mergeable(model, weights):
            listed = [("adapter", weights), ("base", None)]
            engine = opened.enter_context(LocalEngine(model, listed))
            yield Pair(model, ((engine, ADAPTED), (engine, BASE)), identity)
            return
        whole = load_source(tuned, loading)
        if whole.vocabulary != model.vocabulary:
            raise ModelError(
                f"{adapter}: does not fit {base}: it has {whole.vocabulary} tokens, its base "
                f"{model.vocabulary}; name the base that it was made from with --model"
            )
        engines = [
            opened.enter_context(LocalEngine(one, [(name, None)]))
            for name, one in (("adapter", whole), ("base", model))
        ]
        yield Pair(model, ((engines[0], 0), (engines[1], 0)), identity)
