"""The base of every section of params.yaml, and the one line that names a value that is not allowed."""

from __future__ import annotations

import difflib
import reprlib
import types
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

# The paper's five visual-semantic dimensions, in the order in which every (C, V, ...) tensor holds them.
DIMENSIONS = (
    "general_appearance",
    "fine_grained_appearance",
    "functionality",
    "contextual_information",
    "differential_features",
)
DIFFERENTIAL = DIMENSIONS[-1]  # the only one that depends on another class, the rival

Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class _Reads:
    """Marks a setting that names a file or folder which its stage reads."""


InputPath = Annotated[str, _Reads()]

MAX_TEXT = 10_000
USER_SCHEMES = ("abfs", "abfss", "az", "azure", "ssh", "git+ssh", "sftp", "hdfs")  # NAME@ is a container or an account
SWITCH = {"true", "false", "yes", "no", "on", "off"}
WRONG_KIND = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text: quote it",
    "model": "must hold keys of its own",
    "dict": "must hold keys of its own",
}


class Section(BaseModel):
    """A section of params.yaml, a cluster's profile, the gate's policy or a recipe. Frozen; strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(kinds_of(cls.model_fields[str(info.field_name)]))
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise PydanticCustomError("int_type" if int in kinds else "float_type", "a switch is not a number")
        if kinds == {bool} and not isinstance(value, bool) and str(value).lower() not in SWITCH:
            raise PydanticCustomError("bool_type", "a switch is true or false")
        for text in _texts(value):
            _check_text(text)
        return value


def kinds_of(field: FieldInfo) -> tuple[Any, ...]:
    """The types that a field takes, None left out: `int | None` takes int, a Literal of words takes str."""
    kinds = (
        get_args(field.annotation) if get_origin(field.annotation) in (Union, types.UnionType) else (field.annotation,)
    )
    return tuple(
        type(get_args(kind)[0]) if get_origin(kind) is Literal else kind for kind in kinds if kind is not type(None)
    )


def input_paths(section: Section) -> dict[str, Path]:
    """The files and folders that the settings of `section` name for reading, by key."""
    fields = type(section).model_fields.items()
    named = {key: getattr(section, key) for key, field in fields if any(isinstance(m, _Reads) for m in field.metadata)}
    return {key: Path(value) for key, value in named.items() if value and not is_address(value)}


def is_address(text: str) -> bool:
    """Whether a path is an address of an object store, such as s3://bucket/folder."""
    return "://" in text


def holds_login(text: str) -> bool:
    """Whether an address holds a key or a password, before an @ ahead of the host or the bucket."""
    scheme, _, rest = text.partition("://")
    host, _, path = rest.partition("/")
    login, at, _ = host.rpartition("@")
    if at:
        return ":" in login or scheme not in USER_SCHEMES
    _, colon, port = host.rpartition(":")
    return "@" in path and bool(colon) and not port.isdigit()  # a secret may hold a slash


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise PydanticCustomError("text_too_long", "must have at most {most} characters", {"most": MAX_TEXT})
    for character in filter(is_forbidden, text):
        raise PydanticCustomError(
            "text_character", "must not hold the character {code}", {"code": f"U+{ord(character):04X}"}
        )


def is_forbidden(character: str) -> bool:
    """Whether no setting and no class name may hold it.

    These are control characters, halves of surrogate pairs, line separators, and code points that are no characters.
    """
    code = ord(character)
    no_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return no_character or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def offered(name: str = "", text: str = "") -> dict[str, JsonValue]:
    """Marks a setting that people set one by one in the Kubeflow UI (`json_schema_extra`), with the name and the text
    it has there; without them its own name and description."""
    return {"offered": {"name": name, "text": text}}


def fault_line(error: ValidationError, model: type[Any] | None = None) -> str:
    """The first fault of `error` in one line: key, value, what is allowed.

    `model`: what was validated, for the names and ranges of its settings.
    """
    faults = error.errors(include_url=False)
    fault = next(
        (item for item in faults if item["type"] == "extra_forbidden"), faults[0]
    )  # a slip of the pen comes first
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    kind, message, value = fault["type"], fault["msg"], f" = {shorten(fault['input'])}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = list(_fields(model, path[:-1]))
        return f"{key} is not a setting{suggest(path[-1], known)}{more}"
    if kind == "missing":
        return f"{key} is missing{more}"
    if kind == "value_error":
        return f"{key}: {fault['ctx']['error']}{more}" if key else f"{fault['ctx']['error']}{more}"
    if kind == "literal_error":
        message = "must be one of " + fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    elif kind == "int_parsing_size":
        message = "must be a whole number" + _range(_fields(model, path[:-1]).get(path[-1]), ", ")
    elif kind == "finite_number":
        message = "must be a finite number"
    elif (stem := kind.partition("_")[0]) in WRONG_KIND and kind.partition("_")[2] in ("type", "parsing", "from_float"):
        message = WRONG_KIND[stem]
    elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        message = _range(_fields(model, path[:-1]).get(path[-1]), "must be ") or message
    message = message.replace("Input should", "must").replace("Input must", "must")
    return f"{key or 'the content'}{value}: {message[0].lower()}{message[1:]}{more}"


def _fields(model: Any, path: Sequence[str]) -> dict[str, FieldInfo]:
    """The settings at `path` below `model`; none if that is not a model."""
    for part in path:
        field = _own_fields(model).get(part)
        model = field.annotation if field else None
    return _own_fields(model)


def _own_fields(model: Any) -> dict[str, FieldInfo]:
    found: dict[str, FieldInfo] = getattr(model, "model_fields", None) or getattr(model, "__pydantic_fields__", {})
    return found


def _range(field: FieldInfo | None, before: str) -> str:
    """The bounds of a number that has two, behind `before`."""
    limits = [
        getattr(item, name)
        for name in ("ge", "le")
        for item in (field.metadata if field else ())
        if hasattr(item, name)
    ]
    return f"{before}from {limits[0]} to {limits[1]}" if len(limits) == 2 else ""


def shorten(value: Any) -> str:
    """`value` as Python writes it, control characters escaped, cut to a line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlevel = 3
    return short.repr(value)


def suggest(wrong: str, known: Sequence[str]) -> str:
    """The end of a line on a name that is not known: the nearest one, or all there are."""
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
