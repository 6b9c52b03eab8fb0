"""The published shapes of the Kubeflow Pipelines API (v2beta1), read off kfp-server-api, Kubeflow's generated client.

That package is made from the published swagger, one method an operation and one class a message. What is checked:
method and path, names and types of query parameters, the parts of an upload, every field of a message by name, type and
list of values, and the fields that are called a required input. The client checks none of the types itself.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import kfp_server_api
from kfp_server_api import models

PRIMITIVES = {"str": str, "int": int, "float": (int, float), "bool": bool, "datetime": str}
# Whole numbers of 64 bits: text in the swagger; the server takes a number too (protobuf's JSON mapping).
INT64 = {"max_concurrency"}


@dataclass(frozen=True)
class Operation:
    """One thing the API does. `query`: name -> type; `body` and `answer`: the names of messages."""

    method: str
    path: str
    query: Mapping[str, str]
    required: frozenset[str]
    body: str | None
    files: frozenset[str]
    answer: str | None

    def fits(self, method: str, path: str) -> bool:
        return method == self.method and bool(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", self.path), path))


def operations() -> list[Operation]:
    """Everything that the package can ask for, fixed paths before those with a variable."""
    found = []
    for info in pkgutil.iter_modules([f"{next(iter(kfp_server_api.__path__))}/api"]):
        tree = ast.parse(inspect.getsource(import_module(f"kfp_server_api.api.{info.name}")))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_with_http_info"):
                found.append(_operation(node))
    return sorted(found, key=lambda operation: operation.path.count("{"))


def _operation(function: ast.FunctionDef) -> Operation:
    doc = ast.get_docstring(function) or ""
    types = dict(re.findall(r":type (\w+): (\S+)", doc))
    required = set(re.findall(r":param (\w+):.*\(required\)", doc))
    code = ast.unparse(function)
    query = dict(re.findall(r"query_params\.append\(\('([\w.]+)', local_var_params\['(\w+)'\]\)\)", code))
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", code)
    path, method = re.findall(r"call_api\('([^']+)', '([A-Z]+)'", code)[0]
    answer = re.search(r"response_type='(\w+)'", code)
    return Operation(
        method,
        path,
        {name: types[argument] for name, argument in query.items()},
        frozenset(name for name, argument in query.items() if argument in required),
        types[body[1]] if body else None,
        frozenset(re.findall(r"local_var_files\['(\w+)'\]", code)),
        answer[1] if answer else None,
    )


def message_faults(value: Any, kind: str, where: str) -> Iterator[str]:
    """What is wrong with `value` as a `kind` of the package: openapi's own spelling, or the name of a message."""
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        yield from _each(value, list, inner[1], where)
    elif inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        yield from _each(value, dict, inner[1], where)
    elif kind in PRIMITIVES:
        allowed = (str, int) if where.rpartition(".")[2] in INT64 else PRIMITIVES[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
            yield f"{where} = {value!r} is not of type {kind}"
    elif kind != "object":
        yield from _model_faults(value, getattr(models, kind), where)


def _each(value: Any, container: type, kind: str, where: str) -> Iterator[str]:
    if not isinstance(value, container):
        yield f"{where} = {value!r} is not a {container.__name__}"
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from message_faults(item, kind, f"{where}[{key}]")


def _model_faults(value: Any, model: Any, where: str) -> Iterator[str]:
    if hasattr(model, "allowable_values"):
        if value not in model.allowable_values:
            yield f"{where} = {value!r} is none of {model.allowable_values}"
        return
    if not isinstance(value, dict):
        yield f"{where} = {value!r} is not a {model.__name__}"
        return
    fields = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
    for key, item in value.items():
        if key not in fields:
            yield f"{where} has no field {key}"
        elif item is not None:
            yield from message_faults(item, fields[key], f"{where}.{key}")


def required_inputs(kind: str) -> set[str]:
    """The fields that a message's own text calls a required input."""
    model = getattr(models, kind)
    texts = {model.attribute_map[name]: getattr(model, name).__doc__ or "" for name in model.openapi_types}
    return {name for name, text in texts.items() if "Required input" in text}


def query_faults(operation: Operation, query: Mapping[str, list[str]]) -> Iterator[str]:
    """What is wrong with the parameters behind the question mark."""
    for name, values in query.items():
        kind = operation.query.get(name)
        if kind is None:
            yield f"{operation.method} {operation.path} takes no query parameter {name}"
        elif kind == "int" and not all(value.lstrip("-").isdigit() for value in values):
            yield f"{operation.path}: {name} = {values} is no whole number"
    for name in operation.required - query.keys():
        yield f"{operation.method} {operation.path} needs the query parameter {name}"
