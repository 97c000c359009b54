"""What shows itself by its sentences, in a terminal and in a notebook."""

from abc import ABC, abstractmethod

from tempo_analysis.report.notebook import region_markup, shown_markup


class Findings(ABC):
    """Findings that say what they found."""

    __slots__ = ()

    @abstractmethod
    def sentences(self) -> list[str]:
        """What was found, one statement each."""

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}:", *(f"- {line}" for line in self.sentences())])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{shown_markup(line)}</li>" for line in self.sentences())
        return region_markup(type(self).__name__, "What was found", f"<ul>{items}</ul>")
