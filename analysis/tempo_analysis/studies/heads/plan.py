"""What is asked of the heads: which roles need which sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tempo.errors import InputError
from tempo.prompts.sequences import LENGTH, N_SEQUENCES, Corpus
from tempo.prompts.tokens import TokenFacts

TEXT = ("previous_token", "positional", "bos_sink", "delimiter", "receiver")
TEXT_MORE = ("prefix_matching", "duplicate_text", "duplicate_rare")
HALVES = ("induction", "duplicate_token")
PARALLEL = ("sibling_attending", "set_broadcast")
PARALLEL_MORE = ("winner_following", "set_ignoring")

PASSES: Mapping[str, tuple[str, ...]] = {
    "text": (*TEXT, *TEXT_MORE),
    "halves": HALVES,
    "runs": ("successor_attention",),
    "names": ("s_inhibition",),
    "needles": ("retrieval",),
    "weights": ("successor_ov", "ov_copying", "copy_suppression"),
    "parallel": (*PARALLEL, *PARALLEL_MORE),
}
"""The roles that each pass over the model scores."""

ROLES = (
    *("previous_token", "induction", "duplicate_token", "positional", "bos_sink", "delimiter"),
    *("successor_attention", "successor_ov", "s_inhibition", "ov_copying", "receiver"),
    *("retrieval", "copy_suppression", "sibling_attending", "set_broadcast"),
)
"""In the order of a census."""

MORE_ROLES = (*TEXT_MORE, *PARALLEL_MORE)
"""Further versions and roles, listed apart."""


@dataclass(frozen=True, slots=True)
class Battery:
    """One census: which roles, on what, how much of it.

    Attributes:
        facts: Of the tokenizer.
        corpus: What the texts are windows of.
        roles: The roles asked for.
        n: Sequences of each kind.
        length: Tokens of a text; halves are half as long.
        seed: Of every draw.
    """

    facts: TokenFacts
    corpus: Corpus
    roles: tuple[str, ...]
    n: int = N_SEQUENCES
    length: int = LENGTH
    seed: int = 0

    def wants(self, name: str) -> bool:
        """Whether a pass scores a role that was asked for."""
        return bool(set(PASSES[name]) & set(self.roles))


def chosen_roles(roles: Sequence[str] | None) -> tuple[str, ...]:
    """The roles by name, in the order of a census; all where None.

    Raises:
        InputError: A role is not known, or none is given.
    """
    known = (*ROLES, *MORE_ROLES)
    if roles is None:
        return known
    unknown = sorted(set(roles) - set(known))
    if unknown or not roles:
        raise InputError(
            f"expected roles of {', '.join(known)}, got {', '.join(unknown) or 'none'}; "
            "choose some of them"
        )
    return tuple(role for role in known if role in roles)
