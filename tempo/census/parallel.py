"""The pass over parallel decoding: roles that only sets of siblings can show."""

from analysis.roles.assignment import RoleScores
from analysis.roles.text_battery import Reading
from analysis.roles.trace_battery import read_trace, trace_role
from tempo.census.battery import Battery
from tempo.errors import TempoError
from tempo.models.language_model import LanguageModel
from tempo.prompts.suites import load_suite
from tempo.run.api import compare
from tempo.trace.run import Run
from tempo_analysis.parallel.arms import inherited_labels
from tempo_analysis.parallel.observation import observe

ARM_OF = {
    "sibling_attending": "visible",
    "set_broadcast": "isolated",
    "winner_following": "isolated",
    "set_ignoring": "isolated",
}
"""The arm on which each role is scored: only visible siblings can be attended to."""

N_PROMPTS = 32
STEPS = 8
SUITE = "standard"


def decode_sets(model: LanguageModel, battery: Battery) -> Run:
    """Prompts of the bundled suite under isolated, visible and greedy, with their rows."""
    prompts = list(load_suite(SUITE))
    every = max(len(prompts) // N_PROMPTS, 1)
    return compare(
        model,
        prompts[::every][:N_PROMPTS],
        arms=("isolated", "visible", "greedy"),
        steps=STEPS,
        capture="weights",
        seed=battery.seed,
    )


def read_sets(run: Run, battery: Battery) -> tuple[dict[str, RoleScores], dict[str, str]]:
    """Every parallel role asked for, and why some have no answer."""
    readings = {
        arm: [_read(run, number, arm, battery.seed) for number in range(len(run.prompts))]
        for arm in dict.fromkeys(ARM_OF[role] for role in ARM_OF if role in battery.roles)
    }
    found: dict[str, RoleScores] = {}
    refused: dict[str, str] = {}
    for role in (role for role in ARM_OF if role in battery.roles):
        try:
            found[role] = trace_role(role, readings[ARM_OF[role]], seed=battery.seed)
        except TempoError as error:
            refused[role] = str(error)
    return found, refused


def _read(run: Run, number: int, arm: str, seed: int) -> dict[str, Reading]:
    prompt = run.prompts[number].id
    trace, greedy = run.trace(prompt, arm), run.trace(prompt, "greedy")
    labels = inherited_labels(trace.slots, greedy.slots)
    return read_trace(observe(trace), key=(seed, number), greedy=(observe(greedy), labels))
