"""Faults in a knowledge base: pure functions from sentences to findings.

An error makes a sentence unfit for use; a warning is worth a look. What the text alone shows is found by `audit` when
the sentences are gathered (describe: its image has no torch). What takes the text encoder is found when they are
encoded (encode): `margins` there become warnings in features/audit.json, and a sentence longer than the tower is an
error; `mdpr knowledge audit --tokens` lists all of those at once, where CLIP's tokenizer is installed.
"""

from mdpr.knowledge.audit.checks import audit
from mdpr.knowledge.audit.finding import Finding
from mdpr.knowledge.audit.tokens import too_many_tokens

__all__ = ["Finding", "audit", "too_many_tokens"]
