"""Word problems for a model that may ask a calculator: the smallest environment of several turns.

It shows the whole contract. `examples` returns prompts, each with what its reward reads in `extra`; `step` reads the
turns so far and returns what the world answers, or None when the episode is over; `reward` names what grades it.
"""

from __future__ import annotations

import ast
import json
import operator
import warnings
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.config.schema import Positive
from luthier.core.registry import ENVIRONMENTS
from luthier.core.types import Example, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INSTRUCTION = (
    "To calculate, write an expression like <tool>12*7</tool> and stop; its value follows like <result>84</result>. "
    "When you know the result, write it like <answer>84</answer>."
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Returns the value of an expression of numbers with + - * / // % and parentheses.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
]
PROBLEMS = (
    ("A shop has {a} boxes with {b} pens each and sells {c} pens. How many pens are left?", "{a}*{b}-{c}"),
    ("{a} buses bring {b} people each, and {c} more come on foot. How many people come?", "{a}*{b}+{c}"),
    ("A farmer has {a} apples and {c} pears in {b} orchards each. How much fruit is that?", "({a}+{c})*{b}"),
    ("A book has {a} pages with {b} words each. {c} of them are copied {d} times. How many words is that in all?",
     "{a}*{b}+{c}*{d}"),
)  # fmt: skip
LONGEST = 200
"""Characters of an expression."""
LARGEST = 10**30


@ENVIRONMENTS.register("calculator")
@dataclass(frozen=True, kw_only=True, slots=True)
class Calculator:
    """Word problems with large numbers; expressions that the model asks for are calculated. Needs max_turns above 1."""

    reward: ClassVar[str] = "calculator_answer"
    size: Positive = 500
    """Number of problems."""
    data_seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the problems."""
    largest: Annotated[int, Field(ge=4)] = 1000
    """Largest number in a problem; the smallest is a tenth of it."""
    calls: Literal["tags", "template"] = "tags"
    """tags: <tool>12*7</tool>, which the user answers by <result>84</result>; template: the model's own way of calling
    tools, as its chat template shows them, answered by a turn of role tool."""

    def examples(self) -> Sequence[Example]:
        """Return the problems."""
        draw = Random(f"calculator {self.data_seed}")
        return [self._example(number, draw) for number in range(self.size)]

    def step(self, example: Example, turns: Sequence[Message]) -> Message | None:
        """Return the value of the expression that the last turn asks for; None where it asks for none."""
        expression = asked_for(turns[-1]) if turns else None
        if expression is None:
            return None
        found = calculate(expression)
        if self.calls == "template":
            return Message(role="tool", content=found)
        return Message(role="user", content=f"<result>{found}</result>")

    def _example(self, number: int, draw: Random) -> Example:
        text, expression = draw.choice(PROBLEMS)
        numbers = {name: draw.randint(max(2, self.largest // 10), self.largest) for name in "abcd"}
        answer = calculate(expression.format(**numbers))
        asked = text.format(**numbers)
        in_tags = self.calls == "tags"
        return Example(
            context=(Message(role="user", content=f"{asked}\n\n{INSTRUCTION}" if in_tags else asked),),
            tools=None if in_tags else json.dumps(TOOLS),
            extra={"answer": answer, "expression": expression.format(**numbers)},
            origin=f"calculator:{number}",
        )


def asked_for(turn: Message) -> str | None:
    """Return the expression that a turn asks for: <tool>..., <tool_call>{JSON}..., or a call beside the text."""
    for call in turn.tool_calls:
        return _expression_of(call)
    for opening, closing, read in _FORMS:
        start = turn.content.rfind(opening)
        if start >= 0:
            # Generation may have stopped in front of the closing tag.
            return read(turn.content[start + len(opening) :].partition(closing)[0])
    return None


def _read_json(text: str) -> str:
    try:
        return _expression_of(json.loads(text))
    except (ValueError, RecursionError):
        return ""


def _expression_of(call: Any) -> str:
    arguments: Any = call.get("arguments") if isinstance(call, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return str(arguments.get("expression", "")) if isinstance(arguments, dict) else ""


_FORMS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("<tool>", "</tool>", str.strip),
    ("<tool_call>", "</tool_call>", _read_json),
)
_OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """Return the value of an expression of numbers, or what is wrong with it.

    >>> calculate("(2 + 3) * 4"), calculate("1/0"), calculate("open('x')")
    ('20', 'error: division by zero', 'error: only numbers, + - * / // % and parentheses are known')
    """
    if len(expression) > LONGEST:
        return f"error: an expression may have {LONGEST} characters"
    try:
        with warnings.catch_warnings():  # Python remarks on text such as 1if
            warnings.simplefilter("ignore")
            value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return "error: the number is too large"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: only numbers, + - * / // % and parentheses are known"
    whole = int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
    return str(whole) if isinstance(whole, int) else f"{whole:.15g}"


def _value(node: ast.AST) -> int | float:
    value: int | float
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("unknown")
    if not abs(value) <= LARGEST:
        raise OverflowError
    return value
