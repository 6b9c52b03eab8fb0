"""How long sentences are for the text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mdpr.artifacts import Knowledge
from mdpr.knowledge.audit.finding import Finding, alternatives_of, lines_of

CONTEXT_TOKENS = 77  # of CLIP's own text towers, start and end token included


def too_many_tokens(
    knowledge: Knowledge, encode: Callable[[str], Sequence[int]], allowed: int = CONTEXT_TOKENS
) -> Iterator[Finding]:
    """An error for every sentence, alternatives included, that a text tower of `allowed` tokens would cut.

    `encode` is the tokenizer's: the ids of a text, without start and end token.
    """
    for line in (*lines_of(knowledge), *alternatives_of(knowledge)):
        count = len(encode(line.sentence)) + 2
        if count > allowed:
            yield line.finding("error", "too_many_tokens", f"{count} tokens, the text encoder reads {allowed}")
