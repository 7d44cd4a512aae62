"""Tools beside Python: what the model is told, what is a call, what comes back, several at once."""

from __future__ import annotations

import asyncio
import json

import pytest
from test_loop import FakeSandbox

from gtpo.errors import ConfigError, DataError
from gtpo.rollout import (
    ChatEncoder,
    Prompts,
    PythonTool,
    RolloutConfig,
    RolloutEngine,
    SearchTool,
    ToolResult,
    ToolSpec,
    get_format,
)
from gtpo.rollout.search import Passage
from gtpo.rollout.tool_spec import PYTHON
from gtpo.sandbox import LocalSandbox
from gtpo.tasks.problems import Problem
from gtpo.testing import ScriptedBackend
from gtpo.types import InvalidCall, StopReason, ToolCall

PASSAGES = [
    Passage("Ada Lovelace wrote the first program.", "Ada Lovelace"),
    Passage("Charles Babbage designed the analytical engine.", "Charles Babbage"),
    Passage("The first program was for the analytical engine."),
]
CLOCK = ToolSpec(
    "clock",
    "Tell the time.",
    {"zone": {"type": "string"}, "hours": {"type": "integer"}, "exact": {"type": "boolean"}},
    ("zone",),
    ability="ask for the time",
)


@pytest.fixture(scope="module")
def search():
    return SearchTool(PASSAGES, results=2)


def run(tool, query):
    return asyncio.run(tool.open(0).run(ToolCall("", "search", {"query": query})))


def test_search_returns_the_best_passages_first(search):
    assert search.search("Who designed the engine?") == [PASSAGES[1], PASSAGES[2]]
    assert run(search, "Lovelace") == ToolResult("[1] Ada Lovelace: Ada Lovelace wrote the first program.")
    for nothing in ("zebra", "", "the", "?!"):
        assert run(search, nothing) == ToolResult("[no passage found]", "nothing_found")


def test_many_searches_at_once_get_their_own_result():
    passages = [Passage(f"word{i} is here") for i in range(300)]
    tool = SearchTool(passages, results=1)

    async def all_of_them():
        calls = [ToolCall("", "search", {"query": f"word{i}"}) for i in range(300)]
        return await asyncio.gather(*(tool.open(i).run(call) for i, call in enumerate(calls)))

    assert [r.text for r in asyncio.run(all_of_them())] == [f"[1] word{i} is here" for i in range(300)]


def test_passages_come_from_a_file(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "title": p.title, "text": p.text}) + "\n" for i, p in enumerate(PASSAGES))
    )
    assert SearchTool.from_file(path, results=9).search("Babbage") == [PASSAGES[1]]
    for line, fault in (
        ('{"title": "x"}', "field 'text': missing or blank"),
        ('{"text": 3}', "field 'text': not text"),
        ('{"text": "x", "title": 3}', "field 'title': not text"),
        ("{", "broken JSON"),
    ):
        path.write_text(f'{{"text": "a"}}\n{line}\n')
        with pytest.raises(DataError, match=f"passages.jsonl:2: {fault}"):
            SearchTool.from_file(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no passage"):
        SearchTool.from_file(path)
    with pytest.raises(ConfigError, match="no passage holds a word"):
        SearchTool([Passage("the a of")])
    with pytest.raises(ConfigError, match="results >= 1"):
        SearchTool(PASSAGES, results=0)


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (call("python", code="1"), ToolCall("1")),
        (call("clock", zone="UTC"), ToolCall("clock(zone='UTC')", "clock", {"zone": "UTC"})),
        (
            call("clock", zone="UTC", hours=3),
            ToolCall("clock(zone='UTC', hours=3)", "clock", {"zone": "UTC", "hours": 3}),
        ),
        (call("clock", zone="UTC", hours="3"), InvalidCall('the argument "hours" must be an integer')),
        (call("clock", zone="UTC", hours=True), InvalidCall('the argument "hours" must be an integer')),
        (call("clock", zone="UTC", exact=1), InvalidCall('the argument "exact" must be a boolean')),
        (call("clock", hours=3), InvalidCall('the argument "zone" is missing')),
        (call("clock", zone=" "), InvalidCall("the zone is empty")),
        (
            call("clock", zone="UTC", colour="red"),
            InvalidCall('\'clock\' takes 3 arguments, "zone", "hours", "exact", not \'colour\''),
        ),
        (call("map", zone="UTC"), InvalidCall("there is no tool named 'map'; the tools are 'python', 'clock'")),
    ],
)
def test_calls_of_several_tools_in_json(text, found):
    assert get_format("tool_call", (PYTHON, CLOCK)).parse(text) == (found,)


def test_calls_of_several_tools_in_fences(search):
    fmt = get_format("fenced", (PYTHON, search.spec))
    found = ToolCall("search(query='Ada\\nLovelace')", "search", {"query": "Ada\nLovelace"})
    assert fmt.parse("```search\nAda\nLovelace\n```\n```python\n1\n```") == (found, ToolCall("1"))
    assert fmt.parse(fmt.render_call("Ada\nLovelace", search.spec)) == (found,)
    (invalid,) = fmt.parse("```search\nAda")
    assert invalid.reason == "the ```search block was not closed with a line ```"
    (invalid,) = fmt.parse("```search Ada\n```")
    assert invalid.reason == "the query must start on the line after ```search"
    (invalid,) = get_format("fenced").parse("```search\nAda\n```")
    assert invalid.reason == "there is no tool for search; only ```python blocks are run"
    with pytest.raises(ConfigError, match="'clock' does not fit into a fenced block"):
        get_format("fenced", (ToolSpec("clock", "", {"hours": {"type": "integer"}}, ("hours",), ability=""),))


@pytest.mark.parametrize("name", ["fenced", "tool_call"])
def test_a_format_without_tools_knows_no_calls(name):
    fmt = get_format(name, ())
    assert fmt.parse("```python\n1\n```" + call("python", code="1")) == ()
    assert not fmt.tools
    assert Prompts(fmt).system_prompt() == (
        "Solve the problem step by step. When you know the answer, write it in \\boxed{}."
    )


def test_the_prompt_tells_of_each_tool_and_of_the_kind_of_answer(search):
    prompts = Prompts(get_format("fenced", (PYTHON, search.spec)), instructions={"qa": "Be brief."})
    shown = prompts.system_prompt("qa")
    assert "a line ```python" in shown
    assert "a line ```search" in shown
    assert shown.endswith("Each search returns up to 2 passages. Be brief and make no call in that turn.")
    assert "letter" in prompts.messages(Problem("", "?", "A", "commonsense", {"choices": ["x"]}))[0]["content"]
    assert Prompts(prompts.tool_format, setting="").messages(Problem("", "?", "2")) == [
        {"role": "user", "content": "?"}
    ]
    assert Prompts(prompts.tool_format, setting="own").system_prompt("qa") == "own"


def test_a_rollout_uses_two_tools_in_one_turn(byte_tokenizer, search):
    tools = [PythonTool(FakeSandbox()), search]
    encoder = ChatEncoder(byte_tokenizer, get_format("fenced", [tool.spec for tool in tools]))
    prompt = [{"role": "user", "content": "Who?"}]
    turns = ["```search\nLovelace\n```\n```python\n1\n```", "\\boxed{Ada}"]
    backend = ScriptedBackend(byte_tokenizer, {tuple(encoder.prompt_ids(prompt)): turns})
    (rollout,) = RolloutEngine(encoder, tools).run([prompt], backend).trajectories
    assert rollout.stop_reason is StopReason.ANSWER
    assert rollout.turns[0].observation.results == ("[1] Ada Lovelace: Ada Lovelace wrote the first program.", "<1>")
    assert rollout.code == "search(query='Lovelace')\n1"


def test_the_model_must_be_told_of_the_tools_there_are(byte_tokenizer, search):
    encoder = ChatEncoder(byte_tokenizer, get_format("fenced"))
    with pytest.raises(ConfigError, match=r"describes the tools \['python'\], but the engine has \['search'\]"):
        RolloutEngine(encoder, search)


def test_the_chat_template_gets_the_schema_of_each_tool(qwen_tokenizer, search):
    encoder = ChatEncoder(qwen_tokenizer, get_format("tool_call", (search.spec, PYTHON)))
    assert [tool["function"]["name"] for tool in encoder.tools] == ["search", "python"]
    assert encoder.observation_ids(["x"])


def own_tool():
    """A tool as a user writes one."""
    return OwnTool()


class OwnTool:
    spec = CLOCK

    def open(self, key):
        return self

    async def run(self, call):
        return ToolResult(f"noon in {call.arguments['zone']}")

    async def aclose(self):
        pass


def test_options_choose_tools(tmp_path):
    passages = tmp_path / "p.jsonl"
    passages.write_text('{"text": "alpha"}\n')
    args = RolloutConfig(tools="python, search,test_tools:own_tool", passages=str(passages), search_results=4)
    assert [spec.name for spec in args.specs()] == ["python", "search", "clock"]
    sandbox = LocalSandbox(max_workers=1)
    tools = args.make_tools(sandbox)
    assert [type(tool) for tool in tools] == [PythonTool, SearchTool, OwnTool]
    assert [tool.spec for tool in tools] == args.specs(), "what the prompt says is what there is"
    sandbox.close()
    assert RolloutConfig(tools="none").make_tools() == []
    assert "kept from run to run" in RolloutConfig(tool_state="session").specs()[0].note
    for wrong, fault in (
        ("pythno", "unknown tool 'pythno'; known: python, search"),
        ("python,python", "names a tool twice"),
        ("nowhere:tool", "can't be imported"),
    ):
        with pytest.raises(ConfigError, match=fault):
            RolloutConfig(tools=wrong).make_tools()
    with pytest.raises(ConfigError, match="needs --passages"):
        RolloutConfig(tools="search").make_tools()


def test_a_tool_called_python_takes_a_program():
    with pytest.raises(ConfigError, match=r"its one argument must be named `code`, the program; rename the argument"):
        ToolSpec("python", "Run.", {"source": {"type": "string"}}, ("source",), ability="run")
