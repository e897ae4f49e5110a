"""What the server says is there in Chinese, and leaves in Chinese where that is asked for."""

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from json import decoder
from pathlib import Path
from types import ModuleType

import fastapi.routing
import pytest
from asking import asking
from pydantic_core._pydantic_core import list_all_errors
from yaml import composer, parser, reader, scanner

from luthier.runs.health import RULES, Finding
from luthier.server.ui.catalogue import messages
from luthier.server.ui.run_detail import _found
from luthier.server.ui.said import language_of, said, said_within, speaking

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "src/luthier/server/ui/words/messages"
PLACE = re.compile(r"\{(\d*)(?::(?:word|list))?\}")
ODD = ("'.*'", "'{0}{}'", "'<b>x</b>'", r"'\d+\\'", "'a; b: c (d'", "'e\u4e2df'", "'there is no run called'", "'$1 %s'")
"""What users may call something, as it stands in a message."""


@pytest.fixture(scope="module")
def finder() -> Iterator[ModuleType]:
    """docs/make_messages.py, whose neighbour it imports."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield importlib.import_module("make_messages")
    sys.path.remove(str(ROOT / "docs"))


def catalogues() -> dict[str, dict[str, str]]:
    return {path.name[:-8]: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.zh.json")}


def filled(template: str, values: list[str]) -> str:
    parts = template.split("{}")
    return parts[0] + "".join(value + part for value, part in zip(values, parts[1:], strict=True))


def translated(translation: str, values: list[str]) -> str:
    numbers = iter(range(len(values)))
    return PLACE.sub(lambda place: values[int(place[1] or next(numbers))], translation)


# ---- the catalogues


def test_every_message_has_a_translation(finder: ModuleType) -> None:
    missing = {
        package: [text for text in texts if text not in messages()] for package, texts in finder.needed().items()
    }
    missing = {package: texts for package, texts in missing.items() if texts}
    assert missing == {}, f"python docs/make_messages.py --missing prints what to add to {FOLDER}"
    assert sum(map(len, finder.needed().values())) > 1000


def test_messages_are_found_through_variables_parameters_and_functions(finder: ModuleType) -> None:
    found = {text for texts in finder.needed().values() for text in texts}
    assert "there is no {} called {} here" in found  # a function that returns an error
    assert "the queue is held" in found  # a variable, through a loop and a table of reasons
    assert "; did you mean {}?" in found  # put into another message
    assert "the disk was full: {}" in found  # a table, and `format`
    assert "the model does not learn these rows" in found  # a record
    assert "expected a whole number" in found  # a table of another module


def test_no_translation_is_left_over(finder: ModuleType) -> None:
    left = {name: list(filter(finder.is_left_over, entries)) for name, entries in catalogues().items()}
    left.pop("libraries")
    assert {name: texts for name, texts in left.items() if texts} == {}


def test_what_libraries_say_is_what_they_say() -> None:
    sources = [inspect.getsource(each) for each in (scanner, parser, composer, reader, decoder)]
    sources += [inspect.getsource(fastapi.routing), *map(os.strerror, range(1, 134))]
    sources += [each["message_template_python"] for each in list_all_errors()]
    told = "\n".join(sources).replace("\\\\", "\\").lower()
    joints = (" line ", " column ", "(char ", ")", ", found ")
    for template in catalogues()["libraries"]:
        for literal in re.split("|".join(map(re.escape, ("{}", *joints))), template):
            assert literal.strip(": ").lower() in told, template


def test_places_agree() -> None:
    for template, translation in messages().items():
        there = template.count("{}")
        numbers = [place[1] for place in PLACE.finditer(translation)]
        assert len({bool(each) for each in numbers}) <= 1, f"numbers in some places only: {template}"
        used = {int(each or place) for place, each in enumerate(numbers)}
        unused = set(range(there)) - used
        parts = template.split("{}")
        plural = {place for place in range(there) if parts[place][-1:].isalpha()}
        assert used <= set(range(there)), template
        assert unused <= plural or template in catalogues()["libraries"], f"{template}: {unused} are lost"


def test_translations_are_chinese() -> None:
    for template, translation in messages().items():
        if translation not in ("", template):
            assert re.search(r"[一-鿿，。；：（）]", translation), template
        bare = re.sub(r"`[^`]*`|\[[^\]]*\]|\([a-z, *.]+\)", "", translation)
        assert not re.search(r"[一-鿿] *[,;!?(]", bare), f"punctuation: {translation}"
    same = [template for template, translation in messages().items() if translation == template]
    commands = re.compile(r"pip install|: true$")
    assert [each for each in same if len(re.findall("[a-z]{4,}", each)) > 2 and not commands.search(each)] == []


def test_one_text_has_one_translation() -> None:
    found: dict[str, set[str]] = {}
    for entries in catalogues().values():
        for template, translation in entries.items():
            found.setdefault(template, set()).add(translation)
    assert {template: told for template, told in found.items() if len(told) > 1} == {}


# ---- what becomes of a message


def test_what_users_wrote_stays_byte_for_byte() -> None:
    """Every template, with odd names in its places: the translation holds them as they are."""
    wrong = []
    for template, translation in messages().items():
        if "\n" in template or template.count("{}") > len(ODD):
            continue
        before = [part[-1:].isalpha() for part in template.split("{}")[:-1]]
        values = ["" if after_word else name for after_word, name in zip(before, ODD, strict=False)]
        found = said(filled(template, values), "zh")
        lost = [value for number, value in enumerate(values) if value not in found and f"{{{number}" in translation]
        is_a_part = template != template.strip() or sum(map(str.isalpha, template)) < 8
        if lost or not (is_a_part or found == translated(translation, values)):
            wrong.append(f"{template}: {found}")
    assert wrong == [], "\n".join(wrong)


def test_messages_within_messages() -> None:
    told = said("settings.yaml:3: learning_rate: expected a number, found text 'a; b or c'; did you mean 'x, y'?", "zh")
    assert "应为数字" in told.replace(" ", "")
    assert "文本 'a; b or c'" in told
    assert told.endswith("；是否想写 'x, y'？")
    assert told.startswith("settings.yaml:3")


def test_lines_are_said_one_by_one() -> None:
    first, second = "there is no run called 'a' here", "the queue is held"
    assert said(f"{first}\n{second}", "zh").split("\n") == [said(first, "zh"), said(second, "zh")]


@pytest.mark.parametrize(
    "text", ["", "violin-2", "a run of mine", "/data/runs is big", "x" * 30_000, "中文", "{}", "(; : ,"]
)
def test_what_is_no_message_stays_as_it_is(text: str) -> None:
    assert said(text, "zh") == text
    assert said(text, "en") == text


def test_words_of_states_and_lists() -> None:
    told = said("cancel: violin is running; it would have to be held or queued", "zh")
    assert "运行中" in told
    assert "已搁置 或 排队中" in told
    assert "violin" in told


def test_a_long_text_of_nothing_but_marks_does_not_take_long() -> None:
    """Work is bounded by the length of a text; without the bound this would not end."""
    text = ("the same row: is not; here, and (" * 700)[:19_000]
    assert len(said(text, "zh")) > 1000


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh", "zh"),
        ("zh-CN,zh;q=0.9,en", "zh"),
        ("ZH-Hant", "zh"),
        ("en-US,zh", "en"),
        ("", "en"),
        ("*", "en"),
        ("zhx", "en"),
    ],
)
def test_the_language_is_the_first_one(header: str, language: str) -> None:
    assert language_of(header) == language


def test_results_are_said_by_their_keys() -> None:
    result = {"checks": [{"name": "the queue is held", "found": "the queue is held"}], "n": 1, "message": None}
    with speaking("zh"):
        told = said_within(result, frozenset({"found", "message"}))
    assert told == {"checks": [{"name": "the queue is held", "found": "队列已暂停"}], "n": 1, "message": None}
    assert said("the queue is held") == "the queue is held"


# ---- what is sent


CHINESE = {"Accept-Language": "zh-CN"}


def test_replies_are_in_the_language_that_is_asked_for(tmp_path: Path) -> None:
    name = "<b>.*{0}"
    with asking(tmp_path) as page:
        english = page.http.get(f"/api/runs/{name}").json()["error"]
        chinese = page.http.get(f"/api/runs/{name}", headers=CHINESE).json()["error"]
        others = page.http.get(f"/api/runs/{name}", headers={"Accept-Language": "de, zh"}).json()["error"]
    assert english["message"] == f"there is no run called '{name}' here"
    assert others == english
    assert chinese == {**english, "message": f"这里没有名为 '{name}' 的训练"}


def test_settings_are_judged_in_chinese(tmp_path: Path) -> None:
    body = {"yaml": "model_name_or_path: m\nlearning_rate: fast\nlora_rnak: 3\neval_dataset: x\nval_size: 0.1\n"}
    with asking(tmp_path) as page:
        english = page.http.post("/api/config/look", json=body).json()["problems"]
        chinese = page.http.post("/api/config/look", json=body, headers=CHINESE).json()["problems"]
    assert [{**each, "message": ""} for each in chinese] == [{**each, "message": ""} for each in english]
    assert all(re.search("[一-鿿]", each["message"]) for each in chinese), chinese
    assert not any(re.search("[一-鿿]", each["message"]) for each in english), english
    assert any("'fast'" in each["message"] for each in chinese)


def test_requests_and_paths_are_refused_in_chinese(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        replies = [
            page.http.get("/api/nothing", headers=CHINESE),
            page.http.post("/api/jobs", json={"kind": "bake"}, headers=CHINESE),
            page.http.post("/api/jobs", content=b"{", headers={**CHINESE, "Content-Type": "application/json"}),
            page.http.get("/api/runs", headers={**CHINESE, "Host": "evil.example"}),
            page.http.get("/api/runs", params={"since": "yesterday"}, headers=CHINESE),
            page.http.post("/api/jobs", json={}, headers={**CHINESE, "X-Luthier": ""}),
            page.http.get("/api/session/token", headers=CHINESE),
        ]
    for reply in replies:
        assert reply.status_code >= 400
        for problem in reply.json()["problems"]:
            assert re.search("[一-鿿]", problem["message"]), problem


def test_a_job_that_waits_says_why_in_chinese(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        page.http.patch("/api/queue", json={"holding": True})
        (tmp_path / "data/rows.jsonl").write_text('{"text": "the queue is held"}\n')
        body = {"request_id": "audit-0001", "kind": "audit", "name": "the queue is held",
                "options": {"dataset": "rows.jsonl", "folder": str(tmp_path / "data")},
                "values": {"model": {"model_name_or_path": "smollm2-135m"}, "data": {"dataset": ["rows.jsonl"], "dataset_dir": str(tmp_path / "data")}}}  # fmt: skip
        made = page.http.post("/api/jobs", json=body, headers=CHINESE)
        assert made.status_code == 200, made.text
        assert made.json()["reason"] == "队列已暂停"
        assert made.json()["name"] == "the queue is held"
        assert page.http.get("/api/jobs/audit-0001").json()["reason"] == "the queue is held"


def test_a_report_is_translated_where_it_is_read_and_not_where_it_is_downloaded(tmp_path: Path) -> None:
    report = [
        {"subject": "model", "checks": [{"name": "tokenizer", "found": "found nothing", "limit": "", "numbers": {}}]}
    ]
    report[0]["checks"][0]["limit"] = "the queue is held"
    with asking(tmp_path) as page:
        folder = tmp_path / "runs/violin/export/merged"
        folder.mkdir(parents=True)
        (tmp_path / "runs/violin/status.json").write_text("{}")
        (folder / "verify.json").write_text(json.dumps(report))
        path = "/api/runs/violin/files/export/merged/verify.json"
        read = page.http.get(path, headers={**CHINESE, "Accept": "application/json"}).json()
        loaded = page.http.get(path, headers=CHINESE)
        (folder / "verify.json").write_text("[{")
        damaged = page.http.get(path, headers={"Accept": "application/json"})
    assert read[0]["checks"][0]["limit"] == "队列已暂停"
    assert read[0]["checks"][0]["name"] == "分词器"
    assert read[0]["subject"] == "model"
    assert loaded.json() == report
    assert "attachment" in loaded.headers["content-disposition"]
    assert damaged.status_code == 422


def test_what_the_doctor_found_is_said_in_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.server.ui import machine
    from luthier.server.ui.shapes.common import Check

    found = [Check(level="note", what="GPU", found="none that torch can use", remedy="training runs on the processor"),
             Check(level="good", what="disk", found="12 GB free in /runs of mine")]  # fmt: skip
    monkeypatch.setattr(machine, "_ask_doctor", lambda: found)
    with asking(tmp_path) as page:
        chinese = page.http.get("/api/doctor", headers=CHINESE).json()["checks"]
        english = page.http.get("/api/doctor").json()["checks"]
    assert [each["found"] for each in chinese] == ["没有 torch 可用的", "/runs of mine 剩余 12 GB"]
    assert chinese[0]["remedy"] == "训练在 CPU 上进行"
    assert [each["found"] for each in english] == ["none that torch can use", "12 GB free in /runs of mine"]


def test_every_rule_about_metrics_is_said_whole() -> None:
    """A finding is a metric, what was seen, what it means and what to do, each by itself."""
    seen = ("is 0.7 (healthy: at most 0.5)", "went from 2 to 2.1 in 50 steps", "is 12.3 nats an answer")
    for rule in RULES:
        for each in seen:
            finding = Finding(rule.level, rule.metric, each, rule.means, rule.do)
            parts = asdict(finding)
            assert _found(parts).text == str(finding)
            with speaking("zh"):
                told = _found(parts).text
            assert told == f"{rule.metric} {said(each, 'zh')}：{messages()[rule.means]}；{messages()[rule.do]}"
