"""The options of a census: the roles by name, which pass scores each, and how much is run."""

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
"""The roles of a census, in its order."""

MORE_ROLES = (*TEXT_MORE, *PARALLEL_MORE)
"""Other versions of roles, and roles without an established name; a census lists them apart."""


@dataclass(frozen=True, slots=True)
class CensusPlan:
    """The options of one census.

    Attributes:
        facts: Facts of the tokenizer, such as its special tokens.
        corpus: The text that windows are taken from.
        roles: Roles to score, in the order of a census.
        n: Number of sequences of each kind.
        length: Tokens of a text; a repeated half has half of them.
        seed: Seed of every draw.
    """

    facts: TokenFacts
    corpus: Corpus
    roles: tuple[str, ...]
    n: int = N_SEQUENCES
    length: int = LENGTH
    seed: int = 0

    def wants(self, name: str) -> bool:
        """Whether the pass of this name scores one of the roles."""
        return bool(set(PASSES[name]) & set(self.roles))


def chosen_roles(roles: Sequence[str] | None) -> tuple[str, ...]:
    """Check the names of roles and bring them into the order of a census; all where None.

    Raises:
        InputError: A role is not known, or the sequence is empty.
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
