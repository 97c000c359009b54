"""What stands in for heads that are not held at zero: their means, or those of another prompt."""

from collections.abc import Sequence

import numpy as np

from tempo.ablating.conditions import DONOR_DRAW, Donors
from tempo.ablating.plan import Plan
from tempo.ablating.texts import Text
from tempo.causal.forward import forward
from tempo.causal.silence import mean_inputs
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.prompts.suites import load_suite

MEANS_FROM = "standard"
"""The suite over whose tokens heads are averaged."""


class DonorSource:
    """What stands in for heads that are not held at zero."""

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        texts: Sequence[Text],
        *,
        given: str | Sequence[int] | None,
        seed: int,
    ) -> None:
        self.model, self.texts, self.seed = model, texts, seed
        hows = {one.how for one in plan.conditions if one.kind == "head"}
        self.resamples = "resample" in hows
        self.n_mean_tokens = 0
        self.means = self._means() if "mean" in hows else None
        self.given = None
        if given is not None and self.resamples:
            self.given = forward(model, given).head_outputs
        for number in range(len(texts) if self.resamples else 0):
            self._donor(number)

    def of(self, number: int) -> Donors:
        """For one of the prompts."""
        if not self.resamples:
            return Donors(self.means)
        donor = self._donor(number)
        if donor is None:
            return Donors(self.means, self.given)
        return Donors(self.means, forward(self.model, donor.ids).head_outputs)

    def _donor(self, number: int) -> Text | None:
        """The prompt that stands in for one; None where a text was given."""
        at, own = self.texts[number].at, self.texts[number].ids
        if self.given is not None:
            if self.given.shape[1] <= at:
                raise InputError(
                    f"expected a donor of more than {at} tokens, got {self.given.shape[1]}; give a "
                    "longer one"
                )
            return None
        others = [text for text in self.texts if len(text.ids) > at and text.ids != own]
        if not others:
            raise InputError(
                f"expected another prompt of more than {at} tokens as the donor of "
                f"{self.texts[number].prompt.id!r}, got none; give more prompts, or --donor TEXT"
            )
        draw = np.random.default_rng((self.seed, DONOR_DRAW, number))
        return others[int(draw.integers(len(others)))]

    def _means(self) -> np.ndarray:
        texts = [self.model.encode(prompt.text) for prompt in load_suite(MEANS_FROM)]
        sequences = [np.asarray(ids, np.int64) for ids in sorted(texts, key=len)]
        self.n_mean_tokens = sum(map(len, sequences))
        return mean_inputs(self.model, sequences)
