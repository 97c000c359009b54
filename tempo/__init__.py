"""tempo: the instrument for parallel decoding in language models.

Names are loaded when first used, so that reading traces never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tempo import edits, policies
    from tempo.ablating.asking import ablate
    from tempo.archive import open_run, open_trace
    from tempo.boosting.asking import boost
    from tempo.census.asking import heads
    from tempo.contrasting import concepts
    from tempo.following.asking import follow
    from tempo.forwarding import forward
    from tempo.loading import load_model
    from tempo.replaying import replay
    from tempo.run import compare, generate

_HOMES = {
    "ablate": "tempo.ablating.asking",
    "boost": "tempo.boosting.asking",
    "compare": "tempo.run",
    "concepts": "tempo.contrasting",
    "heads": "tempo.census.asking",
    "follow": "tempo.following.asking",
    "forward": "tempo.forwarding",
    "generate": "tempo.run",
    "load_model": "tempo.loading",
    "open_run": "tempo.archive",
    "open_trace": "tempo.archive",
    "replay": "tempo.replaying",
}

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
    if name in ("edits", "policies"):
        return import_module(f"tempo.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tempo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
