"""The sequences of the battery: what they hold, what they mark, and what is refused."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from tempo.errors import InputError
from tempo.prompts.names import NAMES, NamePrompt, name_prompts
from tempo.prompts.needles import NEEDLES, needle_prompts
from tempo.prompts.sequences import (
    Corpus,
    bundled_corpus,
    corpus_file,
    delimiters,
    random_sequences,
    repeated_halves,
    text_windows,
)
from tempo.prompts.tokens import TokenFacts, token_facts
from tempo.prompts.word_runs import CONDITIONS, WORD_FAMILIES, WORDS, families, word_runs
from tempo.testing.tiny import tiny_model
from tests.decoding import model_of, real_model

BOS = 1


def spelling(text: str, known: dict[str, int]) -> list[int]:
    """Words with the space before them are tokens; so is every other character."""
    ids: list[int] = []
    while text:
        word = next((each for each in known if text.startswith(each)), text[0])
        ids.append(known.setdefault(word, 10 + len(known)))
        text = text[len(word) :]
    return ids


def words_of(*words: str, bos: int | None = None) -> TokenFacts:
    """A tokenizer that keeps these words whole behind a space, and nothing else."""
    ordered = sorted(words, key=len, reverse=True)
    known = {f" {word}": 10 + number for number, word in enumerate(ordered)}
    return TokenFacts(lambda text: spelling(text, known), bos, np.arange(2, 2000, dtype=np.int64))


def every_word(bos: int | None = None) -> TokenFacts:
    members = [element for family in WORD_FAMILIES.values() for element in family]
    return words_of(*members, *WORDS, *NAMES, bos=bos)


def corpus_of(n: int) -> Corpus:
    return Corpus("".join(chr(0x4E00 + number) for number in range(n)), "numbers", "")


# --- the tokenizer


@pytest.mark.parametrize(("family", "bos"), [("llama", BOS), ("qwen2", None)])
def test_a_bos_token_stands_in_front_only_where_the_tokenizer_adds_it(family, bos):
    facts = token_facts(model_of(family))
    assert facts.bos == bos
    for ids in (
        random_sequences(facts, n=3, length=9).ids,
        repeated_halves(facts, n=3, n_half=4).ids,
        text_windows(facts, bundled_corpus(), n=3, length=9).ids,
    ):
        assert (ids[:, 0] == BOS).all() == (bos is not None)
        assert not np.isin(ids[:, 1:], [0, 1, 2, 3]).any()


def test_special_tokens_are_not_ordinary():
    facts = token_facts(model_of("llama"))
    assert facts.ordinary.tolist() == list(range(4, 128))


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(InputError, match="got none for nameless"):
        token_facts(SimpleNamespace(tokenizer=None, vocab_size=9, name="nameless"))


def test_a_word_is_spelled_as_it_is_inside_a_text():
    def prefixed(text: str) -> list[int]:  # puts a space before whatever comes first
        return [hash(part) % 1000 for part in (" " + text).replace(" ", "| ").split("|") if part]

    facts = TokenFacts(prefixed, None, np.arange(1000, dtype=np.int64))
    assert len(prefixed(" cat")) == 2
    assert facts.single(" cat") == prefixed("cat")[0]


# --- text, random ids, repeated halves


def test_windows_are_pieces_of_the_corpus_that_do_not_overlap():
    facts = words_of(bos=BOS)
    corpus = corpus_of(200)
    windows = text_windows(facts, corpus, n=8, length=25)
    tokens = np.array(facts.encode(corpus.text))
    assert windows.ids.shape == (8, 25)
    for start, ids in zip(windows.start, windows.ids, strict=True):
        assert ids[0] == BOS
        assert ids[1:].tolist() == tokens[start : start + 24].tolist()
    assert len(np.unique(windows.ids[:, 1:])) == 8 * 24


def test_a_short_corpus_says_how_many_tokens_there_are_and_are_needed():
    with pytest.raises(InputError, match=r"at least 256 tokens for 64 windows of 4, got 255 in n"):
        text_windows(words_of(), corpus_of(255), n=64, length=4)
    assert len(text_windows(words_of(), corpus_of(256), n=64, length=4).ids) == 64


def test_the_bundled_corpus_is_long_enough_for_the_battery_and_named():
    corpus = bundled_corpus()
    assert corpus.source.startswith("pydoc_data.topics of Python 3.")
    assert text_windows(token_facts(model_of("llama")), corpus).ids.shape == (64, 128)


def test_a_users_file_is_read(tmp_path):
    (tmp_path / "own.txt").write_text("the cat sat on the mat " * 40)
    corpus = corpus_file(tmp_path / "own.txt")
    assert (corpus.source, len(corpus.text)) == ("own.txt", 920)
    with pytest.raises(InputError, match=r"got '/nowhere/at\.txt': No such file"):
        corpus_file("/nowhere/at.txt")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="expected UTF-8 text in"):
        corpus_file(tmp_path / "bytes")


def test_the_second_half_repeats_the_first_and_the_controls_repeats_nothing():
    halves = repeated_halves(token_facts(model_of("llama")), n=5, n_half=20)
    assert (halves.start, halves.ids.shape, halves.control.shape) == (1, (5, 41), (5, 41))
    assert np.array_equal(halves.ids[:, 1:21], halves.ids[:, 21:])
    assert np.array_equal(halves.ids[:, :21], halves.control[:, :21])
    for row in halves.control:
        assert len(set(row.tolist())) == 41


def test_a_small_vocabulary_refuses_long_halves():
    with pytest.raises(InputError, match="at least 128 ordinary tokens for two halves of 64, got"):
        repeated_halves(token_facts(model_of("llama")))


@pytest.mark.parametrize(("n", "length"), [(0, 9), (3, 2)])
def test_no_sequences_or_empty_ones_are_refused(n, length):
    with pytest.raises(InputError, match="expected at least 1 sequence of 2 tokens"):
        random_sequences(words_of(bos=BOS), n=n, length=length)


def test_random_ids_are_drawn_evenly():
    drawn = random_sequences(token_facts(model_of("qwen2")), n=100, length=124).ids
    counts = np.bincount(drawn.ravel(), minlength=128)[4:]
    assert abs(counts - 100).max() < 50


def test_a_seed_gives_the_same_and_another_gives_others():
    facts = every_word(bos=BOS)

    def everything(seed: int) -> list[list[int]]:
        runs = word_runs(facts, n=5, seed=seed).runs
        return [
            random_sequences(facts, n=2, length=9, seed=seed).ids.ravel().tolist(),
            repeated_halves(facts, n=2, n_half=9, seed=seed).control.ravel().tolist(),
            text_windows(facts, corpus_of(900), n=4, length=9, seed=seed).start.tolist(),
            [token for run in runs["shuffled"] for token in run.ids.tolist()],
            [prompt.io_token for prompt in name_prompts(facts, n=9, seed=seed).prompts],
        ]

    assert everything(3) == everything(3)
    assert all(one != other for one, other in zip(everything(3), everything(4), strict=True))


def test_delimiters_are_those_of_one_token():
    found = delimiters(token_facts(model_of("llama")))
    assert found.kept == (".", ",", ";", ":", "!", "?", "\n")
    assert found.vanished == (".\n", ".\n\n", ",\n", ";\n")
    assert len(found.ids) == 7


def test_a_tokenizer_without_punctuation_is_refused():
    facts = TokenFacts(lambda text: [5] * (3 * len(text)), None, np.arange(9, dtype=np.int64))
    with pytest.raises(InputError, match="got none of 11"):
        delimiters(facts)


# --- runs of words


def test_the_four_conditions_have_the_same_shape():
    runs = word_runs(every_word(bos=BOS), n=40).runs
    assert tuple(runs) == CONDITIONS
    for group in zip(*runs.values(), strict=True):
        assert len({run.ids.tobytes() for run in group}) == 4
        for run in group:
            assert run.elements.tolist() == group[0].elements.tolist()
            assert len(run.ids) == len(group[0].ids) == 2 * len(run.elements)
            assert 3 <= len(run.elements) <= 12


def test_ordinal_runs_count_up_descending_ones_down_and_shuffled_ones_never_up():
    facts = every_word()
    found = word_runs(facts, n=50)
    rank = {token: place for family in found.families for place, token in enumerate(family.tokens)}

    def steps(condition: str) -> np.ndarray:
        orders = [[rank[token] for token in run.ids[run.elements]] for run in found.runs[condition]]
        return np.concatenate([np.diff(order) for order in orders])

    assert set(steps("ordinal")) == {1}
    assert set(steps("descending")) == {-1}
    assert 1 not in steps("shuffled")
    for up, mixed in zip(found.runs["ordinal"], found.runs["shuffled"], strict=True):
        assert sorted(up.ids) == sorted(mixed.ids)
    words = {token for run in found.runs["words"] for token in run.ids[run.elements]}
    assert not words & set(rank)


def test_commas_stand_between_the_elements():
    facts = every_word()
    for run in word_runs(facts, n=10).runs["ordinal"]:
        others = np.delete(run.ids, run.elements)
        assert set(others.tolist()) == {facts.single(",")}
        assert len(others) == len(run.elements) - 1


def test_the_families_take_turns():
    counts = Counter(run.family for run in word_runs(every_word(), n=50).runs["ordinal"])
    assert counts == dict.fromkeys(WORD_FAMILIES, 10)


def test_every_family_is_reported_with_what_it_lost():
    facts = words_of("one", "two", "three", "five", "Monday", "Tuesday", *WORDS)
    report = {family.name: family for family in families(facts)}
    assert report["number words"].kept == ("one", "two", "three", "five")
    assert report["number words"].is_used
    assert report["number words"].successions == ((0, 1), (1, 2))
    assert not report["weekdays"].is_used
    assert "2 of 7 kept, lost Wednesday" in str(report["weekdays"])
    assert str(report["digits"]).endswith("not used, fewer than 3 in a row")
    runs = word_runs(facts, n=9).runs["ordinal"]
    assert {run.family for run in runs} == {"number words"}
    assert {len(run.elements) for run in runs} == {3}  # five does not follow three


def test_a_tokenizer_without_any_family_is_refused_with_the_report():
    with pytest.raises(InputError, match=r"digits: 0 of 10 kept.*months: 0 of 12.*leave out"):
        word_runs(token_facts(model_of("llama")))


# --- names


def check_names(prompt: NamePrompt) -> None:
    ids = prompt.ids
    assert ids[prompt.io] == prompt.io_token
    assert ids[prompt.s] == prompt.s_token
    assert prompt.end == len(ids) - 1
    assert prompt.s2 > max(prompt.io, prompt.s)
    assert (prompt.io < prompt.s) == (prompt.order == "ABBA")
    assert (ids[prompt.s2] == prompt.s_token) == (not prompt.is_control)
    assert (ids == prompt.s_token).sum() == 1 + (not prompt.is_control)
    assert (ids == prompt.io_token).sum() == 1


def test_the_marked_places_hold_the_names():
    found = name_prompts(every_word(bos=BOS), n=24)
    for prompt, control in zip(found.prompts, found.controls, strict=True):
        check_names(prompt)
        check_names(control)
        different = np.flatnonzero(prompt.ids != control.ids)
        assert different.tolist() == [prompt.s2]
        assert (prompt.number, prompt.order) == (control.number, control.order)
    assert Counter(prompt.order for prompt in found.prompts) == {"ABBA": 12, "BABA": 12}
    assert (len(found.names), found.vanished) == (30, ())


def test_two_names_are_too_few():
    with pytest.raises(InputError, match="at least 3 names of one token, got 2 of 30"):
        name_prompts(words_of("Mary", "John"))


# --- needles


def test_the_answer_lies_in_the_needle_and_is_due_where_marked():
    facts = every_word(bos=BOS)
    corpus = corpus_of(900)
    text = set(facts.encode(corpus.text))
    for prompt in needle_prompts(facts, corpus, n=8, n_text=100):
        assert prompt.ids[prompt.needle].tolist() == prompt.answer.tolist()
        assert prompt.ids[prompt.answered + 1].tolist() == prompt.answer.tolist()
        assert prompt.answer.tolist() == facts.after_text(NEEDLES[prompt.number][2])
        assert prompt.answered[-1] + 2 == len(prompt.ids)
        assert np.isin(prompt.ids, list(text)).sum() >= 100
        assert prompt.needle[-1] < prompt.answered[0]
        assert 0.1 <= prompt.depth <= 0.9


def test_a_short_corpus_is_refused_for_needles():
    with pytest.raises(InputError, match="at least 1000 tokens for 10 texts of 100, got 900"):
        needle_prompts(every_word(), corpus_of(900), n=10, n_text=100)


# --- the real tokenizer


@pytest.mark.slow
def test_the_embedded_model_keeps_four_families_and_loses_the_digits():
    facts = token_facts(real_model())
    report = {family.name: len(family.kept) for family in families(facts)}
    assert report == {"digits": 0, "letters": 26, "number words": 10, "weekdays": 7, "months": 12}
    assert len(word_runs(facts).words) == 30
    assert len(name_prompts(facts).names) == 30
    assert delimiters(facts).kept == (".", ",", ";", ":", "!", "?", "\n")
    assert facts.bos is None
    assert len(needle_prompts(facts, bundled_corpus())) == 16
    assert text_windows(facts, bundled_corpus()).n_corpus > 100_000


def test_tiny_models_have_two_kinds_of_tokenizer():
    assert {token_facts(tiny_model(name)).bos for name in ("llama", "phi3")} == {BOS, None}
