"""Results of one concept in one model: sentences, document, tables, figures and facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tempo.vocabulary import Head
from tempo_analysis.report.document import Document, plain
from tempo_analysis.report.figure_style import Drawing
from tempo_analysis.report.findings import Findings
from tempo_analysis.report.table import Table
from tempo_analysis.studies.concepts.effect import ConceptEffect
from tempo_analysis.studies.concepts.figures import concept_drawings
from tempo_analysis.studies.concepts.result import BEST, ConceptNumbers
from tempo_analysis.studies.concepts.separation import TOP, Concentration, ConceptHeads
from tempo_analysis.studies.concepts.tables import concept_tables
from tempo_analysis.studies.concepts.verdict import (
    carried,
    counted_sentence,
    ending_sentence,
    reach_sentence,
    skipped_sentences,
)

KIND = "tempo-concept"
FORMAT = 1

DEFINITIONS = {
    "raw_norm": "length of mean(positive) - mean(negative) at the input of the output projection",
    "selectivity": "raw_norm over the RMS distance of the negatives from their mean",
    "written_norm": "length of the same difference behind the head's output weights",
    "unbiased": "squared written length from halves of the pairs; about 0 without a difference",
    "auroc": "positive above negative along a direction fitted to other pairs; chance 0.5",
    "paired": "share of pairs left out whose own two sides are in order; chance 0.5",
    "head_concentration": "share of the longest heads in the total written length of a layer; "
    "chance is top / heads, null when pairs swap sides at random",
    "effective_heads": "(sum of written lengths)^2 / sum of their squares, for each layer",
    "assigned": "q < 0.05 over all heads when pairs swap sides, written_norm beyond the 99th "
    "percentile of the null over all heads, and auroc above 0.5",
}


def quality_document(
    found: ConceptHeads,
    layers: Sequence[int],
    *,
    skipped: Sequence[Mapping[str, object]] = (),
    effect: ConceptEffect | None = None,
    facts: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """All numbers as plain JSON; NaN and infinite values are null.

    Args:
        layers: Number of each captured layer.
        skipped: A mapping with layer, kind and reason for each of the others.
        facts: Further entries of the caller, such as model, concept and pooling.
    """
    return {
        "format": FORMAT,
        **(facts or {}),
        "n_pairs": found.n,
        "folds": found.folds,
        "definitions": DEFINITIONS,
        "null_p99_written_norm": plain(found.null_p99),
        "assigned": [
            f"L{layers[place]}H{head}" for place, head in np.argwhere(found.assigned).tolist()
        ],
        "layers": [_layer(found, place, layer) for place, layer in enumerate(layers)],
        "skipped": [dict(each) for each in skipped],
        "causal": None if effect is None else _effect(effect),
    }


def _layer(found: ConceptHeads, place: int, layer: int) -> dict[str, object]:
    # By written length: raw lengths of two heads have no common scale.
    order = np.argsort(-found.written_norm[place], kind="stable")[:TOP]
    return {
        "layer": layer,
        "head_concentration": _concentration(found.concentration, place),
        "raw_head_concentration": _concentration(found.raw_concentration, place),
        "top": [_head(found, place, int(head)) for head in order],
    }


def _head(found: ConceptHeads, place: int, head: int) -> dict[str, object]:
    names = ("raw_norm", "selectivity", "written_norm", "unbiased", "separation", "auroc")
    values = {name: plain(getattr(found, name)[place, head]) for name in (*names, "paired", "q")}
    return {"head": head, **values, "assigned": bool(found.assigned[place, head])}


def _concentration(found: Concentration, place: int) -> dict[str, object]:
    return {
        "top": found.top,
        "share": plain(found.share[place]),
        "chance": plain(found.chance),
        "null": plain(found.null[place]),
        "p": plain(found.p[place]),
        "effective_heads": plain(found.effective_heads[place]),
        "null_effective_heads": plain(found.null_effective[place]),
        "effective_heads_p": plain(found.effective_p[place]),
    }


def _effect(effect: ConceptEffect) -> dict[str, object]:
    names = ("base", "lost_top", "lost_random", "difference")
    found: dict[str, object] = {name: plain(getattr(effect, name)) for name in names}
    return found | {"draws": effect.n_draws}


@dataclass(frozen=True, slots=True, repr=False)
class ConceptFindings(Findings, ConceptNumbers):
    """The numbers of one concept, with their sentences, tables and figures."""

    file = "quality.json"

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"Heads that tell {self.concept} apart: {self.model['name']}"

    def sentences(self) -> list[str]:
        """The results and their limits, in sentences."""
        found = self.heads
        assigned = (
            f"{int(found.assigned.sum())} of {found.assigned.size} heads tell the sides apart: "
            f"q < 0.05, length above {found.null_p99:.3g} (99 % of swaps stay below), "
            "and AUROC above 0.5"
        )
        reach = reach_sentence(found.assigned.size, self.permutations, found.n)
        endings = ending_sentence(self.endings, found.n, self.pooling)
        counted = counted_sentence(found.concentration.top, found.auroc.shape[1])
        notes = [assigned, *reach, counted, endings, *skipped_sentences(self.skipped)]
        return notes + self.check_sentences()

    def check_sentences(self) -> list[str]:
        """The causal check in words, or why there is none."""
        if self.check is None:
            return [f"no causal check: {self.no_check}"]
        named = ", ".join(map(str, self.check.heads))
        return [
            f"causal check on {self.check.zero.base.n} pairs that chose nothing: {named}",
            *(
                f"{replacement}: {carried(effect).value}; {carried(effect).verdict}"
                for replacement, effect in self._effects().items()
            ),
        ]

    def document(self) -> Document:
        """The content of `quality.json`: plain JSON values, `None` where there is no data."""
        facts = {
            "kind": KIND,
            "model": self.model["name"],
            "concept": self.concept,
            "pooling": self.pooling,
            "permutations": self.permutations,
            "seed": self.seed,
            "endings": plain(self.endings),
            "sentences": self.sentences(),
            "best": [self._head(row, head) for row, head in self.best_first()[:BEST]],
        }
        effect = None if self.check is None else self.check.zero
        quality = quality_document(
            self.heads, self.layers, skipped=self.skipped, effect=effect, facts=facts
        )
        # Both replacements here; `quality_document` alone has room for one.
        return {**quality, "causal": self._causal(), "model_facts": plain(dict(self.model))}

    def tables(self) -> tuple[Table, ...]:
        """Every table that has a row."""
        return concept_tables(self)

    def figures(self) -> tuple[Drawing, ...]:
        """Maps of the heads, and how concentrated each layer is."""
        return concept_drawings(self)

    def facts(self) -> Mapping[str, str]:
        """How it was made."""
        model = self.model
        return {
            "model": f"{model['name']}, {model['dtype']}, {str(model['fingerprint'])[:12]}",
            "pairs": f"{self.heads.n} of {self.concept}, {self.heads.folds} folds",
            "pooling": self.pooling,
            "permutations": str(self.permutations),
            "seed": str(self.seed),
        }

    def _effects(self) -> dict[str, ConceptEffect]:
        if self.check is None:
            return {}
        return {"held at zero": self.check.zero, "held at their mean": self.check.mean}

    def _head(self, row: int, head: Head) -> Document:
        names = ("written_norm", "selectivity", "auroc", "paired", "q")
        values = {name: plain(getattr(self.heads, name)[row, head.head]) for name in names}
        return {
            "head": str(head),
            "kv_head": self.kv_head(head.head),
            **values,
            "assigned": bool(self.heads.assigned[row, head.head]),
        }

    def _causal(self) -> Document:
        if self.check is None:
            return {"refused": self.no_check}
        effects = {"zero": self.check.zero, "mean": self.check.mean}
        return {
            "heads": [str(head) for head in self.check.heads],
            **{
                name: {**plain(effect), "verdict": carried(effect).verdict}
                for name, effect in effects.items()
            },
        }
