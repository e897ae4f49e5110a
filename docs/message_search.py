"""Follow the messages that people meet on the page backwards through the source, to the texts that make them.

A template is a message as the source builds it, with {} in each place where something is put in. It is looked for where
messages leave (errors, reasons, notices and the like), through variables, parameters, tables and functions.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src" / "luthier"
NOT_ON_THE_PAGE = {"facade", "api", "chat_templates"}
PLACE = "\0"
DEEPEST = 12
NAMED = {
    "reason", "message", "problem", "doing", "blocker", "remedy", "remedies", "damage", "notice", "notices", "notes",
    "found", "lines", "broken", "basis", "about", "refused", "healthy", "means", "do", "what", "assumptions", "warning", "warnings",
}  # fmt: skip
"""Arguments, attributes and keys whose texts are for people."""
GATHERED = re.compile(r"notices?|remed(y|ies)|problems|mistakes|lines|warnings|reasons|wrong|found|said|checks?")
"""Lists that such texts are appended to."""
CALLED = {
    "progress": (2,),
    "Check": (1, 2, 3),
    "Rule": (1, 2, 3),
    "Problem": (1,),
    "Outcome": (1,),
    "Mistake": (0, 1, 2),
}
"""Functions and records that take them -> places of the arguments."""
NO_MESSAGE = {"code", "field", "place", "headers", "kind", "param", "signal_number", "help"}
OWN = {"RowError", "ApiError", "GoError", "ValueError", "TypeError", "OSError", "RuntimeError", "TimeoutError", "Error"}
"""Errors beside the family whose texts are shown."""
APART = {
    "kernels/attention.py", "data/chat_format.py", "data/chinese_chats.py", "data/family_chats.py", "data/template_names.py",
    "data/tool_formats.py", "export/ollama_template.py",
    "export/verify/chats.py", "export/verify/questions.py", "export/verify/torture.py",
}  # fmt: skip
"""Files whose texts are not for people: templates, questions to models."""
_QUERY = re.compile(
    r"\s*(SELECT|INSERT|CREATE|DELETE|UPDATE|EXISTS)\b|\{%|<!|Bearer |\nimport |rms |\{\{|.*( \?$|instr\(| IN \(|COLLATE|NULLS)"
)
OF_DOCS = {"table"}
"""Functions whose texts stand in docs/."""
WHOLE = {"runs/health.py", "config/check.py"}
"""Files in which every text that a function returns is shown."""
_WORD = re.compile(r"[A-Za-z]{2,}")
_LOGGED = {"debug", "info", "warning", "error", "exception", "say_once", "filterwarnings"}


@dataclass
class Module:
    """A file, its functions, and its texts by name."""

    path: Path
    tree: ast.Module
    functions: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = field(default_factory=dict)
    values: dict[str, list[ast.expr]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the path below the package."""
        return str(self.path.relative_to(SOURCE))

    @property
    def package(self) -> str:
        """Return the name of the package, under which its catalogue is found."""
        return self.path.relative_to(SOURCE).parts[0].removesuffix(".py")


class Search:
    """Follows messages backwards through the source."""

    def __init__(self) -> None:
        self.modules = [_module(path) for path in sorted(SOURCE.rglob("*.py"))]
        self.functions: dict[str, list[tuple[Module, ast.FunctionDef | ast.AsyncFunctionDef]]] = defaultdict(list)
        self.values: dict[str, list[tuple[Module, ast.expr]]] = defaultdict(list)
        self.calls: dict[str, list[tuple[Module, ast.Call]]] = defaultdict(list)
        self.home: dict[int, tuple[Module, ast.AST | None, ast.ClassDef | None]] = {}
        self.errors = set(OWN)
        self.found: dict[str, dict[str, None]] = defaultdict(dict)
        self._seen: set[tuple[int, bool]] = set()
        for module in self.modules:
            self._learn(module)
        self._learn_errors()

    def _learn(self, module: Module) -> None:
        def visit(node: Any, function: Any | None, owner: ast.ClassDef | None) -> None:
            self.home[id(node)] = (module, function, owner)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                module.functions.setdefault(node.name, []).append(node)
                self.functions[node.name].append((module, node))
            if isinstance(node, ast.Call):
                self.calls[_called(node)].append((module, node))
            inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
            owner = node if isinstance(node, ast.ClassDef) else owner
            for child in ast.iter_child_nodes(node):
                visit(child, inner, owner)

        visit(module.tree, None, None)
        body: list[Any] = module.tree.body
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name) and getattr(node, "value", None) is not None:
                    module.values.setdefault(target.id, []).append(node.value)
                    self.values[target.id].append((module, node.value))

    def _learn_errors(self) -> None:
        bases = {
            node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            for module in self.modules
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
        }
        self.errors.add("LuthierError")
        while more := {name for name, above in bases.items() if above & (self.errors | {"Exception"})} - self.errors:
            self.errors |= more

    # ---- where messages leave

    def run(self) -> dict[str, list[str]]:
        """Return package -> templates, in the order of the source."""
        for module in self.modules:
            if module.package in NOT_ON_THE_PAGE:
                continue
            for node in ast.walk(module.tree):
                for text in self._leaving(module, node):
                    self.follow(text, 0, inside=False)
        return {package: list(texts) for package, texts in self.found.items()}

    def _leaving(self, module: Module, node: Any) -> list[ast.expr]:
        if getattr(self.home[id(node)][1], "name", "") in OF_DOCS:
            return []
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, ast.Dict):
            return [v for k, v in zip(node.keys, node.values, strict=True)
                    if isinstance(k, ast.Constant) and k.value in NAMED]  # fmt: skip
        if isinstance(node, ast.Assign):
            return [node.value for target in node.targets if _is_for_people(target)]
        if isinstance(node, ast.Tuple) and len(node.elts) == 4 and isinstance(node.elts[0], ast.Constant):
            return node.elts[1:] if node.elts[0].value in ("good", "note", "fault") else []
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Lambda):
            return node.elts[1:]
        if isinstance(node, ast.Return) and module.name in WHOLE and node.value is not None:
            return [node.value]
        return []

    def _of_call(self, node: ast.Call) -> list[ast.expr]:
        name = _called(node)
        if name in _LOGGED:
            return []
        is_init = name == "__init__" and "super()" in ast.unparse(node.func)
        owner = self.home[id(node)][2]
        if name in self.errors or (is_init and owner is not None and owner.name in self.errors):
            return [*node.args, *(each.value for each in node.keywords if each.arg not in NO_MESSAGE)]
        found = [node.args[place] for place in CALLED.get(name, ()) if place < len(node.args)]
        if name in ("append", "extend", "add") and GATHERED.fullmatch(_owner_of(node)):
            found += node.args
        return found + [each.value for each in node.keywords if each.arg in NAMED]

    # ---- backwards

    def follow(self, node: Any, depth: int, *, inside: bool) -> None:
        """Gather the templates that an expression may be; `inside`: it is put into another message."""
        if depth > DEEPEST or (id(node), inside) in self._seen:
            return
        self._seen.add((id(node), inside))
        text = self.template(node)
        if text is not None:
            self._add(node, text, inside=inside)
            for part in _places(node):
                self.follow(part, depth + 1, inside=True)
            return
        for next_, within in self._behind(node, inside=inside):
            self.follow(next_, depth + 1, inside=within)

    def template(self, node: Any) -> str | None:
        """Return the text of an expression with marks for its places; None for what is no text by itself."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            return "".join(self._part(each) for each in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.template(node.left), self.template(node.right)
            return None if left is None and right is None else (left or PLACE) + (right or PLACE)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            left = self.template(node.left)
            return left and re.sub(r"%[-.\d]*[sdrfg]", PLACE, left)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            left = self.template(node.func.value)
            return left and re.sub(r"\{\w*(:[^}]*)?\}", PLACE, left)
        return None

    def _part(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        value = node.value if isinstance(node, ast.FormattedValue) else node
        if isinstance(value, ast.Name) and value.id.isupper():
            fixed = self.home[id(value)][0].values.get(value.id, [])
            if len(fixed) == 1 and isinstance(fixed[0], ast.Constant) and isinstance(fixed[0].value, str | int):
                return str(fixed[0].value)
        return PLACE

    def _add(self, node: Any, text: str, *, inside: bool) -> None:
        module = self.home[id(node)][0]
        if module.package in NOT_ON_THE_PAGE or module.name in APART or _QUERY.match(text):
            return
        words = _WORD.search(text.replace(PLACE, " "))
        if words is None or " " not in text.strip():
            return
        self.found[module.package].setdefault(spelled(text))

    def _behind(self, node: Any, *, inside: bool) -> list[tuple[ast.AST, bool]]:
        """Return the expressions that one takes its text from, and whether that is put into another one."""
        kinds = {
            ast.IfExp: lambda: [node.body, node.orelse],
            ast.BoolOp: lambda: node.values,
            ast.NamedExpr: lambda: [node.value],
            ast.List: lambda: node.elts, ast.Tuple: lambda: node.elts, ast.Set: lambda: node.elts,
            ast.Dict: lambda: node.values,
            ast.Starred: lambda: [node.value],
            ast.ListComp: lambda: [node.elt], ast.GeneratorExp: lambda: [node.elt], ast.SetComp: lambda: [node.elt],
            ast.DictComp: lambda: [node.value],
            ast.Subscript: lambda: [node.value],
            ast.FormattedValue: lambda: [node.value],
            ast.BinOp: lambda: [node.left, node.right],
            ast.Name: lambda: self._of_name(node),
            ast.Attribute: lambda: [value for _, value in self.values[node.attr]] if node.attr.isupper() else [],
        }  # fmt: skip
        if type(node) in kinds:
            return [(each, inside) for each in kinds[type(node)]()]
        return self._of_function(node, inside=inside) if isinstance(node, ast.Call) else []

    def _of_name(self, node: ast.Name) -> list[ast.AST]:
        module, function, _ = self.home[id(node)]
        found: list[ast.AST] = []
        scope = function
        while scope is not None and not found:
            found = [*_assigned(scope, node.id), *self._given(scope, node.id)]
            scope = self.home[id(scope)][1]
        if not found:
            found = list(module.values.get(node.id, [])) or [value for _, value in self.values.get(node.id, [])[:1]]
        return found

    def _given(self, function: Any, name: str) -> list[ast.AST]:
        """Return what callers give for a parameter."""
        names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        more = [each.arg for each in function.args.kwonlyargs]
        if name not in (*names, *more):
            return []
        owner = self.home[id(function)][2]
        called = owner.name if function.name == "__init__" and owner is not None else function.name
        is_method = bool(names) and names[0] in ("self", "cls")
        place = names.index(name) - is_method if name in names else None
        found: list[ast.AST] = []
        for _, call in self.calls.get(called, []) if called != "add" else []:  # sets have it, too
            if place is not None and 0 <= place < len(call.args):
                found.append(call.args[place])
            found += [each.value for each in call.keywords if each.arg == name]
        return found

    def _of_function(self, node: ast.Call, *, inside: bool) -> list[tuple[ast.AST, bool]]:
        name, module = _called(node), self.home[id(node)][0]
        if isinstance(node.func, ast.Attribute) and name in (
            "join",
            "get",
            "strip",
            "replace",
            "format",
            "items",
            "values",
        ):
            given = [*node.args, *(each.value for each in node.keywords), node.func.value]
            return [(each, inside or name in ("join", "format")) for each in given]
        if name in (
            "str",
            "mask_text",
            "_short",
            "sorted",
            "list",
            "dict",
            "map",
            "words",
            "first_line",
            "next",
            "tuple",
            "partial",
        ):
            return [(each, inside) for each in node.args]
        defined, of = self.functions.get(name, []), _owner_of(node)
        known = [each for home, each in defined if home.path.stem == of] or module.functions.get(name)
        known = known or [each for _, each in defined]
        found: list[tuple[ast.AST, bool]] = []
        for each in known if len(known) <= 3 else []:
            if each.returns is None or "str" in ast.unparse(each.returns):
                found += [(value, inside) for value in _returned(each)]
        return found


def spelled(text: str) -> str:
    """Return a template as catalogues have it: every place is {}."""
    return re.sub(r"\{[a-z_]*(:[.\d]*[a-z]?)?\}", "{}", text.replace(PLACE, "{}"))


def _module(path: Path) -> Module:
    return Module(path, ast.parse(path.read_text(encoding="utf-8")))


def _called(node: ast.Call) -> str:
    func = node.func
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


def _is_for_people(target: Any) -> bool:
    if isinstance(target, ast.Subscript):
        return GATHERED.fullmatch(ast.unparse(target.value)) is not None
    return isinstance(target, ast.Attribute) and target.attr in NAMED


def _places(node: Any) -> list[ast.AST]:
    if isinstance(node, ast.JoinedStr):
        return [each.value for each in node.values if isinstance(each, ast.FormattedValue)]
    if isinstance(node, ast.Call):
        return [*node.args, *(each.value for each in node.keywords)]
    return (
        [part for each in (node.left, node.right) for part in [each, *_places(each)]]
        if isinstance(node, ast.BinOp)
        else []
    )


@cache
def _assignments(function: Any) -> dict[str, list[ast.AST]]:
    found: dict[str, list[ast.AST]] = defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _bind(target, node.value, found)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            _bind(node.target, node.value, found)
        elif isinstance(node, ast.For | ast.comprehension):
            _bind(node.target, node.iter, found)
        elif isinstance(node, ast.Call) and (gathered := _gathered(node)):
            found[gathered] += node.args
    return found


def _owner_of(node: ast.Call) -> str:
    """Return the name of what a method is called of."""
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""


def _gathered(node: ast.Call) -> str:
    """Return the name of the list that a call adds to; nothing where it is no such call."""
    if _called(node) not in ("append", "extend", "insert", "add") or not isinstance(node.func, ast.Attribute):
        return ""
    return node.func.value.id if isinstance(node.func.value, ast.Name) else ""


def _bind(target: Any, value: Any, found: dict[str, list[ast.AST]]) -> None:
    if isinstance(target, ast.Name):
        found[target.id].append(value)
    elif isinstance(target, ast.Tuple):
        whole = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
        for number, each in enumerate(target.elts):
            _bind(each, value.elts[number] if whole else value, found)


def _assigned(function: Any, name: str) -> list[ast.AST]:
    return _assignments(function).get(name, [])


def _returned(function: Any) -> list[ast.AST]:
    return [node.value for node in ast.walk(function)
            if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) and node.value is not None]  # fmt: skip
