"""Made-up requests against the declared API: never a failure of the server, always what is declared."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import Running

EXAMPLES = 40
OPERATIONS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
]


@pytest.fixture(scope="module")
def api(live: Running) -> Any:
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def test_every_operation_is_tried(api: Any) -> None:
    assert {(each.ok().method.upper(), each.ok().path) for each in api.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((*each, GenerationMode.POSITIVE) for each in OPERATIONS),
        *((*each, GenerationMode.NEGATIVE) for each in OPERATIONS if each[0] == "POST"),
    ],
)
def test_replies_are_as_declared(api: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            # Long answers of a random model show nothing more, and other names are 404.
            case.body |= {"model": "tiny", **({} if "embed" in path else {"max_tokens": 3})}
        # What a model or its template cannot do is refused although the schema allows it; then the reply says what.
        reply = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        if mode is GenerationMode.POSITIVE and reply.status_code == 400:
            assert reply.json()["error"]["param"], reply.text

    ask()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_answers_are_as_declared(api: Any, path: str, asked: dict[str, Any], stream: bool) -> None:
    case = api[path]["POST"].Case(
        body={"model": "tiny", "max_tokens": 3, "stream": stream, **asked}, media_type="application/json"
    )
    assert case.call_and_validate().status_code == 200
