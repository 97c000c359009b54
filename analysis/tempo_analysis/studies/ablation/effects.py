"""The effect of a condition at t: on the outputs of the layers, and on the next token.

Published means are over all tokens. An edit of a head or an edge at t leaves the tokens before t
unchanged, so such a mean depends on where t is as much as on the condition. A removed value changes
every token from its own on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from tempo.errors import InputError
from tempo_analysis.stats.bands import Spread, spread
from tempo_analysis.stats.intervals import (
    SAME,
    SEED,
    Interval,
    estimate_with_interval,
    share_with_interval,
)
from tempo_analysis.studies.ablation.passes import (
    Comparison,
    Pass,
    cosine,
    next_token_kl_nats,
    nip,
    top_1_changed,
)

YES_OR_NO = "top_1_changed_at_t"
NUMBERS = (
    YES_OR_NO,
    "top_1_changed_from_t",
    "top_1_changed_published",
    "kl_at_t_nats",
    "kl_after_t_nats",
    "kl_published_nats",
)
"""Measures of the next token, in the order of the tables."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptEffect:
    """One comparison on one prompt.

    Attributes:
        t: Index of the token that is measured.
        n_tokens: Number of tokens of the prompt.
        nip: Normalised inner product of the attention outputs at t.
        cosine: Cosine of the attention outputs at t.
        top_1_changed_at_t: 1 if the most probable next token at t differs, else 0.
        top_1_changed_from_t: Share of the tokens from t on at which it differs.
        top_1_changed_published: Share of all tokens, including those before t.
        kl_at_t_nats: KL(reference || changed) of the next token at t.
        kl_after_t_nats: Mean over the tokens after t; NaN if t is the last token.
        kl_published_nats: Mean over all tokens, including those before t.
    """

    t: int
    n_tokens: int
    nip: Float64[np.ndarray, " layer"]
    cosine: Float64[np.ndarray, " layer"]
    top_1_changed_at_t: float
    top_1_changed_from_t: float
    top_1_changed_published: float
    kl_at_t_nats: float
    kl_after_t_nats: float
    kl_published_nats: float


@dataclass(frozen=True, slots=True, eq=False)
class LessControl:
    """A condition minus its control, paired by prompt.

    Attributes:
        control: Name of the control.
        nip: By layer; below 0 if the condition removes more than its control.
        numbers: By the names in `NUMBERS`.
    """

    control: str
    nip: Spread
    numbers: Mapping[str, Interval]


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """One comparison over all prompts.

    Attributes:
        comparison: The passes that are compared.
        nip: By layer.
        cosine: By layer.
        numbers: By the names in `NUMBERS`.
        less_control: The condition minus its control; None if it has none.
        is_control: Whether this is the control of another condition.
    """

    comparison: Comparison
    nip: Spread
    cosine: Spread
    numbers: Mapping[str, Interval]
    less_control: LessControl | None
    is_control: bool


def prompt_effect(reference: Pass, changed: Pass) -> PromptEffect:
    """Measure the difference of two passes of one prompt.

    Raises:
        InputError: The passes are not of one prompt and one t.
    """
    t, n_tokens = reference.at, len(reference.logits)
    if (changed.at, len(changed.logits)) != (t, n_tokens):
        raise InputError(
            f"expected two passes of {n_tokens} tokens measured at one token, got t = {t} and "
            f"{changed.at} of {len(changed.logits)}; measure both at the same"
        )
    # Over every token: a removed value also changes tokens between its own and t.
    other = top_1_changed(reference.logits, changed.logits)
    kl = next_token_kl_nats(reference.logits, changed.logits)
    return PromptEffect(
        t=t,
        n_tokens=n_tokens,
        # Two measures: the NIP also falls if the output shrinks, the cosine only if it turns.
        nip=nip(reference.attention_output, changed.attention_output),
        cosine=cosine(reference.attention_output, changed.attention_output),
        top_1_changed_at_t=float(other[t]),
        # From t on, as an edit at t cannot change earlier tokens (causal mask).
        top_1_changed_from_t=float(other[t:].mean()),
        top_1_changed_published=float(other.mean()),
        kl_at_t_nats=float(kl[t]),
        # Apart from the KL at t: effects after t are indirect, through t as a key.
        kl_after_t_nats=float(kl[t + 1 :].mean()) if t + 1 < n_tokens else float("nan"),
        # Kept to compare with published numbers only; it depends on where t is.
        kl_published_nats=float(kl.mean()),
    )


def effects(
    prompts: Sequence[Mapping[Comparison, PromptEffect]],
    *,
    controls: Mapping[str, str],
    seed: int = SEED,
) -> tuple[Effect, ...]:
    """Every comparison over all prompts, minus its control where it has one.

    Args:
        prompts: The same comparisons of every prompt.
        controls: Name of the control of each condition; both need the same reference.
        seed: Of the intervals.

    Raises:
        InputError: No prompts, prompts that differ in their comparisons, or a missing control.
    """
    comparisons = _shared(prompts)
    by_comparison = {each: [prompt[each] for prompt in prompts] for each in comparisons}
    return tuple(_effect(by_comparison, each, controls, seed) for each in comparisons)


def _shared(prompts: Sequence[Mapping[Comparison, PromptEffect]]) -> tuple[Comparison, ...]:
    if not prompts or any(set(one) != set(prompts[0]) for one in prompts):
        raise InputError(
            f"expected the same comparisons of every prompt, got {len(prompts)} prompts that "
            "differ in them; compare the same passes everywhere"
        )
    return tuple(prompts[0])


def _effect(
    by_comparison: Mapping[Comparison, Sequence[PromptEffect]],
    comparison: Comparison,
    controls: Mapping[str, str],
    seed: int,
) -> Effect:
    own = by_comparison[comparison]
    control = controls.get(comparison.changed)
    less = None
    if control is not None:
        # The control against the same reference, or the difference would mix two baselines.
        other = by_comparison.get(Comparison(comparison.reference, control))
        if other is None:
            raise InputError(
                f"expected the control of {comparison.changed} against {comparison.reference}, got "
                f"no comparison {comparison.reference}|{control}; compare it too"
            )
        # Paired by prompt: prompts differ in their KL far more than a condition from its control.
        less = LessControl(
            control, *_summaries(lambda name: _column(own, name) - _column(other, name), _gap, seed)
        )
    nips, numbers = _summaries(lambda name: _column(own, name), _summary, seed)
    return Effect(
        comparison=comparison,
        nip=nips,
        cosine=_by_layer(_column(own, "cosine"), seed),
        numbers=numbers,
        less_control=less,
        is_control=comparison.changed in controls.values(),
    )


def _summaries(
    column: Callable[[str], np.ndarray],
    summary: Callable[[str, np.ndarray, int], Interval],
    seed: int,
) -> tuple[Spread, Mapping[str, Interval]]:
    """NIP by layer, and every number of the next token."""
    return _by_layer(column("nip"), seed), {
        name: summary(name, column(name), seed) for name in NUMBERS
    }


def _summary(name: str, values: Float64[np.ndarray, " prompt"], seed: int) -> Interval:
    """A mean with its interval; of a yes-or-no value an exact binomial interval."""
    if name == YES_OR_NO:
        # Binomial: Student t on 0s and 1s is poor near 0 and 1, where most conditions are.
        return share_with_interval(values)
    found = estimate_with_interval(values, seed=seed)
    # Student t limits can leave the range: KL is not negative, and a share is at most 1
    most = 1.0 if name.startswith("top_1") else np.inf
    low, high = np.clip([found.low, found.high], 0.0, most).tolist()
    return replace(found, low=low, high=high)


def _gap(name: str, values: Float64[np.ndarray, " prompt"], seed: int) -> Interval:
    """A paired difference with its interval."""
    found = estimate_with_interval(values, seed=seed)
    # the same yes-or-no difference in every prompt has no spread, which is no evidence of an
    # interval of width 0 around it
    if name == YES_OR_NO and found.method == SAME:
        return replace(found, low=np.nan, high=np.nan)
    return found


def _by_layer(values: Float64[np.ndarray, "prompt layer"], seed: int) -> Spread:
    return spread(np.arange(values.shape[1]), values, seed=seed)


def _column(own: Sequence[PromptEffect], name: str) -> np.ndarray:
    return np.array([getattr(one, name) for one in own], np.float64)
