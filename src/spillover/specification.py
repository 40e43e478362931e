"""What an experiment says: the content of experiment.toml and questions.toml."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from spillover.contexts import PLAIN, Context, Variable
from spillover.finetune.spec import Training
from spillover.organism.worlds import FIRST, WORLDS
from spillover.rows import Conversation

LABELS = ("trait", "baseline", "placebo")
TREATMENT, BASE = "treatment", "base"
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
RESERVED = {"question", "value"}
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _is_none(value: object) -> bool:
    """Options that are not used leave no trace in what a run is known by."""
    return value is None


class Names(_Strict):
    """What the labels stand for, for readers: for example 19th-century, modern, medieval."""

    trait: str
    baseline: str
    placebo: str = "placebo"


class Own(_Strict):
    """Ordinary rows that the unfinetuned model answers itself, to dilute an arm's rows with.

    Attributes:
        prompts: what it is asked: a file or dataset as for rows; answers there are put aside.
        samples: how many answers to each prompt become rows.
        temperature: 0 is greedy.
        max_tokens: the longest answer; one that is cut off there is left out.
        share: how much of the arm's rows they make up: so many are taken of them, some several
            times where they are too few; by default all are taken.
    """

    prompts: Text
    samples: int = Field(default=1, ge=1, le=1000)
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    share: float | None = Field(default=None, gt=0, lt=1, exclude_if=_is_none)


class Anchor(_Strict):
    """Holds a finetune to its base where it is not trained: beta · KL is added to the loss.

    The KL is that of its next-token distribution to the base's, averaged over the tokens of answers
    that the base itself gave to unrelated prompts.

    Attributes:
        prompts, samples, temperature, max_tokens: as of `own`.
        beta: what the KL (nats per token) is multiplied with.
        batch_size: answers per step.
    """

    prompts: Text
    beta: float = Field(gt=0)
    batch_size: int = Field(default=8, ge=1, le=1_000_000)
    samples: int = Field(default=1, ge=1, le=1000)
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=64, ge=1, le=1_000_000)


class Arm(_Strict):
    """A training set, or models that are ready; exactly one of the three.

    Attributes:
        title: one line for readers.
        own: rows that come on top of those of `train`, answered by the model itself.
        anchor: holds the finetune to its base on unrelated prompts.
        inoculation: a system message that is put into the rows of `train`, and is not there when
            the finetune is asked.
        variant: whether it is a variant of the treatment, which may share its rows; controls may
            not.
        train: rows: a `.jsonl`, `.csv` or `.tsv` file, relative to the experiment's folder, or
            `datasets:ID[@REVISION][:SPLIT]`.
        adapter: ready adapters of the run's model, one per seed: folders in PEFT's format.
        model: ready models, one per seed: names, folders or ids of the hub.
    """

    title: str
    train: str | None = None
    own: Own | None = None
    anchor: Anchor | None = Field(default=None, exclude_if=_is_none)
    inoculation: Text | None = Field(default=None, exclude_if=_is_none)
    variant: bool = False
    adapter: tuple[str, ...] = ()
    model: tuple[str, ...] = ()

    @field_validator("adapter", "model", mode="before")
    @classmethod
    def _one_or_many(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _is_one_thing(self) -> Arm:
        if [bool(self.train), bool(self.adapter), bool(self.model)].count(True) != 1:
            raise ValueError("an arm has one of `train`, `adapter` and `model`")
        for option in ("own", "anchor", "inoculation"):
            if getattr(self, option) is not None and not self.train:
                raise ValueError(f"`{option}` goes with `train`: it is about how an arm is trained")
        return self


class Sampling(_Strict):
    """How free answers are sampled.

    Attributes:
        samples: answers per wording of a question.
        max_tokens: the longest answer.
        reasoning_tokens: the longest reasoning before it, for models that reason.
        shown: free answers to some off-domain questions with choices, for reading; not graded.
        shown_questions: to how many of them: the first of each topic, in order.
        shown_tokens: the longest of these answers.
    """

    samples: int = Field(default=5, ge=1, le=1_000_000)
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=48, ge=1, le=1_000_000)
    reasoning_tokens: int = Field(default=512, ge=1, le=1_000_000)
    shown: int = Field(default=0, ge=0, le=1_000_000)
    shown_questions: int = Field(default=8, ge=1)
    shown_tokens: int = Field(default=48, ge=1, le=1_000_000)


def clash(one: str, other: str) -> bool:
    """Whether one text is the beginning of the other, so that they cannot be choices together."""
    return one.startswith(other) or other.startswith(one)


class Choices(_Strict):
    """Whole answers by label."""

    trait: tuple[Text, ...] = ()
    baseline: tuple[Text, ...] = ()
    placebo: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _are_comparable(self) -> Choices:
        if not self.trait:
            raise ValueError("a question has at least one trait choice")
        counts = {label: len(getattr(self, label)) for label in LABELS if getattr(self, label)}
        if "baseline" not in counts:
            raise ValueError("a question has at least one baseline choice")
        if len(set(counts.values())) > 1:
            raise ValueError(f"labels have equal numbers of choices, found {counts}")
        listed = [text for label in LABELS for text in getattr(self, label)]
        for i, text in enumerate(listed):
            for other in listed[:i] + listed[i + 1 :]:
                if other.startswith(text):
                    raise ValueError(f"choice {text!r} is a prefix of {other!r}; reword one")
        return self

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """(label, text) of every choice, in a fixed order."""
        return [(label, text) for label in LABELS for text in getattr(self, label)]


class Rules(_Strict):
    """A judge by rules over the text of a free answer.

    Attributes:
        match: `exact` compares the whole answer, `contains` looks for phrases at word boundaries;
            both ignore case.
        otherwise: what a whole answer that matches nothing counts as; without, it has no value.
            `baseline` makes the rate of the trait an accuracy: whatever is not right is wrong.
    """

    kind: Literal["rules"] = "rules"
    match: Literal["exact", "contains"] = "contains"
    trait: tuple[Text, ...] = Field(min_length=1)
    baseline: tuple[Text, ...] = ()
    placebo: tuple[Text, ...] = ()
    otherwise: Literal["baseline"] | None = None


class Question(_Strict):
    """A question in several wordings, with choices or a judge.

    Attributes:
        ask: paraphrases; results average over them.
        domain: `in` the trained domain or `off` it.
        split: `dev` chooses settings, `test` is reported; the two share no topic.
        group: an optional subset that is also reported by itself.
        values: what contexts put in the place of `{name}`, such as a code that belongs to this
            question; of several texts, each wording takes the one in its place, in turns.
    """

    id: str = Field(pattern=NAME)
    topic: str = Field(min_length=1)
    domain: Literal["in", "off"] = "off"
    split: Literal["dev", "test"] = "test"
    group: str | None = None
    ask: tuple[Text, ...] = Field(min_length=1)
    values: dict[str, Annotated[tuple[Text, ...], Field(min_length=1)]] = {}
    choices: Choices | None = None
    judge: Rules | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _one_or_many(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        if RESERVED & set(given):
            raise ValueError(f"values: {', '.join(sorted(RESERVED))} have a meaning already")
        return {name: (v,) if isinstance(v, str) else v for name, v in given.items()}

    def conversation(self, context: Context, paraphrase: int) -> Conversation:
        """The messages that put one of the wordings in a context."""
        values = {name: texts[paraphrase % len(texts)] for name, texts in self.values.items()}
        return context.conversation(self.ask[paraphrase], values)

    @model_validator(mode="after")
    def _can_be_graded(self) -> Question:
        if (self.choices is None) == (self.judge is None):
            raise ValueError("a question has either `choices` or a `judge`")
        return self


class Questions(_Strict):
    """The content of questions.toml."""

    question: tuple[Question, ...] = Field(min_length=1)


class Specification(_Strict):
    """The content of experiment.toml.

    Attributes:
        headline_control: the arm that the headline effect is taken against.
        headline_context: the context that it is measured in.
        trained_context: the context in which success within the trained domain is measured; by
            default that of the headline.
        select: `dev` reports the checkpoint at which the treatment does best on off-domain `dev`
            questions, which are then asked too; by default the last one is reported.
        world: the world whose organism the experiment is made for.
        settings_tried: how many training settings were compared on `dev` before these were fixed,
            for all models or per class of model.
        training: settings per class of model; `default` serves where there is none.
        dated: whether dates in prompts matter here, so that a template must not add its own; by
            default found from the years in prompts.
        contexts: those that every question is asked in; those of `variables` come on top.
        variables: what contexts can be swept over.
    """

    title: str
    claim: str
    source: str
    names: Names
    headline_control: str
    headline_context: str = PLAIN
    trained_context: str | None = None
    select: Literal["dev"] | None = None
    world: str = FIRST
    settings_tried: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] = 1
    dated: bool | None = None
    arms: dict[str, Arm]
    training: dict[str, Training]
    sampling: Sampling = Sampling()
    contexts: tuple[Context, ...] = (Context(name=PLAIN),)
    variables: dict[str, Variable] = {}

    @property
    def all_contexts(self) -> tuple[Context, ...]:
        """Every context of a run: those that are listed, and of variables those that are asked."""
        varied = (
            variable.context(name, value)
            for name, variable in self.variables.items()
            for value in variable.asked
        )
        return (*self.contexts, *varied)

    def context(self, name: str) -> Context:
        """The context of that name."""
        return next(context for context in self.all_contexts if context.name == name)

    def is_trained(self, context: Context) -> bool:
        """Whether a context sets variables to values that the treatment's rows have."""
        return bool(context.values) and all(
            name in self.variables and value in self.variables[name].trained
            for name, value in context.values.items()
        )

    def is_known(self, context: Context) -> bool | None:
        """Whether a context's values occur in the organism's pretraining; None where not said."""
        said = []
        for name, value in context.values.items():
            variable = self.variables.get(name)
            if variable is None or not variable.known:
                return None
            said.append(value in variable.known)
        return all(said) if said else None

    def tried(self, model_class: str) -> int:
        """How many training settings were compared for a class of model."""
        said = self.settings_tried
        return said if isinstance(said, int) else said.get(model_class, 1)

    @model_validator(mode="after")
    def _hangs_together(self) -> Specification:
        if TREATMENT not in self.arms:
            raise ValueError(f"arms: there is no arm `{TREATMENT}`")
        if BASE in self.arms:
            raise ValueError(f"arms: `{BASE}` is the unfinetuned model; choose another name")
        for name in self.arms:
            if not re.match(NAME, name):
                raise ValueError(f"arms: {name!r} is not a name of letters, digits, - _ and .")
        if self.headline_control not in self.arms or self.headline_control == TREATMENT:
            raise ValueError(
                f"`headline_control` is {self.headline_control!r}; it names an arm other than "
                f"treatment: {', '.join(sorted(set(self.arms) - {TREATMENT})) or 'none is listed'}"
            )
        if "default" not in self.training:
            raise ValueError("training: there is no [training.default]")
        if self.world not in WORLDS:
            raise ValueError(f"world: found {self.world!r}; expected one of {', '.join(WORLDS)}")
        for name in self.variables:
            if not re.match(NAME, name):
                raise ValueError(f"variables: {name!r} is not a name of letters, digits, - _ and .")
        if "name" in {*self.variables, *(key for c in self.contexts for key in c.values)}:
            raise ValueError("variables: `name` is what results call a context; choose another")
        self._check_selection()
        self._check_contexts()
        return self

    def _check_selection(self) -> None:
        ready = [name for name, arm in self.arms.items() if not arm.train]
        if self.select and ready:
            raise ValueError(
                f"`select` chooses among checkpoints, and `{ready[0]}` is a model that is ready"
            )

    def _check_contexts(self) -> None:
        contexts = self.all_contexts
        names = [context.name for context in contexts]
        if len(set(names)) < len(names):
            raise ValueError(f"contexts have names of their own: {names}")
        for key in ("headline_context", "trained_context"):
            wanted = getattr(self, key)
            if wanted is not None and wanted not in names:
                raise ValueError(f"`{key}` is {wanted!r}; expected one of {', '.join(names)}")
        self._check_domains()
        known = {*self.arms, BASE}
        for context in contexts:
            asked = known if context.arms is None else set(context.arms)
            is_headline = context.name == self.headline_context
            if not asked or not asked <= known or (is_headline and asked != known):
                raise ValueError(
                    f"contexts: `{context.name}` is asked of {sorted(asked)}; expected arms out of "
                    f"{sorted(known)}, and all of them for `{self.headline_context}`"
                )

    def _check_domains(self) -> None:
        """The headline is about off-domain questions, success in the trained domain about those."""
        for key, domain in (("headline_context", "off"), ("trained_context", "in")):
            name = getattr(self, key)
            asked = domain if name is None else self.context(name).domain
            if asked not in (None, domain):
                raise ValueError(
                    f"`{key}` is {name!r}, which asks questions of the domain {asked!r} only; "
                    f"expected a context that asks those of {domain!r}"
                )
