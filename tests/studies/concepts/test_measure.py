"""Concepts in heads: planted shifts, nulls, invariances, capture, pairs files and refusals."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tempo.causal.eager_rows import eager_rows
from tempo.causal.silence import ablated
from tempo.errors import InputError, ModelError
from tempo.prompts.pairs import Pair, Pairs, load_pairs
from tempo.testing.tiny import tiny_model
from tempo.vocabulary import Head
from tempo_analysis.studies.concepts.effect import (
    MEASURED,
    chosen_heads,
    concept_effect,
    matched_random,
)
from tempo_analysis.studies.concepts.findings import quality_document
from tempo_analysis.studies.concepts.measure import (
    concept_inputs,
    pooled_means,
    readable_layers,
    streams_without,
)
from tempo_analysis.studies.concepts.separation import (
    ConceptHeads,
    concentration,
    concept_heads,
    effective_heads,
    top_share,
)
from tests.decoding import model_of, plain_forward, real_model

N, L, H, C, HIDDEN = 60, 2, 9, 16, 24
SHIFT = 3.0


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, L, H, C)).astype(np.float32)


def outputs(seed: int = 9) -> np.ndarray:
    """Output weights that keep lengths, so that written and raw lengths are one."""
    rng = np.random.default_rng(seed)
    blocks = [np.linalg.qr(rng.standard_normal((HIDDEN, C)))[0].T for _ in range(L * H)]
    return np.stack(blocks).reshape(L, H, C, HIDDEN).astype(np.float32)


def planted(head: int = 3, size: float = SHIFT) -> tuple[np.ndarray, np.ndarray]:
    """A shift of one head of layer 1; all else is noise."""
    positive = noise(1)
    positive[:, 1, head] += size / np.sqrt(C)
    return positive, noise(2)


@pytest.fixture(scope="module")
def found() -> ConceptHeads:
    return concept_heads(*planted(), outputs())


def test_a_planted_shift_is_found_with_its_size_and_in_its_head(found: ConceptHeads):
    assert found.raw_norm[1, 3] == pytest.approx(SHIFT, rel=0.15)
    noise_length = np.sqrt(C * 2 / N)
    assert np.median(found.raw_norm) == pytest.approx(noise_length, rel=0.15)
    assert np.argwhere(found.assigned).tolist() == [[1, 3]]
    assert found.auroc[1, 3] > 0.95
    assert found.paired[1, 3] > 0.9
    assert found.separation[1, 3] == pytest.approx(SHIFT, rel=0.35)
    assert np.unravel_index(found.unbiased.argmax(), (L, H)) == (1, 3)


def test_unrelated_heads_are_at_chance(found: ConceptHeads):
    others = np.delete(found.auroc.ravel(), H + 3)
    assert others.mean() == pytest.approx(0.5, abs=0.05)
    assert np.delete(found.paired.ravel(), H + 3).mean() == pytest.approx(0.5, abs=0.06)
    # squared lengths are biased upwards, products of halves are not
    assert np.delete(found.unbiased.ravel(), H + 3).mean() == pytest.approx(0, abs=0.1)
    assert found.written_norm.min() ** 2 > 0.15


def test_a_larger_shift_leaves_fewer_effective_heads():
    sizes = [
        effective_heads(concept_heads(*planted(size=size), outputs()).raw_norm)[1]
        for size in (0, 5, 500)
    ]
    assert sizes[0] > 8.5
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] == pytest.approx(1, abs=0.05)


def test_concentration_is_held_against_its_chance_and_its_null():
    # as in raw numbers: more than half of the length in ten heads is no circuit
    rng = np.random.default_rng(3)
    expected = {9: 1.0, 12: 0.853, 16: 0.657, 24: 0.450, 32: 0.343, 40: 0.278, 64: 0.177}
    for n, share in expected.items():
        lengths = np.linalg.norm(rng.standard_normal((400, n, 64)), axis=-1)
        made = [concentration(one[None], lengths[200:, None]) for one in lengths[:200]]
        assert np.mean([one.share for one in made]) == pytest.approx(share, abs=0.006)
        assert made[0].chance == pytest.approx(min(10, n) / n)
        assert made[0].null[0] == pytest.approx(share, abs=0.006)
        p = np.mean([one.p for one in made])
        assert p == pytest.approx(1 if n == 9 else 0.5, abs=0.08)


def test_one_head_and_equal_heads_are_the_two_ends():
    one, equal = np.eye(12)[:1], np.ones((1, 12))
    assert effective_heads(one)[0] == 1
    assert effective_heads(equal)[0] == 12
    assert top_share(one, 10)[0] == 1
    assert top_share(equal, 10)[0] == pytest.approx(10 / 12)
    assert np.isnan(effective_heads(np.zeros((1, 4)))[0])


def test_noise_assigns_a_head_in_no_more_draws_than_the_level_allows():
    drawn = [
        concept_heads(noise(seed), noise(100 + seed), outputs(), permutations=400).assigned.any()
        for seed in range(40)
    ]
    assert np.mean(drawn) <= 0.1


def test_swapped_pairs_are_the_null(found: ConceptHeads):
    rng = np.random.default_rng(5)
    positive, negative = planted()
    swap = rng.random(N) < 0.5
    mixed = np.where(swap[:, None, None, None], negative, positive)
    other = np.where(swap[:, None, None, None], positive, negative)
    assert not concept_heads(mixed, other, outputs()).assigned.any()
    assert found.concentration.effective_heads[1] < 0.9 * found.concentration.null_effective[1]
    assert found.concentration.effective_p[1] < 0.01


def test_rescaling_a_heads_channels_changes_the_raw_length_but_no_written_one():
    positive, negative = planted()
    out = outputs()
    scale = np.ones((L, H, 1), np.float32)
    scale[0, 5] = 100
    before = concept_heads(positive, negative, out)
    after = concept_heads(positive * scale, negative * scale, out / scale[..., None])
    assert after.raw_norm[0, 5] == pytest.approx(100 * before.raw_norm[0, 5], rel=1e-5)
    for name in ("written_norm", "selectivity", "auroc", "paired", "separation", "unbiased"):
        np.testing.assert_allclose(
            getattr(after, name), getattr(before, name), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(after.concentration.share, before.concentration.share, rtol=1e-4)


def test_rotating_a_heads_channels_changes_nothing():
    positive, negative = planted()
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((C, C)))[0].astype(np.float32)
    before = concept_heads(positive, negative, outputs())
    after = concept_heads(positive @ turn, negative @ turn, turn.T @ outputs())
    for name in ("raw_norm", "written_norm", "selectivity", "auroc", "separation"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-3)


def test_selectivity_is_in_units_of_the_negatives_radius():
    positive, negative = planted()
    one = concept_heads(positive, negative, outputs(), permutations=10)
    centred = negative[:, 1, 3] - negative[:, 1, 3].mean(0)
    sigma = np.sqrt((centred**2).sum(-1).mean() / C)
    expected = one.raw_norm[1, 3] / (sigma * np.sqrt(C))
    assert one.selectivity[1, 3] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "other"), [(7, 7), (20, 19)])
def test_few_or_unbalanced_pairs_are_refused(n: int, other: int):
    with pytest.raises(InputError, match=f"got {n} and {other}; balance or add pairs"):
        concept_heads(noise(1)[:n], noise(2)[:other], outputs())


# --- the causal check


def streams(carried: float) -> np.ndarray:
    """Last streams whose sides differ by `carried` in channel 2."""
    sides = np.random.default_rng(4).standard_normal((2, N, HIDDEN)).astype(np.float32) * 0.1
    sides[0, :, 2] += carried
    return sides


def test_the_share_of_the_margin_that_heads_carry_is_found():
    found = concept_effect(streams(2.0), streams(0.5), np.stack([streams(1.9), streams(2.1)]))
    assert found.base.estimate == pytest.approx(2, abs=0.1)
    assert found.lost_top.estimate == pytest.approx(0.75, abs=0.03)
    assert found.lost_random.estimate == pytest.approx(0, abs=0.03)
    assert found.difference.low > 0.7
    assert (found.base.n, found.n_draws) == (N // 2, 2)


def test_the_effect_is_measured_on_pairs_that_chose_nothing():
    base = streams(2.0)
    spoiled = base.copy()
    spoiled[:, ::2] += 50  # both sides alike: the direction stays
    assert concept_effect(base, spoiled, base[None]).lost_top.estimate == 0
    changed = base.copy()
    changed[0, MEASURED, 2] -= 2
    assert concept_effect(base, changed, base[None]).lost_top.estimate == pytest.approx(1, abs=0.05)


def test_no_draws_and_no_direction_are_refused():
    base = streams(1.0)
    with pytest.raises(InputError, match="got 0 draws"):
        concept_effect(base, base, base[None][:0])
    same = np.stack([base[0], base[0]])
    with pytest.raises(InputError, match="a difference of length 0"):
        concept_effect(same, same, same[None])


def test_the_best_head_is_chosen_and_random_ones_are_matched_by_layer(found: ConceptHeads):
    chosen = chosen_heads(found, (4, 7), top=4)
    assert chosen[0] == (7, 3)
    assert {layer for layer, _ in chosen} <= {4, 7}
    for drawn in matched_random(chosen, H, draws=20):
        assert not set(drawn) & set(chosen)
        assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in chosen)
    most = chosen_heads(found, (4, 7), top=99)
    assert [sum(layer == each for layer, _ in most) for each in (4, 7)] == [4, 4]
    alone = concept_heads(noise(1)[:, :, :1], noise(2)[:, :, :1], outputs()[:, :1], permutations=9)
    with pytest.raises(InputError, match="at least 2 heads"):
        chosen_heads(alone, (4, 7))
    with pytest.raises(InputError, match="got 5 of 9 in layer 4"):
        matched_random([Head(4, head) for head in range(5)], H)


# --- the document


def test_the_document_is_plain_json_with_the_ten_longest_of_each_layer(found: ConceptHeads):
    effect = concept_effect(streams(2.0), streams(0.5), streams(2.0)[None])
    skipped = [{"layer": 5, "kind": "Mamba", "reason": "none"}]
    made = quality_document(
        found, (4, 7), skipped=skipped, effect=effect, facts={"concept": "planted"}
    )
    document: Any = json.loads(json.dumps(made, allow_nan=False))
    assert [layer["layer"] for layer in document["layers"]] == [4, 7]
    top = document["layers"][1]["top"]
    assert (top[0]["head"], top[0]["assigned"], len(top)) == (3, True, 9)
    assert document["assigned"] == ["L7H3"]
    assert document["skipped"] == skipped
    assert document["causal"]["lost_top"]["estimate"] == pytest.approx(0.75, abs=0.03)
    assert document["layers"][0]["head_concentration"]["chance"] == 1
    assert (document["concept"], document["n_pairs"]) == ("planted", N)


def test_numbers_without_a_value_are_null():
    nothing = np.zeros((8, L, H, C), np.float32)
    made = quality_document(concept_heads(nothing, nothing, outputs(), permutations=10), (0, 1))
    document: Any = json.loads(json.dumps(made, allow_nan=False))
    assert document["layers"][0]["head_concentration"]["share"] is None
    assert document["layers"][0]["top"][0]["selectivity"] is None
    assert document["assigned"] == []


# --- pairs files


def test_the_bundled_pairs_differ_in_one_clause_and_end_alike():
    pairs = load_pairs("urgency").pairs
    assert len(pairs) >= 40
    assert len({text for pair in pairs for text in (pair.positive, pair.negative)}) == 2 * len(
        pairs
    )
    for pair in pairs:
        above, below = pair.positive.split(", "), pair.negative.split(", ")
        assert above[-1] == below[-1]
        assert above[0] != below[0]
        assert len(pair.positive.split()) - len(pair.negative.split()) in range(-6, 7)


def rows(n: int = 8) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "positive": f"now {i}", "negative": f"later {i}"} for i in range(n)]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_users_pairs_are_read(tmp_path: Path):
    pairs = load_pairs(written(tmp_path / "mine.jsonl", rows()))
    assert pairs.name == "mine"
    assert pairs.pairs[2] == Pair("p2", "now 2", "later 2")


def _one_scenario(lines: list[dict[str, Any]]) -> None:
    del lines[1:]


def _one_side(lines: list[dict[str, Any]]) -> None:
    del lines[3]["negative"]


def _empty_side(lines: list[dict[str, Any]]) -> None:
    lines[3]["positive"] = " "


def _same_sides(lines: list[dict[str, Any]]) -> None:
    lines[3]["positive"] = lines[3]["negative"]


def _same_id(lines: list[dict[str, Any]]) -> None:
    lines[3]["id"] = "p2"


def _unknown_key(lines: list[dict[str, Any]]) -> None:
    lines[3]["neutral"] = "x"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_one_scenario, r"at least 8 paired scenarios in bad\.jsonl, got one scenario"),
        (_one_side, r"line 4, got no negative: unbalanced pairs"),
        (_empty_side, r"line 4, got no positive: unbalanced pairs"),
        (_same_sides, r"two different texts in bad\.jsonl, line 4"),
        (_same_id, "got 'p2' twice"),
        (_unknown_key, r'expected \{"id": ..., "positive": ..., "negative": ...\} in bad'),
    ],
)
def test_bad_pairs_are_refused_with_their_line(
    tmp_path: Path, spoil: Callable[..., None], says: str
):
    lines = rows()
    spoil(lines)
    with pytest.raises(InputError, match=says):
        load_pairs(written(tmp_path / "bad.jsonl", lines))


def test_files_that_are_no_pairs_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"pairs of urgency or a \.jsonl file, got 'threat'"):
        load_pairs("threat")
    (tmp_path / "no.jsonl").write_text("{not json\n")
    with pytest.raises(InputError, match=r"in no\.jsonl, line 1, got"):
        load_pairs(tmp_path / "no.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="expected UTF-8 text"):
        load_pairs(tmp_path / "bytes.jsonl")


# --- capture


TINY = Pairs(
    "tiny", tuple(Pair(str(i), f"the cat {i} ran on", f"a dog sat {i} is on") for i in range(8))
)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt_oss"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_captured_inputs_are_those_of_the_output_projection(family: str, pooling: str):
    model = model_of(family)
    inputs = concept_inputs(model, TINY, pooling=pooling)
    assert inputs.positive.shape == (8, model.n_layers, model.n_heads, model.head_dim)
    first = int(model.encode("a")[0] == 1 and len(model.encode("a")) > 1)
    for side, texts in (
        (inputs.positive, [pair.positive for pair in TINY.pairs]),
        (inputs.negative, [pair.negative for pair in TINY.pairs]),
    ):
        sequences = [np.array(model.encode(text)) for text in texts]
        for one, expected in zip(
            side, eager_rows(model, sequences, keep=("head_outputs",)), strict=True
        ):
            wanted = (
                expected.head_outputs[:, -1]
                if pooling == "last"
                else expected.head_outputs[:, first:].mean(1)
            )
            np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert inputs.layers == tuple(range(model.n_layers))
    assert (inputs.skipped, inputs.same_last_token) == ((), 1.0)


def test_the_output_weights_write_what_the_heads_give():
    model = model_of("llama")
    inputs = concept_inputs(model, TINY)
    linear = model.hf.model.layers[1].self_attn.o_proj
    given = torch.from_numpy(inputs.positive[3, 1])
    parts = np.einsum("hc,hcm->m", given, inputs.out[1])
    np.testing.assert_allclose(parts, linear(given.flatten()).detach(), atol=1e-5)


def test_the_stream_is_the_one_behind_the_last_layer():
    model = model_of("llama")
    inputs = concept_inputs(model, TINY)
    ids = model.encode(TINY.pairs[2].negative)
    seen: list[torch.Tensor] = []
    hook = model.hf.model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    plain_forward(model, ids)
    hook.remove()
    np.testing.assert_allclose(inputs.stream[1, 2], seen[0][0, -1], atol=1e-5)


def test_silent_heads_change_the_stream_as_an_ablation_does():
    model = model_of("llama")
    inputs = concept_inputs(model, TINY)
    heads = [Head(0, 1), Head(1, 2)]
    with ablated(model, heads):
        expected = concept_inputs(model, TINY).stream
    np.testing.assert_allclose(streams_without(model, TINY, heads), expected, atol=1e-5)
    assert not np.allclose(expected, inputs.stream, atol=1e-3)
    means = pooled_means(inputs, model.n_layers)
    np.testing.assert_allclose(
        means[1, 2], np.concatenate([inputs.positive, inputs.negative])[:, 1, 2].mean(0), atol=1e-6
    )
    held = streams_without(model, TINY, heads, means=means)
    assert not np.allclose(held, expected, atol=1e-3)


class GatedDelta(torch.nn.Module):
    """Stands in for a mixer without heads."""

    layer_idx = 0

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states.flip(-1), None


def test_layers_of_other_kinds_are_skipped_by_name():
    model = tiny_model("llama", num_hidden_layers=3)
    model.hf.model.layers[0].self_attn = GatedDelta()
    inputs = concept_inputs(model, TINY)
    assert inputs.layers == (1, 2)
    assert inputs.positive.shape[1] == inputs.out.shape[0] == 2
    (skipped,) = inputs.skipped
    assert (skipped.layer, skipped.kind) == (0, "GatedDelta")
    assert skipped.reason == "0 in LlamaForCausalLM"


def test_a_model_without_any_layer_to_read_is_refused():
    model = copy.deepcopy(model_of("llama"))
    for layer in model.hf.model.layers:
        layer.self_attn = GatedDelta()
    with pytest.raises(ModelError, match="got none in LlamaForCausalLM"):
        readable_layers(model)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="expected pooling last or mean, got 'max'"):
        concept_inputs(model_of("llama"), TINY, pooling="max")


def test_grouped_heads_are_query_heads():
    model = model_of("llama")
    assert (model.n_heads, model.n_kv_heads) == (4, 2)
    assert concept_inputs(model, TINY).positive.shape[2] == 4


@pytest.mark.slow
def test_the_real_model_has_heads_for_urgency_that_held_out_pairs_confirm():
    model = real_model()
    pairs = load_pairs("urgency")
    inputs = concept_inputs(model, pairs)
    found = concept_heads(inputs.positive, inputs.negative, inputs.out)
    assert inputs.same_last_token == 1.0
    assert found.auroc.max() > 0.75
    assert found.assigned.sum() >= 5
