"""Turns the outcomes of steps into traces: header, token texts and tensors."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

from tempo.engine.capture import Capture
from tempo.engine.state import SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel
from tempo.policy.serialize import rule_to_dict
from tempo.policy.slots import SlotTable
from tempo.trace.schema import TraceHeader
from tempo.trace.store import TraceKeeper, TraceWriter


@dataclass(slots=True)
class Recorder:
    """Adds the steps of one sequence to its trace."""

    model: LanguageModel
    writer: TraceWriter | TraceKeeper

    def take(self, outcome: StepOutcome) -> None:
        """Add one step."""
        table = outcome.decoding.table
        members = table.token[table.members(outcome.step)]
        # Texts of tokens are stored, so that a trace can be read without a tokenizer.
        mentioned = [*members.tolist(), *outcome.tensors["dropped/token"].tolist()]
        header = self.writer.header
        changed = {
            "tokens": dict(header.tokens)
            | {token: text_of(self.model, token) for token in mentioned},
            # Decoded again from all tokens: byte-pair tokens do not decode one by one.
            "text": self._text(best_path(table)),
        }
        if outcome.step == 0:  # scaling, windows and caps of the layers are known once they ran
            changed |= outcome.facts
        self.writer.add(outcome.step, outcome.tensors, replace(header, **changed))

    def _text(self, path: list[int]) -> str:
        if self.model.tokenizer is None:
            return "".join(text_of(self.model, token) for token in path)
        return self.model.decode(path, skip_special=True)


def best_path(table: SlotTable) -> list[int]:
    """Tokens along the parents of the best unpruned member of the last set, first token first."""
    slot, path = table.continuation_parent(), []
    while slot >= 0:
        path.append(int(table.token[slot]))
        slot = int(table.parent[slot])
    return path[::-1]


def text_of(model: LanguageModel, token: int) -> str:
    """Text of one token; its id in angle brackets where the model came without a tokenizer."""
    return f"<{token}>" if model.tokenizer is None else model.token_text(token)


def first_header(
    model: LanguageModel,
    plan: SequencePlan,
    capture: Capture,
    *,
    prompt: str,
    run: Mapping[str, Any],
) -> TraceHeader:
    """The header of a trace before its first step."""
    assert capture.level is not None
    return TraceHeader(
        prompt_id=plan.prompt_id,
        arm=plan.arm,
        prompt=prompt,
        level=capture.level,
        layers=capture.layers,
        heads=capture.heads,
        scaling=(),
        window=(),
        softcap=(),
        sinks=None,
        model=facts_of_model(model),
        policy=rule_to_dict(plan.policy),
        run=run,
    )


def facts_of_model(model: LanguageModel) -> dict[str, Any]:
    """What identifies and describes a model, for headers and manifests."""
    return {
        "name": model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "tokenizer_hash": model.tokenizer_hash,
        "dtype": model.dtype,
        "family": model.config.model_type,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "queries_per_kv_head": model.n_heads // model.n_kv_heads,
        "head_dim": model.head_dim,
    }


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that decide the numbers of a run."""
    names = ("tempo-decoding", "torch", "transformers", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
