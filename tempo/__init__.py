"""tempo: the instrument for parallel decoding in language models.

Names are loaded when first used, so that reading traces never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tempo.causal.forward import forward
    from tempo.models.load import load_model
    from tempo.policy import edits
    from tempo.policy import presets as policies
    from tempo.run.api import compare, generate
    from tempo.run.replay import replay
    from tempo.trace.run_folder import open_run, open_trace
    from tempo_analysis.studies.ablation.measure import ablate
    from tempo_analysis.studies.boost.measure import boost
    from tempo_analysis.studies.concepts.measure import concepts
    from tempo_analysis.studies.follow.measure import follow
    from tempo_analysis.studies.heads.measure import heads

_HOMES = {
    "ablate": "tempo_analysis.studies.ablation.measure",
    "boost": "tempo_analysis.studies.boost.measure",
    "compare": "tempo.run.api",
    "concepts": "tempo_analysis.studies.concepts.measure",
    "heads": "tempo_analysis.studies.heads.measure",
    "follow": "tempo_analysis.studies.follow.measure",
    "forward": "tempo.causal.forward",
    "generate": "tempo.run.api",
    "load_model": "tempo.models.load",
    "open_run": "tempo.trace.run_folder",
    "open_trace": "tempo.trace.run_folder",
    "replay": "tempo.run.replay",
}

# Modules that users write by a short name: `tempo.edits.ScoreBias`, `tempo.policies.isolated()`.
_MODULES = {"edits": "tempo.policy.edits", "policies": "tempo.policy.presets"}

__all__ = [
    "ablate",
    "boost",
    "compare",
    "concepts",
    "edits",
    "follow",
    "forward",
    "generate",
    "heads",
    "load_model",
    "open_run",
    "open_trace",
    "policies",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tempo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
