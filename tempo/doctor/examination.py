"""The forwards that the checks share; each is computed at first use and kept."""

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
"""Size of logits and scores for which the tolerances hold; they grow in proportion above it."""
_HALF_STEPS = 8.0
"""Difference allowed in half precision, in units of the machine epsilon of the dtype."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Largest differences that rounding alone can cause.

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
        # Hugging Face computes RoPE and the softmax in float32 whatever the weights are: reordered
        # sums agree to about 1e-5 and no better.
        return Tolerances(1e-4 * logits, 1e-5 * scores)
    # In half precision the error grows with the number itself: epsilon times its size.
    step = torch.finfo(getattr(torch, dtype)).eps
    return Tolerances(_HALF_STEPS * step * _USUAL_SIZE * logits, _HALF_STEPS * step * scores)


FARTHEST = 512
"""How far to search for a sliding window where none is declared, in positions."""
MOVED = 1e-3
"""Smallest change of logits that counts as a change; equal decodings are bit-equal."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, slots=True)
class Plain:
    """Outputs of plain transformers under eager attention.

    Attributes:
        logits: Logits of every sequence.
        attention: Attention rows of the first sequence only.
    """

    logits: Float32[np.ndarray, "sequence slot vocab"]
    attention: Float32[np.ndarray, "layer head query slot"]


class Examination:
    """Measurements of one model; each is made once, at first use.

    Attributes:
        settings: Attention setting of every module before the first forward.
        frequencies: Rotary frequencies before the first forward.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        # Read before any forward: both can be changed by one, which two of the checks look for.
        self.settings = attention_settings(model)
        self.frequencies = rotary_frequencies(model)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Different tokens, none of them special."""
        tokenizer = self.model.tokenizer
        special = set(self.model.eos_ids) | set(tokenizer.all_special_ids if tokenizer else ())
        # Special tokens would end the sequence or be treated as padding. The seed is fixed, so that
        # two runs on one model report the same numbers.
        usable = np.setdiff1d(np.arange(self.model.vocab_size), list(special))
        return tuple(np.random.default_rng(0).choice(usable, N_TOKENS, replace=False).tolist())

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt of all arms but `another prompt`."""
        return self.tokens[:N_PROMPT]

    @cached_property
    def reach(self) -> int:
        """The largest position to use: beyond every window, as far as the model allows."""
        widest = max([FARTHEST // 2, *filter(None, self.model.windows)])
        wanted = min(2 * widest, self.model.max_positions - 1)
        # `dynamic` and `longrope` choose other frequencies for long calls: stay below the switch.
        while not self.frequencies_hold(wanted):
            wanted //= 2
        return wanted

    def frequencies_hold(self, position: int) -> bool:
        """Whether a call with this position leaves the rotary frequencies of all others alone."""
        try:
            check_rope(self.model, position)
        except ModelError:
            return False
        return True

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms, decoded together with their rows captured."""
        # Without guards: a model that the guards refuse must still be measured by the other checks.
        with watched_positions(self.model.hf) as self._positions, unguarded():
            return self._decoded(self._everything)

    @cached_property
    def positions(self) -> list[Tensor]:
        """Positions passed to the rotary modules while the arms were decoded, one per call."""
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
        """Tolerances for the dtype of this model and the size of its logits and scores."""
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
        # Families name the number of experts differently; any of the names marks a mixture of
        # experts.
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
                # Eager is set above because SDPA would return empty attention without an exception.
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
        """Scaling, window, soft cap and sinks of every layer, as the model passed them on."""
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
        """Positions in the slot tables, for each forward of the arms."""
        arms = list(self.arms.values())
        # The engine reads a prompt once for all arms that share it: step 0 has one row group for
        # each different prompt, in the order of first use. `reversed` lets the first arm of each
        # win.
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
    """Raised on purpose, to break off a decoding."""


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
        # `original_inv_freq` is the constant copy that `dynamic` restores from: it cannot show a
        # change.
        if name.endswith("inv_freq") and "original" not in name
    }


def raw_scores(outcome: StepOutcome) -> Float[np.ndarray, " visible"]:
    """Scores before the softmax at all visible slots of a step, with cap and bias applied."""
    tensors: Mapping[str, np.ndarray] = outcome.tensors
    weights = tensors["weights"]
    seen = weights > 0
    # weight = exp(score - logsumexp), so score = log(weight) + logsumexp; log(0) is left out.
    logs = np.log(weights, where=seen, out=np.zeros_like(weights))
    return (logs + tensors["logsumexp"][..., None])[seen]
