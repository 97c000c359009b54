"""Compare isolated, visible and greedy decoding over a suite, with intervals over prompts.

python examples/compare_policies.py [MODEL] [N_PROMPTS]
"""

import sys

import tempo


def main(model: str = "smollm2-135m", n_prompts: str = "24") -> None:
    """Print the attention ratio of each arm beside chance and null, and the table of one metric."""
    prompts = tempo.load_suite("standard")[: int(n_prompts)]
    arms = ["isolated", "visible", "greedy"]
    run = tempo.compare(model, prompts, arms=arms, steps=6, threshold=0.05)
    results = tempo.analyze(run)
    for arm in ("isolated", "visible"):
        row = results["attention_ratio_without_sink", arm].only
        print(f"{arm}: {row.estimate:.2f} ({row.low:.2f} to {row.high:.2f}), null {row.null:.2f}")
        print(f"  {row.verdict}")
    print(results["sink_mass"])


if __name__ == "__main__":
    main(*sys.argv[1:])
