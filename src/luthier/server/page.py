"""The page of the API for people: the schema as plain HTML, without scripts and without anything from elsewhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{font-size:.95em}table{border-collapse:collapse;width:100%}summary{cursor:pointer}"
    "td,th{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;vertical-align:top}"
)


def page_of(schema: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI schema."""
    known = schema["components"]["schemas"]
    parts = [
        _operation(path, method, facts) for path, each in schema["paths"].items() for method, facts in each.items()
    ]
    tables = [_table(name, facts) for name, facts in sorted(known.items()) if facts.get("properties")]
    info = schema["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>As a schema: <a href=/openapi.json>/openapi.json</a></p>"
        f"{''.join(parts)}<h2>Objects</h2>{''.join(tables)}</html>"
    )


def _operation(path: str, method: str, facts: Mapping[str, Any]) -> str:
    body = facts.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    takes = f"<p>Takes {_kind(body)}.</p>" if body else ""
    rows = "".join(
        f"<tr><td>{escape(status)}<td>{escape(reply.get('description', ''))}<td>{_contents(reply)}"
        for status, reply in sorted(facts["responses"].items())
    )
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(facts.get('summary', ''))}</p>{takes}"
        f"<details><summary>Replies</summary><table>{rows}</table></details>"
    )


def _contents(reply: Mapping[str, Any]) -> str:
    found = (f"{escape(kind)}: {_kind(each.get('schema', {}))}" for kind, each in reply.get("content", {}).items())
    return "<br>".join(found)


def _table(name: str, facts: Mapping[str, Any]) -> str:
    needed = facts.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(key)}</code>{' *' if key in needed else ''}<td>{_kind(each)}"
        f"<td>{escape(each.get('description', ''))}"
        for key, each in facts["properties"].items()
    )
    about = escape(facts.get("description", ""))
    return f"<details id={escape(name)}><summary>{escape(name)}</summary><p>{about}</p><table>{rows}</table></details>"


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "minLength": "characters from",
    "maxLength": "characters up to",
    "minItems": "items from",
    "maxItems": "items up to",
    "pattern": "like",
}


def _kind(schema: Mapping[str, Any]) -> str:
    """Return what a value may be."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_kind(each) for each in schema[key])
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(each))}</code>" for each in choices)
    kind = escape(str(schema.get("type", "anything")))
    inside = f" of ({_kind(schema['items'])})" if "items" in schema else ""
    bounds = [f"{word} <code>{escape(str(schema[key]))}</code>" for key, word in _BOUNDS.items() if key in schema]
    return kind + inside + (f" ({', '.join(bounds)})" if bounds else "")
