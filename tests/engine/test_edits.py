"""Edits in a plain forward: exact on every family, composable, and gone afterwards."""

import numpy as np
import pytest
import torch

import tempo
from tempo.causal.eager_rows import eager_rows
from tempo.causal.forward import Forwarded, forward_each
from tempo.causal.silence import ablated
from tempo.engine.edits import check_edit_list
from tempo.errors import InputError, OutputError, TwinError
from tempo.models.projections import output_projections
from tempo.policy.edits import (
    Edit,
    EmbeddingOffset,
    KnockOut,
    ReplaceHeadOutput,
    ScoreBias,
    ScoreScale,
    ValueZero,
    block_siblings,
)
from tempo.policy.serialize import edit_to_dict
from tempo.testing.tiny import FAMILIES
from tempo.trace.compare import changed_axes
from tests.decoding import model_of, plain_forward, random_prompt

HEAD = "L1H2"
LAYER, H = 1, 2
P, T = 3, 8


def ids_of(family: str) -> tuple[int, ...]:
    return random_prompt(model_of(family), 12)


def run(family: str, *edits: Edit) -> Forwarded:
    return tempo.forward(model_of(family), ids_of(family), edits=edits)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_edits_it_is_the_models_own_forward(family: str):
    found = run(family)
    reference = plain_forward(model_of(family), ids_of(family), attention=True)
    np.testing.assert_allclose(found.logits, reference.logits[0], atol=1e-4)
    for layer, rows in enumerate(reference.attentions):
        np.testing.assert_allclose(found.attention[layer], rows[0], atol=1e-5)
    np.testing.assert_allclose(np.exp(found.log_probability()).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_outputs_are_what_the_output_projection_reads(family: str):
    model = model_of(family)
    found = run(family)
    (plain,) = eager_rows(model, [np.array(ids_of(family))], keep=("head_outputs",))
    assert plain.head_outputs is not None
    np.testing.assert_allclose(found.head_outputs, plain.head_outputs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_a_head_is_deleting_its_columns_of_the_output_projection(family: str):
    model = model_of(family)
    found = run(family, ReplaceHeadOutput(heads=[HEAD]))
    linear = output_projections(model, (LAYER,))[LAYER]
    width = linear.in_features // model.n_heads
    kept = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight[:, H * width : (H + 1) * width] = 0
    try:
        expected = plain_forward(model, ids_of(family)).logits[0]
    finally:
        with torch.no_grad():
            linear.weight.copy_(kept)
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    assert not found.head_outputs[LAYER, :, H].any()


def test_zeroing_a_head_agrees_with_silencing_it_by_a_hook():
    model = model_of("llama")
    with ablated(model, [(LAYER, H)]):
        expected = plain_forward(model, ids_of("llama")).logits[0]
    found = run("llama", ReplaceHeadOutput(heads=[HEAD])).logits
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_a_zeroed_value_is_an_edge_out_after_the_softmax_in_that_layer_and_not_behind_it(
    family: str,
):
    value = run(family, ValueZero(heads=["L0H1"], slots=[P]))
    edge = run(family, KnockOut(heads=["L0H1"], slots=[P], queries=[T], softmax="after"))
    plain = run(family)
    own = value.head_outputs[0, T, 1]
    np.testing.assert_allclose(own, edge.head_outputs[0, T, 1], atol=1e-6)
    assert np.abs(own - plain.head_outputs[0, T, 1]).max() > 1e-4
    np.testing.assert_allclose(
        edge.head_outputs[0, P + 1, 1], plain.head_outputs[0, P + 1, 1], atol=1e-6
    )
    behind = np.abs(value.head_outputs[1:, T] - edge.head_outputs[1:, T])
    assert behind.max() > 1e-5


def test_zeroing_part_of_what_a_layer_writes_is_another_operation():
    """The widespread mistake: slicing the output of the projection into heads."""
    model = model_of("llama")
    linear = output_projections(model, (LAYER,))[LAYER]
    width = linear.out_features // model.n_heads

    def slice_output(_module, _given, out):
        out = out.clone()
        out[..., H * width : (H + 1) * width] = 0
        return out

    hook = linear.register_forward_hook(slice_output)
    try:
        mistaken = plain_forward(model, ids_of("llama")).logits[0]
    finally:
        hook.remove()
    right = run("llama", ReplaceHeadOutput(heads=[HEAD])).logits
    assert np.abs(right - mistaken.numpy()).max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
@pytest.mark.parametrize(
    "nothing",
    [ScoreBias(heads=[HEAD], amount=0.0), ScoreScale(heads=[HEAD], factor=1.0)],
    ids=["bias of 0", "scale of 1"],
)
def test_an_edit_of_nothing_changes_no_bit(family: str, nothing: Edit):
    before, after = run(family), run(family, nothing)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.attention, before.attention)


@pytest.mark.parametrize("family", ["llama", "llama_mha", "qwen3", "gemma2", "mistral"])
def test_a_bias_multiplies_weights_and_the_row_sums_to_one_again(family: str):
    amount = 1.3
    row = run(family).attention[LAYER, H, T].astype(np.float64)
    found = run(family, ScoreBias(heads=[HEAD], slots=[T - 1, T - 3], amount=amount))
    expected = row.copy()
    expected[[T - 1, T - 3]] *= np.exp(amount)
    np.testing.assert_allclose(found.attention[LAYER, H, T], expected / expected.sum(), atol=1e-6)
    others = np.delete(found.attention[LAYER], H, axis=0)
    np.testing.assert_allclose(
        others, np.delete(run(family).attention[LAYER], H, axis=0), atol=1e-6
    )


def test_a_scale_of_nothing_spreads_a_row_evenly():
    found = run("llama", ScoreScale(heads=[HEAD], factor=0.0)).attention[LAYER, H]
    even = np.tril(np.ones(found.shape)) / np.arange(1, len(found) + 1)[:, None]
    np.testing.assert_allclose(found, even, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_an_edge_out_before_the_softmax_is_taken_up_by_the_others(family: str):
    row = run(family).attention[LAYER, H, T].astype(np.float64)
    edge = {"heads": [HEAD], "slots": [T - 2], "queries": [T]}
    before = run(family, KnockOut(**edge)).attention[LAYER, H]
    after = run(family, KnockOut(softmax="after", **edge)).attention[LAYER, H]
    kept = np.delete(row, T - 2)
    np.testing.assert_allclose(np.delete(before[T], T - 2), kept / kept.sum(), atol=1e-6)
    np.testing.assert_allclose(np.delete(after[T], T - 2), kept, atol=1e-6)
    assert before[T, T - 2] == after[T, T - 2] == 0
    assert after[T].sum() == pytest.approx(1 - row[T - 2], abs=1e-6)
    untouched = np.delete(run(family).attention[LAYER, H], T, axis=0)
    np.testing.assert_allclose(np.delete(before, T, axis=0), untouched, atol=1e-6)


def test_a_learned_sink_stays_in_the_row():
    row = run("gpt_oss").attention[LAYER, H, T].astype(np.float64)
    found = run("gpt_oss", KnockOut(heads=[HEAD], slots=[T - 1], queries=[T]))
    left = 1 - row[T - 1]
    np.testing.assert_allclose(
        np.delete(found.attention[LAYER, H, T], T - 1), np.delete(row, T - 1) / left, atol=1e-6
    )


def test_a_value_goes_from_the_copy_of_the_named_heads_only():
    """Heads 0 and 1 read one KV head; only one of them loses the value."""
    plain = run("llama")
    found = run("llama", ValueZero(heads=["L0H0"], slots=[P]))
    assert np.abs(found.head_outputs[0, T, 0] - plain.head_outputs[0, T, 0]).max() > 1e-4
    np.testing.assert_allclose(
        found.head_outputs[0, :, 1:], plain.head_outputs[0, :, 1:], atol=1e-6
    )
    every = run("llama", ValueZero(layers=[0], slots=[P]))
    assert (np.abs(every.head_outputs[0, T] - plain.head_outputs[0, T]).max(-1) > 1e-5).all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_edits_of_different_places_compose_in_any_order(family: str):
    edits = (
        ScoreBias(heads=["L0H1"], slots=[2], amount=0.7),
        ValueZero(heads=["L0H3"], slots=[P]),
        ReplaceHeadOutput(heads=[HEAD]),
        KnockOut(heads=["L1H0"], slots=[4]),
    )
    one, other = run(family, *edits), run(family, *reversed(edits))
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-6)
    np.testing.assert_allclose(one.attention, other.attention, atol=1e-7)


def test_a_donor_of_the_same_text_changes_nothing_and_of_another_gives_its_output():
    model, plain = model_of("llama"), run("llama")
    same = run("llama", ReplaceHeadOutput(heads=[HEAD], how="resample", values=plain.head_outputs))
    np.testing.assert_allclose(same.logits, plain.logits, atol=1e-5)
    donor = tempo.forward(model, random_prompt(model, 12, seed=7))
    other = run("llama", ReplaceHeadOutput(heads=[HEAD], how="resample", values=donor.head_outputs))
    np.testing.assert_allclose(other.head_outputs[LAYER, :, H], donor.head_outputs[LAYER, :, H])
    assert np.abs(other.logits - plain.logits).max() > 1e-3


def test_a_head_is_held_at_its_mean():
    means = run("llama").head_outputs.mean(1)
    found = run("llama", ReplaceHeadOutput(heads=[HEAD], how="mean", values=means, queries=[T]))
    np.testing.assert_allclose(found.head_outputs[LAYER, T, H], means[LAYER, H], atol=1e-6)
    kept = np.delete(found.head_outputs[LAYER, :, H], T, axis=0)
    np.testing.assert_allclose(kept, np.delete(run("llama").head_outputs[LAYER, :, H], T, axis=0))


def test_nothing_is_left_behind_even_by_an_edit_that_fails():
    model = model_of("llama")
    setting = model.hf.config._attn_implementation
    before = plain_forward(model, ids_of("llama")).logits
    run("llama", ReplaceHeadOutput(layers=[0]), KnockOut(layers=[1], slots=[1]))
    with pytest.raises(InputError):
        run("llama", KnockOut(layers=[1], slots=[0]))
    assert model.hf.config._attn_implementation == setting
    torch.testing.assert_close(plain_forward(model, ids_of("llama")).logits, before, atol=0, rtol=0)


def test_an_edit_is_described_by_plain_values():
    means = np.zeros((2, 4, 16), np.float32)
    found = edit_to_dict(
        ReplaceHeadOutput(heads=["L0H1", (1, 2)], how="mean", values=means, steps=[1])
    )
    assert found == {
        "edit": "HeadOutput",
        "heads": ["L0H1", "L1H2"],
        "layers": [],
        "steps": [1],
        "how": "mean",
        "values": {"shape": [2, 4, 16], "sha256": found["values"]["sha256"]},
    }
    other = edit_to_dict(ReplaceHeadOutput(heads=["L0H1"], how="mean", values=means + 1))
    assert other["values"]["sha256"] != found["values"]["sha256"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplaceHeadOutput(heads=["L9H0"]), "expected heads from L0H0 to L1H3, got L9H0"),
        (lambda: ReplaceHeadOutput(heads=["L0H4"]), "got L0H4"),
        (lambda: ReplaceHeadOutput(heads=["nine"]), "expected a head such as L3H5"),
        (ReplaceHeadOutput, "expected heads or layers in ReplaceHeadOutput, got none"),
        (lambda: ReplaceHeadOutput(layers=[2]), "got L2H0"),
        (lambda: ReplaceHeadOutput(heads=["L0H0"], how="resample"), "a donor's head outputs"),
        (lambda: ReplaceHeadOutput(heads=["L0H0"], how="mean"), "means of each head"),
        (lambda: ReplaceHeadOutput(heads=["L0H0"], how="half"), "expected zero, mean or resample"),
        (lambda: KnockOut(heads=["L0H0"], softmax="during"), "before or after the softmax"),
        (lambda: KnockOut(layers=[0], slots=[0]), "leave every row something to see"),
        (lambda: KnockOut(heads=["L0H0"], slots=[40]), "expected slots from 0 to 11, got 40"),
        (lambda: KnockOut(heads=["L0H0"], queries=[3, 99]), "expected slots from 0 to 11, got 99"),
        (lambda: ScoreBias(heads=["L0H0"], amount=1e39), "expected a finite amount"),
        (lambda: ScoreBias(heads=["L0H0"], groups="siblings", amount=1.0), "got siblings"),
        (
            lambda: ReplaceHeadOutput(
                heads=["L0H0"], how="mean", values=np.full((2, 4, 16), np.nan, np.float32)
            ),
            "expected finite values to stand in for a head",
        ),
        (lambda: KnockOut(heads=["L0H0"], queries=[3], slots=[4]), "find something to act on"),
        (lambda: ValueZero(heads=["L0H0"], slot_positions=[2.5]), "find something to act on"),
        (lambda: ScoreBias(heads=["L9H0"], amount=0.0), "got L9H0"),
        (
            lambda: EmbeddingOffset(vector=np.ones(3, np.float32)),
            "expected a vector of 64 channels, got 3",
        ),
        (
            lambda: EmbeddingOffset(vector=np.full(64, np.nan, np.float32)),
            "one finite number for each channel",
        ),
        (lambda: EmbeddingOffset(vector=np.ones(64, np.float32)), "find something to act on"),
        (
            lambda: ReplaceHeadOutput(
                heads=["L0H0"], how="mean", values=np.zeros((2, 4, 8), np.float32)
            ),
            "expected values of 2 layers, 4 heads and 16 channels, got 2, 4, 8",
        ),
        (lambda: ReplaceHeadOutput(heads=["L0H0"], steps=[3]), "find something to act on"),
        (lambda: block_siblings(layers=[0]), "find something to act on"),
        (lambda: ScoreBias(heads=["L0H0"], amount=np.inf), "expected a finite amount"),
        (
            lambda: ValueZero(heads=["L0H0"], groups=["friends"]),
            "expected a list of groups of sink",
        ),
        (
            lambda: ReplaceHeadOutput(
                heads=["L0H0"], how="resample", values=np.zeros((2, 3, 4, 16), np.float32)
            ),
            "expected a donor with the rows of slot 11, got 3",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused(make, message: str):
    with pytest.raises(InputError, match=message):
        run("llama", make())


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0])
def test_an_edge_stays_out_whatever_is_scaled_after_it(factor: float):
    cut = KnockOut(heads=[HEAD], slots=[P], queries=[T])
    scaled = ScoreScale(heads=[HEAD], factor=factor)
    first, second = run("llama", cut, scaled), run("llama", scaled, cut)
    assert np.isfinite(first.logits).all()
    assert first.attention[LAYER, H, T, P] == 0
    np.testing.assert_array_equal(first.logits, second.logits)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (ReplaceHeadOutput(heads=[HEAD]), "expected a list of edits, got one ReplaceHeadOutput"),
        ("zero", "expected a list of edits, got str"),
        (["zero"], "expected edits of tempo.edits, got str"),
    ],
)
def test_what_is_no_list_of_edits_is_refused(edits: object, message: str):
    with pytest.raises(InputError, match=message):
        check_edit_list(edits)


def test_a_slot_before_the_sliding_window_cannot_be_edited():
    model = model_of("mistral")
    window = model.config.sliding_window
    ids = random_prompt(model, window + 4)
    far = ValueZero(heads=["L0H0"], queries=[window + 3], slots=[2])
    with pytest.raises(InputError, match="a sliding window hides what lies before it"):
        tempo.forward(model, ids, edits=[far])
    near = ValueZero(heads=["L0H0"], queries=[window + 3], slots=[4])
    assert tempo.forward(model, ids, edits=[near]).tokens.size == window + 4


@pytest.mark.parametrize("family", ["llama", "llama_mha", "gemma2", "mistral"])
def test_a_zeroed_value_is_the_value_projections_output_zeroed(family: str):
    """An independent way: a hook on the projection, for all heads of a layer and all rows."""
    model = model_of(family)
    module = model.hf.get_decoder().layers[LAYER].self_attn.v_proj

    def zeroed(_module, _given, out):
        out = out.clone()
        out[:, P] = 0
        return out

    hook = module.register_forward_hook(zeroed)
    try:
        expected = plain_forward(model, ids_of(family)).logits[0]
    finally:
        hook.remove()
    found = run(family, ValueZero(layers=[LAYER], slots=[P]))
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)


def test_a_value_is_zeroed_for_the_rows_that_are_named_only():
    found = run("llama", ValueZero(heads=["L0H1"], slots=[P], queries=[T]))
    plain, whole = run("llama"), run("llama", ValueZero(heads=["L0H1"], slots=[P]))
    rows = found.head_outputs[0, :, 1]
    np.testing.assert_allclose(rows[T], whole.head_outputs[0, T, 1], atol=1e-6)
    others = np.delete(rows, T, axis=0)
    np.testing.assert_allclose(others, np.delete(plain.head_outputs[0, :, 1], T, axis=0), atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_neox"])
def test_an_offset_embedding_is_another_row_of_the_table(family: str):
    """Moving one token by the difference of two embeddings is replacing it."""
    model = model_of(family)
    ids = np.array(ids_of(family))
    other = ids.copy()
    other[P] = (ids[P] + 5) % model.vocab_size
    decoder = model.hf.get_decoder()
    kept: list[torch.Tensor] = []
    hook = decoder.layers[0].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        plain_forward(model, tuple(ids.tolist()))
        expected = plain_forward(model, tuple(other.tolist())).logits[0]
    finally:
        hook.remove()
    vector = (kept[1] - kept[0])[0, P].detach().numpy()
    edit = EmbeddingOffset(vector=vector, slots=[P], parallel_only=False)
    found = tempo.forward(model, ids, edits=[edit])
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    at = EmbeddingOffset(vector=vector, positions=[float(P)], parallel_only=False)
    np.testing.assert_array_equal(tempo.forward(model, ids, edits=[at]).logits, found.logits)
    plain = tempo.forward(model, ids).logits
    zero = EmbeddingOffset(vector=np.zeros_like(vector), parallel_only=False)
    np.testing.assert_array_equal(tempo.forward(model, ids, edits=[zero]).logits, plain)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_many_lists_of_edits_in_one_forward_are_as_each_alone(family: str):
    model, ids = model_of(family), ids_of(family)
    donor = tempo.forward(model, random_prompt(model, 12)).head_outputs
    vector = np.linspace(-1, 1, model.config.hidden_size).astype(np.float32)
    variants: list[list[Edit]] = [
        [],
        [ReplaceHeadOutput(heads=[HEAD], queries=[T])],
        [ValueZero(layers=[0], slots=[P]), ReplaceHeadOutput(heads=["L1H0"])],
        [ReplaceHeadOutput(heads=["L0H0"], how="resample", values=donor, queries=[T])],
        [EmbeddingOffset(vector=vector, slots=[P], parallel_only=False)],
        [KnockOut(heads=["L0H1"], queries=[T], slots=[P])],
    ]
    for found, edits in zip(forward_each(model, ids, variants), variants, strict=True):
        alone = tempo.forward(model, ids, edits=edits)
        for name in ("logits", "attention", "head_outputs"):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), atol=2e-5)


@pytest.mark.parametrize("text", [[], [1] * 600])
def test_a_text_that_cannot_be_run_is_refused(text: list[int]):
    with pytest.raises(InputError, match="expected 1 to 512 tokens"):
        tempo.forward(model_of("llama"), text)


# --- while sets are decoded


CAT = "The cat sat on the"


def decoded(policy: str = "isolated", *edits: Edit, **options):
    given = {"threshold": 0.1, "steps": 4, "eos": "ignore"} | options
    return tempo.generate(model_of("llama"), CAT, policy=policy, edits=edits, **given)


def test_greedy_decoding_without_a_head_is_that_of_the_model_without_it():
    model = model_of("llama")
    (trace,) = decoded("greedy", ReplaceHeadOutput(heads=[HEAD]), steps=6)
    ids = torch.tensor([model.encode(CAT)])
    with ablated(model, [(LAYER, H)]):
        for _ in range(6):
            logits = model.hf(ids).logits[0, -1]
            logits[list(model.eos_ids)] = -torch.inf
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    assert trace.slots.token.tolist() == ids[0].tolist()


def test_isolating_every_layer_of_visible_sets_is_the_isolated_policy():
    (own,) = decoded("isolated", steps=3)
    (edited,) = decoded("visible", block_siblings(layers=[0, 1]), steps=3)
    assert (own.slots.width >= 2).any()
    np.testing.assert_array_equal(edited.slots.token, own.slots.token)
    for step in range(1, 4):
        np.testing.assert_allclose(edited.attention(step), own.attention(step), atol=1e-6)


def test_an_edit_that_finds_nothing_is_refused_again_by_the_same_call(tmp_path):
    idle = ReplaceHeadOutput(heads=["L0H0"], steps=[9])
    for _ in range(2):
        with pytest.raises(InputError, match="find something to act on"):
            decoded("isolated", idle, steps=3, out=tmp_path / "run")


def test_an_edit_need_not_find_something_in_every_batch(monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    texts = [list(random_prompt(model, 12)), [5, 6], [7, 8]]
    edit = ReplaceHeadOutput(heads=["L0H0"], queries=[10], steps=[0])
    monkeypatch.setattr("tempo.run.budget.MAX_BATCH", 1)
    found = tempo.generate(model, texts, policy="greedy", steps=1, edits=[edit], eos="ignore")
    assert [trace.header.run["edits_found"] for trace in found] == [[0], [], []]


def test_a_trace_with_edits_is_not_replayed():
    (trace,) = decoded("isolated", ReplaceHeadOutput(layers=[1], steps=[2]), threshold=0.02)
    with pytest.raises(TwinError, match="expected a trace that was decoded without edits"):
        tempo.replay(trace, model=model_of("llama"), policy="visible")


def test_an_offset_of_parallel_members_moves_them_and_nothing_before():
    vector = np.full(64, 0.3, np.float32)
    (plain,), (moved,) = (
        decoded(threshold=0.02),
        decoded("isolated", EmbeddingOffset(vector=vector), threshold=0.02),
    )
    first = int(plain.slots.step[plain.slots.width > 1][0])
    np.testing.assert_array_equal(plain.attention(0), moved.attention(0))
    assert (
        plain.slots.token[plain.members(first)] == moved.slots.token[moved.members(first)]
    ).all()
    width = len(plain.members(first))
    assert width > 1
    assert np.abs(plain.attention(first) - moved.attention(first)).max() > 1e-5
    assert plain.readout(first).entropy_nats != moved.readout(first).entropy_nats
    assert moved.header.run["edits"][0]["edit"] == "EmbeddingOffset"


def test_an_edit_of_one_step_leaves_those_before_it_as_they_were():
    (plain,), (edited,) = decoded(), decoded("isolated", ReplaceHeadOutput(layers=[1], steps=[2]))
    np.testing.assert_array_equal(edited.attention(1), plain.attention(1))
    np.testing.assert_array_equal(edited.readout(1).token, plain.readout(1).token)
    before, after = plain.readout(2), edited.readout(2)
    assert not np.array_equal(before.log_probability, after.log_probability)


def test_edits_are_recorded_and_make_another_run(tmp_path):
    edit = ScoreBias(layers=[0], groups=["earlier_sets"], amount=-1.0)
    plain, edited = decoded(out=tmp_path / "plain"), decoded("isolated", edit, out=tmp_path / "one")
    said = [edit_to_dict(edit)]
    assert edited[0].header.run["edits"] == said
    assert edited.settings["edits"] == said
    assert "edits" not in plain.settings
    with pytest.raises(OutputError, match="a run with other options"):
        decoded(out=tmp_path / "one")


def test_a_replay_under_edits_is_a_twin_that_differs_in_them_alone():
    (trace,) = decoded()
    edit = ScoreBias(layers=[0, 1], groups=["earlier_sets"], amount=-2.0)
    twin = tempo.replay(trace, model=model_of("llama"), edits=[edit]).trace(arm="twin")
    assert changed_axes(trace, twin) == {"edits"}
    np.testing.assert_array_equal(twin.slots.token, trace.slots.token)
    step = next(step for step in range(2, 5) if len(trace.members(step - 1)) > 1)
    sets = (trace.slots.width >= 2) & (trace.slots.step < step)
    ours, theirs = (one.attention(step)[0][..., : len(sets)] for one in (twin, trace))
    columns = np.flatnonzero(sets)
    assert ours[..., columns].sum() < theirs[..., columns].sum()
    with pytest.raises(TwinError, match="policy or edits"):
        tempo.replay(trace, model=model_of("llama"))


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (ReplaceHeadOutput(heads=["L7H0"]), {}, "got L7H0"),
        (
            ReplaceHeadOutput(heads=["L0H0"]),
            {"capture": "qk"},
            "capture of weights or reduced with edits",
        ),
        (ReplaceHeadOutput(heads=["L0H0"], steps=[9]), {}, "find something to act on"),
    ],
)
def test_a_run_that_cannot_be_edited_is_refused(edit: Edit, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        decoded("isolated", edit, **options)
