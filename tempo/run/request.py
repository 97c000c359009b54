"""The request of a run: prompts, arms and options, checked before anything is decoded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from tempo.engine.edits import check_edit_list, heads_in
from tempo.engine.state import SequencePlan
from tempo.errors import InputError
from tempo.models.language_model import LanguageModel
from tempo.models.support import check_rope
from tempo.policy.edits import Edit
from tempo.policy.override import Change, alone, forced, members_of_sets
from tempo.policy.presets import PRESETS, Policy
from tempo.run.budget import Demand, largest_width
from tempo.run.options import Options
from tempo.trace.run import Prompt
from tempo.trace.trace import Trace

PromptInput = str | Sequence[int] | np.ndarray | Tensor | Prompt
TraceKey = tuple[str, str]
ALONE_ARM = "alone"
"""Arms `alone@isolated/03.1`: the twin of a run in which member 1 of set 3 has no siblings."""


@dataclass(frozen=True, slots=True)
class Request:
    """Prompts, arms and options, checked against the model.

    Attributes:
        token_ids: Token ids of each prompt, by prompt id.
        arms: The policy of each arm that decodes freely.
        pairs: The (prompt id, arm) to decode, in order.
        replays: For each arm that replays the sets of another, that other and what it changes.
        alone: The arm whose members are also decoded without their siblings; None for no arm.
        edits: What is changed in every forward.
    """

    model: LanguageModel
    options: Options
    prompts: tuple[Prompt, ...]
    token_ids: Mapping[str, tuple[int, ...]]
    arms: Mapping[str, Policy]
    pairs: tuple[TraceKey, ...]
    replays: Mapping[str, tuple[str, Change]]
    alone: str | None = None
    edits: tuple[Edit, ...] = ()

    def plan(self, pair: TraceKey) -> SequencePlan:
        """The plan of a sequence that decodes freely."""
        return self._plan(pair, self.arms[pair[1]])

    def replay_plan(self, pair: TraceKey, reference: Trace) -> SequencePlan:
        """The plan of a sequence fed with the sets of a finished trace, weighted as there."""
        arm, change = self.replays[pair[1]]
        return self._plan(pair, change.apply(reference.slots, self.arms[arm]))

    def again(self, reference: Trace) -> SequencePlan:
        """The plan that feeds the sets of a finished trace under its own rules."""
        pair = (reference.header.prompt_id, reference.header.arm)
        return self._plan(pair, replace(self.arms[pair[1]], select=forced(reference.slots)))

    def alone_plans(self, reference: Trace) -> dict[TraceKey, SequencePlan]:
        """For every member of every set, the plan that leaves out its siblings.

        It ends with the set after, whose rows are the only ones kept.
        """
        assert self.alone is not None
        prompt_id, policy, plans = reference.header.prompt_id, self.arms[self.alone], {}
        for (step, rank), slot in members_of_sets(reference.slots).items():
            pair = (prompt_id, f"{ALONE_ARM}@{self.alone}/{step:02d}.{rank}")
            plan = self._plan(pair, alone(reference.slots, policy, slot))
            plans[pair] = replace(plan, steps=step + 1, capture_from_step=step + 1)
        return plans

    def replay_pairs(self) -> tuple[TraceKey, ...]:
        """The (prompt id, arm) that replay another arm."""
        return tuple((prompt.id, arm) for prompt in self.prompts for arm in self.replays)

    def demand(self, pair: TraceKey, level: str) -> Demand:
        """Slots that a sequence may need, captured at a level."""
        arm = self.replays[pair[1]][0] if pair[1] in self.replays else pair[1]
        policy = self.arms[arm]
        # A tree is bounded by its frontier; the rule bounds the children of one node only.
        width = policy.read.frontier if policy.branches else largest_width(policy.select)
        return Demand(len(self.token_ids[pair[0]]), self.options.steps, width, level)

    def n_slots_at_most(self) -> int:
        """Slots that the longest sequence may need."""
        # The level does not change the number of slots.
        return max(self.demand(pair, "reduced").n_slots for pair in self.pairs)

    def _plan(self, pair: TraceKey, policy: Policy) -> SequencePlan:
        prompt_id, arm = pair
        return SequencePlan(
            prompt_id, arm, self.token_ids[prompt_id], policy, self.options.steps, self.options.eos
        )


def make_request(
    model: LanguageModel,
    options: Options,
    prompts: Sequence[Prompt],
    *,
    token_ids: Mapping[str, Sequence[int]],
    arms: Mapping[str, Policy],
    pairs: Sequence[TraceKey] | None = None,
    replays: Mapping[str, tuple[str, Change]] | None = None,
    alone: str | None = None,
    edits: Sequence[Edit] = (),
) -> Request:
    """Encode the prompts and check that the model can take them.

    Args:
        token_ids: Ids of prompts that came without text.
        pairs: What to decode; every prompt under every arm if not given.

    Raises:
        InputError: An empty prompt, one beyond the context, or a policy the dtype cannot express.
        ModelError: The RoPE type has no single set of frequencies for this length.
    """
    ids = {
        prompt.id: tuple(token_ids.get(prompt.id) or _encode(model, prompt, chat=options.chat))
        for prompt in prompts
    }
    for prompt in prompts:
        _check_prompt(model, prompt, ids[prompt.id], options.steps)
    request = Request(
        model=model,
        options=options,
        prompts=tuple(prompts),
        token_ids=ids,
        arms=arms,
        pairs=tuple(pairs or [(prompt.id, arm) for prompt in prompts for arm in arms]),
        replays=replays or {},
        alone=alone,
        edits=tuple(edits),
    )
    _check_rules(request)
    check_edits(request)
    return request


def check_edits(request: Request) -> None:
    """Refuse heads that the model does not have, and a level that cannot show edits.

    Raises:
        InputError: A head or layer out of range, or capture of queries and keys.
    """
    check_edit_list(request.edits)
    for edit in request.edits:
        heads_in(edit, request.model)
    if request.edits and request.options.capture == "qk":
        raise InputError(
            "expected capture of weights or reduced with edits, which queries and keys do not "
            "show, got qk; capture weights"
        )


def _check_rules(request: Request) -> None:
    """Refuse rules that the model, its dtype or what is captured cannot express."""
    options = request.options
    for name, policy in request.arms.items():
        if policy.keep == "recompute" and (options.capture == "qk" or options.values):
            kind = "qk" if options.capture == "qk" else "values"
            raise InputError(
                "expected capture of weights or reduced without values where pruning "
                f"recomputes, which writes keys and values anew, got {kind} with {name}; capture "
                "weights only"
            )
    # The largest position: no more positions than slots, counted from 0.
    longest = min(request.n_slots_at_most(), request.model.max_positions) - 1
    # `dynamic` and `longrope` choose frequencies from the largest position of a call: one long
    # prompt would change the keys of all others, so a request that goes there is refused.
    check_rope(request.model, longest)
    changed = [change.place for _, change in request.replays.values() if change.place]
    for place in (*(policy.place for policy in request.arms.values()), *changed):
        place.check(longest, request.model.dtype)


def prompts_from(
    given: PromptInput | Sequence[PromptInput],
) -> tuple[tuple[Prompt, ...], dict[str, tuple[int, ...]]]:
    """Prompts with ids, and the token ids of those that came as ids.

    Raises:
        InputError: Nothing, or something that is neither text nor token ids.
    """
    given_items: Any = [given] if is_single(given) else given
    items = [_plain(item) for item in given_items]
    if not items:
        raise InputError("expected at least one prompt, got none")
    ids: dict[str, tuple[int, ...]] = {}
    prompts: list[Prompt] = []
    for number, item in enumerate(items):
        # Four digits keep folders in input order when sorted by name.
        name = f"p{number:04d}"
        if isinstance(item, Prompt):
            prompts.append(item)
        elif isinstance(item, str):
            prompts += [Prompt(name, item)]
        else:
            ids[name] = tuple(int(token) for token in item)
            prompts.append(Prompt(name, ""))
    return tuple(prompts), ids


def check_different(texts: Iterable[tuple[str, Sequence[int]]]) -> None:
    """Refuse duplicate prompts: the prompt is the statistical unit and would count twice.

    Args:
        texts: Ids of prompts with their tokens.

    Raises:
        InputError: Names both.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in texts:
        tokens = tuple(ids)
        if tokens in seen:
            raise InputError(
                f"expected different prompts, got the same tokens in {seen[tokens]!r} and "
                f"{name!r}; leave one out"
            )
        seen[tokens] = name


def is_single(given: Any) -> bool:
    """Whether this is one prompt (text or token ids), not a list of prompts.

    Raises:
        InputError: It is neither.
    """
    # Arrays and tensors have `tolist`; no import of torch is needed to recognise them.
    if isinstance(given, str | Prompt) or hasattr(given, "tolist"):
        return True
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise InputError(
            f"expected text, token ids or a list of these as prompts, got {type(given).__name__}"
        )
    return len(given) > 0 and all(isinstance(item, int) for item in given)


def _plain(item: Any) -> PromptInput:
    """One prompt; arrays and tensors of token ids become lists."""
    if not is_single(item) and item:
        raise InputError(f"expected text or token ids as a prompt, got {type(item).__name__}")
    return item.tolist() if hasattr(item, "tolist") else item


def arm_name(policy: Policy, taken: Sequence[str]) -> str:
    """Name of the preset that equals the policy apart from its selection, else custom."""
    if policy == PRESETS["greedy"]() and "greedy" not in taken:
        return "greedy"  # it has the rules of isolated, whose selection it is not
    for name, make in PRESETS.items():
        if (
            replace(make(), select=policy.select) == policy
            and name != "greedy"
            and name not in taken
        ):
            return name
    number = sum(name.startswith("custom") for name in taken)
    return f"custom{number or ''}"


def _encode(model: LanguageModel, prompt: Prompt, *, chat: bool) -> list[int]:
    return model.encode(prompt.text, chat=chat) if prompt.text else []


def _check_prompt(model: LanguageModel, prompt: Prompt, ids: Sequence[int], steps: int) -> None:
    if not ids:
        raise InputError(
            f"expected a prompt of at least one token, got an empty one ({prompt.id}); give some "
            "text"
        )
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise InputError(
            f"expected token ids from 0 to {model.vocab_size - 1}, got {min(ids)} to {max(ids)} "
            f"({prompt.id})"
        )
    # Positions, not slots: members of a set share one.
    if len(ids) + steps > model.max_positions:
        raise InputError(
            f"expected a prompt and {steps} steps within the context of {model.max_positions}, "
            "got a prompt of "
            f"{len(ids)} tokens ({prompt.id}); shorten it or lower --steps"
        )
