"""What the model is told of an MCP server's tools, and how a server is asked for."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("mcp", reason="needs the extra: pip install 'gtpo[mcp]'")

from test_mcp import TINY, said

from gtpo.errors import ConfigError
from gtpo.rollout import MCPTools, RolloutConfig, ToolSpec, get_format
from gtpo.rollout.mcp.options import split_name, split_tools
from gtpo.rollout.mcp.schema import inlined, spec_of
from gtpo.types import InvalidCall, ToolCall


def listed(name="f", **schema):
    return {"name": name, "inputSchema": {"type": "object", **schema}}


class Test_what_the_model_is_told:
    def test_names_that_no_call_can_hold_are_refused(self):
        for name in ("a b", "files/read", "x" * 65, ""):
            with pytest.raises(ConfigError, match=r"can't be called: .*rename it"):
                spec_of(listed(name), "mcp:s")
        with pytest.raises(ConfigError, match="must take one argument, `code`"):
            spec_of(listed("python", properties={"script": {"type": "string"}}), "mcp:s")
        assert spec_of(listed("python", properties={"code": {"type": "string"}}), "mcp:s").is_python
        with pytest.raises(ConfigError, match="'Add' can't be the label of a fenced block"):
            get_format("fenced", [spec_of(listed("Add", properties={"a": {"type": "string"}}, required=["a"]), "s")])

    def test_a_schema_that_contains_itself_ends(self):
        tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/T"}}}}
        spec = spec_of(listed(properties={"tree": {"$ref": "#/$defs/T"}}, **{"$defs": {"T": tree}}), "s")
        children = spec.parameters["tree"]["properties"]["children"]
        assert children == {"type": "array", "items": {}}
        assert "$defs" not in json.dumps(spec.schema)
        with pytest.raises(ConfigError, match="'#/\\$defs/U', which is not in it"):
            spec_of(listed(properties={"tree": {"$ref": "#/$defs/U"}}), "s")

    def test_what_is_said_beside_a_reference_wins(self):
        schema = {"properties": {"a": {"$ref": "#/$defs/A", "description": "mine"}}, "$defs": {"A": {"type": "string"}}}
        assert inlined(schema, "s")["properties"]["a"] == {"type": "string", "description": "mine"}

    @pytest.mark.parametrize(
        ("parameter", "right", "wrong"),
        [
            ({"type": ["integer", "null"]}, (1, None), ("1", True)),
            ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, (1, "1"), ([], None)),
            ({"oneOf": [{"type": "array"}, {"type": "null"}]}, ([1], None), ({}, 1)),
            ({"type": "number", "nullable": True}, (1.5, 2, None), ("1.5", False)),
            ({"anyOf": [{"type": "integer"}, {}]}, (1, "1", None, []), ()),
            ({}, (1, "1", None, {}), ()),
        ],
    )
    def test_a_parameter_of_several_types_takes_them_and_no_other(self, parameter, right, wrong):
        spec = ToolSpec("f", "f", {"a": parameter}, (), ability="f")
        assert all(isinstance(spec.call({"a": value}), ToolCall) for value in right)
        assert all(isinstance(spec.call({"a": value}), InvalidCall) for value in wrong)

    @pytest.mark.parametrize("name", ["tool_call", "auto"])
    def test_a_nested_schema_reaches_the_prompt(self, qwen_tokenizer, name):
        from gtpo.rollout import build_engine

        deep = {"properties": {"city": {"type": "string"}, "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}
        spec = spec_of(listed("weather", properties={"place": {"type": "object", **deep}}, required=["place"]), "s")

        class Weather:
            def __init__(self):
                self.spec = spec

        config = RolloutConfig(tools="none", tool_format=name)
        engine = build_engine(config, qwen_tokenizer, tools=[Weather(), *MCPTools(TINY, only=["count"])])
        shown = qwen_tokenizer.decode(engine.encoder.prompt_ids([{"role": "user", "content": "q"}]))
        assert json.dumps(deep["properties"]) in shown.replace("&quot;", '"')
        written = said("weather", place={"city": "Rome", "days": None}) + said("count")
        first, second = engine.encoder.format.parse(written)
        assert first.arguments == {"place": {"city": "Rome", "days": None}}
        assert (second.name, second.arguments) == ("count", {})


class Test_options:
    def test_a_server_is_named_among_the_tools(self):
        assert split_tools("python, mcp:uvx time ,mcp:http://h/mcp#a+b") == [
            "python",
            "mcp:uvx time",
            "mcp:http://h/mcp#a+b",
        ]
        assert split_tools("""mcp:serve --list "a,b" 'c,d',python""") == ["""mcp:serve --list "a,b" 'c,d'""", "python"]
        assert split_tools("mcp:don't,python") == ["mcp:don't", "python"]
        assert split_name("mcp:uvx time#now+later-on") == ("uvx time", ("now", "later-on"))
        assert split_name("mcp:sh -c 'echo #1 a'") == ("sh -c 'echo #1 a'", ())

    def test_every_command_makes_them_by_the_same_words(self, monkeypatch):
        monkeypatch.setenv("KEPT", "1")
        config = RolloutConfig(tools=f"mcp:{TINY}#echo", mcp_env=["KEPT"], mcp_session="shared", mcp_call_s=3)
        (tool,) = config.make_tools()
        assert [tool.spec] == config.specs()
        assert tool.spec.name == "echo"
        server = tool._server
        assert (server.session, server.server.call_s, server.server.env) == ("shared", 3, {"KEPT": "1"})
        assert config.recorded()["mcp_session"] == "shared"
        assert "mcp_session" not in RolloutConfig().recorded()
        with pytest.raises(ConfigError, match="two tools are named 'echo'"):
            config.given_tools([f"mcp:{TINY}#echo", MCPTools(TINY, only=["echo"])])

    def test_bad_ones_are_refused_by_name(self, monkeypatch):
        for options, message in (
            ({"mcp_session": "one"}, "mcp_session must be rollout or shared"),
            ({"mcp_call_s": 0}, "mcp_call_s must be above 0"),
            ({"mcp_connect_s": float("nan")}, "mcp_connect_s must be above 0"),
        ):
            with pytest.raises(ConfigError, match=message):
                RolloutConfig(**options)
        with pytest.raises(ConfigError, match="mcp_env: the environment variable NOT_THERE is not set"):
            RolloutConfig(tools=f"mcp:{TINY}", mcp_env=["NOT_THERE"]).make_tools()
        monkeypatch.setenv("KEY", "secret")
        config = RolloutConfig(tools="mcp:http://example.org/mcp", mcp_key_variable="KEY")
        with pytest.raises(ConfigError, match="mcp_key_variable: the API key would go over plain http"):
            config.make_tools()
