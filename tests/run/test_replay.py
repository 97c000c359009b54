"""Twins: what each changes, what is asserted not to, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tempo
from tempo import policies
from tempo.engine.branch import Fork, decode_forks
from tempo.engine.state import DecodeContext, SequencePlan, StepOutcome
from tempo.errors import CorruptTraceError, InputError, NoParallelSetsError, TwinError
from tempo.policy.biases import Boost, LogPosterior, LogWeight, MassNeutral
from tempo.policy.override import Change, alone, as_policy, forced, members_of_sets, parse_change
from tempo.policy.positions import Offset, Shared, Swapped, Unique
from tempo.policy.presets import Policy
from tempo.policy.pruning import AttentionBelow
from tempo.policy.readout import Product
from tempo.policy.schedules import Linear
from tempo.policy.selection import Greedy, Sample, Threshold, TopK
from tempo.policy.serialize import rule_from_dict, rule_to_dict
from tempo.policy.visibility import ISOLATED, ORDERED, VISIBLE, Window
from tempo.trace.compare import changed_axes, check_axes
from tempo.trace.run import Run
from tempo.trace.trace import Trace
from tests.decoding import assert_same_logits, model_of, plain_forward, run_one, run_plans, whole

PROMPTS = [[11, 12, 13, 14, 15], [20, 21, 22, 23]]
ARMS = [
    *("isolated", "visible", "ordered", "unique", "offset:0.25", "swapped", "sequential"),
    *("boost:1", "log-weight", "mass-neutral", "posterior", "duplicates:2", "greedy"),
]
AXES = {
    "visible": {"relation"},
    "ordered": {"relation"},
    "unique": {"positions"},
    "offset:0.25": {"positions"},
    "swapped": {"positions"},
    "sequential": {"positions", "relation"},
    "boost:1": {"bias"},
    "log-weight": {"bias"},
    "mass-neutral": {"bias"},
    "posterior": {"bias"},
    "duplicates:2": {"tokens", "weights"},
}


@pytest.fixture(scope="module")
def paired() -> Run:
    return compared(ARMS)


def compared(arms, **options) -> Run:
    given = {"threshold": 0.05, "steps": 4, "paired": True} | options
    return tempo.compare(model_of("llama"), PROMPTS, arms=arms, **given)


@pytest.mark.parametrize("name", AXES)
def test_a_twin_changes_its_axis_and_nothing_else(paired: Run, name: str) -> None:
    for prompt in paired.prompts:
        reference = paired.trace(prompt.id, "isolated")
        twin = paired.trace(prompt.id, f"{name}@isolated")
        assert reference.slots.width.max() >= 2
        assert changed_axes(reference, twin) == AXES[name]
        assert set(paired.settings["axes"][f"{name}@isolated"]) == AXES[name]


def test_greedy_is_the_null_and_decodes_freely(paired: Run) -> None:
    assert paired.arms[:2] == ("isolated", "greedy")
    assert "greedy" not in paired.settings["replays"]


def test_more_than_what_was_to_change_is_refused(paired: Run) -> None:
    reference, twin = (
        paired.trace("p0000", "isolated"),
        paired.trace("p0000", "sequential@isolated"),
    )
    with pytest.raises(TwinError, match="in positions only, got positions, relation"):
        check_axes(reference, twin, ["positions"])
    with pytest.raises(TwinError, match="in nothing only"):
        check_axes(reference, paired.trace("p0001", "isolated"), [])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
def test_a_sequential_twin_is_plain_causal_text(family: str) -> None:
    model = model_of(family)
    decoded = run_one(model, Policy(TopK(3)), steps=3)
    twin = parse_change("sequential").apply(decoded.table, Policy(TopK(3)))
    text = run_one(model, twin, steps=3)
    plain = plain_forward(model, decoded.table.token.tolist()).logits[0]
    for step in (1, 2, 3):
        assert_same_logits(text.logits(step), plain[text.table.members(step)])


@pytest.mark.parametrize("place", [Shared(), Unique(), Offset(0.5)])
@pytest.mark.parametrize("see", [ISOLATED, VISIBLE])
def test_a_member_alone_keeps_tokens_and_positions_of_everything_else(place, see) -> None:
    policy = Policy(TopK(3), place, see)
    table = run_one(model_of("llama"), policy, steps=4).table
    for (step, rank), slot in members_of_sets(table).items():
        twin = run_one(model_of("llama"), alone(table, policy, slot), steps=4).table
        siblings = (table.step == step) & (table.rank != rank)
        for column in ("token", "position", "step"):
            expected = getattr(table, column)[~siblings]
            assert getattr(twin, column).tolist() == expected.tolist()
        assert len(twin) == len(table) - 2


def test_a_member_alone_equals_the_death_of_its_isolated_siblings() -> None:
    policy = Policy(TopK(3))
    decoded = run_one(model_of("llama"), policy, steps=4)
    table, slot = decoded.table, int(decoded.table.members(2)[1])
    without = run_one(model_of("llama"), alone(table, policy, slot), steps=4)
    deaths = tuple((2, int(one)) for one in table.members(2) if one != slot)
    masked = run_one(
        model_of("llama"),
        replace(policy, select=forced(table), prune=policies.Kill(deaths)),
        steps=4,
    )
    for step in (3, 4):
        assert_same_logits(without.logits(step), masked.logits(step))


def test_every_member_of_every_set_is_decoded_alone_up_to_the_next_set(paired: Run) -> None:
    for prompt in paired.prompts:
        slots = paired.trace(prompt.id, "isolated").slots
        twins = paired.alone(prompt.id)
        assert set(twins) == set(members_of_sets(slots))
        for (step, rank), twin in twins.items():
            assert twin.n_steps == step + 1
            assert twin.slots.token[twin.members(step)] == slots.token[slots.members(step)][rank]
            assert [twin.has_rows(one) for one in range(step + 2)] == [False] * (step + 1) + [True]


def test_leaving_a_common_run_equals_decoding_from_the_start() -> None:
    model, policy = model_of("llama"), Policy(TopK(3))
    start = SequencePlan("p0000", "arm", tuple(PROMPTS[0]), policy, 4, "ignore")
    trunk = run_plans(model, [start])[0]
    again = replace(start, policy=replace(policy, select=forced(trunk.table)))
    members = members_of_sets(trunk.table)
    forks = [
        Fork(number, 0, step, replace(start, policy=alone(trunk.table, policy, slot)))
        for number, ((step, _), slot) in enumerate(members.items())
    ]
    outcomes: list[list[StepOutcome]] = [[] for _ in forks]
    session = DecodeContext(model, whole(model), None, lambda one: outcomes[one.number].append(one))
    groups = [[one for one in forks if one.step == step] for step in (1, 2, 3)]
    found = decode_forks(session, [again], groups)
    for fork in forks:
        whole_run = run_plans(model, [fork.plan])[0]
        assert found[fork.number].table.token.tolist() == whole_run.table.token.tolist()
        assert [one.step for one in outcomes[fork.number]] == [0, 1, 2, 3, 4]
        for step in range(5):
            ours, theirs = outcomes[fork.number][step], whole_run.outcomes[step]
            assert_same_logits(ours.logits.numpy(), theirs.logits.numpy())
            if step >= fork.step:
                np.testing.assert_allclose(
                    ours.tensors["weights"], theirs.tensors["weights"], atol=1e-5, rtol=0
                )


def test_a_paired_run_is_resumed_and_found_complete(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = compared(["isolated", "visible"], out=out)
    alone_twins = [key for key in first.traces if key[1].startswith("alone@isolated/")]
    assert alone_twins
    again = compared(["isolated", "visible"], out=out)
    assert again.already_complete
    assert set(tempo.open_run(out).traces) == set(first.traces)
    assert tempo.open_run(out).alone("p0000").keys() == first.alone("p0000").keys()
    header = out / "traces" / "p0000" / alone_twins[0][1] / "trace.json"
    header.unlink()
    (out / "run.json").write_text(
        (out / "run.json").read_text().replace('"complete": true', '"complete": false')
    )
    assert set(compared(["isolated", "visible"], out=out).traces) == set(first.traces)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["isolated", "greedy"], "expected a twin beside isolated"),
        (["greedy", "isolated"], "put isolated first"),
        (["tree", "isolated"], "put isolated first"),
        (["isolated", "tree"], "got a tree"),
        (["isolated", "offset:0"], "above 0"),
        (["isolated", "offset:x"], "offset:NUMBER"),
        (["isolated", "duplicates:0"], "at least 1 copy"),
        (["isolated", "shared"], "does the same"),
        (["isolated", "louder"], "expected a twin such as"),
        (["isolated"], "at least two different arms"),
        ("isolated,visible", "expected a list of arms"),
    ],
)
def test_what_cannot_be_paired_is_refused(arms, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compared(arms)


def test_members_are_left_out_of_solitude_where_asked() -> None:
    run = compared(["isolated", "visible"], alone=False)
    assert run.settings["alone_of"] is None
    assert run.alone("p0000") == {}


def test_twins_are_read_and_joined() -> None:
    assert parse_change("duplicates:3+mass-neutral") == Change(bias=(MassNeutral(),), copies=3)
    assert parse_change("boost:1+log-weight") == Change(bias=(Boost(1.0), LogWeight()))
    assert parse_change("swapped") == Change(place=Swapped(Unique()))
    assert parse_change("posterior") == Change(bias=(LogPosterior(),))
    assert parse_change("ordered") == Change(place=Shared(), see=ORDERED)


def test_a_policy_of_your_own_is_a_twin_too() -> None:
    arms = {"isolated": policies.isolated(0.05), "near": policies.visible(0.05)}
    run = compared({**arms, "far": Change(bias=(Boost(-1.0),))})
    assert run.settings["axes"] == {"near@isolated": ["relation"], "far@isolated": ["bias"]}
    with pytest.raises(InputError, match="got Change; give it with paired"):
        compared({"isolated": Change(), "b": policies.visible()}, paired=False)


# tempo.replay


@pytest.fixture(scope="module")
def reference() -> Trace:
    return tempo.generate(model_of("llama"), [PROMPTS[0]], threshold=0.05, steps=4)[0]


def test_a_replay_is_the_twin_of_its_trace(reference: Trace) -> None:
    run = tempo.replay(reference, policy="visible", model=model_of("llama"))
    assert run.arms == ("isolated", "twin")
    assert run.trace(arm="isolated") is reference
    twin = run.trace(arm="twin")
    assert changed_axes(reference, twin) == {"relation"}


def test_a_replay_under_the_same_rules_is_the_same_run(reference: Trace) -> None:
    run = tempo.replay(reference, policy=policies.isolated(), model=model_of("llama"))
    twin = run.trace(arm="twin")
    assert changed_axes(reference, twin) == set()
    for step in range(5):
        np.testing.assert_allclose(twin.attention(step), reference.attention(step), atol=1e-6)


def test_several_replays_make_a_run_beside_the_reference(reference: Trace) -> None:
    run = tempo.replay(
        reference,
        policy={"near": "offset:0.5", "own": Change(see=VISIBLE)},
        model=model_of("llama"),
    )
    assert isinstance(run, Run)
    assert run.arms == ("isolated", "near", "own")
    assert run.settings["axes"] == {"near": ["positions"], "own": ["relation"]}


def test_a_replay_that_changes_two_things_has_to_say_so(reference: Trace) -> None:
    both = Policy(Greedy(), Unique(), VISIBLE)
    with pytest.raises(TwinError, match="expected one thing to change, got positions, relation"):
        tempo.replay(reference, policy=both, model=model_of("llama"))
    run = tempo.replay(
        reference, policy=both, model=model_of("llama"), axes=("positions", "relation")
    )
    twin = run.trace(arm="twin")
    assert changed_axes(reference, twin) == {"positions", "relation"}
    with pytest.raises(TwinError, match="in bias only"):
        tempo.replay(reference, policy="visible", model=model_of("llama"), axes=("bias",))


@pytest.mark.parametrize(
    ("rule", "axis"),
    [
        (Offset(0.25), "positions"),
        (VISIBLE, "relation"),
        (Boost(1), "bias"),
        (Product(), "weights"),
    ],
)
def test_a_twin_may_be_one_rule(reference: Trace, rule: object, axis: str) -> None:
    run = tempo.replay(reference, policy=rule, model=model_of("llama"))
    assert run.settings["axes"] == {"twin": [axis]}


def test_a_twin_does_not_take_the_name_of_its_reference(reference: Trace) -> None:
    with pytest.raises(InputError, match="expected names other than 'isolated'"):
        tempo.replay(reference, policy={"isolated": "visible"}, model=model_of("llama"))
    twin = tempo.replay(reference, policy="visible", model=model_of("llama")).trace(arm="twin")
    assert tempo.replay(twin, policy="unique", model=model_of("llama")).arms == (
        *("twin", "twin@twin"),
    )


def test_the_twin_of_a_trace_made_with_another_model_is_refused(reference: Trace) -> None:
    with pytest.raises(TwinError, match="expected the model that made the trace"):
        tempo.replay(reference, policy="visible", model=model_of("gemma3"))


def test_a_trace_without_parallel_sets_has_no_twin() -> None:
    plain = tempo.generate(model_of("llama"), [PROMPTS[0]], policy="greedy", steps=3)[0]
    with pytest.raises(NoParallelSetsError, match="a set of two or more"):
        tempo.replay(plain, policy="visible", model=model_of("llama"))


@pytest.mark.parametrize(
    "policy",
    [
        policies.tree(0.2),
        Policy(
            Threshold(0.1), Swapped(Offset(0.5)), ISOLATED & ~Window(3), (Boost(1), LogWeight())
        ),
        Policy(TopK(2), prune=AttentionBelow(0.1, relative=True), keep="recompute"),
        Policy(Threshold(Linear(0.3, 0.1, 5)), read=Product()),
        Policy(Sample(3, 0.8, 7)),
    ],
)
def test_a_policy_is_read_back_from_its_description(policy: Policy) -> None:
    assert rule_from_dict(rule_to_dict(policy)) == policy


def test_a_description_of_another_version_is_refused() -> None:
    with pytest.raises(CorruptTraceError, match="got 'Louder'"):
        rule_from_dict({"rule": "Louder", "by": 3})
    with pytest.raises(CorruptTraceError, match="'Boost' with"):
        rule_from_dict({"rule": "Boost", "volume": 3})


def test_as_policy_takes_the_rules_that_a_twin_can_change() -> None:
    rules = Policy(TopK(2), Unique(), VISIBLE, (MassNeutral(),))
    change = as_policy(rules).against(policies.isolated())
    assert change == Change(place=Unique(), see=VISIBLE, bias=(MassNeutral(),))
