"""Secrets are taken out, and ordinary text stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.masking import MASK, is_secret_name, mask, mask_text

S = "Zx9qPw3LmN"
HF, SK = f"hf_{S * 3}", f"sk-proj-{S * 3}"

LEAKS = [
    f"hub_token: {S}",
    f"hf_hub_token={S}",
    f"HF_TOKEN={HF}",
    f"token {HF} was refused",
    f"export OPENAI_API_KEY='{S}'",
    f'{{"api_key": "{S}"}}',
    f'{{"apiKey": "{S}"}}',
    f"{{'password': '{S}'}}",
    f"password: {S}",
    f"db_password = {S}",
    f"PASSWD={S}",
    f"secret={S}",
    f"client_secret: {S}",
    f"AWS_SECRET_ACCESS_KEY={S}",
    f"aws_access_key_id: AKIA{'A1' * 8}",
    f"Authorization: Bearer {S}",
    f"authorization: Basic {S}==",
    f"curl -H 'Authorization: Bearer {S}' http://x/",
    f"https://user:{S}@example.org/path",
    f"redis://:{S}@localhost:1/0",
    f"GET /x?token={S}&step=3",
    f"GET /x?api_key={S}",
    f"key {SK} used",
    f"sk-ant-{S * 3}",
    f"lk-{S * 3}",
    f"ghp_{S * 4}",
    f"github_pat_{S * 4}",
    f"glpat-{S * 2}",
    f"xoxb-{S * 2}",
    f"AIza{(S * 4)[:35]}",
    f"npm_{S * 4}",
    f"eyJ{S}.{S}.{S}",
    f"cookie: {S}",
    f"--api-key={S}",
    f"token\x1b[31m:\x1b[0m {S}",
    f'"api_key":\n   "{S}"',
    f"{HF[:25]}\n{S}{S}\n",
    f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{S}",
    f"blob {(S + 'aB3') * 5}== end",
    f"wandb_api_key: {S}",
    f"credentials: {S}",
]

INNOCENT = [
    "tokens: 503",
    "tokens_per_second: 985.2",
    "eos_token: </s>",
    "bos_token_id: 1",
    "pad_token: <|endoftext|>",
    "max_tokens=512",
    "max_new_tokens: 128",
    "add_bos_token: true",
    "tokenizer: llama",
    "token_file: /home/a/b",
    "the wrong token: it is stale",
    "password is needed",
    "key: value",
    "keys: a, b",
    "monkey: banana",
    "keyboard: qwerty",
    "secret: ",
    "api_key: null",
    "hub_token: null",
    "token: none",
    "step 150/152  loss 0.0086  985 tokens/s  0:01 left",
    "learning_rate: 1e-4",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit 1a410efbd13591db07496601ebc7a059dd55cfe9",
    "/data/models/Qwen3-0.6B-Instruct-2507/snapshots/model-00001-of-00002.safetensors",
    "20261130-141603-Tickets-of-customers-of-a-shop-with-a-long-name",
    "https://example.org/a/b?step=3&limit=5",
    "http://127.0.0.1:7860/runs",
    "task-force skill-set risk-free",
    "你好，世界 🙂: 令牌",
    "Bearer of good news",
    "Basic settings",
    "author: somebody",
    "authors = a and b",
    "first_token: 12",
    "special_tokens_map.json",
    "accesskeyless",
    "{'loss': 0.5, 'tokens': 12345678}",
    "x" * 200,
    "a.b.c.d:80 -> e.f@g",
    "\x1b[32mgreen\x1b[0m",
    "stop_token_ids: [1, 2]",
]


@pytest.mark.parametrize("text", LEAKS)
def test_a_leak_is_masked(text: str) -> None:
    found = mask_text(text)
    assert S not in found
    assert MASK in found
    assert mask_text(found) == found


@pytest.mark.parametrize("text", INNOCENT)
def test_ordinary_text_stays(text: str) -> None:
    assert mask_text(text) == text


def test_plain_data() -> None:
    given: dict[str, Any] = {
        "model": {"hub_token": S, "name": "m", "api_key": None},
        "list": [{"password": S}, f"x {HF}", 3, None, True],
        "eos_token": "</s>",
        "token": "",
    }
    assert mask(given) == {
        "model": {"hub_token": MASK, "name": "m", "api_key": None},
        "list": [{"password": MASK}, f"x {MASK}", 3, None, True],
        "eos_token": "</s>",
        "token": "",
    }


@pytest.mark.parametrize(
    "name", ["token", "HF_TOKEN", "api-key", "apiKey", "Authorization", "x_password", "secret_key"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokens", "eos_token", "key", "mask_token_id", "tokenizer", "keys", "num_tokens"])
def test_names_of_none(name: str) -> None:
    assert not is_secret_name(name)


def test_a_long_line_takes_no_time() -> None:
    import time

    for text in (
        "token" * 20_000,
        "a_" * 50_000,
        "api_" * 30_000 + "key",
        "0aB" * 40_000,
        "x-" * 50_000,
        "sk-" * 30_000,
    ):
        began = time.process_time()
        mask_text(text)
        assert time.process_time() - began < 1
