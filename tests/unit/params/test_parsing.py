"""params.yaml and the command line: every fault is one line that names the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mdpr.errors import ConfigError
from mdpr.params import SECTIONS, apply_overrides, choices, dump_yaml, load_params, parse_params, parse_yaml, read_yaml
from mdpr.params.section import MAX_TEXT, kinds_of

INFINITE = ("tune.loss.tau", "prepare.imbalance_ratio", "describe.llm.timeout_s", "describe.llm.input_usd_per_million")


def test_the_shipped_params_are_valid_and_name_every_section(project_root: Path) -> None:
    assert set(read_yaml(project_root / "params.yaml")) == set(SECTIONS)
    params = load_params(project_root / "params.yaml")
    assert set(params.dump()) == set(SECTIONS)
    assert parse_params(parse_yaml(dump_yaml(params.dump()), "dumped")) == params


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.epoch=5", r"^tune\.epoch is not a setting; did you mean epochs\?$"),
        ("tuna.epochs=5", r"^tuna is not a section of params\.yaml; did you mean tune\?$"),
        ("tune.epochs=0", r"^tune\.epochs = 0: must be from 1 to 1000000$"),
        ("tune.epochs=many", r"^tune\.epochs = 'many': must be a whole number$"),
        ("tune.base_loss=cee", r"^tune\.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, "),
        ("tune.loss.semantics=1", r"^tune\.loss\.semantics is not a setting; did you mean semantic\?$"),
        ("prepare.few_below=500", r"^prepare: few_below = 500 must not exceed many_above = 100$"),
        ("probe.templates=['a photo']", r"^probe\.templates\.0 = 'a photo': string should match pattern"),
        ("epochs=5", r"^override 'epochs=5' must read section\.key=value"),
        ("tune.epochs", r"^override 'tune\.epochs' must read section\.key=value"),
        ("tune.epochs.x=5", r"epochs is a value, not a section"),
        ("tune.epochs=[", r"^override 'tune\.epochs=\[' is not valid YAML"),
        # another kind of value
        ("tune.epochs=true", r"^tune\.epochs = True: must be a whole number$"),
        ("tune.epochs=yes", r"^tune\.epochs = 'yes': must be a whole number$"),
        ("tune.epochs=4.5", r"^tune\.epochs = 4\.5: must be a whole number$"),
        ("tune.learning_rate=false", r"^tune\.learning_rate = False: must be a number$"),
        ("tune.routing=1", r"^tune\.routing = 1: must be true or false$"),
        ("tune.routing='0'", r"^tune\.routing = '0': must be true or false$"),
        ("tune.loss=3", r"^tune\.loss = 3: must hold keys of its own$"),
        # numbers that others read differently, that are not finite, or out of range
        ("tune.epochs=010", r"010 may be octal or decimal: write 10"),
        ("tune.epochs=1:30", r"1:30 may be minutes or text"),
        ("tune.learning_rate=.inf", r"^tune\.learning_rate = inf: must be a finite number$"),
        ("tune.learning_rate=nan", r"^tune\.learning_rate = 'nan': must be a finite number$"),
        ("tune.learning_rate=1e999", r"^tune\.learning_rate = inf: must be a finite number$"),
        *((f"{key}=.inf", f"^{key} = inf: must be ") for key in INFINITE),
        (f"tune.seed={'9' * 5000}", r"^tune\.seed = '9+\.\.\.9+': must be a whole number, from 0 to 4294967295$"),
        (f"tune.epochs={10**30}", r"^tune\.epochs = 1000000000000000000000000000000: must be from 1 to 1000000$"),
        (f"tune.seed={10**40}", "must be from 0 to 4294967295$"),
        (f"tune.batch_size={10**12}", "must be from 1 to 1000000$"),
        (f"tune.workers={10**6}", "must be from 0 to 1024$"),
        # text that cannot be used
        ("tune.context_init=a\x07", r"^tune\.context_init = 'a\\x07': must not hold the character U\+0007$"),
        ("tune.context_init=\ud800", r"^tune\.context_init = '\\ud800': must not hold the character U\+D800$"),
        ("tracking.experiment=a\nb", r"must not hold the character U\+000A$"),
        ("prepare.root=a\0b", r"must not hold the character U\+0000$"),
        ('probe.templates=["{} \\ufffe"]', r"must not hold the character U\+FFFE$"),
        ("tracking.experiment=a\ufdd0", r"must not hold the character U\+FDD0$"),
        (f"tune.context_init={'a' * (MAX_TEXT + 1)}", f"must have at most {MAX_TEXT} characters$"),
        ("tracking.model_name=team/mdpr", r"^tracking\.model_name: 'team/mdpr' must be letters"),
        ("tracking.model_name=a:b", r"^tracking\.model_name: 'a:b' must be letters"),
        (f"tracking.model_name={'a' * 10_000}", "should have at most 255 characters$"),
        ("register.alias=a/b", r"^register\.alias: 'a/b' must be letters"),
        ("tune.epochs=" + "[" * 900 + "]" * 900, "is nested too deeply$"),
        ("tune.epochs=" + "[" * 50_000, "is nested too deeply$"),
    ],
)
def test_faults_in_one_line(project_root: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(project_root / "params.yaml", [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("tune.epochs=0x10", 16),
        ("tune.epochs=1_0", 10),
        ("tune.epochs='5'", 5),
        ("tune.epochs=5.0", 5),
        ("tune.epochs= 5", 5),
        ("tune.epochs=1e0", 1),
        ("tune.learning_rate=1e-3", 0.001),
        ("tune.learning_rate=1E-6", 0.000001),
        ("tune.learning_rate=.5", 0.5),
        ("tune.learning_rate=+1e3", 1000.0),
        ("tune.routing=no", False),
        ("tune.routing=FALSE", False),
        ("tune.micro_batch_size=", None),
        ("tune.context_init=", ""),
        ("prepare.root=/data/set #2", "/data/set #2"),
        ("prepare.root='/data/set #2'", "/data/set #2"),
        *((f"prepare.root={text}", text) for text in ("a: b", "*x", "&x", "!x", "@x", "[a photo of {}]", "on", "2024")),
        ("validate.near_duplicates=off", "off"),
    ],
)
def test_an_override_is_read_as_its_setting_takes_it(override: str, value: Any) -> None:
    section, _, key = override.partition("=")[0].partition(".")
    read = getattr(parse_params(apply_overrides({}, [override])).section(section), key)
    assert (read, type(read)) == (value, type(value))


def numbers(model: type[BaseModel], inside: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers(field.annotation, f"{inside}.{name}")
        elif set(kinds_of(field)) & {int, float}:
            yield f"{inside}.{name}", field


NUMBERS = dict(found for name, model in SECTIONS.items() for found in numbers(model, name))


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_refuses_a_switch_and_infinity(key: str) -> None:
    for value in ("true", ".inf", "-.inf", ".nan"):
        with pytest.raises(ConfigError, match=f"^{key} = "):
            parse_params(apply_overrides({}, [f"{key}={value}"]))


@pytest.mark.parametrize("key", [key for key, field in NUMBERS.items() if int in kinds_of(field)])
def test_every_whole_number_has_a_range(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} = \d+: must be from \d+ to \d+$"):
        parse_params(apply_overrides({}, [f"{key}={10**30}"]))


def test_nothing_to_learn_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="leave nothing to learn"):
        parse_params({"tune": {"prompting": "none", "routing": False}})


def test_overrides_leave_the_original_alone_and_sections_frozen() -> None:
    raw = {"tune": {"epochs": 3}}
    assert apply_overrides(raw, ["tune.epochs=5", "prepare.seed=1"]) == {"tune": {"epochs": 5}, "prepare": {"seed": 1}}
    assert raw == {"tune": {"epochs": 3}}
    params = parse_params(raw)
    with pytest.raises(ValueError, match="frozen"):
        params.tune.epochs = 4  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        params.tune = params.tune  # type: ignore[misc]


def test_a_section_that_is_empty_has_its_defaults() -> None:
    assert parse_params({"tune": None}) == parse_params({})


def test_the_choices_of_the_ui_are_marked_settings() -> None:
    found = choices()
    assert len(found) == len({choice.key for choice in found.values()})
    assert (found["data_repo"].key, found["llm_model"].key) == ("prepare.repo", "describe.llm.model")
    assert {type(choice.kind) for choice in found.values()} == {type}
    assert {choice.kind for choice in found.values()} == {str, bool, int, float}
    assert all(choice.text.endswith(".") for choice in found.values())
