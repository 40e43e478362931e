"""How much memory training takes, told before it starts, and the groups that fit into it.

A group's plan depends on what is trained and on the machine, never on what happens to be free:
groups decide which adapters share a batch, and so the last digits of their weights.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spillover.finetune.bank import adapter_losses
from spillover.finetune.jobs import Job
from spillover.finetune.lora import LoraBank, alike, linear_shape, new_adapter, target_layers
from spillover.finetune.snapshots import interval
from spillover.kernels import FrozenLinear, shortened
from spillover.models.loading import LoadedModel, product_dtype
from spillover.trees import PREFIX, Tree

GROUP_TOKENS = 4096
"""Tokens of a step, filling included, beyond which a larger group is not faster."""
ROOM = {"cpu": 0.6, "cuda": 0.85}
"""Share of the machine's memory that a process may take while it trains."""
ALLOCATED = {"cpu": 1.35, "cpu-float32": 1.75, "cuda": 1.1}
"""Bytes that the allocator holds for each byte of activations (benchmarks/memory.py): the C library
leaves holes between aligned blocks that it does not fill again."""
WHOLE = 32 * 2**20
"""Bytes of one piece from which the C library asks the system for it alone, so without holes."""
ARITHMETIC = {"cpu": 1e11, "cuda": 1e14}
"""Operations per second that the time of a step is planned with."""
WIDTH = 8
"""Trees are filled up to a multiple of so many tokens."""
MOST_UNLIKE = 32
"""Tokens that the trees of a group may differ by; beyond, filling up costs more than it saves."""
FLOAT = 4
"""Bytes of an adapter's numbers, its gradients and moments."""


@dataclass(frozen=True)
class Rates:
    """Bytes that the activations of a step take, measured on short inputs.

    Attributes:
        token, pair, read: for each token of a tree, each pair of its tokens, each labelled token.
        vocabulary: size of the output distribution.
        parameters: numbers of the base.
    """

    token: float
    pair: float
    read: float
    vocabulary: int
    parameters: int


@dataclass(frozen=True)
class Shape:
    """The largest step of a group: trees, tokens of the widest one, labelled tokens."""

    trees: int
    width: int
    reads: int

    @property
    def tokens(self) -> int:
        """Tokens of the step, filling included."""
        return self.trees * self.width


@dataclass(frozen=True)
class Group:
    """Jobs that are trained together, and the bytes that this takes by part.

    Attributes:
        snapshot_every: steps between two snapshots.
    """

    jobs: tuple[Job, ...]
    shape: Shape
    bytes: dict[str, int]
    snapshot_every: int

    @property
    def total_bytes(self) -> int:
        """What training adds to the process at its peak."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Plan:
    """How finetunes are split into groups.

    Attributes:
        limit: bytes that may be taken, by all processes.
        base: bytes of the base's weights, which are there already.
    """

    groups: tuple[Group, ...]
    limit: int
    base: int

    def data(self) -> dict[str, Any]:
        """The plan as plain data, for a manifest."""
        return {
            "limit": self.limit,
            "base": self.base,
            "groups": [
                {
                    "jobs": [[job.name or job.arm, job.seed] for job in group.jobs],
                    "shape": asdict(group.shape),
                    "bytes": group.bytes,
                    "snapshot_every": group.snapshot_every,
                }
                for group in self.groups
            ],
        }


def plan_groups(
    model: LoadedModel, jobs: Sequence[Job], limit: int | None = None, crew: int = 1
) -> Plan:
    """Split settled jobs into groups that fit into memory.

    Jobs keep their order but for this: longer trainings come first, then those with wider rows, so
    that adapters of a group are finished together and little is filled up.

    Args:
        limit: bytes that may be taken; None for a share of the machine's memory.
        crew: groups that are trained at a time. Each has its part of the memory and of the jobs.
    """
    limit = limit or memory_limit(model.device)
    most = -(-len(jobs) // crew)
    base = _base_bytes(model)
    steps = {id(job): list(_shapes(job)) for job in jobs}
    wide = {key: max(shape.width for shape in shapes) for key, shapes in steps.items()}
    order = sorted(jobs, key=lambda job: (-job.total, -(wide[id(job)] // MOST_UNLIKE)))
    groups: list[Group] = []
    rates = measure(model, jobs) if jobs else None
    waiting = list(order)
    while waiting and rates:
        group = _group(model, waiting[:1], steps, rates)
        for size in range(2, min(most, len(waiting)) + 1):
            larger = _group(model, waiting[:size], steps, rates)
            if not _fits(larger, (limit - base) // crew, wide):
                break
            group = larger
        groups.append(group)
        waiting = waiting[len(group.jobs) :]
    return Plan(tuple(groups), limit, base)


def room_for(model: LoadedModel, groups: Sequence[Group], limit: int | None = None) -> int:
    """How many groups can be trained at a time; one, however large."""
    largest = max((group.total_bytes for group in groups), default=0)
    free = (limit or memory_limit(model.device)) - _base_bytes(model)
    return max(1, free // max(1, largest))


def _base_bytes(model: LoadedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.model.parameters())


def _fits(group: Group, room: int, wide: dict[int, int]) -> bool:
    widths = [wide[id(job)] for job in group.jobs]
    similar = max(widths) - min(widths) <= MOST_UNLIKE
    low_rank = all(job.settings.method == "lora" for job in group.jobs)
    enough = group.shape.tokens <= GROUP_TOKENS
    similar &= len({job.settings.precision for job in group.jobs}) == 1
    return low_rank and similar and enough and group.total_bytes <= room


def _shapes(job: Job) -> Iterator[Shape]:
    """The shape of every step of a job by itself: of its rows or its anchor, whichever is larger.

    A KL holds about twice what a cross-entropy holds of the logits.
    """
    rows = (_shape(trees) for trees in job.planted())
    held = (_shape(trees, 2) for trees in job.anchored()) if job.anchor else ()
    for one, other in zip_longest(rows, held):
        pairs = zip(astuple(one), astuple(other or one), strict=True)
        yield Shape(*(max(pair) for pair in pairs))


def _shape(trees: Sequence[Tree], held: int = 1) -> Shape:
    """The shape of a batch of which so many times the logits are held."""
    width = max(len(tree.ids) for tree in trees)
    reads = sum(len(branch) for tree in trees for branch in tree.reads)
    return Shape(len(trees), -(-width // WIDTH) * WIDTH, held * reads)


def _references(model: LoadedModel, jobs: Sequence[Job]) -> int:
    """Bytes of what the base says where jobs are held to it, which lies in main memory."""
    sets = {id(job.anchor.rows): job.anchor.rows for job in jobs if job.anchor}
    tokens = sum(sum(row.mask) for rows in sets.values() for row in rows)
    return FLOAT * tokens * model.vocabulary if model.device.type == "cpu" else 0


def _together(jobs: Sequence[Job], steps: dict[int, list[Shape]]) -> Shape:
    """The largest step of some jobs, each part of it by itself."""
    listed = [steps[id(job)] for job in jobs]
    at = [[shapes[n] for shapes in listed if n < len(shapes)] for n in range(max(map(len, listed)))]
    return Shape(
        max(sum(shape.trees for shape in step) for step in at),
        max(shape.width for step in at for shape in step),
        max(sum(shape.reads for shape in step) for step in at),
    )


def _group(
    model: LoadedModel, jobs: Sequence[Job], steps: dict[int, list[Shape]], rates: Rates
) -> Group:
    shape = _together(jobs, steps)
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    full = jobs[0].settings.method == "full"
    trained = rates.parameters if full else len(jobs) * adapter_size(model, jobs)
    exact = kind == "cpu" and (full or model.model.dtype == torch.float32)
    parts = _bytes(trained, shape, rates, ALLOCATED["cpu-float32" if exact else kind])
    parts["short weights"] = 0 if full else _short_weights(model, jobs[0].settings.precision)
    if any(job.anchor for job in jobs):
        parts["references"] = _references(model, jobs)
    state = 3 * FLOAT * trained
    passes = 6 if full else 4  # forward, gradient of the inputs, and of the weights
    seconds = passes * rates.parameters * shape.tokens / ARITHMETIC[kind]
    return Group(tuple(jobs), shape, parts, interval(state, seconds))


def _bytes(trained: int, shape: Shape, rates: Rates, held: float) -> dict[str, int]:
    """Bytes of a step at its peak, which is where the gradient of the logits is made."""
    logits = shape.reads * rates.vocabulary * FLOAT
    around = 1.0 if logits > WHOLE else held
    pairs = shape.trees * shape.width**2
    parts = {
        "adapters": FLOAT * trained,
        "gradients": FLOAT * trained,
        "moments": 2 * FLOAT * trained,
        "activations": held * rates.token * shape.tokens,
        "attention": held * rates.pair * pairs,
        "logits": around * (rates.read * shape.reads + 2 * logits),
    }
    return {name: int(number) for name, number in parts.items()}


def _short_weights(model: LoadedModel, precision: str) -> int:
    """Bytes of the copies of frozen weights in shorter numbers."""
    products = product_dtype(model, precision)
    layers = [m for m in model.model.modules() if isinstance(m, FrozenLinear)] if products else []
    return sum(m.weight.numel() for m in layers) * (products.itemsize if products else 0)


def adapter_size(model: LoadedModel, jobs: Sequence[Job]) -> int:
    """Numbers of one adapter of a bank: the largest rank, the targets of all."""
    names = {name for job in jobs for name in target_layers(model, job.settings)}
    sizes = [sum(linear_shape(model.model.get_submodule(name))) for name in sorted(names)]
    return max(job.settings.rank for job in jobs) * sum(sizes)


def memory_limit(device: torch.device) -> int:
    """Bytes that a process may take on a device: a share of all there is, free or not."""
    if device.type == "cuda":
        return int(ROOM["cuda"] * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / place).read_text("utf-8")))
        except (OSError, ValueError):
            continue
    return int(ROOM["cpu"] * total)


def measure(model: LoadedModel, jobs: Sequence[Job]) -> Rates:
    """Count what one forward pass holds for the backward pass, at four small sizes.

    So much is held whatever the architecture: c + token · L + pair · L² + read · K for one tree of
    L tokens with K of them looked up.
    """
    parameters = sum(p.numel() for p in model.model.parameters())
    low_rank = [job for job in jobs if job.settings.method == "lora"]
    if low_rank:
        widest = max(low_rank, key=lambda job: job.settings.rank)
        fresh = new_adapter(model, widest.settings, widest.generator("weights"))
        with ExitStack() as opened:
            products = product_dtype(model, widest.settings.precision)
            opened.enter_context(shortened(model.model, products))
            bank = LoraBank(model, alike([fresh]))
            opened.callback(bank.remove)
            held = _probe(model, bank)
    else:
        held = _probe(model, None)
    (one, two, four), more = held[:3], held[3]
    pair = ((four - two) / 32 - (two - one) / 16) / 48  # L = 16, 32, 64
    token = (two - one) / 16 - 48 * pair
    return Rates(token, pair, (more - one) / 8, model.vocabulary, parameters)


def _probe(model: LoadedModel, bank: LoraBank | None) -> list[int]:
    """Bytes held after a forward pass of (L, K) = (16, 1), (32, 1), (64, 1) and (16, 9)."""
    return [_held(model, bank, *size) for size in ((16, 1), (32, 1), (64, 1), (16, 9))]


def _held(model: LoadedModel, bank: LoraBank | None, length: int, reads: int) -> int:
    ids = list(range(length))
    tree = Tree(ids, ids, [PREFIX] * length, [[(at, 0) for at in range(reads)]])
    own = [t.untyped_storage()._cdata for t in model.model.parameters()]
    route = torch.zeros(1, dtype=torch.long, device=model.device)
    trained = [] if bank else [p for p in model.model.parameters() if p.is_floating_point()]
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        if bank:
            bank.route(route)
        with (held := _Held(own)):
            losses = adapter_losses(model, [tree], [0], 1)
        found = held.bytes
        del losses
    finally:
        if bank:
            bank.route(None)
        for parameter in trained:
            parameter.requires_grad_(False)
    return found


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that were made within and are still there."""

    def __init__(self, own: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.sizes = dict.fromkeys(own, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note its outputs."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata)
        return made

    def _forget(self, number: int) -> None:
        self.bytes -= self.sizes.pop(number, 0)
