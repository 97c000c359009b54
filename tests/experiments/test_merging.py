"""Merges beside the exact mixture, and what the experiments on them write."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.command import asked
from experiments.e12_merge_quality.quality import detail, metrics, quality_of
from experiments.e14_forks.probes import (
    NO_SINGLE,
    NOT_DISTINCT,
    Probe,
    Survival,
    is_known,
    js_nats,
    read_probes,
    survival,
)
from experiments.e14_forks.survival import fork_result
from experiments.merging import (
    ARMS,
    EMBEDDING,
    KV_MERGES,
    Fork,
    KnownPosterior,
    Paths,
    exact_forks,
    exact_paths,
    merges,
)
from experiments.result import made_by, rounded, write_document
from experiments.soft_tokens import soft_log_probabilities
from tempo.models.language_model import LanguageModel
from tempo.policy.presets import Policy
from tempo.policy.selection import Forced
from tempo_analysis.stats.distributions import kl_nats
from tests.decoding import assert_same_logits, model_of, plain_forward, random_prompt, run_one

ROOT = Path(__file__).parents[2]
FEW = ("llama", "gemma3", "mistral")
SHARES = (0.5, 0.3, 0.2)


def fork_of(model: LanguageModel, members: tuple[int, ...] = (30, 60, 90), name: str = "f") -> Fork:
    weight = np.log(np.array(SHARES[: len(members)]) / sum(SHARES[: len(members)]))
    return Fork(name, random_prompt(model, 9), members, tuple(weight.tolist()), (40, 50, 20))


def sequential(model: LanguageModel, fork: Fork, member: int) -> np.ndarray:
    """Log-probabilities after a member and every token behind it, by a plain forward."""
    ids = [*fork.prompt, member, *fork.follow]
    return plain_forward(model, ids).logits[0, len(fork.prompt) :].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("family", FEW)
def test_the_exact_mixture_is_the_one_computed_by_hand(family: str) -> None:
    model = model_of(family)
    fork = fork_of(model)
    (paths,) = exact_paths(model, [fork])
    rows = np.stack([sequential(model, fork, member) for member in fork.members], axis=1)
    assert_same_logits(paths.rows, rows)
    weight = np.array(SHARES)
    for depth in range(4):
        if depth:
            weight = weight * np.exp(rows[depth - 1, :, fork.follow[depth - 1]])
            weight = weight / weight.sum()
        np.testing.assert_allclose(np.exp(paths.log_weight[depth]), weight, atol=1e-5)
        by_hand = weight @ np.exp(rows[depth])
        np.testing.assert_allclose(np.exp(paths.mixture()[depth]), by_hand, atol=1e-6)


def test_the_continuation_is_greedy_under_the_exact_mixture_of_the_best_tokens() -> None:
    model = model_of("llama")
    prompt = random_prompt(model, 9)
    (fork,), (by_filter,), (filtered,) = exact_forks(model, {"a": prompt}, width=3, depth=3)
    first = plain_forward(model, prompt).logits[0, -1].double().log_softmax(-1)
    first[list(model.eos_ids)] = -torch.inf
    best = first.topk(3)
    assert fork.members == tuple(best.indices.tolist())
    share = best.values.softmax(-1).numpy()
    np.testing.assert_allclose(np.exp(fork.log_weight), share, atol=1e-5)
    (paths,) = exact_paths(model, [fork])
    assert_same_logits(by_filter.rows, paths.rows)
    np.testing.assert_allclose(by_filter.log_weight, paths.log_weight, atol=1e-4)
    mixture = paths.mixture()
    np.testing.assert_allclose(np.exp(mixture), np.exp(filtered), atol=1e-5)
    mixture[:, list(model.eos_ids)] = -np.inf
    assert fork.follow == tuple(mixture[:3].argmax(-1).tolist())


@pytest.mark.parametrize("family", FEW)
def test_right_after_the_set_the_isolated_merge_is_the_exact_mixture(family: str) -> None:
    model = model_of(family)
    forks = [fork_of(model)]
    (paths,) = exact_paths(model, forks)
    (readouts,), sequences = merges(model, forks, [paths])
    assert set(readouts) == set(ARMS)
    assert [arm for _, arm, _ in sequences] == list(KV_MERGES)
    kl = {arm: kl_nats(paths.mixture(), rows) for arm, rows in readouts.items()}
    assert kl["isolated"][0] < 1e-6
    assert kl["isolated"][1:].min() > 1e-6
    assert kl["visible"][0] > 1e-6
    for arm in KV_MERGES:
        members = next(table for _, name, table in sequences if name == arm).members(1)
        assert len(members) == 3


def test_after_one_token_the_decodable_posterior_is_the_exact_one() -> None:
    model = model_of("llama")
    forks = [fork_of(model)]
    (readouts,), _ = merges(model, forks, exact_paths(model, forks))
    known, decoded = readouts["oracle-posterior"], readouts["posterior"]
    assert_same_logits(known[:2], decoded[:2])
    assert np.abs(known[2:] - decoded[2:]).max() > 1e-4


@pytest.mark.parametrize("family", FEW)
def test_a_set_of_one_is_its_path_under_every_merge(family: str) -> None:
    model = model_of(family)
    forks = [fork_of(model, (30,))]
    (readouts,), _ = merges(model, forks, exact_paths(model, forks))
    plain = sequential(model, forks[0], 30)
    for rows in readouts.values():
        assert_same_logits(rows, plain)
    np.testing.assert_array_equal(readouts["oracle-posterior"], readouts["isolated"])


def test_a_path_of_all_the_weight_is_what_a_known_posterior_reads() -> None:
    model = model_of("llama")
    fork = fork_of(model)
    one = (-100.0, 0.0, -100.0)
    policy = Policy(fork.single(), bias=(KnownPosterior((one,) * 3),))
    decoded = run_one(model, policy, prompt=fork.prompt, steps=4)
    plain = sequential(model, fork, 60)
    for step in (2, 3, 4):
        readout = decoded.outcomes[step].decoding.readout.log_probability
        assert_same_logits(readout, plain[step - 1])


def test_a_known_posterior_acts_on_members_of_the_first_set_in_later_rows_only() -> None:
    sets = Forced(((30, 60), (40, 50), (20,)))
    bias = KnownPosterior(((-1.0, -2.0), (-3.0, -4.0)))
    table = run_one(model_of("llama"), Policy(sets, bias=(bias,)), steps=3).table
    n = table.n_prompt
    scores = bias.scores(table, np.arange(len(table)), np.ones((len(table),) * 2, bool))
    assert scores[n + 2 :, n : n + 2].tolist() == [[-1, -2], [-1, -2], [-3, -4]]
    scores[n + 2 :, n : n + 2] = 0
    assert not scores.any()


def test_the_batch_a_fork_is_decoded_in_does_not_matter() -> None:
    model = model_of("llama")
    forks = [fork_of(model, name="a"), fork_of(model, (15, 25), name="b")]
    together, _ = merges(model, forks, exact_paths(model, forks))
    apart, _ = merges(model, forks[1:], exact_paths(model, forks[1:]))
    for arm in ARMS:
        assert_same_logits(together[1][arm], apart[0][arm])


def test_kl_is_never_negative_and_0_for_the_same() -> None:
    rows = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    one, other = rows.numpy()
    assert kl_nats(one, one) == 0
    assert kl_nats(one, other) > 0
    assert kl_nats(one, other) != kl_nats(other, one)
    half, third = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    np.testing.assert_allclose(kl_nats(half, third), 0.5 * np.log(4 / 3))
    np.testing.assert_allclose(kl_nats(third, half), 0.25 * np.log(0.5) + 0.75 * np.log(1.5))


def hand_made() -> Paths:
    """Two paths over three tokens, weights 3:1, then 1:3."""
    rows = np.log([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]] * 2)
    return Paths(rows, np.log([[0.75, 0.25], [0.25, 0.75]]))


def test_single_paths_are_the_likeliest_the_first_and_all_alike() -> None:
    paths = hand_made()
    singles = paths.singles()
    np.testing.assert_allclose(np.exp(paths.mixture())[0], [0.625, 0.275, 0.1])
    np.testing.assert_array_equal(singles["best-path"], paths.rows[[0, 1], [0, 1]])
    np.testing.assert_array_equal(singles["top-path"], paths.rows[:, 0])
    np.testing.assert_allclose(np.exp(singles["uniform-mixture"])[1], [0.45, 0.45, 0.1])


def test_the_rows_of_a_result_say_what_the_prompts_say() -> None:
    paths = hand_made()
    exact = paths.mixture()
    uniform = paths.singles()["uniform-mixture"]
    readouts = dict.fromkeys(ARMS, exact) | {"isolated": uniform} | paths.singles()
    one = quality_of(paths, readouts, exact)
    rows = {(row["name"], row["arm"]): row for row in metrics({2: [one] * 8})}
    kl = float(kl_nats(exact[1], uniform[1]))
    assert rows["kl", "isolated n=2 d=1"]["estimate"] == pytest.approx(kl, rel=1e-3)
    assert rows["kl", "isolated n=2 d=1"]["null"] == pytest.approx(kl, rel=1e-3)
    over = rows["kl_over_isolated", "posterior n=2 d=1"]
    assert over["estimate"] == pytest.approx(1e-6 / kl, rel=1e-3)
    assert "lower than isolated" in over["verdict"]
    assert ("kl_over_isolated", "isolated n=2 d=1") not in rows
    assert rows["weight_of_top_path", "exact n=2 d=1"]["estimate"] == pytest.approx(0.25)
    more = detail({2: [one] * 8})
    assert more["largest_error_of_exact_filter"] == 0
    assert more["kl_minus_best_path_by_depth"]["n=2"]["posterior"][0][0] < 0
    assert more["same_top_token_by_depth"]["n=2"]["best-path"].tolist() == [1.0]


# --- probes


def test_what_survives_is_read_off_the_last_distribution() -> None:
    fork = Fork("p", (1,), (2, 3), (np.log(0.5),) * 2, (4,))
    probe = Probe(fork, (0, 1))
    found = survival(probe, hand_made().rows[:, 0])
    assert found.mass == pytest.approx(0.9)
    np.testing.assert_allclose(found.share, [8 / 9, 1 / 9])
    assert (found.top, found.recovered) == (0, 1.0)
    assert is_known(probe, hand_made())
    assert not is_known(Probe(fork, (1, 0)), hand_made())
    other = Survival(0.1, np.array([0.5, 0.5]), 0.0, -1)
    assert other.n_branches == pytest.approx(2)
    assert js_nats(found, found) == 0
    left, right = (Survival(1.0, np.array(share), 1.0, 0) for share in ([1.0, 0], [0, 1.0]))
    assert js_nats(left, right) == pytest.approx(np.log(2))
    assert left.n_branches == 1


def test_the_exact_mixture_loses_nothing_to_itself() -> None:
    model = model_of("llama")
    fork = fork_of(model)
    (paths,) = exact_paths(model, [fork])
    (readouts,), _ = merges(model, [fork], [paths])
    no_set = soft_log_probabilities(model, [*fork.prompt, *fork.follow])[-1:].astype(np.float64)
    found = fork_result(Probe(fork, (11, 12, 13)), paths, readouts, no_set)
    assert found.kl["exact"] == 0
    assert {"exact", "no-set", EMBEDDING, *KV_MERGES} - {"log-weight"} <= set(found.survival)


def test_probes_that_cannot_be_put_to_the_model_are_counted(tmp_path: Path) -> None:
    rows = [
        {"id": "good", "members": ["a", "b"], "consequences": ["c", "d"]},
        {"id": "long", "members": ["a", "zqx"], "consequences": ["c", "d"]},
        {"id": "same", "members": ["a", "a"], "consequences": ["c", "d"]},
        {"id": "twins", "members": ["a", "b"], "consequences": ["c", "c"]},
    ]
    file = tmp_path / "probes.jsonl"
    file.write_text("\n".join(json.dumps(row | {"prefix": "x", "bridge": "y"}) for row in rows))
    model = model_of("qwen2")  # its tokenizer adds no first token
    probes, dropped = read_probes(file, model)
    assert [probe.fork.id for probe in probes] == ["good"]
    assert dropped == {"long": NO_SINGLE, "same": NOT_DISTINCT, "twins": NOT_DISTINCT}
    np.testing.assert_allclose(np.exp(probes[0].fork.log_weight), 0.5)


def test_there_are_enough_probes_with_names_of_their_own() -> None:
    text = (ROOT / "experiments/e14_forks/probes.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) >= 60
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(row["prefix"], *row["members"], row["bridge"]) for row in rows}) == len(rows)
    for row in rows:
        assert len(row["members"]) == len(row["consequences"]) == len(set(row["consequences"]))
        assert all(member.startswith(" ") for member in row["members"])


# --- what is written


def test_a_document_is_rounded_and_says_how_it_was_made(tmp_path: Path) -> None:
    facts = {"name": "m", "fingerprint": "f", "dtype": "float32", "n_layers": 2}
    made = made_by("e99_x", command="c", facts=facts, versions={"torch": "2"}, trace_hash="h")
    write_document(tmp_path / "new", {"metrics": [{"a": 1 / 3}]}, made=made, prompts=["p"])
    found = json.loads((tmp_path / "new/result.json").read_text())
    assert found["metrics"] == [{"a": 0.333333}]
    assert (found["experiment"], found["n_prompts"], found["prompts"]) == ("e99_x", 1, ["p"])
    assert found["model"] == {"name": "m", "fingerprint": "f", "dtype": "float32"}
    assert rounded({"a": [1234567.0, 2, None, True]}) == {"a": [1234570.0, 2, None, True]}


def test_a_quick_try_does_not_write_over_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[bool, Path]] = []
    for arguments in ([], ["--quick", "--out", str(tmp_path / "q")], ["--out", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        asked(lambda quick, out: calls.append((quick, out)), tmp_path / "e")
    assert calls == [(False, tmp_path / "e"), (True, tmp_path / "q"), (False, tmp_path)]
    for arguments in (["--quick"], ["--quick", "--out", str(tmp_path / "e")]):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit):
            asked(lambda quick, out: calls.append((quick, out)), tmp_path / "e")
    assert "expected --out FOLDER" in capsys.readouterr().err
    assert len(calls) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e12_merge_quality", "e14_forks"])
def test_a_quick_try_gives_what_the_experiment_gave(name: str, tmp_path: Path) -> None:
    folder = ROOT / "experiments" / name
    runpy.run_path(str(folder / "run.py"))["main"](True, tmp_path)
    again = json.loads((tmp_path / "result.json").read_text())
    known = json.loads((folder / "result.json").read_text())
    assert (folder / "result.json").stat().st_size < 100_000
    assert again["n_prompts"] == 8
    assert set(again["prompts"]) <= set(known["prompts"])
    assert again["model"] == known["model"]
    rows = [[(row["name"], row["arm"]) for row in one["metrics"]] for one in (again, known)]
    assert rows[0] == rows[1]
