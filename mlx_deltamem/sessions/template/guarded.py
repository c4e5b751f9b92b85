"""Chat templates that count what they do.

Transformers compiles and runs a template in jinja2's sandbox, which protects the machine but limits neither time nor
memory. It also takes a template that is parsed already. So a template is parsed here, its loops, texts, variables,
calls and operators are put into calls of functions that count, and transformers goes on as always.
"""

from functools import lru_cache
from typing import cast

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from mlx_deltamem.sessions.template import guards as template_guards
from mlx_deltamem.sessions.template.guards import GROWING_FILTERS
from mlx_deltamem.sessions.template.limits import TemplateLimitError

# The attribute of a guarded template that has its text.
SOURCE = "source"
_LONGEST_SOURCE = 1_000_000
# Constants that are shorter count with the round of the loop that they are in.
_SHORT = 64
_MANY = 16
# Methods that make nothing longer than what they are given.
_HARMLESS = frozenset(
    {
        *("capitalize", "count", "endswith", "find", "get", "index", "isalnum", "isalpha", "isdigit", "isspace"),
        *("items", "keys", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rpartition"),
        *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "values"),
    }
)
# Without these, an expression only names what is there already. After the guards, operators that matter are calls.
_BUILDING = (nodes.Add, nodes.Call, nodes.Concat, nodes.Dict, nodes.List, nodes.Tuple)
# The variable with the text of a block that goes through filters.
_TEXT = "mlx_deltamem_text"


def guarded_template(tokenizer: TokenizerWrapper, name: object, tools: object) -> nodes.Template | None:
    """The chat template of a tokenizer with calls that count.

    Args:
        tokenizer: mlx-lm's tokenizer.
        name: The template, or its name among several of the tokenizer; None: the tokenizer's.
        tools: The tools, for which a tokenizer can have another template.

    Returns:
        The template; None if the chat is written by a program of mlx-lm, or by one that came with the model.

    Raises:
        TemplateLimitError: The template is too long.
        jinja2.TemplateError: It is not a template.
        TypeError: It is not a text.
        ValueError: The tokenizer has several and none of them is the default.
    """
    # A renderer of mlx-lm; there is no public name for it.
    if getattr(tokenizer, "_chat_template", None) is not None:
        return None
    chosen = getattr(tokenizer, "get_chat_template", None)
    owner = type(getattr(chosen, "__self__", None))
    if chosen is None or getattr(owner, "apply_chat_template", None) is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    source = chosen(name, tools)
    if not isinstance(source, str):
        raise TypeError(f"chat_template is of type {type(source).__name__}, but a template is a text")
    return _guarded(source)


@lru_cache(maxsize=64)
def _guarded(source: str) -> nodes.Template:
    if len(source) > _LONGEST_SOURCE:
        raise TemplateLimitError(f"it has {len(source):,} characters, more than {_LONGEST_SOURCE:,}")
    template: nodes.Template = _Guards().visit(_ENVIRONMENT.parse(source))
    setattr(template, SOURCE, source)
    return template


class _Generation(Extension):
    """Transformers' tag around replies, which has an effect in training only."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


# The syntax of transformers' templates.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)


def _call(name: str, args: list[nodes.Expr], like: nodes.Call | nodes.Filter | None = None) -> nodes.Call:
    """A call of a function of `template_guards`, with the further arguments of another call."""
    function = nodes.ImportedName(f"{template_guards.__name__}.{name}")
    if like is None:
        return nodes.Call(function, args, [], None, None)
    return nodes.Call(function, [*args, *like.args], like.kwargs, like.dyn_args, like.dyn_kwargs)


def _item(name: str, node: nodes.Expr) -> nodes.Getitem:
    return nodes.Getitem(nodes.ImportedName(f"{template_guards.__name__}.{name}"), node, "load")


class _Guards(NodeTransformer):
    """Puts the parts of a template into calls that count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (jinja2's name)
        constant = sum(len(each) for each in _short_constants(node.body))
        self.generic_visit(node)
        node.iter = _call("items", [cast(nodes.Expr, node.iter), nodes.Const(constant)])
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body = [nodes.Output([_call("entered", [])]), *node.body]
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [self._written(each) for each in node.nodes]
        return node

    def _written(self, node: nodes.Expr) -> nodes.Expr:
        # What is short is bounded by the loop around it.
        if isinstance(node, nodes.TemplateData | nodes.Const):
            text = node.data if isinstance(node, nodes.TemplateData) else node.value
            if not isinstance(text, str) or len(text) <= _SHORT:
                return node
            node = nodes.Const(text)
        return _item("written", node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node = _kept(node.node)
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.values = [_kept(each) for each in node.values]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        # The sum of a few texts is at most a few times longer than the longest of them.
        long = _depth(node) % _MANY == 0
        self.generic_visit(node)
        return _call("added", [node.left, node.right]) if long else node

    def visit_Mul(self, node: nodes.Mul) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("multiplied", [node.left, node.right])

    def visit_Pow(self, node: nodes.Pow) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("power", [node.left, node.right])

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("remainder", [node.left, node.right])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if len(node.nodes) > _MANY:
            return _call("joined", node.nodes)
        # Lists become text here too.
        node.nodes = [each if isinstance(each, nodes.Const) else _item("kept", each) for each in node.nodes]
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.node, nodes.Getattr) and node.node.attr in _HARMLESS:
            return node
        node.args = [_kept(each) for each in node.args]
        for each in node.kwargs:
            each.value = _kept(each.value)
        return _call("called", [node.node], like=node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.node is None or node.name not in GROWING_FILTERS:
            return node
        return _call("filtered", [nodes.Const(node.name), node.node], like=node)

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:  # noqa: N802
        if not _grows(node.filter):
            self.generic_visit(node)
            return node
        # The same with a variable: the filters of a block cannot become calls.
        text = nodes.AssignBlock(nodes.Name(_TEXT, "store"), None, node.body)
        _begin(node.filter, nodes.Name(_TEXT, "load"))
        block: nodes.Node = self.visit(nodes.Scope([text, nodes.Output([node.filter])]))
        return block

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node | list[nodes.Node]:  # noqa: N802
        if not _grows(node.filter):
            self.generic_visit(node)
            return node
        text = nodes.AssignBlock(nodes.Name(_TEXT, "store"), None, node.body)
        _begin(cast(nodes.Filter, node.filter), nodes.Name(_TEXT, "load"))
        return [self.visit(text), self.visit(nodes.Assign(node.target, cast(nodes.Expr, node.filter)))]


def _grows(chain: nodes.Filter | None) -> bool:
    """Whether one of the filters of a block makes its text much longer."""
    return chain is not None and any(each.name in GROWING_FILTERS for each in (chain, *chain.find_all(nodes.Filter)))


def _begin(chain: nodes.Filter, value: nodes.Expr) -> None:
    """Give a value to the first filter of a block."""
    while isinstance(chain.node, nodes.Filter):
        chain = chain.node
    chain.node = value


def _kept(node: nodes.Node) -> nodes.Expr:
    """Guard a value that a variable gets."""
    value = cast(nodes.Expr, node)
    builds = isinstance(value, _BUILDING) or any(True for _ in value.find_all(_BUILDING))
    return _item("kept", value) if builds else value


def _short_constants(body: list[nodes.Node]) -> list[str]:
    """The constants that a round of a loop writes, those of inner loops and macros excepted."""
    found: list[str] = []
    for node in body:
        if isinstance(node, nodes.TemplateData) and len(node.data) <= _SHORT:
            found.append(node.data)
        elif not isinstance(node, nodes.For | nodes.Macro):
            found += _short_constants(list(node.iter_child_nodes()))
    return found


def _depth(node: nodes.Add) -> int:
    """The number of additions in `a + b + c`, counted at the last one."""
    depth, left = 1, node.left
    while isinstance(left, nodes.Add):
        depth, left = depth + 1, left.left
    return depth
