"""Whether the hub can be asked."""

import socket
import time

import datasets.config
import pytest
from huggingface_hub import constants

from luthier.core import hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub.look_for_hub.cache_clear()
    yield
    hub.look_for_hub.cache_clear()


def unknown(*_: object) -> list[object]:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_hub_that_is_not_found_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("luthier.core.log.logger.propagate", True)
    assert not hub.look_for_hub()
    assert constants.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    assert {text.split(":")[0] for text in caplog.messages} == {"huggingface.co cannot be found from here"}


def test_a_resolver_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(30))
    monkeypatch.setattr(hub, "LOOK_SECONDS", 0.05)
    began = time.monotonic()
    assert not hub.look_for_hub()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("how", ["found", "proxy"])
def test_a_hub_that_may_be_there_is_asked(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "proxy":
        monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setattr(socket, "getaddrinfo", unknown if how == "proxy" else lambda *_: ["an address"])
    assert hub.look_for_hub()
    assert not constants.HF_HUB_OFFLINE
