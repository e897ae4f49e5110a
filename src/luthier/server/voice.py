"""One served model as requests see it: its template, its tokens, and how it writes calls and thoughts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from luthier.data.chat_format import THINK
from luthier.server.call_forms import form_of
from luthier.server.errors import bad
from luthier.server.tokens import TokenTexts
from luthier.workflows.serve import Served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.core.types import Sampling
    from luthier.data.chat_format import ToolFormat
    from luthier.data.template import ChatTemplate
    from luthier.engines.pump import Pump

_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
"""Variables of every template; requests give them in fields of their own."""


@dataclass(frozen=True)
class Voice:
    """A model under one name."""

    served: Served
    name: str
    adapter: str | None

    @property
    def pump(self) -> Pump:
        """Return what answers."""
        return self.served.pump

    @property
    def how(self) -> Sampling:
        """Return how answers are drawn where a request does not say."""
        return self.served.how

    @property
    def context(self) -> int:
        """Return the most tokens of prompt and answer."""
        return self.served.context

    @property
    def vocabulary(self) -> int:
        """Return how many tokens there are."""
        return self.served.vocabulary

    @property
    def template(self) -> ChatTemplate:
        """Return the chat template. Raises ApiError where there is none."""
        found = self.served.templates[self.name]
        if found is None:
            raise bad(f"{self.name} has no chat template; send texts to /v1/completions", "model", "no_chat_template")
        return found

    @cached_property
    def texts(self) -> TokenTexts:
        """Return what knows the text of single tokens."""
        return TokenTexts(self.served.tokenizer)

    def check_length(self, characters: int, field: str) -> None:
        """Raise ApiError for a text that cannot fit. Its tokens are not looked for: that would keep others waiting."""
        fewest = characters // self.texts.longest
        if fewest > self.context:
            raise bad(
                f"this model sees at most {self.context} tokens; {field} has at least {fewest}; shorten it",
                field,
                "context_length_exceeded",
            )

    @cached_property
    def thinks(self) -> bool:
        """Tell whether the model writes thoughts between marks."""
        return THINK[1] in self.template.tokenizer.get_chat_template()

    @cached_property
    def call_form(self) -> ToolFormat | None:
        """Return how the model writes calls of tools, if that is known."""
        return form_of(self.template)

    def shown_special(self, form: ToolFormat | None) -> frozenset[int]:
        """Return the special tokens that mark thoughts and calls, which are read as text."""
        marks = THINK if self.thinks else ()
        if form is not None:
            marks = (*marks, form.open, form.close, form.join, form.call, form.argument)
        ends, control = self.served.engine.end_ids, self.template.control_tokens
        return frozenset(i for text, i in control.items() if i not in ends and any(text in mark for mark in marks))

    @cached_property
    def variables(self) -> frozenset[str]:
        """Return the names of the variables that requests may give to the template."""
        import jinja2
        from jinja2 import meta

        source = self.template.tokenizer.get_chat_template()
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_blocks(source))
        special = {key for key, value in self.template.tokenizer.special_tokens_map.items() if isinstance(value, str)}
        return frozenset(meta.find_undeclared_variables(tree) - _GIVEN - special - _FUNCTIONS)

    @cached_property
    def _templates(self) -> Any:
        return lru_cache(maxsize=16)(self._with_variables)

    def template_with(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """Return the template with variables set. Raises ApiError for those that it does not declare."""
        if not variables:
            return self.template
        for name, value in variables.items():
            if name not in self.variables:
                there = ", ".join(sorted(self.variables)) or "none"
                raise bad(f"the chat template knows no variable {name!r}; it knows: {there}", "chat_template_kwargs")
            spelled = [token for token in self.template.control_tokens if token in str(value)]
            if spelled:
                raise bad(
                    f"chat_template_kwargs.{name} spells the special token {spelled[0]!r}", "chat_template_kwargs"
                )
        return self._templates(json.dumps(dict(variables), sort_keys=True))

    def _with_variables(self, spelled: str) -> ChatTemplate:
        return replace(self.template, options={**self.template.options, **json.loads(spelled)})


_FUNCTIONS = {"raise_exception", "strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner"}


def _without_blocks(source: str) -> str:
    """Return a template without the marks of transformers' own block, which plain jinja does not read."""
    import re

    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
