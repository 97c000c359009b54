"""The ten jobs as people type them, and what is said where they are typed wrongly."""

import pytest

import tempo
from tempo.errors import InputError
from tests.decoding import model_of

CAT = "the cat sat on the mat"
OWN_TEXTS = [f"the cat sat on the mat, {word} and a dog ran in; " * 8 for word in ("red", "blue")]


def test_heads_that_hold_a_role_come_as_labels_best_first() -> None:
    census = tempo.heads(
        model_of("llama"), roles=["previous_token", "bos_sink"], n=8, length=16, effects=False
    )
    role = census.roles["previous_token"]
    held = [f"L{layer}H{head}" for layer, head in role.best_first() if role.assigned[layer, head]]
    assert census.holders("previous_token") == held
    with pytest.raises(InputError, match="expected a role of previous_token, bos_sink"):
        census.holders("induction")


def test_heads_are_scored_on_my_own_texts_in_one_call() -> None:
    model = model_of("llama")
    options = {"roles": ["previous_token"], "n": 8, "length": 16, "effects": False}
    census = tempo.heads(model, texts=OWN_TEXTS, **options)
    assert census.detail["battery"]["corpus"] == "2 texts"
    other = tempo.heads(model, texts=[*OWN_TEXTS[:1], OWN_TEXTS[1].upper()], **options)
    digests = {one.detail["battery"]["corpus_sha256"] for one in (census, other)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": CAT}, "got one text; give texts="),
        ({"texts": []}, "got nothing"),
        ({"texts": [CAT, ""]}, "got 2, one of them empty"),
        ({"texts": [CAT], "corpus": "a.txt"}, "expected a corpus or texts, got both"),
        ({"texts": [CAT]}, "expected a corpus of at least"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        tempo.heads(model_of("llama"), roles=["bos_sink"], **given)
    assert "\n" not in str(refused.value)
