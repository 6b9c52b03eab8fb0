"""Who Git and DVC think runs them (tests/integration/test_data_dvc.py pulls real data)."""

import os
import pwd
import tempfile

import pytest

from mdpr.data.dvc_origin import name_user


def test_a_uid_without_an_entry_in_passwd_gets_a_name_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = max(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid < 60_000) + 1
    monkeypatch.setattr(os, "getuid", lambda: unknown)
    for name in ("LOGNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    name_user()
    assert (os.environ["LOGNAME"], os.environ["HOME"]) == (f"uid{unknown}", tempfile.gettempdir())
    monkeypatch.setenv("HOME", "/elsewhere")
    name_user()
    assert os.environ["HOME"] == "/elsewhere"


def test_a_user_with_an_entry_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGNAME", raising=False)
    name_user()
    assert "LOGNAME" not in os.environ
