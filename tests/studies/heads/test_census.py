"""A census of tiny models, whole; planted circuits are found and random weights hold nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import tempo
from tempo.causal.silence import ablated
from tempo.errors import FormatVersionError, InputError
from tempo.models.language_model import LanguageModel
from tempo.models.load import load_model
from tempo.prompts.sequences import Corpus, corpus_file
from tempo.prompts.tokens import TokenFacts, token_facts
from tempo.testing.tiny import tiny_model
from tempo_analysis.report.document import json_text
from tempo_analysis.studies.heads.comparison import compare_censuses
from tempo_analysis.studies.heads.measure import silencing_effects
from tempo_analysis.studies.heads.passes import halves_pass
from tempo_analysis.studies.heads.plan import MORE_ROLES, PASSES, ROLES, CensusPlan
from tempo_analysis.studies.heads.result import read_census
from tests.decoding import real_model
from tests.studies.heads.test_circuits_induction import INDUCTION, PREVIOUS, induction_model

SMALL = {"n": 12, "length": 40}
WORDS = ("successor_attention", "s_inhibition", "successor_ov", "retrieval")
"""Roles that ask for whole words, which the tiny tokenizer spells letter by letter."""


@pytest.fixture(scope="module")
def census():
    return tempo.heads(tiny_model("llama"), **SMALL)


def test_every_role_is_answered_or_refused_by_name(census):
    answered = {*census.roles, *census.more}
    assert answered | set(census.refused) == {*ROLES, *MORE_ROLES}
    assert not answered & set(census.refused)
    # few of the letters that are not among the commonest come twice
    assert set(census.refused) == {*WORDS, "duplicate_rare"}
    for reason in census.refused.values():
        assert reason.startswith("expected ")


def test_every_role_belongs_to_one_pass():
    named = [role for roles in PASSES.values() for role in roles]
    assert sorted(named) == sorted({*ROLES, *MORE_ROLES})


def test_the_document_lists_every_head_of_a_role_best_first(census):
    found = census.document()
    assert found["model"] == "tiny-llama"
    for role, rows in found["roles"].items():
        assert sorted(row["head"] for row in rows) == [
            f"L{layer}H{head}" for layer in range(2) for head in range(4)
        ]
        scores = [row["score"] for row in rows if row["score"] is not None]
        assert scores == sorted(scores, reverse=True), role
        assert all({"head", "score", "chance", "null_p99", "assigned"} <= set(row) for row in rows)
        assert {row["kv_head"] for row in rows} == {0, 1}


def test_a_census_comes_back_from_its_file(census, tmp_path: Path):
    document = census.document()
    assert read_census(census.save_document(tmp_path)) == json.loads(json_text(document))
    assert read_census(tmp_path) == read_census(tmp_path / "heads.json")
    (tmp_path / "heads.json").write_text('{"kind": "tempo-heads", "format": 99}')
    with pytest.raises(FormatVersionError, match="format 1"):
        read_census(tmp_path)


def test_the_same_census_again_is_the_same(census):
    again = tempo.heads(tiny_model("llama"), **SMALL)
    assert again.json() == census.json()


def untrained(family: str, seed: int) -> LanguageModel:
    """A model as its own code initialises it, before any training."""
    config, tokenizer = tiny_model(family).hf.config, tiny_model(family).tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config).eval()
    return load_model((hf, tokenizer))


# one draw of each family: heads of any model are drawn alike, so further seeds add nothing new
@pytest.mark.parametrize(
    ("family", "seed"),
    [("llama", 0), ("llama_mha", 1), ("qwen3", 0), ("gemma2", 1), ("gpt_neox", 0)],
)
def test_random_weights_hold_no_role(family: str, seed: int):
    found = tempo.heads(untrained(family, seed), seed=seed, **SMALL)
    held = {role: int(one.assigned.sum()) for role, one in found.every.items()}
    assert {role: n for role, n in held.items() if n} == {}
    assert found.detail["effects"]["heads"] == {}


def test_uneven_random_attention_holds_no_role(census):
    assert not any(one.assigned.any() for one in census.every.values())


def test_a_planted_induction_circuit_is_found_and_falls_to_chance_without_its_first_head():
    model = induction_model()
    facts = TokenFacts(encode=lambda _: [], bos=0, ordinary=np.arange(1, model.vocab_size))
    plan = CensusPlan(facts, Corpus("", "none", ""), ("induction",), 12, 40)
    whole = halves_pass(model, plan).roles["induction"]
    assert whole.score[INDUCTION] > 0.99
    assert np.argwhere(whole.assigned).tolist() == [list(INDUCTION)]
    with ablated(model, [PREVIOUS]):
        without = halves_pass(model, plan).roles["induction"]
    assert without.score[INDUCTION] == pytest.approx(without.chance[INDUCTION], abs=5e-3)
    assert not without.assigned.any()


def test_a_copy_of_a_grouped_model_with_its_kv_heads_repeated_scores_the_same():
    grouped = tiny_model("llama")
    copy = tiny_model("llama", num_key_value_heads=4)
    state = grouped.hf.state_dict()
    for name in [key for key in state if "k_proj" in key or "v_proj" in key]:
        halves = state[name].reshape(2, -1, state[name].shape[-1])
        state[name] = halves.repeat_interleave(2, 0).reshape(-1, state[name].shape[-1])
    copy.hf.load_state_dict(state)
    roles = ("previous_token", "induction", "bos_sink", "ov_copying", "copy_suppression")
    ours = tempo.heads(grouped, roles=roles, check_effects=False, **SMALL)
    theirs = tempo.heads(
        load_model((copy.hf, copy.tokenizer)), roles=roles, check_effects=False, **SMALL
    )
    for role in roles:
        np.testing.assert_allclose(theirs.roles[role].score, ours.roles[role].score, atol=1e-5)


def test_only_the_roles_asked_for_are_answered():
    found = tempo.heads(tiny_model("llama"), roles=["bos_sink"], check_effects=False, **SMALL)
    assert list(found.roles) == ["bos_sink"]
    assert not found.more
    assert not found.refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": ["nothing"]}, "expected roles of previous_token, "),
        ({"roles": []}, "got none"),
        ({"n": 7}, "expected at least 8 sequences of 16 tokens, got 7"),
        ({"length": 15}, "got 64 of 15"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        tempo.heads(tiny_model("llama"), **options)


def test_a_corpus_too_short_is_refused_with_both_numbers(tmp_path: Path):
    (tmp_path / "short.txt").write_text("the cat sat on the mat " * 20)
    with pytest.raises(InputError, match=r"at least \d+ tokens .* got \d+ in short\.txt"):
        tempo.heads(tiny_model("llama"), corpus=tmp_path / "short.txt")


def test_two_models_are_held_to_the_same_criterion(census):
    other = tempo.heads(tiny_model("qwen3"), **SMALL)
    found = compare_censuses(census, other)
    assert (
        found.same_sequences is False
        or census.model["tokenizer_hash"] == (other.model["tokenizer_hash"])
    )
    assert set(found.roles) == set(census.every) & set(other.every)
    for row in found.roles.values():
        assert row.verdict.startswith("held in neither model")
    itself = compare_censuses(census, census)
    assert itself.same_sequences
    differences = [row.difference.estimate for row in itself.roles.values()]
    assert all(each == 0 or np.isnan(each) for each in differences)
    json_text(found.document())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_model_with_whole_words_holds_no_successor_head(seed: int):
    """Sharp attention at random: taste for single pairs of words must not pass for a role."""
    tokenizer = real_model().tokenizer
    assert tokenizer is not None
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, weight in hf.named_parameters():
                if weight.ndim == 2:
                    weight.normal_(0, 1.0 if "embed" in name else 0.35)
    roles = ("successor_attention", "s_inhibition", "successor_ov")
    found = tempo.heads(load_model((hf, tokenizer)), roles=roles, check_effects=False)
    assert {role: np.argwhere(one.assigned).tolist() for role, one in found.roles.items()} == {
        role: [] for role in roles
    }


def test_a_role_without_enough_data_is_refused_and_not_held_by_nobody(census):
    assert all(not np.isnan(one.p).all() for one in census.every.values())
    windowed = tiny_model("mistral")
    found = tempo.heads(
        windowed, roles=["bos_sink", "induction"], check_effects=False, n=9, length=64
    )
    assert list(found.roles) == ["bos_sink"]
    assert "sequences with data, got 0 of 9" in found.refused["induction"]
    with pytest.raises(InputError, match="expected roles that can be asked, got none: induction"):
        tempo.heads(windowed, roles=["induction"], check_effects=False, n=9, length=64)


def test_what_silencing_costs_can_be_refused_without_taking_the_rest(tmp_path: Path):
    text = tmp_path / "short.txt"
    text.write_text("the cat sat on the mat " * 9)
    model = tiny_model("llama")
    given = {"corpus": text, "roles": ["induction"], "n": 8, "length": 16}
    assert tempo.heads(model, **given).detail["effects"]["heads"] == {}
    held = {"induction": replace(tempo.heads(model, **given).roles["induction"])}
    held["induction"].assigned[0, 0] = True
    facts = token_facts(model)
    plan = CensusPlan(facts, corpus_file(text), ("induction",), 8, 16)
    answers = silencing_effects(model, plan, held)
    assert "expected a corpus of at least" in answers.refused["effects"]
