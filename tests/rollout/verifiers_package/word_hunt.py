"""An environment of the library `verifiers`: a word is found by its length and its first letter."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["WordHunt"]
WORDS = ("turn", "group", "policy")


class HuntState(vf.State):
    """Hints that were asked for in a rollout."""

    hints: int = 0


class Hints(vf.Toolset[vf.ToolsetConfig, HuntState]):
    """Tells of the task's word."""

    TOOL_PREFIX = "hunt"

    async def setup_task(self, task):
        """Keep the task's word."""
        self.word = task.answer

    @vf.tool
    async def length(self) -> int:
        """Ask how long the word is."""
        self.state.hints += 1
        return len(self.word)

    @vf.tool
    def letter(self, place: int) -> str:
        """Ask for a letter of the word, by its place."""
        self.state.hints += 1
        return self.word[place]


class Words(vf.Toolset[vf.ToolsetConfig, vf.State]):
    """Knows all words; one for all rollouts."""

    TOOL_PREFIX = None

    async def setup(self):
        """Learn the words."""
        self.words = list(WORDS)

    @vf.tool
    async def known_words(self) -> list[str]:
        """List the words that may be meant."""
        return self.words


class HuntData(vf.TaskData):
    """A word to find."""

    answer: str


class HuntTask(vf.Task[HuntData, HuntState]):
    """Finds a word."""

    @classmethod
    def toolsets(cls, config):
        """The hints."""
        return [Hints(vf.ToolsetConfig())]

    @vf.reward(weight=1.0)
    async def found(self, trace):
        """1 if the last reply names the word."""
        return float(self.data.answer in (trace.last_reply or ""))

    @vf.reward(weight=-0.25)
    async def hints(self, trace):
        """A penalty for each hint."""
        return float(trace.state.hints)

    @vf.metric
    async def turns(self, trace):
        """Turns."""
        return float(trace.num_turns)


class HuntConfig(vf.TasksetConfig):
    """Settings."""

    first: int = 0


class WordHunt(vf.Taskset[HuntTask, HuntConfig]):
    """Words to find."""

    def load(self):
        """One task a word."""
        for word in WORDS[self.config.first :]:
            data = HuntData(prompt="Which word do I mean?", system_prompt="Find the word.", name=word, answer=word)
            yield HuntTask(data, self.config.task)

    @classmethod
    def toolsets(cls, config):
        """The words."""
        return [Words(vf.ToolsetConfig())]
