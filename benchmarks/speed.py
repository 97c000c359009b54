"""Speed against Hugging Face `generate`, side by side in one process: `python -m benchmarks.speed`.

Both decode the same prompts with greedy-or-better work: Hugging Face one prompt at a time, eager,
with `output_attentions=True`; tempo all prompts under two arms in one packed batch, rows of every
step kept in memory. Repetitions are interleaved, so that a busy machine slows both.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from tempo import policies
from tempo.engine.capture import NOTHING, Capture
from tempo.engine.decode import decode
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.models.language_model import LanguageModel, attention_as
from tempo.models.load import load_model
from tempo.prompts.suites import load_suite

STEPS = 32
PROMPTS = 13
REPETITIONS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """Sequences x steps per second of each contender, repetition by repetition."""

    name: str
    theirs: tuple[float, ...]
    ours: tuple[float, ...]
    slots_per_step: float

    def __str__(self) -> str:
        ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return (
            f"{self.name}: {statistics.median(self.ours):.1f} against "
            f"{statistics.median(self.theirs):.1f} "
            f"sequences x steps per second, median ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); {self.slots_per_step:.2f} slots per step"
        )


def against_generate(
    model: LanguageModel, *, n_prompts: int, steps: int, repetitions: int
) -> Speed:
    """Tempo with capture on two arms, against eager `generate` with attentions."""
    texts = [prompt.text for prompt in load_suite("standard")[:: 120 // n_prompts][:n_prompts]]
    prompts = [tuple(model.encode(text)) for text in texts]
    arms = {"isolated": policies.isolated(0.1), "visible": policies.visible(0.1)}
    plans = [
        SequencePlan(f"p{number}", arm, ids, policy, steps, "ignore")
        for number, ids in enumerate(prompts)
        for arm, policy in arms.items()
    ]
    widths: list[int] = []
    theirs, ours = [], []
    for repetition in range(repetitions + 1):
        their_s = _elapsed_s(lambda: _generate(model, prompts, steps))
        our_s = _elapsed_s(lambda: _decode(model, plans, widths))
        if repetition:  # the first one warms up
            theirs.append(n_prompts * steps / their_s)
            ours.append(len(plans) * steps / our_s)
    return Speed(
        f"{len(plans)} sequences, {model.dtype}",
        tuple(theirs),
        tuple(ours),
        statistics.mean(widths),
    )


def capture_cost(model: LanguageModel, *, steps: int, repetitions: int) -> tuple[float, ...]:
    """Time of one sequence with capture over the time without, repetition by repetition."""
    ids = tuple(model.encode("The cat sat on the"))
    plan = SequencePlan("p0", "isolated", ids, policies.isolated(0.1), steps, "ignore")
    ratios: list[float] = []
    for repetition in range(repetitions + 1):
        off = _elapsed_s(lambda: decode(DecodeContext(model, NOTHING), [plan]))
        on = _elapsed_s(lambda: _decode(model, [plan], []))
        if repetition:
            ratios.append(on / off)
    return tuple(ratios)


def _decode(model: LanguageModel, plans: list[SequencePlan], widths: list[int]) -> None:
    kept: list[dict[str, object]] = []

    def keep(outcome: StepOutcome) -> None:
        kept.append(dict(outcome.tensors))
        if outcome.step:
            widths.append(len(outcome.tensors["slots/token"]))

    everything = Capture("weights", tuple(range(model.n_layers)), tuple(range(model.n_heads)))
    decode(DecodeContext(model, everything, on_step=keep), plans)


def _generate(model: LanguageModel, prompts: list[tuple[int, ...]], steps: int) -> None:
    end = model.eos_ids[0] if model.eos_ids else 0
    with attention_as(model.hf, "eager"):
        for ids in prompts:
            cast(Any, model.hf).generate(
                torch.tensor([ids], device=model.device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                return_dict_in_generate=True,
                output_attentions=True,
                pad_token_id=end,
            )


def _elapsed_s(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    out = sys.stdout.write
    for dtype in sys.argv[1:] or ("float32", "bfloat16"):
        model = load_model("smollm2-135m", dtype=dtype)
        out(f"{against_generate(model, n_prompts=PROMPTS, steps=STEPS, repetitions=REPETITIONS)}\n")
        costs = capture_cost(model, steps=STEPS, repetitions=REPETITIONS)
        out(
            f"1 sequence, {dtype}: capture costs {100 * (statistics.median(costs) - 1):+.1f} % "
            "(median)\n"
        )


if __name__ == "__main__":
    main()
