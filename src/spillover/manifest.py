"""What a manifest says about where and with what a run was made."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spillover.experiment import Experiment
    from spillover.models import LoadedModel

PACKAGES = (
    "spillover",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "accelerate",
    "bitsandbytes",
    "gguf",
    "peft",
)


def describe_environment(model: LoadedModel) -> dict[str, Any]:
    """Versions, hardware, device and dtype. Nothing of the user's environment variables."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "placement": model.placement,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def prompt_examples(experiment: Experiment, model: LoadedModel) -> dict[str, str]:
    """The first question as the model sees it, in every context."""
    question = experiment.questions[0].ask[0]
    return {
        context.name: model.chat.prompt_text(context.conversation(question))
        for context in experiment.specification.contexts
    }


def describe_template(model: LoadedModel) -> dict[str, Any]:
    """What the chat template does by itself, and what this run told it."""
    chat = model.chat
    return {
        **chat.templating.model_dump(mode="json"),
        "today": chat.today.isoformat(),
        "writes": None if chat.injection is None else vars(chat.injection),
        "reasons": chat.reasons,
        "example": chat.example(),
    }
