"""Decode one prompt in parallel sets and print where one head looks at every step.

python examples/read_a_head.py [MODEL] [HEAD]
"""

import sys

import tempo


def main(model: str = "smollm2-135m", head: str = "L1H0") -> None:
    """Print each set, and for its members the slot that the head looks at most, but slot 0."""
    trace = tempo.generate(
        model, "The cat sat on the", steps=6, layers=[0, 1], eos="ignore"
    ).trace()
    print(trace.lattice())
    for step in range(1, trace.n_steps + 1):
        rows = trace.attention(step, head=head)  # [query, slot]
        for member, row in zip(trace.members(step), rows, strict=True):
            # Slot 0 is left out: most heads rest there whatever the text says.
            best = 1 + int(row[1:].argmax())
            print(
                f"step {step}: {trace.token_text(member)!r} looks at {trace.token_text(best)!r} "
                f"(slot {best}) with {row[best]:.2f}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
