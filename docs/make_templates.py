"""Write docs/templates.md from the shelf of chat templates."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.data.template_names import ALIASES, FORMATS

TARGET = Path(__file__).with_name("templates.md")
HEAD = """# Chat templates

Made by `make docs` from the shelf. `template: NAME` gives a tokenizer the template of that name; without it, or with
`template: auto`, the tokenizer keeps its own. `template: default` is its own too, and a plain one where it has none. A
name that the tokenizer does not fit is refused with the token that is missing.

What is learned is what the model writes when it is used: everything behind the prompt of generation up to the
end-of-turn token, in every answer. Where a family writes earlier answers otherwise than the last one, a row becomes one
segment an answer; their common beginning is computed once.

**Tools.** Descriptions (`tools`, a JSON list) go where the family puts them, `function_call` turns or `tool_calls`
become its form of a call, `observation` turns or messages of role `tool` its form of a result. `default` is a plain form
for families that define none: `Action: name`, `Action Input: {"key": "value"}`. A row with tools is refused, with the
reason, where the template would drop them. `tool_format: NAME` gives a named template the tool format of another one.

**Thoughts.** Data marks them with `<think>…</think>` at the beginning of an answer, or holds them in `reasoning_content`;
the template writes the family's own marks. Thoughts of turns before the last question are left out of the context, as
the families do. With `enable_thinking: true` an answer without a thought gets an empty one, which is learned; with
`false` it is part of the prompt and not learned, and thoughts in the rows are left out, which is said; with `none` (or
null) no empty thought is written. `preserve_thinking: true` keeps the thoughts of earlier turns. Templates without marks
keep `<think>…</think>` as text. [Labels](labels.md) says where this is not what LLaMA-Factory makes.

| template | family | tools | thoughts | end of turn |
|---|---|---|---|---|
"""
TAIL = """
## Differences from the tokenizers' own templates

Where a tokenizer brings a template, ours with the name of its family is meant to write the same text. That is tested, ids
and weights, with the tokenizers of SmolLM 2, Qwen 3, Llama 3.1, Gemma 3 and DeepSeek V3. These differ on purpose:

| template | difference | reason |
|---|---|---|
| `llama3`, `llama4` | no block with dates in front of the system text | a row would be trained with the date of the day |
| `gpt_oss` | neither knowledge cut-off nor date in the system turn | the same |
| `mistral` | the system text stands in the first user turn, not in the last | earlier turns would be written anew for each answer, and text that ends with an answer would have no system text |
| `deepseek3` | a single call is closed, and tools are described | the own template leaves both out |
| `deepseekr1` | the prompt does not begin the thought | it is part of what is learned |
| `glm4`, `chatglm3` and descendants | the last answer ends with the token that begins the next turn | the model stops with it |
| `gemma` to `gemma3`, `smollm2` | calls and results in the plain form | the own templates drop or refuse them |
| `gemma4` | text stands in front of the calls of its turn, which ends with the token that begins a result | so the model writes it |
| `smollm3` | no block of metadata | it holds the date of the day |
| `empty`, `fewshot`, `falcon` | the last answer ends with the end token | a model that never learns to stop does not |
"""


def rows() -> list[str]:
    """Return a line for each name."""
    lines: list[str] = []
    for name, form in sorted(FORMATS.items()):
        also = f" ({', '.join(f'`{alias}`' for alias in ALIASES[name].split())})" if name in ALIASES else ""
        thought = " … ".join(f"`{mark.strip()}`" for mark in form.thought).replace("|", "\\|") if form.thought else ""
        end = form.end if form.last_end is None else form.last_end
        end = (
            {"{eos}": "end token"}.get(end.strip(), f"`{end.strip()}`")
            .replace("|", "\\|")
            .replace("{eos}", "end token")
        )
        lines.append(
            f"| `{name}`{also} | {form.family} | {form.tools.name if form.tools else 'refused'} | {thought} | {end} |"
        )
    return lines


def main() -> None:
    """Write the page, or with --check fail when it is not current."""
    text = HEAD + "\n".join(rows()) + "\n" + TAIL
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else "docs/templates.md is old: run make docs")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
