"""Whether edits fit a model, and whether they found something to act on."""

from collections.abc import Sequence, Set
from typing import get_args

from tempo.errors import InputError
from tempo.model import LanguageModel
from tempo.policy.edits import Edit, EmbeddingOffset, HeadOutput, heads_of, is_nothing
from tempo.policy.serialize import described_edit


def heads_in(edit: Edit, model: LanguageModel) -> dict[int, list[int]]:
    """The heads of a model that an edit names, by layer.

    Raises:
        InputError: A head or layer is not the model's, none is named, or an array has another
            size than the model.
    """
    heads = heads_of(edit, n_layers=model.n_layers, n_heads=model.n_heads)
    width = model.config.hidden_size
    if isinstance(edit, EmbeddingOffset) and len(edit.vector) != width:
        raise InputError(
            f"expected a vector of {width} channels, got {len(edit.vector)}; give one of the "
            "model's own width"
        )
    if isinstance(edit, HeadOutput) and edit.values is not None:
        found = (len(edit.values), *edit.values.shape[-2:])
        if found != (model.n_layers, model.n_heads, model.head_dim):
            raise InputError(
                f"expected values of {model.n_layers} layers, {model.n_heads} heads and "
                f"{model.head_dim} channels, got {', '.join(map(str, found))}; take them from a "
                "forward of this model"
            )
    return heads


def check_edit_list(edits: object) -> None:
    """Refuse what is no list of edits.

    Raises:
        InputError: Says what it is.
    """
    if isinstance(edits, get_args(Edit)):
        raise InputError(
            f"expected a list of edits, got one {type(edits).__name__}; write edits=[...]"
        )
    if not isinstance(edits, Sequence) or isinstance(edits, str):
        raise InputError(f"expected a list of edits, got {type(edits).__name__}; write edits=[...]")
    strange = [one for one in edits if not isinstance(one, get_args(Edit))]
    if strange:
        raise InputError(
            f"expected edits of tempo.edits, got {type(strange[0]).__name__}; make one, such as "
            "tempo.edits.HeadOutput(heads=['L3H5'])"
        )


def check_slots(edit: Edit, n_slots: int) -> None:
    """Refuse slots that a plain text of so many tokens does not have.

    Raises:
        InputError: Names one.
    """
    named = [getattr(edit, name, None) or () for name in ("slots", "queries")]
    missing = [slot for slots in named for slot in slots if not 0 <= slot < n_slots]
    if missing:
        raise InputError(
            f"expected slots from 0 to {n_slots - 1}, got {missing[0]}; the text has {n_slots} "
            "tokens"
        )


def check_touched(edits: Sequence[Edit], touched: Set[int]) -> None:
    """Refuse edits that never found a row or slot to act on.

    Args:
        touched: Numbers of those that did.

    Raises:
        InputError: Names the first that did not.
    """
    real = ((number, edit) for number, edit in enumerate(edits) if not is_nothing(edit))
    idle = [edit for number, edit in real if number not in touched]
    if idle:
        raise InputError(
            "expected edits that find something to act on, got "
            f"{dict(described_edit(idle[0]))}; check its steps, queries, slots, "
            "positions and groups, and that the rows see the slots (a sliding window hides what "
            "lies before it); members of parallel sets are in decoded text only"
        )
