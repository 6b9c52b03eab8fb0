"""A knowledge base written by a chat model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mdpr.artifacts import ClassInfo, ClassKnowledge, Knowledge
from mdpr.config import DIMENSIONS, DescribeParams, LlmParams
from mdpr.knowledge.asking import Answers, Plan, ask, plan, worker_context
from mdpr.knowledge.audit import Finding, audit
from mdpr.knowledge.prompts import Prompts, Rejected, load_prompts
from mdpr.knowledge.questions import Place, make_questions
from mdpr.knowledge.schema import make_schemas
from mdpr.knowledge.shards import shard_indices
from mdpr.knowledge.spending import Budget, Prices


@dataclass(frozen=True)
class Gathered:
    """A knowledge base and, where it has gaps, why."""

    knowledge: Knowledge
    missing: Mapping[Place, str]


def plan_generation(classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams) -> Plan:
    """What `generate` would ask, and what it would cost; nothing is asked."""
    prompts = load_prompts()
    chosen = shard_indices(params.shard, len(classes))
    return plan(make_questions(classes, rival_C, prompts, make_schemas(prompts), params.llm, chosen), params.llm)


def generate(
    classes: Sequence[ClassInfo], rival_C: Sequence[int], params: DescribeParams, reached_at: str = ""
) -> Gathered:
    """Five sentences a class (of `params.shard`, where it is set) from the chat model of `params.llm`; with `repair`,
    one more try for each that the audit refuses.

    `reached_at` is the address of a server that changes it from run to run, and so is no part of the answers' keys.
    Raises `KnowledgeError` where nothing can be asked. A question without an answer is a gap, never filled.
    """
    prompts = load_prompts()
    schemas = make_schemas(prompts)
    llm, chosen = params.llm, shard_indices(params.shard, len(classes))
    reached = llm.model_copy(update={"base_url": reached_at}) if reached_at else llm
    budget = Budget(worker_context(), params.budget_usd, Prices.of(llm), llm.max_tokens)  # of both rounds together
    answers = ask(make_questions(classes, rival_C, prompts, schemas, llm, chosen), schemas, reached, budget)
    knowledge = _assemble(classes, rival_C, chosen, answers.sentences, prompts, llm)
    if params.repair:
        rejected = _rejected(knowledge, audit(knowledge))
        questions = make_questions(classes, rival_C, prompts, schemas, llm, chosen, rejected)
        second = ask(questions, schemas, reached, budget)
        answers = Answers({**answers.sentences, **second.sentences}, {**answers.missing, **second.missing})
        knowledge = _assemble(classes, rival_C, chosen, answers.sentences, prompts, llm)
    return Gathered(knowledge, answers.missing)


def explain_gaps(findings: Sequence[Finding], missing: Mapping[Place, str]) -> list[Finding]:
    """The findings, with the reason where a sentence is missing."""
    return [
        replace(finding, message=f"no sentence: {missing[finding.class_index, finding.dimension]}")
        if finding.check == "missing" and (finding.class_index, finding.dimension) in missing
        else finding
        for finding in findings
    ]


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
    chosen: Sequence[int],
    sentences: Mapping[Place, str],
    prompts: Prompts,
    llm: LlmParams,
) -> Knowledge:
    return Knowledge(
        provenance={
            "provider": "llm",
            "vendor": llm.vendor,
            "model": llm.model,
            "base_url": llm.base_url,
            "structured_output": llm.structured_output,
            "temperature": llm.temperature,
            "seed": llm.seed,
            "max_tokens": llm.max_tokens,
            "prompt_versions": {key: prompt.version for key, prompt in prompts.dimensions.items()},
        },
        classes=tuple(
            ClassKnowledge(
                index=item.index,
                name=item.name,
                rival=classes[rival_C[item.index]].name,
                rival_index=int(rival_C[item.index]),
                sentences={key: sentences[item.index, key] for key in DIMENSIONS if (item.index, key) in sentences},
            )
            for item in (classes[index] for index in chosen)
        ),
    )
