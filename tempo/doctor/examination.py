"""One model on the table: the forwards that the checks share, each run when first asked for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tempo.doctor.arms import GREEDY_STEPS, N_PROMPT, N_TOKENS, Arm, plans
from tempo.engine.capture import NOTHING, Capture
from tempo.engine.decode import decode
from tempo.engine.guards import unguarded
from tempo.engine.state import DecodeContext, StepOutcome
from tempo.errors import ModelError
from tempo.models.hooks import watched_positions
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.support import check_rope
from tempo.oracle import OracleRun, run_oracle

_USUAL_SIZE = 10.0
"""Tolerances are for logits and scores of about this size, and grow with larger ones."""
_HALF_STEPS = 8.0
"""In half precision, what is allowed in steps of the dtype."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest differences that rounding explains.

    Attributes:
        logits: Between raw logits.
        attention: Between weights of a row.
    """

    logits: float
    attention: float


def tolerances(dtype: str, *, largest_logit: float, largest_score: float) -> Tolerances:
    """The tolerances of a dtype, for logits and scores (before the softmax) of this size."""
    logits, scores = (max(1.0, size / _USUAL_SIZE) for size in (largest_logit, largest_score))
    if dtype == "float32":
        return Tolerances(1e-4 * logits, 1e-5 * scores)
    step = torch.finfo(getattr(torch, dtype)).eps
    return Tolerances(_HALF_STEPS * step * _USUAL_SIZE * logits, _HALF_STEPS * step * scores)


FARTHEST = 512
"""Where no window is declared, how far to look for one, in positions."""
MOVED = 1e-3
"""The least by which logits move if they do; two decodings that differ in nothing are bit-equal."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class Plain:
    """What transformers alone gives, under eager attention.

    Attributes:
        logits: Of every sequence.
        attention: Of the first sequence.
    """

    logits: Float32[np.ndarray, "sequence slot vocab"]
    attention: Float32[np.ndarray, "layer head query slot"]


class Examination:
    """Measures a model; everything is measured once.

    Attributes:
        settings: Attention setting of every module when the examination began.
        frequencies: Rotary frequencies then.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.settings = attention_settings(model)
        self.frequencies = rotary_frequencies(model)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Different tokens, none of them special."""
        tokenizer = self.model.tokenizer
        special = set(self.model.eos_ids) | set(tokenizer.all_special_ids if tokenizer else ())
        usable = np.setdiff1d(np.arange(self.model.vocab_size), list(special))
        return tuple(np.random.default_rng(0).choice(usable, N_TOKENS, replace=False).tolist())

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt of nearly every arm."""
        return self.tokens[:N_PROMPT]

    @cached_property
    def reach(self) -> int:
        """The largest position to go to: past every window, where the model goes that far."""
        widest = max([FARTHEST // 2, *filter(None, self.model.windows)])
        wanted = min(2 * widest, self.model.max_positions - 1)
        while not self.frequencies_hold(wanted):
            wanted //= 2
        return wanted

    def frequencies_hold(self, position: int) -> bool:
        """Whether a call may hold this position without turning the keys of others."""
        try:
            check_rope(self.model, position)
        except ModelError:
            return False
        return True

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms, decoded together with their rows captured."""
        with watched_positions(self.model.hf) as self._positions, unguarded():
            return self._decoded(self._everything)

    @cached_property
    def positions(self) -> list[Tensor]:
        """What reached the rotary modules while the arms were decoded, call by call."""
        assert self.arms
        return self._positions

    @cached_property
    def uncaptured(self) -> dict[str, Arm]:
        """The same arms, decoded again without capture."""
        with unguarded():
            return self._decoded(NOTHING)

    @cached_property
    def eager(self) -> Plain:
        """The greedy arm's tokens, read in one plain forward."""
        return self.plain([self.arms["greedy"].table.token.tolist()])

    @cached_property
    def oracle(self) -> OracleRun:
        """The oracle over the slot table of the visible arm."""
        visible = self.arms["visible"]
        return run_oracle(self.model, visible.table, visible.plan.policy)

    @cached_property
    def tolerances(self) -> Tolerances:
        """For this model's dtype and the size of its logits and scores."""
        steps = range(GREEDY_STEPS + 1)
        greedy = self.arms["greedy"]
        logits = [np.abs(greedy.logits(step)).max() for step in steps]
        scores = [np.abs(raw_scores(greedy.outcomes[step])).max() for step in steps]
        return tolerances(
            self.model.dtype, largest_logit=float(max(logits)), largest_score=float(max(scores))
        )

    @property
    def switches_experts(self) -> bool:
        """Whether rounding may send a token to another expert, which moves it by any amount."""
        experts = (getattr(self.model.config, name, None) for name in _EXPERTS)
        return self.model.dtype != "float32" and any(experts)

    def plain(self, token_ids: Sequence[Sequence[int]], **options: Any) -> Plain:
        """A forward of transformers without cache; options as `forward` of the model takes them."""
        device = self.model.device
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in options.items()
        }
        with torch.inference_mode(), attention_as(self.model.hf, "eager"):
            out = self.model.hf(
                input_ids=torch.tensor(token_ids, device=device),
                use_cache=False,
                output_attentions=True,
                **moved,
            )
        attention = [layer[0].float().cpu().numpy() for layer in out.attentions]
        return Plain(out.logits.float().cpu().numpy(), np.stack(attention))

    def pass_the_guards(self) -> None:
        """Decode the first set of every arm as runs do.

        Raises:
            ModelError: The guards refuse.
        """
        first_sets = [replace(arm.plan, steps=1) for arm in self.arms.values()]
        decode(DecodeContext(self.model, self._everything), first_sets)

    def interrupt(self) -> None:
        """Start a decoding that is broken off by an error in its first step."""

        def stop(_: StepOutcome) -> None:
            raise _Stop

        with suppress(_Stop):
            decode(DecodeContext(self.model, on_step=stop), [self.arms["greedy"].plan])

    @property
    def outcomes(self) -> list[StepOutcome]:
        """All steps of all arms."""
        return [outcome for arm in self.arms.values() for outcome in arm.outcomes]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Scaling, window, soft cap and sinks of every layer, as the model passed them."""
        return self.outcomes[0].facts

    @property
    def sinks(self) -> Float32[np.ndarray, "layer head 1"]:
        """Learned sink score of every head, -inf where there is none."""
        learned = self.facts["sinks"]
        if learned is None:
            return np.full((self.model.n_layers, self.model.n_heads, 1), -np.inf, np.float32)
        return np.asarray(learned, np.float32)[..., None]

    @property
    def knows_sinks(self) -> bool:
        """Whether the engine found learned sinks."""
        return bool(np.isfinite(self.sinks).any())

    @property
    def wanted_positions(self) -> list[Float32[np.ndarray, " row"]]:
        """What ought to reach a rotary module in each forward of the arms, by the slot tables."""
        arms = list(self.arms.values())
        by_prompt = {arm.plan.token_ids: arm for arm in reversed(arms)}
        prompts = dict.fromkeys(arm.plan.token_ids for arm in arms)
        fed = [[by_prompt[prompt] for prompt in prompts]]
        for step in range(1, GREEDY_STEPS + 1):
            fed.append([arm for arm in arms if len(arm.outcomes) > step])
        return [
            np.concatenate([arm.table.position[arm.table.members(step)] for arm in group])
            for step, group in enumerate(fed)
        ]

    @property
    def _everything(self) -> Capture:
        return Capture(
            "weights", tuple(range(self.model.n_layers)), tuple(range(self.model.n_heads))
        )

    def _decoded(self, capture: Capture) -> dict[str, Arm]:
        planned = plans(self.tokens, windows=self.model.windows, reach=self.reach)
        arms = [Arm(plan) for plan in planned.values()]
        session = DecodeContext(
            self.model,
            capture,
            on_step=lambda outcome: arms[outcome.number].outcomes.append(outcome),
        )
        decode(session, list(planned.values()))
        return dict(zip(planned, arms, strict=True))


class _Stop(Exception):
    """Raised in the middle of a decoding, on purpose."""


def attention_settings(model: LanguageModel) -> dict[str, str | None]:
    """Attention setting of every part of a model that has a configuration."""
    configs = {name: getattr(module, "config", None) for name, module in model.hf.named_modules()}
    return {
        name: getattr(config, "_attn_implementation", None)
        for name, config in configs.items()
        if config is not None
    }


def rotary_frequencies(model: LanguageModel) -> dict[str, Tensor]:
    """Copies of all rotary frequencies of a model."""
    return {
        name: buffer.clone()
        for name, buffer in model.hf.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }


def raw_scores(outcome: StepOutcome) -> Float[np.ndarray, " visible"]:
    """Scores before the softmax of everything that a step's rows see, with mask bias and cap."""
    tensors: Mapping[str, np.ndarray] = outcome.tensors
    weights = tensors["weights"]
    seen = weights > 0
    logs = np.log(weights, where=seen, out=np.zeros_like(weights))
    return (logs + tensors["logsumexp"][..., None])[seen]
