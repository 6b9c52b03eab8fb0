"""Versions and aliases of the registry, on a real sqlite store."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mdpr.errors import ConfigError, TrackingError
from mdpr.mlops import registry as registry_module
from mdpr.mlops.promotions import move_champion
from mdpr.mlops.registry import CHAMPION, PREVIOUS, PROMOTION_LOG_TAG, Registry, find_champion, registry_rows
from mdpr.mlops.store import Store
from mdpr.params import parse_params


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, "shoes")


def make_versions(registry: Registry, count: int) -> list[str]:
    client = registry.store.client
    experiment_id = client.create_experiment("shoes")
    run_id = client.create_run(experiment_id).info.run_id
    models = [client.create_logged_model(experiment_id, "model", run_id) for _ in range(count)]
    return [
        registry.create(model.model_id, f"digest-{number}", {"n": str(number)}).number
        for number, model in enumerate(models)
    ]


def number_behind(registry: Registry, alias: str) -> str | None:
    version = registry.get_by_alias(alias)
    return version.number if version else None


def test_an_empty_registry_has_no_champion(registry: Registry) -> None:
    assert registry.get_by_alias(CHAMPION) is None
    assert registry.find_by_digest("any") is None
    make_versions(registry, 1)
    assert registry.get_by_alias(CHAMPION) is None  # the model is there now, the alias is not
    with pytest.raises(TrackingError, match=r"version 7 of shoes is not in this MLflow registry: run register"):
        registry.get("7")


def test_a_digest_has_one_version(registry: Registry) -> None:
    first, second = make_versions(registry, 2)
    found = registry.find_by_digest("digest-1")
    assert found is not None
    assert (found.number, found.tags["n"]) == (second, "1")
    again = registry.create(found.source.removeprefix("models:/"), "digest-1", {"n": "other"})
    assert again == found
    versions = registry.store.client.search_model_versions("name = 'shoes'")
    assert sorted(str(item.version) for item in versions) == [first, second]


def test_the_champion_before_becomes_previous(registry: Registry) -> None:
    first, second = make_versions(registry, 2)
    move_champion(registry, first, expected=None)
    assert (number_behind(registry, CHAMPION), number_behind(registry, PREVIOUS)) == (first, None)
    move_champion(registry, second, expected=first)
    assert (number_behind(registry, CHAMPION), number_behind(registry, PREVIOUS)) == (second, first)


def test_a_stale_promotion_changes_nothing(registry: Registry) -> None:
    first, second = make_versions(registry, 2)
    move_champion(registry, first, expected=None)
    with pytest.raises(TrackingError, match=r"champion of shoes is version 1, not none.*run promote again"):
        move_champion(registry, second, expected=None)
    assert (number_behind(registry, CHAMPION), number_behind(registry, PREVIOUS)) == (first, None)


def test_of_simultaneous_promotions_one_wins(registry: Registry) -> None:
    numbers = make_versions(registry, 6)
    start = threading.Barrier(len(numbers))

    def promote(number: str) -> str:
        start.wait()
        try:
            move_champion(registry, number, expected=None)
        except TrackingError as error:
            return str(error)
        return number

    with ThreadPoolExecutor(len(numbers)) as pool:
        answers = list(pool.map(promote, numbers))
    winners = [answer for answer in answers if answer in numbers]
    assert sum("someone else promoted" in answer for answer in answers) == len(numbers) - 1
    assert len(winners) == 1
    assert number_behind(registry, CHAMPION) == winners[0]


def test_waiting_for_the_lock_ends(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "LOCK_TIMEOUT_S", 0.1)
    with (
        registry.locked(),
        pytest.raises(TrackingError, match=r"mlflow\.db\.lock is held"),
        registry.locked(),
    ):
        pass


def test_tags_and_card_are_kept(registry: Registry) -> None:
    (number,) = make_versions(registry, 1)
    registry.annotate(number, {"mdpr.test.fused.all": "0.8"}, "# Card")
    version = registry.get(number)
    assert version.card == "# Card"
    assert version.tags["mdpr.test.fused.all"] == "0.8"
    assert version.tags["n"] == "0"


def test_figures_are_shown_and_what_is_no_number_is_left_out(registry: Registry) -> None:
    first, second = make_versions(registry, 2)
    registry.annotate(first, {"mdpr.test.percent": '{"all": 80, "few": 70.0, "ece": 2.1, "nll": 0.5}'}, "")
    registry.annotate(second, {"mdpr.test.percent": '{"all": 81.5}'}, "")
    shown = [[row["all"], row["few"], row["ece"]] for row in registry_rows(registry)]
    assert shown == [[81.5, None, None], [80, 70, 2.1]]
    registry.set_alias(CHAMPION, first)
    champion = find_champion("shoes")
    assert champion is not None
    assert champion.figures() == {"all": 80, "few": 70, "ece": 2.1, "nll": 0.5}
    registry.annotate(first, {"mdpr.test.percent": '{"all": "80 %", "few": null, "ece": 2.1}'}, "")  # by a person
    assert [registry_rows(registry)[1][name] for name in ("all", "few", "ece")] == [None, None, 2.1]


@pytest.mark.parametrize("name", ["team/mdpr", "a:b", "it's", 'a "b"', "x\ny", "", " ", "..", "a" * 10_000])
def test_a_name_that_the_registry_cannot_take_is_refused_with_the_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.model_name") as caught:
        parse_params({"tracking": {"model_name": name}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alias", ["champion", "previous", "Latest", "v3", "a b", "a/b", "é", "x\ny", "", "a" * 10_000])
def test_an_alias_that_is_not_free_is_refused_with_the_settings(alias: str) -> None:
    with pytest.raises(ConfigError, match=r"register\.alias") as caught:
        parse_params({"register": {"alias": alias}})
    assert "\n" not in str(caught.value)


def test_promotion_logs_stand_apart_from_training_runs(registry: Registry) -> None:
    make_versions(registry, 1)
    client = registry.store.client
    (run,) = client.search_runs([client.get_experiment_by_name("shoes").experiment_id])
    assert "promotion_log" not in " ".join(run.data.tags)
    model = client.get_registered_model("shoes")
    log = client.get_run(model.tags[PROMOTION_LOG_TAG])
    assert client.get_experiment(log.info.experiment_id).name != "shoes"
    assert "champion" in model.description
