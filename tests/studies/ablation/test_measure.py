"""`tempo.ablate`: conditions mean what they say, controls are elsewhere, bad input is refused."""

import numpy as np
import pytest
import torch

import tempo
from tempo.causal.silence import mean_inputs
from tempo.errors import InputError
from tempo.models.language_model import attention_as
from tempo.models.projections import output_projections
from tempo.policy.edits import KnockOut, ReplaceHeadOutput, ValueZero
from tempo.prompts.suites import load_suite
from tempo.vocabulary import Head
from tempo_analysis.studies.ablation.findings import Ablation
from tempo_analysis.studies.ablation.measure import encode_prompts, run_passes
from tempo_analysis.studies.ablation.passes import Comparison
from tempo_analysis.studies.ablation.plan import (
    DEFAULT,
    DONOR_DRAW,
    AblationPlan,
    AblationTarget,
    Donors,
    control_target,
    parse_condition,
    parse_conditions,
    pass_spec,
)
from tests.decoding import model_of, plain_forward, random_prompt

HEADS = (Head(1, 0), Head(1, 2))
TARGET = AblationTarget(HEADS, (1,), (None, None), at=6)
CAT = "The cat sat on the mat and"


def prompts(family: str, n: int = 9) -> list[list[int]]:
    """Token ids of several prompts of different lengths."""
    ids = random_prompt(model_of(family), 40)
    return [list(ids[start : start + 6 + start % 4]) for start in range(n)]


def ablated(family: str = "llama", **options) -> Ablation:
    given = {"heads": ["L1H0"], "sweep": 0, "redundancy": False} | options
    return tempo.ablate(model_of(family), given.pop("prompts", prompts(family)), **given)


# --- conditions


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("head", ReplaceHeadOutput(heads=HEADS, queries=[6])),
        ("head:zero", ReplaceHeadOutput(heads=HEADS, queries=[6])),
        ("value:1", ValueZero(layers=(1,), slots=[5])),
        ("value:1+2:heads", ValueZero(heads=HEADS, slots=[5, 4])),
        ("value:before", ValueZero(layers=(1,), slots=[0, 1, 2, 3, 4, 5])),
        ("value:through", ValueZero(layers=(1,), slots=[0, 1, 2, 3, 4, 5, 6])),
        ("value:before:model", ValueZero(layers=range(2), slots=[0, 1, 2, 3, 4, 5])),
        ("edge:1", KnockOut(layers=(1,), slots=[5], queries=[6])),
        ("edge:2:heads:after", KnockOut(heads=HEADS, slots=[4], queries=[6], softmax="after")),
        ("edge:0:after", KnockOut(layers=(1,), slots=[6], queries=[6], softmax="after")),
    ],
)
def test_a_condition_is_the_edit_that_its_name_says(name: str, edit):
    assert parse_condition(name).edits(TARGET) == [edit]


def test_both_readings_of_all_values_have_a_name_of_their_own():
    """The published "all previous" zeroes the token's own value too."""
    before, through = parse_condition("value:before"), parse_condition("value:through")
    assert "before t" in before.describe()
    assert "t itself" in through.describe()
    (edit,) = through.edits(TARGET)
    assert isinstance(edit, ValueZero)
    assert TARGET.at in (edit.slots or ())


def test_donors_go_into_the_edit():
    means, rows = np.zeros((2, 4, 16), np.float32), np.ones((2, 9, 4, 16), np.float32)
    target = AblationTarget(HEADS, (1,), (None, None), 6, Donors(means, rows))
    for name, values in (("head:mean", means), ("head:resample", rows)):
        (edit,) = parse_condition(name).edits(target)
        assert isinstance(edit, ReplaceHeadOutput)
        assert edit.values is values


@pytest.mark.parametrize(
    "name",
    [
        *("tail", "", "head:half", "head:zero:1", "value", "value:", "value:-1", "value:1+1"),
        *("value:1:layers", "value:1:after", "edge:1:heads:during", "value:1:heads:model"),
        "component:3",
    ],
)
def test_a_condition_that_is_none_is_refused(name: str):
    with pytest.raises(InputError, match="expected"):
        parse_condition(name)


@pytest.mark.parametrize(
    "names", [[], ["head", "head"], ["head", "head:zero"], ["value:1+2", "value:2+1"]]
)
def test_conditions_are_different_and_some(names: list[str]):
    with pytest.raises(InputError, match="expected different conditions"):
        parse_conditions(names)


def test_the_control_is_as_many_heads_of_the_same_layers_or_as_many_other_layers():
    target = AblationTarget((Head(3, 1), Head(3, 2), Head(5, 0)), (3, 5), (None,) * 8, at=4)
    seen: set[tuple[Head, ...]] = set()
    for seed in range(20):
        place = control_target(parse_condition("head"), target, n_heads=6, seed=(seed,))
        assert place is not None
        assert [head.layer for head in place.heads] == [3, 3, 5]
        assert not set(place.heads) & set(target.heads)
        seen.add(place.heads)
        moved = control_target(parse_condition("value:1"), target, n_heads=6, seed=(seed,))
        assert moved is not None
        assert len(set(moved.layers)) == 2
        assert not set(moved.layers) & {3, 5}
    assert len(seen) > 5


def test_a_control_in_other_layers_sees_as_far_back():
    target = AblationTarget((Head(1, 0),), (1,), (8, None, 8, None, None), at=20)
    places = [
        control_target(parse_condition("edge:10"), target, n_heads=4, seed=(seed,))
        for seed in range(30)
    ]
    assert {place.layers for place in places if place} == {(3,), (4,)}
    near = AblationTarget((Head(0, 0), Head(1, 0)), (0, 1), (8, None), at=20)
    assert control_target(parse_condition("edge:10"), near, n_heads=4, seed=(0,)) is None


def test_every_prompt_draws_its_own_control_and_t_and_donor_are_drawn_apart():
    found = [
        control_target(parse_condition("head"), TARGET, n_heads=9, seed=(0, 0, number))
        for number in range(12)
    ]
    assert len({place.heads for place in found if place}) > 4
    texts = [list(random_prompt(model_of("llama"), 30, seed)) for seed in range(20)]
    kept, _ = encode_prompts(model_of("llama"), texts, reach=0, at="random", seed=0)
    donors = [int(np.random.default_rng((0, DONOR_DRAW, n)).integers(19)) for n in range(20)]
    assert abs(np.corrcoef([text.at for text in kept], donors)[0, 1]) < 0.8


def test_values_taken_out_before_t_count_in_the_published_means():
    """They change tokens before t, unlike heads and edges at t."""
    model = model_of("llama")
    (ids,) = prompts("llama", 1)
    at = len(ids) - 1
    for name, edit in (
        ("value:before", ValueZero(layers=[1], slots=list(range(at)))),
        ("head", ReplaceHeadOutput(heads=["L1H0"], queries=[at])),
    ):
        (effect, _) = ablated("llama", prompts=[ids], conditions=[name]).numbers.effects
        base, changed = (
            tempo.forward(model, ids, edits=e).log_probability().astype(np.float64)
            for e in ([], [edit])
        )
        kl = (np.exp(base) * (base - changed)).sum(-1)
        found = effect.numbers["kl_published_nats"].estimate
        assert found == pytest.approx(kl.mean(), rel=1e-3, abs=1e-7)
        assert (bool(kl[:at].max() > 1e-5)) is (name == "value:before")


def test_there_is_no_control_where_there_is_no_other_place():
    alone = {"n_heads": 2, "seed": (0,)}
    whole = AblationTarget((Head(0, 0), Head(0, 1)), (0,), (None,), at=2)
    assert control_target(parse_condition("head"), whole, **alone) is None
    assert control_target(parse_condition("value:1"), whole, **alone) is None
    assert control_target(parse_condition("value:1:model"), TARGET, **alone) is None


# --- passes


@pytest.mark.parametrize("family", ["llama", "llama_mha", "mistral", "gemma2", "gpt_oss", "qwen3"])
def test_a_pass_holds_what_the_attention_module_itself_gives(family: str):
    """A v through the output projection, held against the module's own output."""
    model, ids = model_of(family), random_prompt(model_of(family), 9)
    kept: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, out: kept.append(out[0]))
        for layer in model.hf.get_decoder().layers
    ]
    try:
        with attention_as(model.hf, "eager"):
            reference = plain_forward(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    linears = output_projections(model, range(model.n_layers))
    target = AblationTarget((Head(0, 0),), (0,), model.windows, at=5)
    found = run_passes(model, ids, {"base": ()}, target=target, linears=linears, seed=(0,))["base"]
    expected = torch.stack([out[0, 5] for out in kept]).detach().numpy()
    np.testing.assert_allclose(found.attention_output, expected, atol=1e-5)
    np.testing.assert_allclose(found.logits, reference.logits[0], atol=1e-4)
    assert found.attention.shape == (model.n_layers, model.n_heads, len(ids))


def test_passes_of_equal_recipes_run_once_and_long_texts_in_parts(monkeypatch: pytest.MonkeyPatch):
    from tempo_analysis.studies.ablation import measure as running

    model, ids = model_of("llama"), random_prompt(model_of("llama"), 12)
    linears = output_projections(model, range(model.n_layers))
    head, value = parse_condition("head"), parse_condition("value:1")
    wanted = {
        "a": pass_spec(head),
        "b": pass_spec(parse_condition("head:zero")),
        "c": pass_spec(value),
    }
    target = AblationTarget((Head(0, 1),), (0,), model.windows, at=11)
    options = {"target": target, "linears": linears, "seed": (0,)}
    whole = run_passes(model, ids, wanted, **options)
    assert whole["a"] is whole["b"]
    monkeypatch.setattr(running, "ROWS_AT_ONCE", 12)
    for name, part in run_passes(model, ids, wanted, **options).items():
        np.testing.assert_allclose(part.logits, whole[name].logits, atol=1e-4)


# --- the whole


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_every_condition_stands_beside_its_control_on_every_kind_of_model(family: str):
    found = ablated(
        family,
        conditions=[*DEFAULT, "head:resample", "edge:1", "edge:1:heads:after"],
        redundancy=True,
        sweep=2,
    ).numbers
    by_name = {each.comparison: each for each in found.effects}
    assert by_name[Comparison("base", "head")].less_control is not None
    assert by_name[Comparison("base", "value:before:model")].less_control is None
    assert found.n_prompts == 9
    assert set(found.redundancy) == {"head", "control of head"}
    assert set(found.sweeps) == {"all heads", "listed heads"}


def test_an_ablated_head_leaves_the_layers_before_it_as_they_were():
    found = ablated("llama", conditions=["head"])
    (effect, _) = found.numbers.effects
    np.testing.assert_allclose(effect.nip.curve.estimate[0], 1, atol=1e-5)
    assert abs(effect.nip.curve.estimate[1] - 1) > 1e-3


def test_the_predictions_are_those_of_the_edited_forward():
    found = ablated("llama", prompts=[CAT], conditions=["head", "value:through"])
    model = model_of("llama")
    edit = ReplaceHeadOutput(heads=["L1H0"], queries=[len(model.encode(CAT)) - 1])
    base, changed = (tempo.forward(model, CAT, edits=edits).logits[-1] for edits in ([], [edit]))
    (table,) = found.predictions
    row = table.conditions[0]
    assert table.target.token == base.argmax()
    assert row.token == changed.argmax()
    np.testing.assert_allclose(row.logit, (changed - base)[base.argmax()], atol=1e-4)
    assert row.up[0].token == (changed - base).argmax()


def test_the_same_seed_gives_the_same_document_and_another_another():
    first, again, other = (
        ablated(conditions=["head", "value:1"], at="random", seed=seed) for seed in (1, 1, 2)
    )
    assert first.json() == again.json() != other.json()
    places = first.numbers.facts.prompts["at"]
    assert all(1 <= at < len(ids) for at, ids in zip(places, prompts("llama"), strict=True))


def test_means_are_over_the_suite_and_said_so():
    found = ablated(prompts=[CAT] * 1, conditions=["head:mean"])
    assert any("means of heads are over" in line for line in found.sentences())
    means = mean_inputs(  # what the condition holds the head at
        model_of("llama"),
        sorted(
            [
                np.asarray(model_of("llama").encode(prompt.text))
                for prompt in load_suite("standard")
            ],
            key=len,
        ),
    )
    edit = ReplaceHeadOutput(
        heads=["L1H0"], how="mean", values=means, queries=[len(model_of("llama").encode(CAT)) - 1]
    )
    expected = tempo.forward(model_of("llama"), CAT, edits=[edit]).logits[-1]
    assert found.predictions[0].conditions[0].token == expected.argmax()


def test_a_short_prompt_is_left_out_and_counted():
    given = [*prompts("llama"), [5]]
    found = ablated(prompts=given, conditions=["value:1"]).numbers
    assert found.n_prompts == len(given) - 1
    assert found.facts.prompts["left_out"] == ["p0009"]
    assert any("left out" in line for line in found.sentences())


def test_a_sweep_reaches_only_as_far_as_the_prompt():
    plan = AblationPlan(
        HEADS, parse_conditions(["head"]), (), other_heads=False, redundancy=False, sweep=4
    )
    assert {name for name in plan.pass_specs(2) if name.startswith("B ")} == {
        f"B {whose} {offset}" for whose in ("all heads", "listed heads") for offset in (1, 2)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["L9H0"]}, "expected heads from L0H0 to L1H3, got L9H0"),
        ({"heads": ["L0H7"]}, "got L0H7"),
        ({"heads": ["seven"]}, "expected a head such as L3H5"),
        ({"heads": []}, "expected a list of heads"),
        ({"heads": "L0H0"}, "expected a list of heads"),
        ({"conditions": ["tail"]}, "expected a condition of the form"),
        (
            {"at": 40},
            r"a token t \(40\) and 2 before it, .* got prompts of at most 9",
        ),
        ({"at": 1, "conditions": ["value:1+2"]}, "and 2 before it"),
        ({"at": "first"}, "expected last, random or the number of a token"),
        ({"sweep": 99}, "expected a sweep of 0 to 20"),
        ({"prompts": [CAT], "conditions": ["head:resample"]}, "expected another prompt of more"),
        ({"conditions": ["head:resample"], "donor": "a"}, "expected a donor of more than"),
        ({"donor": "a cat"}, "expected a donor with head:resample only"),
        ({"prompts": [CAT, "The dog ran after", CAT]}, "same tokens in 'p0000' and 'p0002'"),
        ({"conditions": ["edge:through"]}, "leave every row something to see"),
        ({"prompts": []}, "expected at least one prompt"),
        ({"prompts": [[1, 2, 99999]]}, "expected token ids from 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        ablated(**options)


def test_a_token_before_the_sliding_window_cannot_be_taken_out():
    model = model_of("mistral")
    window = model.config.sliding_window
    ids = list(random_prompt(model, window + 6))
    with pytest.raises(InputError, match="sliding window"):
        ablated("mistral", prompts=[ids], conditions=[f"edge:{window + 2}"])


def test_what_was_found_shows_itself_and_escapes_what_it_was_given():
    found = ablated(prompts=[CAT], conditions=["head"])
    shown = found._repr_html_()
    assert repr(found).startswith("Ablation:\n- base|head, 1 prompts")
    assert shown.count("<li>") == len(found.sentences())
    assert "base|head" in shown
    assert "<script" not in shown
