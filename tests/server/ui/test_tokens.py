"""Tokens on the page are those that training learns from; what computes them may die without taking a question along."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Page, asking
from helpers import wait_for

from luthier.config.load import load_config
from luthier.core.errors import LuthierError
from luthier.data.audit import AuditReport
from luthier.data.sources import Source, read_rows
from luthier.server.ui.failures import Refused
from luthier.server.ui.worker import Worker
from luthier.workflows.build import read_preparer
from luthier.workflows.preview import texts_of

CHINESE = {"instruction": "你好，世界 🙂👩‍👩‍👧", "output": "第一行\n\u2028🙂"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Page]:
    """One page for all: its worker reads torch once."""
    folder = tmp_path_factory.mktemp("page")
    os.environ["LUTHIER_CACHE"] = str(folder / "cache")
    with asking(folder) as found:
        shutil.copytree(tiny, folder / "models/tiny")
        lines = [
            json.dumps(CHINESE, ensure_ascii=False),
            "",
            '{"broken": ',
            json.dumps({"instruction": "x" * 90, "output": "y" * 90}),
        ]
        (found.data / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        pair = {"instruction": "tea?", "chosen": "please", "rejected": "no"}
        (found.data / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
        yield found


def values(page: Page, **data: Any) -> dict:
    model = str(page.state.roots.models[0] / "tiny")
    return {"model": {"model_name_or_path": model, "threads": 1}, "data": data}


def ask(page: Page, rows: list[int], status: int = 200, dataset: str = "rows.jsonl", **more: Any) -> Any:
    asked = {"dataset": dataset, "folder": str(page.data), "rows": rows, "values": values(page, **more)}
    return page.post("/data/tokens", asked, status)


def test_tokens_are_those_of_training(page: Page) -> None:
    found = ask(page, [0])
    (row,) = found["rows"]
    (segment,) = row["segments"]
    path = page.data / "rows.jsonl"
    config = load_config({**values(page, dataset=[str(path)])}).config
    preparer = read_preparer(config)
    first = next(read_rows(Source(name="x", path=path)))
    ((unit,),) = preparer.unit_of(first, Source(name="x", path=path), AuditReport())
    assert [piece["id"] for piece in segment["pieces"]] == unit.tokens
    learned = [piece["kind"] == "learned" for piece in segment["pieces"]]
    assert learned == [weight > 0 for weight in unit.weight]
    assert (segment["learned"], segment["read"], segment["cut"]) == (sum(learned), len(learned) - sum(learned), 0)
    text = "".join(piece["text"] for piece in segment["pieces"])
    assert "你好，世界 🙂👩‍👩‍👧" in text
    assert "第一行\n\u2028🙂" in text
    assert text.count("\ufffd") == 0
    assert row["where"] == f"{path}:1"
    assert any(piece["special"] for piece in segment["pieces"])
    assert not all(piece["special"] for piece in segment["pieces"])


def test_what_is_cut_is_shown(page: Page) -> None:
    whole = ask(page, [2])["rows"][0]["segments"][0]
    cut = ask(page, [2], cutoff_len=150)["rows"][0]["segments"][0]
    assert [piece["id"] for piece in cut["pieces"]] == [piece["id"] for piece in whole["pieces"]]
    assert cut["cut"] == len(whole["pieces"]) - 150
    assert [piece["kind"] for piece in cut["pieces"]][-cut["cut"] :] == ["cut"] * cut["cut"]
    kinds = [[piece["kind"] for piece in each["pieces"][:150]] for each in (whole, cut)]
    assert kinds[0] == kinds[1]


def test_rows_without_tokens_say_why(page: Page) -> None:
    broken, left_out = ask(page, [1, 2], cutoff_len=60)["rows"]
    assert (broken["segments"], broken["where"]) == ([], f"{page.data / 'rows.jsonl'}:3")
    assert "not JSON" in broken["problem"]
    assert "no answer token within cutoff_len 60" in left_out["problem"]
    assert {piece["kind"] for piece in left_out["segments"][0]["pieces"]} == {"cut"}
    assert ask(page, [99])["rows"] == []


def test_pairs(page: Page) -> None:
    asked = {"dataset": "pairs.jsonl", "folder": str(page.data), "rows": [0],
             "values": {**values(page), "objective": {"name": "dpo"}}}  # fmt: skip
    (row,) = page.post("/data/tokens", asked)["rows"]
    assert [segment["name"] for segment in row["segments"]] == ["chosen", "rejected"]
    asked["values"]["objective"] = {"name": "rm"}
    (row,) = page.post("/data/tokens", asked)["rows"]
    assert [segment["learned"] for segment in row["segments"]] == [1, 1], "a reward is read at one place"
    assert all(segment["pieces"][-1]["kind"] == "learned" for segment in row["segments"])
    assert "preference rows" in ask(page, [0], 422, dataset="pairs.jsonl")["message"]


def test_what_is_refused(page: Page) -> None:
    assert ask(page, [], 422)["field"] == "rows"
    assert ask(page, list(range(21)), 422)["field"] == "rows"
    assert ask(page, [-1], 422)["field"] == "rows"
    assert ask(page, [0], 404, dataset="gone.jsonl")["code"]
    assert "unknown template" in ask(page, [0], 422, template="nothing")["message"]
    assert ask(page, [0], 422, cutoff_len=-1)["field"] == "data.cutoff_len"


def test_templates_of_a_model(page: Page) -> None:
    model = str(page.state.roots.models[0] / "tiny")
    assert page.get("/templates", model=model)["own"] is True
    page.get("/templates", 404, model="not/here")


def test_a_death_is_a_reply(page: Page) -> None:
    worker = page.state.worker
    ask(page, [0])
    process = worker._quick._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    time.sleep(0.2)
    assert ask(page, [0])["rows"], "a fresh one answers"


def test_a_child_that_dies_while_it_answers(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log")
    try:
        found: list[Refused] = []

        def put() -> None:
            try:
                worker.ask("templates", 30.0, model="nothing/here")
            except Refused as error:
                found.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        while worker._quick._process is None:
            time.sleep(0.01)
        worker._quick._process.send_signal(signal.SIGKILL)
        thread.join(10)
        assert [(error.status, error.code) for error in found] == [(503, "worker_died")]
        assert "memory ran out" in str(found[0])
        with pytest.raises(Refused, match="longer than 0 seconds"):
            worker.ask("templates", 0.05, model="nothing/here")
        with pytest.raises(LuthierError) as told:
            worker.ask("templates", 60.0, model=str(tmp_path / "nothing"))
        assert told.value.code != "worker_failed"
        with pytest.raises(Refused) as unknown:
            worker.ask("no_such_task", 30.0)
        assert unknown.value.status == 500
    finally:
        worker.close()
    assert worker._quick._process is None
    with pytest.raises(Refused, match="server ends"):
        worker.ask("templates", 5.0, model="m")


def test_children_are_ready_before_they_are_asked(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        worker = page.state.worker
        page.get("/form")
        assert worker._slow._process is worker._quick._process is None, "only where it is wanted"
        page.state.warm = True
        page.get("/form")
        wait_for(lambda: all(_loaded(child) for child in (worker._slow, worker._quick)), seconds=120)
        before = worker._slow._process
        page.get("/form")
        worker.ask("warm", 60)
        assert (worker._slow._process, before.poll()) == (before, None)


def _loaded(child: Any) -> bool:
    """Tell whether a child has torch, as the files show that it has open."""
    process = child._process
    return process is not None and "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_child_ends_when_nobody_asks(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log", idle_seconds=0.2)
    with pytest.raises(LuthierError):
        worker.ask("templates", 60.0, model=str(tmp_path / "nothing"))
    until = time.monotonic() + 10
    while worker._quick._process is not None:
        assert time.monotonic() < until
        time.sleep(0.02)
    worker.close()


def test_a_child_ends_with_its_server(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log")
    with pytest.raises(LuthierError):
        worker.ask("templates", 60.0, model=str(tmp_path / "nothing"))
    process = worker._quick._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # as when the server is killed
    assert process.wait(10) == 0
    worker.close()


def test_characters_stand_at_their_last_token() -> None:
    class Bytes:
        def decode(self, tokens: list[int], **_: object) -> str:
            return bytes(tokens).decode("utf-8", "replace")

    text = "a🙂你"
    pieces = texts_of(list(text.encode()), Bytes())
    assert pieces == ["a", "", "", "", "🙂", "", "", "你"]
    assert "".join(texts_of(list("你".encode()[:2]), Bytes())) == "\ufffd", "half a character is not hidden"
