"""A short way to decode in tests, and models that are built once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from tempo.engine.capture import Capture
from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, Decoding, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import load_model
from tempo.oracle import run_oracle
from tempo.policy.presets import Policy
from tempo.policy.slots import SlotTable
from tempo.testing.tiny import tiny_model


@dataclass
class Decoded:
    """One decoded sequence with every outcome of its steps."""

    decoding: Decoding
    outcomes: list[StepOutcome] = field(default_factory=list)

    @property
    def table(self) -> SlotTable:
        return self.decoding.table

    @property
    def n_prompt(self) -> int:
        return self.table.n_prompt

    def logits(self, step: int) -> np.ndarray:
        return self.outcomes[step].logits.float().numpy()

    def weights(self, step: int) -> np.ndarray:
        return self.outcomes[step].tensors["weights"]

    def safe_steps(self, gap: float = 1e-3) -> int:
        """Steps before the first choice that rounding could turn."""
        for step, outcome in enumerate(self.outcomes[1:], 1):
            top2, tau = outcome.tensors["margins"]
            if top2 < gap or tau < 1e-5:
                return step - 1
        return len(self.outcomes) - 1


@cache
def model_of(family: str, dtype: str = "float32") -> LanguageModel:
    return tiny_model(family, dtype=dtype)


@cache
def real_model(dtype: str = "float32") -> LanguageModel:
    return load_model("smollm2-135m", dtype=dtype)


def random_prompt(model: LanguageModel, length: int, seed: int = 0) -> tuple[int, ...]:
    """Token ids of a prompt, none of them special."""
    return tuple(np.random.default_rng(seed).integers(10, model.vocab_size - 10, length).tolist())


def whole(model: LanguageModel, level: str = "weights") -> Capture:
    return Capture(level, tuple(range(model.n_layers)), tuple(range(model.n_heads)))


def run_plans(
    model: LanguageModel, plans: Sequence[SequencePlan], *, capture: Capture | None = None
) -> list[Decoded]:
    """Decode plans together and keep every outcome; full readouts."""
    outcomes: list[list[StepOutcome]] = [[] for _ in plans]
    session = DecodeContext(
        model,
        capture or whole(model),
        None,
        lambda outcome: outcomes[outcome.number].append(outcome),
    )
    decodings = decode(session, plans)
    return [Decoded(*pair) for pair in zip(decodings, outcomes, strict=True)]


def run_one(
    model: LanguageModel,
    policy: Policy,
    *,
    prompt: Sequence[int] | None = None,
    steps: int = 6,
    capture: Capture | None = None,
) -> Decoded:
    """Decode one prompt (11 random tokens unless given), end of sequence ignored."""
    ids = tuple(prompt) if prompt is not None else random_prompt(model, 11)
    plan = SequencePlan("p0000", "arm", ids, policy, steps, "ignore")
    return run_plans(model, [plan], capture=capture)[0]


def plain_forward(model: LanguageModel, ids: Sequence[int], attention: bool = False):
    """Hugging Face's own causal forward of a token sequence, eager."""
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        return model.hf(
            torch.tensor([list(ids)]), output_attentions=attention, output_hidden_states=True
        )


def assert_same_logits(
    actual: np.ndarray, expected: np.ndarray | torch.Tensor, *, atol: float = 1e-4
) -> None:
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def assert_equals_oracle(model, decoded: Decoded) -> None:
    reference = run_oracle(model, decoded.table, decoded.decoding.plan.policy)
    for step, outcome in enumerate(decoded.outcomes):
        members = decoded.table.members(step)
        kept = members[-1:] if step == 0 else members
        weights = decoded.weights(step)
        assert_same_logits(decoded.logits(step), reference.logits[kept])
        expected = reference.attention[:, :, members][..., : weights.shape[-1]]
        np.testing.assert_allclose(weights, expected, atol=1e-5, rtol=0)
        readout = reference.readout(decoded.table, step, decoded.decoding.plan.policy)
        assert_same_logits(outcome.decoding.readout.log_probability, readout)
