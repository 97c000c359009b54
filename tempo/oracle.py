"""The slow and simple executor that the engine is compared with.

One full eager Hugging Face forward over a finished slot table: no cache, no packing, and masks made
pair by pair from the definitions. It shares no attention or mask code with the engine.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor
from transformers.utils import ModelOutput

from tempo.models.language_model import LanguageModel, attention_as
from tempo.policy.biases import Bias, Boost, LogPosterior, LogWeight, MassNeutral
from tempo.policy.presets import Policy
from tempo.policy.readout import combine
from tempo.policy.slots import SlotTable
from tempo.policy.visibility import (
    Ancestor,
    BeforeSlot,
    BeforeStep,
    Both,
    Either,
    Not,
    Relation,
    SameStep,
    Self,
    Window,
)


@dataclass(frozen=True, slots=True)
class OracleRun:
    """Outputs of one forward over a slot table.

    Attributes:
        hidden: Hidden state of every slot after each layer, the embedding first.
    """

    logits: Float32[np.ndarray, "slot vocab"]
    attention: Float32[np.ndarray, "layer head query slot"]
    hidden: Float32[np.ndarray, "depth slot channel"]

    def readout(self, table: SlotTable, step: int, policy: Policy) -> Float32[np.ndarray, " vocab"]:
        """Log-probabilities after a step."""
        # Only the last prompt slot predicts the first set.
        written = table.members(step)[-1:] if step == 0 else table.members(step)
        died = table.died_at_step[written]
        # A member pruned at this step has a row but no share in the readout of the step.
        slots = written[(died < 0) | (died > step)]
        rows = torch.from_numpy(self.logits[slots]).log_softmax(-1).numpy()
        return combine(rows, table.weight[slots], mean=policy.read.mean)


def run_oracle(
    model: LanguageModel,
    table: SlotTable,
    policy: Policy,
    *,
    order: Int[np.ndarray, " slot"] | None = None,
) -> OracleRun:
    """One eager forward over all slots of a table.

    Args:
        order: Feed the slots in this order, with their positions and visibility; the outputs have
            the same order.
    """
    fed = np.arange(len(table)) if order is None else order
    # Transformers takes a dict of masks where layer types differ; one 4D mask for all layers would
    # switch the sliding windows off.
    windows = dict(zip(model.layer_types, model.windows, strict=True))
    masks = {
        kind: _mask(table, policy, window)[fed][:, fed].to(model.device, model.hf.dtype)[None, None]
        for kind, window in windows.items()
    }
    mask = masks if len(masks) > 1 else next(iter(masks.values()))
    # Eager, because SDPA returns empty attention when rows are asked for.
    with torch.inference_mode(), attention_as(model.hf, "eager"):
        out = _eager(model, token=table.token[fed], position=table.position[fed], mask=mask)
    assert len(out["attentions"]) == model.n_layers
    return OracleRun(
        logits=_joined(out["logits"])[0],
        attention=_joined(*out["attentions"]),
        hidden=_joined(*out["hidden_states"]),
    )


def _eager(
    model: LanguageModel,
    *,
    token: Int64[np.ndarray, " slot"],
    position: Float32[np.ndarray, " slot"],
    mask: Tensor | dict[str, Tensor],
) -> ModelOutput:
    return model.hf(
        input_ids=torch.from_numpy(token)[None].to(model.device),
        position_ids=torch.from_numpy(position)[None].to(model.device),
        attention_mask=mask,
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
    )


def _joined(*parts: Float[Tensor, "1 ..."]) -> Float32[np.ndarray, "..."]:
    """Tensors of all layers, also of layers on different devices, as one array."""
    return torch.cat([part.float().cpu() for part in parts]).numpy()


def _mask(table: SlotTable, policy: Policy, window: int | None) -> Float[Tensor, "slot slot"]:
    n = len(table)
    seen = [[_visible(table, policy.see, window, q, k) for k in range(n)] for q in range(n)]
    rows = [
        [
            sum(_score(bias, table, seen[q], q, k) for bias in policy.bias)
            if seen[q][k]
            # Additive floats: eager adds the mask, so a boolean one would leak the future.
            else -math.inf
            for k in range(n)
        ]
        for q in range(n)
    ]
    return torch.tensor(rows)


def _visible(table: SlotTable, see: Relation, window: int | None, q: int, k: int) -> bool:
    # In positions, not slots: members of a set share one position and use one place of the window.
    if window is not None and table.position[q] - table.position[k] >= window:
        return False
    # The relation governs generated queries only; prompt rows are causal by slot.
    if table.step[q] == 0:
        return k <= q
    died = table.died_at_step[k]
    # A member pruned at step s is still seen by the queries of step s.
    if table.step[k] > table.step[q] or (died >= 0 and table.step[q] > died):
        return False
    return _related(see, table, q, k)


def _related(see: Relation, table: SlotTable, q: int, k: int) -> bool:
    match see:
        case BeforeStep():
            return bool(table.step[k] < table.step[q])
        case SameStep():
            return bool(table.step[k] == table.step[q])
        case BeforeSlot():
            return k < q
        case Self():
            return k == q
        case Ancestor():
            return _descends(table, q, k)
        case Window(width):
            return bool(table.position[q] - table.position[k] < width)
        case Both(left, right):
            return _related(left, table, q, k) and _related(right, table, q, k)
        case Either(left, right):
            return _related(left, table, q, k) or _related(right, table, q, k)
        case Not(relation):
            return not _related(relation, table, q, k)
        case _:
            raise AssertionError(f"no definition of {see}")


def _descends(table: SlotTable, q: int, k: int) -> bool:
    above = int(table.parent[q])
    return above >= 0 and (above == k or _descends(table, above, k))


def _score(bias: Bias, table: SlotTable, seen: list[bool], q: int, k: int) -> float:
    own_set = table.step[q] == table.step[k]
    members = [slot for slot in range(len(table)) if table.step[slot] == table.step[k]]
    # Biases act on generated slots only.
    if table.step[k] == 0:
        return 0.0
    match bias:
        case Boost(beta, reaches_own):
            return beta if len(members) >= 2 and (reaches_own or not own_set) else 0.0
        case LogWeight(reaches_own):
            share = float(table.probability[k]) / sum(
                float(table.probability[slot]) for slot in members
            )
            return math.log(share) if reaches_own or not own_set else 0.0
        case MassNeutral():
            # Counted in this row, because an isolated member sees only itself in its own set.
            return -math.log(sum(seen[slot] for slot in members))
        case LogPosterior():
            if own_set:
                return 0.0
            led = {slot: _led_from(table, q, slot) for slot in members if seen[slot]}
            # 1e-300 keeps the log finite, -60 is the floor that the policy defines.
            return max(math.log(max(led[k] / sum(led.values()), 1e-300)), -60.0)
        case _:
            raise AssertionError(f"no definition of {bias}")


def _led_from(table: SlotTable, q: int, k: int) -> float:
    """Probability that slot `k` led to slot `q`, over all ways through the sets in between."""
    before = [slot for slot in range(len(table)) if table.step[slot] == table.step[q] - 1]
    evidence = table.evidence[int(table.step[q]) - 1][q - _first(table, q)]
    joint = [
        float(table.weight[slot]) * math.exp(float(log))
        for slot, log in zip(before, evidence, strict=True)
    ]
    share = {slot: one / sum(joint) for slot, one in zip(before, joint, strict=True)}
    # Bayes: weight of a member times the probability that it gave the token of q.
    if k in share:
        return share[k]
    return sum(part * _led_from(table, slot, k) for slot, part in share.items())


def _first(table: SlotTable, slot: int) -> int:
    """The first slot of the same set."""
    return min(other for other in range(len(table)) if table.step[other] == table.step[slot])
