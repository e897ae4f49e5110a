"""The token and who has shown it."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import httpx
import pytest
from asking import asking
from listening import listening

from luthier.core.errors import ConfigError
from luthier.server.ui import session
from luthier.server.ui.session import Sessions, default_token_file

FORM = {"X-Luthier": "1"}


def test_the_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "config/luthier/token"
    first = Sessions(path)
    assert len(first.token) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Sessions(path).token == first.token
    assert first.is_token(first.token)
    assert not any(
        first.is_token(each) for each in ("", first.token[:-1], first.token + " ", first.token.lower(), "\udcff")
    )


def test_a_token_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="at least 22"):
        Sessions(path)
    path.write_text("a-token-of-my-own-which-is-long\n")
    assert Sessions(path).token == "a-token-of-my-own-which-is-long"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Sessions(path)


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_token_file() == tmp_path / "luthier/token"


def test_signing_in_with_a_cookie_and_out_again(tmp_path: Path) -> None:
    with listening(tmp_path) as live, httpx.Client(base_url=live.url, headers=FORM) as browser:
        assert browser.get("/api/runs").status_code == 401
        reply = browser.post("/api/session", json={"token": live.state.token})
        assert reply.json()["authenticated"] is True
        cookie = reply.headers["set-cookie"]
        assert all(each in cookie for each in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert live.state.token not in cookie + reply.text
        assert browser.get("/api/runs").status_code == 200
        assert browser.get("/api/session").json()["runs_root"] == str(live.state.roots.runs)
        kept = dict(browser.cookies)
        browser.delete("/api/session")
        assert browser.get("/api/runs").status_code == 401
        assert httpx.get(f"{live.url}/api/runs", cookies=kept).status_code == 401


def test_folders_are_those_that_were_declared(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        about = page.get("/session")
        assert about["data_roots"] == [str(page.uploads), str(page.data)]


def test_a_session_outlives_the_server_and_not_a_fresh_token(tmp_path: Path) -> None:
    with listening(tmp_path) as live:
        cookies = dict(httpx.post(f"{live.url}/api/session", json={"token": live.state.token}, headers=FORM).cookies)
    files = [path.read_text() for path in tmp_path.iterdir() if path.is_file() and path.name != "token"]
    assert files
    assert not any(value in text for text in files for value in cookies.values())
    with listening(tmp_path) as live:
        assert httpx.get(f"{live.url}/api/runs", cookies=cookies).status_code == 200
        old = live.headers
        reply = httpx.post(f"{live.url}/api/session/token", cookies=cookies, headers=FORM)
        assert httpx.get(f"{live.url}/api/runs", cookies=cookies).status_code == 401
        assert httpx.get(f"{live.url}/api/runs", headers=old).status_code == 401
        assert httpx.get(f"{live.url}/api/runs", cookies=dict(reply.cookies)).status_code == 200
        fresh = {"Authorization": f"Bearer {reply.json()['token']}"}
        assert httpx.get(f"{live.url}/api/runs", headers=fresh).status_code == 200


def test_servers_that_share_a_token_file_share_its_sessions(tmp_path: Path) -> None:
    one, other = Sessions(tmp_path / "token"), Sessions(tmp_path / "token")
    cookie = one.start()
    assert other.knows(cookie)
    other.rotate()
    assert not one.knows(cookie)
    assert one.token == other.token


def test_sessions_end_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(tmp_path / "token")
    first = sessions.start()
    for _ in range(session.MOST_SESSIONS):
        sessions.start()
    assert not sessions.knows(first)
    last = sessions.start()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + session.SESSION_SECONDS + 1)
    assert not sessions.knows(last)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "b"}', "\0"])
def test_damaged_sessions_let_nobody_in(tmp_path: Path, text: str) -> None:
    sessions = Sessions(tmp_path / "token")
    (tmp_path / "token.sessions").write_text(text)
    assert not sessions.knows("a")
    assert sessions.knows(sessions.start())


def test_wrong_tokens_are_slowed_and_the_right_one_is_not(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        waits: list[float] = []
        for _ in range(4):
            began = time.monotonic()
            assert page.http.post("/api/session", json={"token": "wrong"}).status_code == 401
            waits.append(time.monotonic() - began)
        assert waits[3] > 0.7 > waits[0]
        began = time.monotonic()
        assert page.http.post("/api/session", json={"token": page.state.token}).status_code == 200
        assert time.monotonic() - began < 0.5


def test_the_table_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr(session.asyncio, "sleep", at_once)
    slowness = session.Slowness()

    async def fail() -> None:
        for number in range(session.MOST_ADDRESSES + 50):
            await slowness.after_failure(f"10.0.{number // 256}.{number % 256}")

    asyncio.run(fail())
    assert len(slowness._failures) == session.MOST_ADDRESSES


def test_the_token_is_nowhere_but_in_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(tmp_path) as live:
        for path in ("/api/runs", "/api/session", "/api/nothing", f"/api/runs/{live.state.token}", "/"):
            reply = httpx.get(f"{live.url}{path}", headers=live.headers)
            assert reply.headers["referrer-policy"] == "no-referrer"
        httpx.post(f"{live.url}/api/session", json={"token": live.state.token, "x": 1}, headers=FORM)
        token = live.state.token.encode()
    assert token.decode() not in caplog.text
    for place, _, names in os.walk(tmp_path):
        for name in names:
            if name != "token":
                assert token not in (Path(place) / name).read_bytes(), name


def test_sessions_of_an_old_token_are_stale_wherever_they_are_kept(tmp_path: Path) -> None:
    path, kept = tmp_path / "token", tmp_path / "token.sessions"
    one, other = Sessions(path), Sessions(path)
    cookie = one.start()
    assert other.knows(cookie)
    before = kept.read_bytes()
    one.rotate()
    assert not any(each.knows(cookie) for each in (one, other))
    kept.write_bytes(before)  # as where the disk was too full to write it anew
    assert not any(each.knows(cookie) for each in (one, other, Sessions(path)))
    fresh = one.start()
    assert other.knows(fresh)
