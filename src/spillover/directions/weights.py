"""Directions taken out of the weights: orthogonalization (arXiv 2406.11717, section 2.4).

Every parameter that writes to the residual stream is projected along the axis that writes, so that
the edited model computes what the model under ablation does; that is checked each time. Tied
embeddings are untied first: what reads the stream out must stay as it is.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spillover.directions.direction import Direction, fingerprint
from spillover.directions.intervene import (
    as_vector,
    is_active,
    orthonormal,
    project,
    project_out,
)
from spillover.directions.writers import Writer, find_writers
from spillover.errors import ModelError, RunFolderError, check_writable
from spillover.folder import PARTIAL, is_unused, make_folder

if TYPE_CHECKING:
    from spillover.models import LoadedModel

# Shape legend: D hidden size, K directions.

EXACT, ROUNDED = 1e-4, 0.05
"""Share of the range of the logits by which edited weights may differ from ablation, in float32 and
in shorter numbers."""
KEY, EDITS = "spillover", "edits"
"""Where a configuration says what was done."""
TEXT = "They walked along the river, and it was not far to the bridge. How do people light homes?"


def orthogonalize(
    model: LoadedModel, directions: Direction | Tensor | Sequence[Direction | Tensor]
) -> LoadedModel:
    """An edited copy of a model, in memory, that writes nothing along some directions.

    What is not edited is shared with the model. The configuration of the copy records the edit
    under `spillover`.

    Args:
        directions: one, or several whose span is taken out; of shape (D,) or (K, D).

    Raises:
        DirectionError: when a direction does not fit the model.
        ModelError: where this architecture cannot be edited, and where the edited weights do not
            agree with ablation.
    """
    listed = _as_list(directions)
    check_bare(model)
    rows = torch.stack([as_vector(model, one) for one in listed])
    basis = orthonormal(rows / rows.norm(dim=1, keepdim=True))
    writers = find_writers(model)
    edited = _copy(model.model, [writer.parameter for writer in writers])
    untied = _untie(edited, model.model)
    for writer in writers:
        _project(edited, writer, basis)
    name = f"weights without {fingerprint(basis)}"
    made = model.changed([*model.source.changes, name], edited)
    agreement = check_agreement(model, made, basis)
    _record(made, listed, basis, writers, untied=untied, agreement=agreement)
    return made


def _as_list(
    directions: Direction | Tensor | Sequence[Direction | Tensor],
) -> list[Direction | Tensor]:
    if isinstance(directions, Direction) or (
        isinstance(directions, Tensor) and directions.dim() == 1
    ):
        return [directions]
    return list(directions)


def check_bare(model: LoadedModel) -> None:
    """Make sure that nothing stands in a model that a copy would carry along.

    Raises:
        ModelError: for interventions or adapters in use.
    """
    from spillover.finetune.lora import BankedLinear

    banked = any(isinstance(module, BankedLinear) for module in model.model.modules())
    if banked or is_active(model):
        raise ModelError(
            f"{model.source.name}: its weights cannot be edited while "
            f"{'adapters are in use' if banked else 'something is ablated or added'}; close that "
            "first"
        )


def _copy(model: nn.Module, edited: Sequence[str]) -> Any:
    """A copy of a model that shares all parameters and buffers but those that are edited."""
    own = {id(model.get_parameter(name)) for name in edited}
    kept = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in kept if id(tensor) not in own}
    return copy.deepcopy(model, memo)


def _untie(edited: Any, model: Any) -> bool:
    """Give the output layer weights of its own where it shares those of the embedding."""
    head, embedding = edited.get_output_embeddings(), edited.get_input_embeddings()
    if head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(model.get_output_embeddings().weight.detach(), requires_grad=False)
    for config in (edited.config, edited.config.get_text_config()):
        config.tie_word_embeddings = False
    edited.all_tied_weights_keys = {}
    return True


def _project(model: nn.Module, writer: Writer, basis: Float[Tensor, "K D"]) -> None:
    parameter = model.get_parameter(writer.parameter)
    rows = basis.to(parameter.device)
    moved = project_out(parameter.detach().movedim(writer.axis, -1), rows)
    parameter.data = moved.movedim(-1, writer.axis).contiguous()


@torch.no_grad()
def check_agreement(
    model: LoadedModel, edited: LoadedModel, directions: Float[Tensor, "K D"]
) -> float:
    """By which share of their range the logits of edited weights differ from those under ablation.

    Args:
        model: with its own weights.
        directions: what was taken out.

    Raises:
        ModelError: when it is more than rounding.
    """
    text = model.chat.tokenize(TEXT)
    spread = torch.linspace(0, model.vocabulary - 1, len(text)).long()
    ids = torch.stack([torch.tensor(text), spread]).to(model.device)
    with project(model, directions) as ablated:
        wanted = ablated.model(input_ids=ids, use_cache=False).logits.float()
    found = edited.model(input_ids=ids, use_cache=False).logits.float()
    share = float((found - wanted).abs().max() / (wanted.max() - wanted.min()))
    most = EXACT if model.model.dtype == torch.float32 else ROUNDED
    if not share <= most:
        raise ModelError(
            f"{model.source.name}: edited weights differ from ablation by {share:.1g} of the range "
            f"of the logits (at most {most:g} is rounding), so that something else writes to the "
            "residual stream; ablate the direction instead"
        )
    return share


def _record(
    edited: LoadedModel,
    directions: Sequence[Direction | Tensor],
    basis: Float[Tensor, "K D"],
    writers: Sequence[Writer],
    *,
    untied: bool,
    agreement: float,
) -> None:
    """Say in the configuration what was done."""
    told = [
        {"layer": d.layer, "position": d.position, "contrast": d.contrast, "norm": d.norm}
        for d in directions
        if isinstance(d, Direction)
    ]
    edit = {
        "kind": "orthogonalization",
        "base": edited.source.name,
        "base_identity": replace(edited.source, changes=()).identity,
        "rank": len(basis),
        "subspace": fingerprint(basis),
        "directions": told,
        "parameters": len(writers),
        "untied_embeddings": untied,
        "agreement": agreement,
    }
    config: Any = edited.model.config
    before = getattr(config, KEY, None) or {"class": edited.source.model_class}
    setattr(config, KEY, {**before, EDITS: [*before.get(EDITS, []), edit]})


def write_edited(edited: LoadedModel, folder: str | Path) -> Path:
    """Write an edited model as a checkpoint that `spillover.load` and transformers load.

    The folder is new: weights, configuration, tokenizer and a card (README.md) that says what was
    done.

    Returns:
        the folder.

    Raises:
        ModelError: when the model was not edited.
        RunFolderError: when the folder is not empty, or cannot be written.
    """
    edits = (getattr(edited.model.config, KEY, None) or {}).get(EDITS)
    if not edits:
        raise ModelError(f"{edited.source.name}: its weights were not edited; nothing to write")
    check_bare(edited)
    folder = Path(folder)
    check_writable(folder)
    if not is_unused(folder):
        raise RunFolderError(f"{folder}: holds something else; choose another folder with --out")
    make_folder(folder.parent)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        edited.model.save_pretrained(partial)
        edited.tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card(edited.source.name, edits), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def card(name: str, edits: Sequence[dict[str, Any]]) -> str:
    """The card of an edited model, in Markdown."""
    lines = ["---", "tags: [spillover]", "---", "", f"# {_quoted(name)} with edited weights", ""]
    for edit in edits:
        lines += [
            f"The weights of {_quoted(edit['base'])} (identity `{edit['base_identity']}`) were "
            f"orthogonalized: a subspace of rank {edit['rank']} (`{edit['subspace']}`) was "
            f"projected out of all {edit['parameters']} parameters that write to the stream.",
            "",
            *(
                f"- the difference of means of {_quoted(one['contrast'])} at position "
                f"{one['position']}, entering layer {one['layer']}, of length {one['norm']:.3g}"
                for one in edit["directions"]
            ),
            "- embeddings and output layer, tied before, are separate now"
            if edit["untied_embeddings"]
            else "- embeddings and output layer were separate before",
            f"- logits differ from those under ablation by {edit['agreement']:.1g} of their range",
            "",
        ]
    lines += [
        "The model no longer behaves as its base does: it was made to study what the direction "
        "does. The same is in `config.json` under `spillover`.",
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """Text of others as code, in one line."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
