"""Feed the sets of a run again and change one thing: positions, visibility, or one head.

python examples/change_one_thing.py [MODEL]
"""

import sys

import numpy as np

import tempo
from tempo.trace.trace import Trace


def apart(one: Trace, other: Trace, step: int) -> float:
    """Largest difference between the probabilities that two traces give to the same tokens."""
    found = [trace.readout(step) for trace in (one, other)]
    known = [
        dict(zip(each.token.tolist(), np.exp(each.log_probability), strict=True)) for each in found
    ]
    return max(abs(known[0][token] - known[1][token]) for token in set(known[0]) & set(known[1]))


def main(name: str = "smollm2-135m") -> None:
    """Print how far each twin moves the readout after the last set."""
    model = tempo.load_model(name)
    trace = tempo.generate(model, "The cat sat on the", threshold=0.05, eos="ignore").trace()
    print(trace.lattice())
    twins = tempo.replay(
        trace, policy={"own positions": "unique", "siblings seen": "visible"}, model=model
    )
    cut = tempo.replay(trace, edits=[tempo.edits.zero_heads("L0H0")], model=model)
    for twin in (*list(twins)[1:], cut.trace(arm="twin")):
        changed = ", ".join(sorted(tempo.twins.changed_axes(trace, twin)))
        print(f"{twin.header.arm}: {changed} changed, {apart(trace, twin, trace.n_steps):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
