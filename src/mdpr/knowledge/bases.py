"""Knowledge bases: read from a file, written by a chat model, or both; in shards, and merged again.

The table PROVIDERS at the end is what `describe.provider` chooses from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge, read_knowledge, read_unfinished, sha256
from mdpr.errors import ConfigError, KnowledgeError
from mdpr.knowledge.ask import Answers, ask
from mdpr.knowledge.audit import Finding, audit
from mdpr.knowledge.chat import local_settings, serving_local
from mdpr.knowledge.questions import (
    Budget,
    Place,
    Plan,
    Prices,
    Prompts,
    Rejected,
    load_prompts,
    make_questions,
    plan,
    shaping,
)
from mdpr.params import DIFFERENTIAL, DIMENSIONS, DescribeParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gathered:
    """A knowledge base, and what the chat model answered for it."""

    knowledge: Knowledge
    answers: Answers = field(default_factory=Answers)


@dataclass(frozen=True)
class Base:
    """A finished knowledge base for a chat model to complete; `sentences` are those that stay."""

    knowledge: Knowledge
    digest: str
    sentences: Mapping[Place, str]


def from_file(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Gathered:
    """The finished knowledge base of `params.path`, its contrasts fitted to the rivals that the probe found.

    rival_C: per class the index of the class it is most confused with. Raises `KnowledgeError` if the file has a gap
    or is of other classes.
    """
    names = [item.name for item in classes]
    rivals = [names[index] for index in rival_C]
    knowledge = fit_rivals(read_knowledge(_existing(params), names), rivals)
    others = sum(item.rival != rival for item, rival in zip(knowledge.classes, rivals, strict=True))
    if others:
        logger.info(
            "%s has no contrast with the rivals of %d of %d classes; --provider completed asks a chat model for them",
            params.path,
            others,
            len(names),
        )
    chosen = shard_indices(params.shard, len(classes))
    return Gathered(knowledge.model_copy(update={"classes": tuple(knowledge.classes[index] for index in chosen)}))


def generate(
    classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams, server_url: str = ""
) -> Gathered:
    """Five sentences per class (of `params.shard` if it is set) from the chat model of `params.llm`.

    With provider `completed`, only those that the finished knowledge base of `params.path` lacks. With `repair`, one
    more try for each sentence with an error of the audit. A question without an answer stays a gap.

    `server_url` is the address of a server that gets another one in each run; it is not part of the answers' keys.
    Raises as `mdpr.knowledge.ask.ask` does.
    """
    prompts, llm, base = load_prompts(), params.llm, _base(classes, rival_C, params)
    budget = Budget(params.budget_usd, Prices.of(llm), llm.max_tokens)  # for both rounds together
    reached = llm.model_copy(update={"base_url": server_url}) if server_url else llm

    def answer(places: Sequence[Place], rejected: Mapping[Place, Rejected] | None = None) -> Answers:
        questions = make_questions(classes, rival_C, prompts, llm, places, rejected)
        return ask(questions, prompts.schemas(), reached, budget)

    answers = answer(_open_places(classes, params, base))
    knowledge = _assemble(classes, rival_C, answers.sentences, prompts, params, base)
    if params.repair:
        rejected = _rejected(knowledge, audit(knowledge))
        answers |= answer(list(rejected), rejected)
        knowledge = _assemble(classes, rival_C, answers.sentences, prompts, params, base)
    return Gathered(knowledge, answers)


def from_local_model(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Gathered:
    """`generate` with the small model, served by this process meanwhile."""
    llm = local_settings(params.llm)
    with serving_local() as url:
        return generate(classes, rival_C, params.model_copy(update={"llm": llm}), server_url=url)


def plan_generation(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Plan:
    """The calls and the cost of `generate`; no question is sent."""
    places = _open_places(classes, params, _base(classes, rival_C, params))
    return plan(make_questions(classes, rival_C, load_prompts(), params.llm, places), params.llm)


def fit_rivals(knowledge: Knowledge, rival_names: Sequence[str]) -> Knowledge:
    """The knowledge base with each class's differential sentence set against its rival, if one is written.

    If the file holds no sentence against the rival that was found, the old one stays, and so does the rival it names:
    a contrast with another class is better than an invented one, and the audit reports the difference.
    """
    return knowledge.model_copy(
        update={"classes": tuple(_fit(item, rival) for item, rival in zip(knowledge.classes, rival_names, strict=True))}
    )


def new_base(
    classes: Sequence[ClassInfo], rival_C: Sequence[int] | None = None, earlier: Knowledge | None = None
) -> Knowledge:
    """A knowledge base of `classes`, with the sentences of `earlier` where just one class of each has the name.

    All other sentences are left to write.
    """
    rivals = [None if rival_C is None else classes[rival_C[item.index]] for item in classes]
    count = Counter(item.name for item in classes)
    index_of = {item.name: item.index for item in classes if count[item.name] == 1}
    known: dict[str, ClassKnowledge] = {}
    if earlier:
        count += Counter(item.name for item in earlier.classes)
        known = {item.name: item for item in earlier.classes if count[item.name] == 2}
    entries = [
        ClassKnowledge(
            index=item.index,
            name=item.name,
            rival=rival.name if rival else None,
            rival_index=rival.index if rival else None,
            sentences=dict.fromkeys(DIMENSIONS, ""),
        )
        for item, rival in zip(classes, rivals, strict=True)
    ]
    for index, entry in enumerate(entries):
        if entry.name in known and entry.name in index_of:
            was = known[entry.name]
            entries[index] = was.model_copy(update={"index": index, "rival_index": index_of.get(was.rival or "")})
    provenance = earlier.provenance if earlier else {"provider": "curated", "author": ""}
    return Knowledge(provenance=provenance, classes=tuple(entries))


def shard_indices(shard: str, classes: int) -> range:
    """The class indices of `shard`, written I/N; all of them if it is empty.

    Shards are runs of neighbouring classes. Their sizes differ by at most one; every class is in exactly one of the N.
    Raises `ConfigError` if there are more shards than classes.
    """
    if not shard:
        return range(classes)
    number, count = (int(part) for part in shard.split("/"))
    if count > classes:
        raise ConfigError(f"describe.shard = {shard}: there are only {classes} classes; make fewer shards")
    return range((number - 1) * classes // count, number * classes // count)


def merge(shards: Mapping[str, Knowledge], classes: Sequence[ClassInfo]) -> Knowledge:
    """One knowledge base of all `classes`, in their order, from its shards (name -> knowledge base).

    Raises `KnowledgeError` if shards were made with different settings, overlap, leave a class out, or are of other
    classes than the data.
    """
    if not shards:
        raise KnowledgeError("there is no shard to merge")
    first, *_ = shards
    found: dict[int, tuple[str, ClassKnowledge]] = {}
    for name, knowledge in shards.items():
        _check_provenance(name, knowledge, first, shards[first])
        for item in knowledge.classes:
            if item.index >= len(classes) or item.name != classes[item.index].name:
                own = repr(classes[item.index].name) if item.index < len(classes) else f"only {len(classes)} classes"
                raise KnowledgeError(f"{name}: class {item.index} is {item.name!r}, the data has {own}")
            if item.index in found:
                other = found[item.index][0]
                raise KnowledgeError(f"class {item.index} ({item.name}) is in {other} and in {name}: give each once")
            found[item.index] = (name, item)
    for info in classes:
        if info.index not in found:
            raise KnowledgeError(f"class {info.index} ({info.name}) is in no shard: describe its shard and add it")
    return shards[first].model_copy(update={"classes": tuple(found[info.index][1] for info in classes)})


def _check_provenance(name: str, knowledge: Knowledge, first: str, reference: Knowledge) -> None:
    ours, theirs = knowledge.provenance, reference.provenance
    for key in sorted({*ours, *theirs}):
        if ours.get(key) != theirs.get(key):
            raise KnowledgeError(
                f"{name} has {key} = {ours.get(key)!r}, {first} has {theirs.get(key)!r}: "
                "describe every shard with the same settings"
            )


def _existing(params: DescribeParams) -> Path:
    path = Path(params.path)
    if not path.exists():
        raise KnowledgeError(
            f"describe.path = {path}: no such file; `mdpr knowledge new FILE` writes one to fill in, "
            "--provider llm asks a chat model for all sentences"
        )
    return path


def _base(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Base | None:
    """The knowledge base that a chat model completes, gaps included. A contrast stays if it is with the rival."""
    if params.provider != "completed":
        return None
    path = _existing(params)
    names = [item.name for item in classes]
    fitted = fit_rivals(read_unfinished(path, names), [names[index] for index in rival_C])
    sentences = {
        (item.index, dimension): sentence
        for item in fitted.classes
        for dimension, sentence in item.sentences.items()
        if sentence.strip() and (dimension != DIFFERENTIAL or _is_rival(item, classes[rival_C[item.index]]))
    }
    return Base(fitted, sha256(path)[:16], sentences)


def _open_places(classes: Sequence[ClassInfo], params: DescribeParams, base: Base | None) -> list[Place]:
    """The places to ask for, in order of class and dimension."""
    places = [(index, dimension) for index in shard_indices(params.shard, len(classes)) for dimension in DIMENSIONS]
    return [place for place in places if base is None or place not in base.sentences]


def _fit(item: ClassKnowledge, rival: str) -> ClassKnowledge:
    sentence = item.differential_alternatives.get(rival)
    if item.rival == rival or sentence is None:
        return item
    sentences = {**item.sentences, DIFFERENTIAL: sentence}
    return item.model_copy(update={"rival": rival, "rival_index": None, "sentences": sentences})


def _is_rival(item: ClassKnowledge, rival: ClassInfo) -> bool:
    return item.rival == rival.name and item.rival_index in (None, rival.index)


def _rejected(knowledge: Knowledge, findings: Sequence[Finding]) -> dict[Place, Rejected]:
    """The sentences with an error, all reasons together; a missing one cannot be repaired."""
    reasons: dict[Place, list[str]] = {}
    for finding in findings:
        if finding.level == "error" and finding.check != "missing":
            reasons.setdefault((finding.class_index, finding.dimension), []).append(finding.message)
    described = {item.index: item for item in knowledge.classes}
    return {
        (index, dimension): Rejected(described[index].sentences[dimension], "; ".join(messages))
        for (index, dimension), messages in reasons.items()
    }


def _assemble(
    classes: Sequence[ClassInfo],
    rival_C: Sequence[int],
    answers: Mapping[Place, str],
    prompts: Prompts,
    params: DescribeParams,
    base: Base | None,
) -> Knowledge:
    """The chat model's answers and, if there is a base, what stays of it."""
    sentences = {**(base.sentences if base else {}), **answers}
    described = []
    for index in shard_indices(params.shard, len(classes)):
        item, rival = classes[index], classes[rival_C[index]]
        described.append(
            ClassKnowledge(
                index=index,
                name=item.name,
                rival=rival.name,
                rival_index=rival.index,
                sentences={key: sentences[index, key] for key in DIMENSIONS if (index, key) in sentences},
                differential_alternatives=base.knowledge.classes[index].differential_alternatives if base else {},
                completed=tuple(key for key in DIMENSIONS if (index, key) in answers) if base else (),
            )
        )
    return Knowledge(provenance=_provenance(prompts, params, base), classes=tuple(described))


def _provenance(prompts: Prompts, params: DescribeParams, base: Base | None) -> dict[str, Any]:
    provenance = {
        "provider": params.provider,
        **shaping(params.llm),
        "prompt_versions": {key: prompt.version for key, prompt in prompts.dimensions.items()},
    }
    if base is None:
        return provenance
    return {**provenance, "base": base.knowledge.provenance, "base_digest": base.digest}


PROVIDERS: dict[str, Callable[[Sequence[ClassInfo], Sequence[int], DescribeParams], Gathered]] = {
    "curated": from_file,
    "completed": generate,
    "llm": generate,
    "local": from_local_model,
}
