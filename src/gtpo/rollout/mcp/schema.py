"""A server's description of a tool as a `ToolSpec`, and its results as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gtpo.errors import ConfigError
from gtpo.rollout.tool_spec import ToolSpec

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def spec_of(tool: Mapping[str, Any], server: object) -> ToolSpec:
    """The description of a tool for the model.

    Args:
        tool: an entry of the server's list, with the protocol's names.
        server: the server of the tool, for messages.

    Raises:
        ConfigError: its name or its arguments can't be expressed in a call.
    """
    name = str(tool["name"])
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"tools: {server}: the tool {name!r} can't be called: chat templates and servers take names of up to 64 "
            "letters, digits, _ and -; rename it, or select the others with #TOOL+TOOL at the end"
        )
    schema = inlined(tool.get("inputSchema") or {}, f"tools: {server}: the tool {name!r}")
    description = " ".join(str(tool.get("description") or tool.get("title") or name).split())
    parameters = schema.get("properties") or {}
    if name == "python" and set(parameters) != {"code"}:
        raise ConfigError(
            f"tools: {server}: its tool 'python' must take one argument, `code`, as gtpo's does; rename it, or select "
            "the others with #TOOL+TOOL at the end"
        )
    return ToolSpec(
        name,
        description,
        parameters,
        tuple(argument for argument in schema.get("required") or () if argument in parameters),
        ability=f"call `{name}`",
        note=description,
    )


def inlined(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A JSON Schema with its references replaced by what they refer to: templates show properties, not definitions.

    A definition that contains itself is left out where it recurs: anything is allowed there.

    Raises:
        ConfigError: a reference has no target.
    """

    def replaced(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [replaced(item, within) for item in node]
        if not isinstance(node, dict):
            return node
        rest = {
            key: replaced(value, within) for key, value in node.items() if key not in ("$defs", "definitions", "$ref")
        }
        reference = node.get("$ref")
        if not isinstance(reference, str) or reference in within:
            return rest
        return {**replaced(_found(schema, reference, where), (*within, reference)), **rest}

    return dict(replaced(dict(schema), ()))


def _found(schema: Mapping[str, Any], reference: str, where: str) -> Any:
    node: Any = schema
    try:
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
    except (KeyError, TypeError, IndexError):
        raise ConfigError(f"{where}: its schema refers to {reference!r}, which is not in it") from None
    return node


def text_of(result: Mapping[str, Any]) -> str:
    """The text of a result; images and audio are named, not shown. Without content, its structured content as JSON."""
    texts = [_block(block) for block in result.get("content") or ()]
    if not texts and result.get("structuredContent") is not None:
        return json.dumps(result["structuredContent"], ensure_ascii=False)
    return "\n".join(texts)


def _block(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "text":
        return str(block["text"])
    if kind == "resource":
        resource = block["resource"]
        return str(resource["text"]) if "text" in resource else f"[resource {resource.get('uri')}]"
    if kind == "resource_link":
        return f"[resource {block.get('uri')}]"
    return f"[{kind}: {block.get('mimeType', 'unknown type')}]"


def chosen(tools: Sequence[Mapping[str, Any]], names: Sequence[str], server: object) -> list[Mapping[str, Any]]:
    """The tools with these names, in this order; all tools if no names are given.

    Raises:
        ConfigError: the server has no tools, or none with one of the names.
    """
    known = {str(tool["name"]): tool for tool in tools}
    if not known:
        raise ConfigError(f"tools: {server}: the server has no tools")
    if missing := [name for name in names if name not in known]:
        raise ConfigError(f"tools: {server}: there is no tool {missing[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())
