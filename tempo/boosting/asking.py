"""`tempo.boost`: dose and response of a bias on parallel members."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from analysis.boost.findings import BoostFindings
from tempo.boosting.reference import Reference, add_alone, add_mixtures, decoded
from tempo.boosting.replays import Batch, Replayed, check_unchanged, read_references, replayed
from tempo.boosting.study import Study, repairs_of
from tempo.boosting.targets import (
    ALL,
    BANDS,
    CHOSEN,
    CONTROL,
    Target,
    check_targets,
    chosen_targets,
    fixed_target,
    given_target,
    matched_slots,
    member_slots,
)
from tempo.engine.branch import read_prompts
from tempo.errors import InputError, NoParallelSetsError
from tempo.models.language_model import LanguageModel
from tempo.models.load import Source, load_model
from tempo.run.options import Options, make_options
from tempo.run.recorder import model_facts
from tempo.run.request import PromptInput, check_different, make_request, prompts_from
from tempo.vocabulary import Head

BETAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
MOST = 20.0
"""Nats; a larger bias leaves nothing in a float32 row but the biased slots, or nothing of them."""
TOGETHER = 64
"""References that are replayed together."""

Say = Callable[[str], object]


def boost(
    model: Source,
    prompts: PromptInput | Sequence[PromptInput],
    *,
    betas: Sequence[float | int] = BETAS,
    targets: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str | Head]] | None = None,
    threshold: float = 0.1,
    steps: int = 10,
    seed: int = 0,
    free: bool = True,
    on_pass: Say | None = None,
) -> BoostFindings:
    """What does a bias on the scores of parallel members do, dose by dose?

    Every prompt is decoded once without a bias; its sets are then fed again under every dose and
    target, so that one thing changes. What follows is held against that run, against the exact
    mixture of the paths, and against the same bias on as many slots that are in no set.

    Args:
        model: As `tempo.load_model` takes it.
        prompts: Text, token ids, or several of these.
        betas: Doses in nats, two or more; 0 is added. A bias of beta multiplies what a row pays to
            the slots by exp(beta) before it is normalised.
        targets: Of `tempo.boosting.targets.TARGETS`; all where None.
        groups: More targets: heads by name, such as {"mine": ["L3H5"]}.
        threshold: Tokens with at least this probability enter a set.
        steps: Sets to decode.
        seed: Of the heads drawn for comparison, and of the intervals.
        free: Whether to decode freely under the bias too, in all heads and in the control.
        on_pass: Told what is done next.

    Raises:
        InputError: A dose, a target, a group or a prompt cannot be used.
        NoParallelSetsError: No prompt has a set of two or more with a step after it.
        NumericalError: A bias of 0 changed a readout.
    """
    doses = check_betas(betas)
    wanted = check_targets(targets, groups)
    loaded = load_model(model)
    options = _options(loaded, threshold=threshold, steps=steps, seed=seed)
    given = {
        name: given_target(name, heads, loaded.n_layers, loaded.n_heads)
        for name, heads in (groups or {}).items()
    }
    study, refused = _study(loaded, prompts, doses, options, on_pass or _silent)
    chosen, skipped = _chosen(study, wanted, seed)
    found = {**_fixed(loaded, wanted, skipped), **chosen, **given}
    ordered = [found[name] for name in (*wanted, *given) if name in found]
    everywhere = fixed_target(ALL, loaded.n_layers, loaded.n_heads)
    for batch in study.batches:
        check_unchanged(batch, [everywhere.edit(batch.half, 0.0)])
    forced = tuple(study.dose(target) for target in ordered)
    pairs = zip(ordered, forced, strict=True)
    restored = tuple(study.restoring(*pair) for pair in pairs if not pair[0].control)
    texts = tuple(study.texts(one) for one in ordered if free and one.name in (ALL, CONTROL))
    repairs, no_repair = repairs_of(study, everywhere, forced, restored, texts)
    return BoostFindings(
        betas=doses,
        doses=forced,
        free=texts,
        restoring=restored,
        repairs=repairs,
        no_repair=no_repair,
        refused=refused,
        skipped=skipped,
        heads={name: _names(one) for name, one in chosen.items()},
        rounding_nats=study.rounding(everywhere),
        seed=seed,
        **_facts(study),
    )


def check_betas(betas: Sequence[float | int]) -> tuple[float, ...]:
    """The doses, rising, with 0 among them.

    Raises:
        InputError: One is not finite or too large, or fewer than two were given.
    """
    given = [float(beta) for beta in betas]
    wrong = [beta for beta in given if not np.isfinite(beta) or abs(beta) > MOST]
    if wrong:
        raise InputError(
            f"expected finite betas from {-MOST:g} to {MOST:g}, got {wrong[0]:g}; give nats such "
            "as -1,1"
        )
    if len(set(given)) < 2:
        raise InputError(
            f"expected at least two different betas, got {len(set(given))}; give more, such as -1,1"
        )
    return tuple(sorted({0.0, *given}))


def _options(model: LanguageModel, *, threshold: float, steps: int, seed: int) -> Options:
    if steps < 2:
        raise InputError(
            f"expected at least 2 steps, got {steps}: a set is seen by the step after it; ask for "
            "more"
        )
    return make_options(
        {
            "model": model.name,
            "dtype": model.dtype,
            "threshold": threshold,
            "steps": steps,
            "seed": seed,
            "eos": "ignore",
        }
    )


def _references(
    model: LanguageModel, prompts: PromptInput | Sequence[PromptInput], options: Options
) -> tuple[list[Reference], dict[str, str]]:
    """Prompts that can answer, and why the others cannot."""
    named, ids = prompts_from(prompts)
    policy = options.policy_of("isolated")
    request = make_request(model, options, named, token_ids=ids, arms={"isolated": policy})
    pairs = [(prompt.id, request.token_ids[prompt.id]) for prompt in named]
    check_different(pairs)
    found, refused = decoded(model, pairs, policy, steps=options.steps)
    if not found:
        raise NoParallelSetsError(
            f"expected a prompt with a set of two or more members and a step after it, got none of "
            f"{len(pairs)}; lower the threshold or decode more steps"
        )
    return found, refused


def _batches(model: LanguageModel, references: Sequence[Reference]) -> tuple[Batch, ...]:
    """Every other prompt is in the other half; the halves never mix."""
    made: list[Batch] = []
    for half in (0, 1):
        places = range(half, len(references), 2)
        for start in range(0, len(places), TOGETHER):
            some = tuple(places[start : start + TOGETHER])
            ours = tuple(references[place] for place in some)
            trunk = read_prompts(model, [(one.prompt_id, one.ids) for one in ours])
            batch = Batch(half, some, ours, trunk)
            read_references(batch)
            add_mixtures(trunk, ours)
            made.append(batch)
    return tuple(made)


def _facts(study: Study) -> dict[str, Any]:
    """What the references say of themselves."""
    references, options = study.references, study.options
    names = ("threshold", "max_width", "steps")
    return {
        "model": model_facts(study.model),
        "prompts": tuple(one.prompt_id for one in references),
        "matched": float(np.nanmean([_matched_share(one) for one in references])),
        "n_sets": sum(len(one.wide_steps()) for one in references),
        "tokens_hash": _hash(references),
        "settings": {name: getattr(options, name) for name in names},
    }


def _study(
    model: LanguageModel,
    prompts: PromptInput | Sequence[PromptInput],
    doses: tuple[float, ...],
    options: Options,
    say: Say,
) -> tuple[Study, dict[str, str]]:
    """Everything that is decoded without a bias."""
    say("decoding without a bias")
    references, refused = _references(model, prompts, options)
    say("decoding every member alone")
    for start in range(0, len(references), TOGETHER):
        add_alone(model, references[start : start + TOGETHER])
    say("running every path of the first sets")
    batches = _batches(model, references)
    say("reading the references")
    base: dict[int, Replayed] = {}
    for batch in batches:
        base |= zip(batch.places, replayed(batch, [], range(model.n_layers)), strict=True)
    return Study(model, tuple(references), batches, doses, base, options, say, {}), refused


def _fixed(
    model: LanguageModel, wanted: Sequence[str], skipped: Mapping[str, str]
) -> dict[str, Target]:
    """Targets that are the same for all prompts."""
    names = [name for name in wanted if name not in CHOSEN and name not in skipped]
    return {name: fixed_target(name, model.n_layers, model.n_heads) for name in names}


def _chosen(
    study: Study, wanted: Sequence[str], seed: int
) -> tuple[dict[str, Target], dict[str, str]]:
    """Targets whose heads are chosen by what they do, and targets without an answer."""
    n_layers = study.model.n_layers
    skipped = {
        name: f"a model of {n_layers} layers has no layer of its own in this third"
        for name in wanted
        if name in BANDS and not fixed_target(name, n_layers, 1).n_heads
    }
    asked = [name for name in wanted if name in CHOSEN]
    if CONTROL in wanted and not any(_matched_share(one) > 0 for one in study.references):
        skipped[CONTROL] = "no prompt has a slot in no set beside slot 0"
    if asked and len(study.references) < 2:
        why = "heads are chosen on the other half of the prompts, and there is only one prompt"
        return {}, skipped | dict.fromkeys(asked, why)
    if not asked:
        return {}, skipped
    found = chosen_targets((study.share_of_half(0), study.share_of_half(1)), seed=seed)
    return {name: found[name] for name in asked}, skipped


def _matched_share(one: Reference) -> float:
    """Slots of the control for each member, mean over the steps that see a set."""
    steps = range(one.first + 1, one.table.n_steps + 1)
    members = [len(member_slots(one.table, step)) for step in steps]
    matched = [len(matched_slots(one.table, step)) for step in steps]
    return float(np.mean(np.array(matched) / np.array(members)))


def _names(target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, second = (
        tuple(str(Head(*place)) for place in np.argwhere(half).tolist()) for half in target.halves
    )
    return first, second


def _hash(references: Sequence[Reference]) -> str:
    digest = sha256()
    for one in references:
        table = one.table
        line = f"{one.prompt_id} {table.token.tolist()} {table.position.tolist()}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _silent(_: str) -> None:
    """Told what is done, says nothing."""
