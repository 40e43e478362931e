"""Guards on silent failure: faults that leave a run looking well. Each has a name.

docs/guards.md lists them.

A guard reads artifacts and returns findings; `settle` raises for those that stop a run.
"""

from spillover.guards.answers import (
    base_answered,
    equal_choices,
    off_domain_only,
    reasoning_cut,
)
from spillover.guards.findings import Finding, settle
from spillover.guards.training import (
    adapters_without_effect,
    identical_seeds,
    ids_out_of_range,
    losses_did_not_fall,
    prompt_losses,
    shared_rows,
    worse_than_guessing,
)

__all__ = [
    "Finding",
    "adapters_without_effect",
    "base_answered",
    "equal_choices",
    "identical_seeds",
    "ids_out_of_range",
    "losses_did_not_fall",
    "off_domain_only",
    "prompt_losses",
    "reasoning_cut",
    "settle",
    "shared_rows",
    "worse_than_guessing",
]
