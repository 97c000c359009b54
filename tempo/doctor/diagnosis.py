"""Results of the checks on one model, for code, terminal and notebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"

_ROW = "<tr><td>{}</td><td><b>{}</b></td><td>{}</td><td>{}</td></tr>"
_MARKS = {PASS: "ok", FAIL: "FAIL", NOT_APPLICABLE: "-"}


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result.

    Attributes:
        status: "pass", "fail" or "not applicable".
        detail: What was measured and what is allowed, in one line.
        trap: Number of the trap in `docs/traps.md` that the check is about.
    """

    name: str
    status: str
    detail: str
    trap: int | None = None

    def __post_init__(self) -> None:
        assert self.status in _MARKS, f"no such status: {self.status}"
        assert "\n" not in self.detail, "a detail is one line"


def check_verdict(name: str, healthy: bool, detail: str, *, trap: int | None = None) -> Check:
    """A check that passed or failed."""
    return Check(name, PASS if healthy else FAIL, detail, trap)


def not_applicable(name: str, detail: str, *, trap: int | None = None) -> Check:
    """A check of something that this model does not have."""
    return Check(name, NOT_APPLICABLE, detail, trap)


@dataclass(frozen=True, slots=True, repr=False)
class Diagnosis:
    """Results of all checks on one model.

    Attributes:
        model: Facts that identify and describe it, as text.
        checks: The results, in the order the checks ran.
        elapsed_s: Duration of all checks, in seconds.
    """

    model: Mapping[str, str]
    checks: tuple[Check, ...]
    elapsed_s: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if check.status == FAIL)

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def summary(self) -> str:
        """One line: how many checks, how many failed."""
        asked = [check for check in self.checks if check.status != NOT_APPLICABLE]
        found = f"{len(self.failed)} of {len(asked)} checks failed"
        whole = f"healthy: {len(asked)} checks passed" if self.healthy else found
        left = len(self.checks) - len(asked)
        return f"{whole}, {left} not applicable, {self.elapsed_s:.1f} s"

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{_MARKS[check.status]:<5}{check.name:<{width}}  {check.detail}"
            for check in self.checks
        ]
        return "\n".join([self._facts(), *lines, self.summary])

    def _repr_html_(self) -> str:
        # Details can contain text of the model (names, error messages): escape them for HTML.
        rows = [
            _ROW.format(
                *map(escape, (check.name, check.status, check.detail)),
                "" if check.trap is None else f"trap {check.trap}",
            )
            for check in self.checks
        ]
        facts, summary = escape(self._facts()), escape(self.summary)
        return f"<p>{facts}</p><table>{''.join(rows)}</table><p>{summary}</p>"

    def _facts(self) -> str:
        name = self.model["name"]
        return f"{name}: " + ", ".join(
            f"{key} {value}" for key, value in self.model.items() if key != "name"
        )
