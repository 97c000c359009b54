"""Checks a loaded model: the model and the engine on it must do what tempo assumes."""

import time
from collections.abc import Callable

from tempo.doctor.attention_checks import (
    attention_sinks,
    capture,
    causality,
    edit,
    row_sums,
    soft_cap,
    zeros,
)
from tempo.doctor.diagnosis import FAIL, PASS, Check, Diagnosis, not_applicable
from tempo.doctor.examination import Examination
from tempo.doctor.position_checks import (
    fractional_positions,
    rope_type,
    sliding_windows,
    translation,
)
from tempo.doctor.reference_checks import (
    attention_setting,
    decoding,
    eager_attention,
    eager_logits,
    guards,
    mask_dtype,
    oracle,
    packed_sequences,
)
from tempo.errors import TempoError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model

__all__ = ["CHECKS", "Check", "Diagnosis", "diagnose"]

Question = Callable[[Examination], Check]

CHECKS: tuple[Question, ...] = (
    guards,
    eager_logits,
    eager_attention,
    oracle,
    capture,
    causality,
    row_sums,
    zeros,
    sliding_windows,
    soft_cap,
    attention_sinks,
    mask_dtype,
    packed_sequences,
    fractional_positions,
    translation,
    edit,
    attention_setting,
    rope_type,
)
"""Every check but `decoding`, in the order they run.

The last two compare the state of the model with its state before all other checks.
"""

_CRASHES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TempoError,
    TypeError,
    ValueError,
)
"""Errors that model code raises where it does not fit the engine; the check is reported failed."""


def diagnose(model: Source) -> Diagnosis:
    """Run every check on a model: a few short forwards; the model is not changed.

    A check that cannot be carried out because the model breaks has failed, with the error as its
    detail.

    Args:
        model: A loaded model, or whatever `load_model` takes.

    Returns:
        Every check with its measurement and its limit; `healthy` is true if none failed.

    Raises:
        ModelError: The model cannot be found, read or supported.

    Example:
        >>> tempo.diagnose(model).healthy
        True
    """
    loaded = load_model(model)
    start = time.perf_counter()
    patient = Examination(loaded)
    # All other checks read the arms. If decoding them fails, each would repeat the same error.
    first = _asked(decoding, patient)
    ask = _asked if first.status == PASS else _left_out
    checks = (first, *(ask(check, patient) for check in CHECKS))
    return Diagnosis(_facts(loaded), checks, time.perf_counter() - start)


def _asked(check: Question, patient: Examination) -> Check:
    try:
        return check(patient)
    except _CRASHES as error:
        # A detail is one line of a table: newlines are removed and the length is bounded.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Check(_name(check), FAIL, reason[:200])


def _left_out(check: Question, _: Examination) -> Check:
    return not_applicable(_name(check), "needs a decoding")


def _name(check: Question) -> str:
    return check.__name__.replace("_", " ")


def _facts(model: LanguageModel) -> dict[str, str]:
    # dict.fromkeys keeps the order of the layers, which a set would lose.
    windows = ", ".join(str(window) for window in dict.fromkeys(model.windows) if window)
    return {
        "name": model.name,
        "family": model.config.model_type,
        "layers": str(model.n_layers),
        "heads": f"{model.n_heads} on {model.n_kv_heads} KV",
        "windows": windows or "none",
        "rope": ", ".join(model.rope_types),
        "dtype": model.dtype,
        "device": str(model.device),
    }
