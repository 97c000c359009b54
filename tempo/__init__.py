"""tempo: the instrument for parallel decoding in language models.

What stands in `__all__` is the promise: it stays, or its change is announced. Everything else is
private to the project. Names are loaded when first used, so that reading traces never imports
torch, and `import tempo` takes no time.

Example:
    >>> import tempo
    >>> model = tempo.load_model("smollm2-135m")
    >>> trace = tempo.generate(model, "The cat sat on the").trace()
    >>> trace.attention(3, head="L3H5")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tempo import twins
    from tempo.causal.forward import forward
    from tempo.doctor import diagnose
    from tempo.models.load import load_model
    from tempo.policy import edits
    from tempo.policy import presets as policies
    from tempo.policy.presets import Policy
    from tempo.prompts.suites import load_suite
    from tempo.run.api import compare, generate
    from tempo.run.replay import replay
    from tempo.trace.run_folder import open_run, open_trace
    from tempo_analysis.parallel.divergence import readout_distance
    from tempo_analysis.parallel.results import analyze
    from tempo_analysis.parallel.trace_figures import attention_figure
    from tempo_analysis.studies.ablation.measure import ablate
    from tempo_analysis.studies.boost.measure import boost
    from tempo_analysis.studies.concepts.measure import concepts
    from tempo_analysis.studies.follow.measure import follow
    from tempo_analysis.studies.heads.measure import heads

    __version__: str

_HOMES = {
    "Policy": "tempo.policy.presets",
    "ablate": "tempo_analysis.studies.ablation.measure",
    "analyze": "tempo_analysis.parallel.results",
    "attention_figure": "tempo_analysis.parallel.trace_figures",
    "boost": "tempo_analysis.studies.boost.measure",
    "compare": "tempo.run.api",
    "concepts": "tempo_analysis.studies.concepts.measure",
    "diagnose": "tempo.doctor",
    "follow": "tempo_analysis.studies.follow.measure",
    "forward": "tempo.causal.forward",
    "generate": "tempo.run.api",
    "heads": "tempo_analysis.studies.heads.measure",
    "load_model": "tempo.models.load",
    "load_suite": "tempo.prompts.suites",
    "open_run": "tempo.trace.run_folder",
    "open_trace": "tempo.trace.run_folder",
    "readout_distance": "tempo_analysis.parallel.divergence",
    "replay": "tempo.run.replay",
}

# Modules that users write by a short name: `tempo.edits.zero_heads`, `tempo.policies.isolated()`.
_MODULES = {
    "edits": "tempo.policy.edits",
    "policies": "tempo.policy.presets",
    "twins": "tempo.twins",
}

__all__ = [
    "Policy",
    "__version__",
    "ablate",
    "analyze",
    "attention_figure",
    "boost",
    "compare",
    "concepts",
    "diagnose",
    "edits",
    "follow",
    "forward",
    "generate",
    "heads",
    "load_model",
    "load_suite",
    "open_run",
    "open_trace",
    "policies",
    "readout_distance",
    "replay",
    "twins",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tempo-decoding")
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tempo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
