"""The page's interface without a socket: an application in this process, and somebody who is let in."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from luthier.server.ui.app import make_app
from luthier.server.ui.run import Options, make_state
from luthier.server.ui.state import State


@dataclass
class Page:
    """An application, and a client that has its token."""

    state: State
    http: TestClient
    data: Path

    @property
    def uploads(self) -> Path:
        return self.state.roots.uploads

    def get(self, path: str, status: int = 200, **params: Any) -> Any:
        return self._read(self.http.get(f"/api{path}", params=params), status)

    def post(self, path: str, body: Any, status: int = 200, **params: Any) -> Any:
        return self._read(self.http.post(f"/api{path}", json=body, params=params), status)

    def put(self, path: str, body: Any, status: int = 200, **params: Any) -> Any:
        given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self._read(self.http.put(f"/api{path}", params=params, **given), status)

    def delete(self, path: str, status: int = 200) -> Any:
        return self._read(self.http.delete(f"/api{path}"), status)

    @staticmethod
    def _read(response: Any, status: int) -> Any:
        assert response.status_code == status, response.text
        found = response.json()
        return found["error"] if status >= 400 else found


@contextmanager
def asking(folder: Path, **options: Any) -> Generator[Page]:
    """Serve the folders `runs`, `data` and `models` of a folder."""
    for name in ("runs", "data", "models"):
        (folder / name).mkdir(exist_ok=True)
    state = make_state(
        Options(
            runs=folder / "runs",
            data=[folder / "data"],
            models=[folder / "models"],
            token_file=folder / "token",
            **options,
        )
    )
    headers = {"Authorization": f"Bearer {state.token}", "X-Luthier": "1"}
    with TestClient(make_app(state), base_url="http://127.0.0.1", headers=headers) as http:
        yield Page(state, http, folder / "data")
