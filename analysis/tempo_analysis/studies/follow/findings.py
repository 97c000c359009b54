"""Results for one followed member: sentences, document, tables, figure and facts."""

from collections.abc import Mapping
from dataclasses import dataclass

from tempo_analysis.report.document import Document, number, plain
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.table import Table
from tempo_analysis.studies.follow.figures import caption, member_figure
from tempo_analysis.studies.follow.result import MemberNumbers
from tempo_analysis.studies.follow.tables import member_tables
from tempo_analysis.studies.follow.trajectory import correlation, quoted, shown
from tempo_analysis.studies.follow.verdict import (
    attention_sentences,
    correlation_sentence,
    knock_out_sentences,
    lens_sentences,
    state_sentences,
)

KIND = "tempo-follow"
FORMAT = 1
"""Of the document."""
AXES = {
    "attention": "later step, layer, head",
    "chance": "later step, layer",
    "odds_law": "later step, layer, head",
    "norm, own_change, lens": "depth: 0 is the embedding, d the stream after d layers",
    "value_norm": "layer, head",
    "one_layer_nats": "layer",
}
"""Of the arrays in the document."""


@dataclass(frozen=True, slots=True, repr=False)
class Followed(Findings, MemberNumbers):
    """The numbers of one member, with their sentences, tables and figure."""

    file = "follow.json"

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"One member through the layers: {shown(self.member.text)}"

    def sentences(self) -> list[str]:
        """Sentences generated from the numbers."""
        member, alone, siblings = self.member, self.alone, self.siblings
        which = (
            # Ranks count from 0; the sentence counts members from 1.
            f"Slot {member.slot}, {quoted(member.text)}, is member {member.rank + 1} of the "
            f"{self.width} of set {self.step} (probability {number(member.probability)}); "
            f"{self.chosen}."
        )
        missing = {
            "There is no twin in which it is alone": self.no_alone,
            "There is no prompt slot beside it": self.no_control,
            "There are no norms of values": self.no_values,
        }
        return [
            which,
            *attention_sentences(
                member,
                alone,
                # Index 0 is the next step, the only one that the sentences describe.
                chance=self.chance[0],
                odds_law=self.odds_law[0],
                n_queries=self.n_queries[0],
            ),
            *state_sentences(member, self.own_change),
            *lens_sentences(member.lens, self.next_text),
            *knock_out_sentences(member, siblings, alone, self.control),
            correlation_sentence(member, self.control),
            *(f"{what}: {why}." for what, why in missing.items() if why),
        ]

    def document(self) -> Document:
        """The content of `follow.json`: plain JSON values, `None` where there is no data."""
        # Every field by its own name, so that a new field cannot be left out of the file.
        named = {name: plain(getattr(self, name)) for name in MemberNumbers.__dataclass_fields__}
        correlations = {
            "member": correlation(self.member),
            "siblings": [correlation(each) for each in self.siblings],
            "alone": None if self.alone is None else correlation(self.alone),
            "control": None if self.control is None else correlation(self.control),
        }
        return {
            "kind": KIND,
            "format": FORMAT,
            "axes": AXES,
            **named,
            "settles_at": self.member.lens.settles_at,
            "rank_correlations": plain(correlations),
            "n_layers": self.n_layers,
            "sentences": self.sentences(),
        }

    def tables(self) -> tuple[Table, ...]:
        """Every table, the short ones first."""
        return member_tables(self)

    def figures(self) -> tuple[Drawing, ...]:
        """Attention, state, lens and effect of hiding, in one figure."""
        title = f"{shown(self.member.text)} through the layers"
        return (Drawing("member", title, caption(self), member_figure(self)),)

    def facts(self) -> Mapping[str, str]:
        """How it was made, for the foot of the page."""
        model = self.model
        return {
            "model": f"{model['name']}, {model['dtype']}, weights {str(model['fingerprint'])[:12]}",
            "prompt": f"{self.prompt_id}: {self.prompt}",
            "arm": self.arm,
            "run": self.lattice,
            "followed": f"slot {self.member.slot}, set {self.step}; {self.chosen}",
            # Stated outright: readers of other studies expect an interval with every number.
            "cases": "1 member of 1 prompt: no intervals",
            "lens of the last depth": f"equals the logits to {self.lens_error:.2g}",
            "replay": f"equals the recorded readouts to {self.replay_error:.2g} nats",
        }
