"""Every shipped recipe is a valid params.yaml, and `mdpr recipe` writes it whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from mdpr.commands.projects import recipe as command
from mdpr.data.sources import SOURCES
from mdpr.errors import ConfigError, MdprError
from mdpr.params import SECTIONS, load_params, parse_params
from mdpr.recipes import params_text, read_recipe, recipe_names

NAMES = (
    "cifar10-lt",
    "cifar100-lt",
    "emblems-lt",
    "fashion-mnist-lt",
    "imagenet-lt",
    "inat2018",
    "lift-cifar100",
    "lift-imagenet-lt",
    "lift-places-lt",
    "own-data",
    "places-lt",
)
VARIANTS = [(name, variant) for name in NAMES for variant in (None, *read_recipe(name).all_variants)]


def recipe(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=True)


def test_the_recipes_are_these() -> None:
    assert recipe_names() == sorted(NAMES)
    assert [read_recipe(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_recipe_is_a_whole_and_valid_params_yaml(name: str, variant: str | None, project_root: Path) -> None:
    raw = yaml.safe_load(params_text(read_recipe(name), variant))
    params = parse_params(raw)
    assert list(raw) == list(SECTIONS)
    assert all(set(raw[section]) == set(values) for section, values in params.dump().items())
    prepare, describe = params.prepare, params.describe
    assert prepare.source in SOURCES
    if describe.path.startswith("data/embedded/"):  # the file is shipped, or named before it is
        assert (project_root / describe.path).is_file()


@pytest.mark.parametrize(("provider", "path"), [("curated", "knowledge/own-data.json"), ("llm", "data/prepared")])
def test_a_provider_that_reads_no_file_names_none(provider: str, path: str) -> None:
    overrides = [f"describe.provider={provider}", "describe.llm.model=m"]
    written = yaml.safe_load(params_text(read_recipe("own-data"), None, overrides))
    assert written["describe"]["path"] == path
    named = yaml.safe_load(params_text(read_recipe("own-data"), None, [*overrides, "describe.path=mine.json"]))
    assert named["describe"]["path"] == "mine.json"


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_the_published_setting(name: str) -> None:
    ours, published = (
        parse_params(yaml.safe_load(params_text(read_recipe(name), variant))) for variant in (None, "published")
    )
    tune = published.tune
    assert (tune.router, tune.fusion, tune.base_loss) == ("attention", "mean", "ce")
    assert (tune.loss.semantic, tune.loss.prior_alignment, tune.loss.knowledge_alignment) == (0.1, 0.05, 0.1)
    assert (tune.preset, tune.init, tune.logit_scale, tune.schedule) == ("published", "published", "trained", "epoch")
    assert tune.context_init == ""
    assert not published.encode.normalize
    assert published.prepare == ours.prepare
    assert tune.epochs == ours.tune.epochs


@pytest.mark.parametrize(("name", "augment"), [("cifar100-lt", "pad_crop_flip"), ("places-lt", "wide_crop_flip")])
def test_the_published_augmentation_depends_on_the_data(name: str, augment: str) -> None:
    assert parse_params(yaml.safe_load(params_text(read_recipe(name), "published"))).tune.augment == augment


@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt"])
def test_variants_are_imbalance_ratios(name: str) -> None:
    found = {}
    for variant in read_recipe(name).variants:
        prepare = parse_params(yaml.safe_load(params_text(read_recipe(name), variant))).prepare
        found[variant] = (prepare.imbalance_ratio, prepare.shots_from)
    assert found == {"ir100": (100, None), "ir50": (50, 100), "ir10": (10, 100)}


def test_the_embedded_recipe_is_the_shipped_params_yaml(project_root: Path) -> None:
    text = params_text(read_recipe("fashion-mnist-lt"), None)
    assert parse_params(yaml.safe_load(text)) == load_params(project_root / "params.yaml")


@pytest.mark.parametrize(("name", "data"), [(f"lift-{key}", key) for key in ("imagenet-lt", "places-lt")])
def test_lifts_recipes_cut_the_same_data(name: str, data: str) -> None:
    lift, ours = (parse_params(yaml.safe_load(params_text(read_recipe(key), None))) for key in (name, data))
    assert (lift.prepare, lift.backbone) == (ours.prepare, ours.backbone)
    tune = lift.tune
    assert (tune.prompting, tune.head, tune.head_scale, tune.routing) == ("adaptformer", "cosine", 25, False)
    assert (tune.base_loss, lift.evaluate.test_time) == ("logit_adjusted", "lift")
    assert parse_params(yaml.safe_load(params_text(read_recipe(name), "mdpr"))).tune.routing


def test_published_figures_say_where_they_are_from() -> None:
    figures = {name: read_recipe(name).published for name in NAMES}
    data = {"cifar100-lt", "imagenet-lt", "places-lt"}
    lift = {"lift-cifar100", "lift-imagenet-lt", "lift-places-lt"}
    assert {name for name, items in figures.items() if items} == data | lift
    assert all(item.source and item.method for items in figures.values() for item in items)


def test_list_and_show(project_root: Path) -> None:
    listed = recipe("list")
    assert listed.exit_code == 0
    assert all(name in listed.output for name in NAMES)
    shown = recipe("show", "places-lt")
    assert shown.output == (project_root / "src/mdpr/recipes/places-lt.yaml").read_text()


def test_use_writes_once_and_replaces_only_when_told(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    done = recipe("use", "cifar100-lt", "--variant", "ir50", "--set", "tune.epochs=3", "--params", str(file))
    assert done.exit_code == 0, done.output
    assert load_params(file).tune.epochs == 3
    before = file.read_bytes()
    fails(("use", "cifar10-lt", "--params", str(file)), r"params\.yaml exists: --force replaces it", ConfigError)
    assert file.read_bytes() == before
    assert recipe("use", "cifar10-lt", "--params", str(file), "--force").exit_code == 0
    assert file.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("use", "cifar10lt"), "there is no recipe cifar10lt; did you mean cifar10-lt?"),
        (("show", "../params"), r"there is no recipe \.\./params; there are cifar10-lt, "),
        (("use", "cifar10-lt", "--variant", "ir20"), "has no variant ir20; there are ir100, ir50, ir10"),
        (("use", "own-data", "--variant", "x"), "has no variant x; there are published"),
        (("use", "own-data", "--set", "tune.epoch=1"), r"tune\.epoch is not a setting"),
        (("use", "own-data", "--params", "/proc/no/where.yaml"), r"no/where\.yaml cannot be written: No such file"),
    ],
)
def test_mistakes_write_nothing(
    arguments: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(arguments, message, MdprError)
    assert list(tmp_path.iterdir()) == []


def fails(arguments: Sequence[str], message: str, kind: type[MdprError]) -> None:
    with pytest.raises(kind, match=message) as caught:
        CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert "\n" not in str(caught.value)
