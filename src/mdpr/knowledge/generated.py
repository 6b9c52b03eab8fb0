"""A knowledge base written by a chat model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge
from mdpr.knowledge.asking import Answers, Plan, ask, plan, worker_context
from mdpr.knowledge.audit import Finding, audit
from mdpr.knowledge.curated import Base, read_base
from mdpr.knowledge.prompts import Prompts, Rejected, load_prompts
from mdpr.knowledge.questions import Place, make_questions
from mdpr.knowledge.schema import make_schemas
from mdpr.knowledge.shards import shard_indices
from mdpr.knowledge.spending import Budget, Prices
from mdpr.params import DIMENSIONS, DescribeParams


@dataclass(frozen=True)
class Gathered:
    """A knowledge base and, where it has gaps, why."""

    knowledge: Knowledge
    missing: Mapping[Place, str]


def plan_generation(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Plan:
    """What `generate` would ask, and what it would cost; nothing is asked."""
    prompts = load_prompts()
    places = _open_places(classes, params, _base(classes, rival_C, params))
    return plan(make_questions(classes, rival_C, prompts, make_schemas(prompts), params.llm, places), params.llm)


def generate(
    classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams, reached_at: str = ""
) -> Gathered:
    """Five sentences a class (of `params.shard`, where it is set) from the chat model of `params.llm`; with provider
    `completed` only those that the finished knowledge base of `params.path` lacks; with `repair`, one more try for each
    that the audit refuses.

    `reached_at` is the address of a server that changes it from run to run, and so is no part of the answers' keys.
    Raises `KnowledgeError` where nothing can be asked. A question without an answer is a gap, never filled.
    """
    prompts = load_prompts()
    schemas = make_schemas(prompts)
    llm, base = params.llm, _base(classes, rival_C, params)
    reached = llm.model_copy(update={"base_url": reached_at}) if reached_at else llm
    budget = Budget(worker_context(), params.budget_usd, Prices.of(llm), llm.max_tokens)  # of both rounds together
    places = _open_places(classes, params, base)
    answers = ask(make_questions(classes, rival_C, prompts, schemas, llm, places), schemas, reached, budget)
    knowledge = _assemble(classes, rival_C, answers.sentences, prompts, params, base)
    if params.repair:
        rejected = _rejected(knowledge, audit(knowledge))
        questions = make_questions(classes, rival_C, prompts, schemas, llm, rejected, rejected)
        second = ask(questions, schemas, reached, budget)
        answers = Answers({**answers.sentences, **second.sentences}, {**answers.missing, **second.missing})
        knowledge = _assemble(classes, rival_C, answers.sentences, prompts, params, base)
    return Gathered(knowledge, answers.missing)


def explain_gaps(findings: Sequence[Finding], missing: Mapping[Place, str]) -> list[Finding]:
    """The findings, with the reason where a sentence is missing."""
    return [
        replace(finding, message=f"no sentence: {missing[finding.class_index, finding.dimension]}")
        if finding.check == "missing" and (finding.class_index, finding.dimension) in missing
        else finding
        for finding in findings
    ]


def _base(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Base | None:
    return read_base(Path(params.path), classes, rival_C) if params.provider == "completed" else None


def _open_places(classes: Sequence[ClassInfo], params: DescribeParams, base: Base | None) -> list[Place]:
    """What is to be asked for, in order of class and dimension."""
    places = [(index, dimension) for index in shard_indices(params.shard, len(classes)) for dimension in DIMENSIONS]
    return [place for place in places if base is None or place not in base.sentences]


def _rejected(knowledge: Knowledge, findings: Sequence[Finding]) -> dict[Place, Rejected]:
    """The sentences with an error, all reasons together; what is missing has nothing to repair."""
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
    """What the chat model answered and, where there is one, what stays of the finished knowledge base."""
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
    llm = params.llm
    asked = {
        "provider": params.provider,
        "vendor": llm.vendor,
        "model": llm.model,
        "base_url": llm.base_url,
        "structured_output": llm.structured_output,
        "temperature": llm.temperature,
        "seed": llm.seed,
        "max_tokens": llm.max_tokens,
        "prompt_versions": {key: prompt.version for key, prompt in prompts.dimensions.items()},
    }
    if base is None:
        return asked
    return {**asked, "base": base.knowledge.provenance, "base_digest": base.digest}
