"""The audit of a knowledge base: pure functions from sentences to findings.

An error makes a sentence unfit for use; a warning is worth a look. `audit` reads the text alone and runs in describe,
whose image has no torch. `encoded` needs the text encoder or its tokenizer and runs in encode: `not_discriminating`
gives warnings in features/audit.json, and a sentence too long for the tower is an error there. `mdpr knowledge audit
--tokens` lists those beforehand if CLIP's tokenizer is installed.
"""

from mdpr.knowledge.audit.encoded import too_many_tokens
from mdpr.knowledge.audit.rules import Finding, audit

__all__ = ["Finding", "audit", "too_many_tokens"]
