"""Requests to the served model, in every form; tests/integration/test_serving.py tries the service itself."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from mdpr.errors import ConfigError
from mdpr.mlops.serving import MAX_JSON_VALUES, Rejected, check_address, read_request


def body(**content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "content",
    [
        {"dataframe_split": {"columns": ["image"], "data": [["a"], ["b"]]}},
        {"dataframe_split": {"columns": ["image"], "index": [0, 1], "data": [["a"], ["b"]]}},
        {"dataframe_records": [{"image": "a"}, {"image": "b"}]},
        {"inputs": ["a", "b"]},
        {"inputs": {"image": ["a", "b"]}},
        {"inputs": [{"image": "a"}, {"image": "b"}]},
        {"instances": ["a", {"image": "b"}]},
    ],
)
def test_every_form_of_mlflow_gives_the_cells_in_order(content: dict[str, Any]) -> None:
    assert read_request(body(**content)) == (["a", "b"], {})


def test_one_picture_alone_is_a_request_of_one_row() -> None:
    assert read_request(body(inputs="a", params={"top_k": 3, "explain": True})) == (
        ["a"],
        {"top_k": 3, "explain": True},
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 20_000, "nested too deeply"),
        (b"[" + b"1," * MAX_JSON_VALUES + b"1]", "JSON values"),
        (b"[1]", "JSON object"),
        (body(), "exactly one of"),
        (body(inputs="a", instances="a"), "exactly one of"),
        (body(inputs="a", more=1), "exactly one of"),
        (body(inputs=[{"picture": "a"}]), "column image"),
        (body(inputs={"picture": ["a"]}), "column image"),
        (body(inputs={"image": ["a"], "more": [1]}), "column image"),
        (body(dataframe_split={"columns": ["picture"], "data": [["a"]]}), "just image"),
        (body(dataframe_split={"columns": ["image"], "data": [["a", "b"]]}), "one image per row"),
        (body(dataframe_split=[["a"]]), "must look like"),
        (body(inputs="a", params=[1]), "params takes"),
        (body(inputs="a", params={"topk": 1}), "params takes"),
        (body(inputs="a", params={"explain": 1}), "explain"),
        *((body(inputs="a", params={"top_k": value}), "1 to 100") for value in (None, True, 3.0, "3", [3], 0, 101)),
    ],
)
def test_what_is_no_request_is_refused_without_repeating_it(content: bytes, words: str) -> None:
    with pytest.raises(Rejected, match=words) as refused:
        read_request(content)
    assert refused.value.status == 400
    assert "\n" not in str(refused.value)


def test_an_address_that_cannot_be_listened_at_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: address already in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)  # the other has ended
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 .*cannot assign"):
        check_address("192.0.2.1", 8080)
    with pytest.raises(ConfigError, match=r"--host no\.such\.invalid --port 8080: "):
        check_address("no.such.invalid", 8080)
