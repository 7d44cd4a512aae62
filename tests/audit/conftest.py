from __future__ import annotations

import pytest
from audit_support import (
    SOURCES,
    batch_of,
    roll_out,
)

from gtpo.audit import AuditBatch
from gtpo.audit.turns import known_layout
from gtpo.rollout import ChatEncoder, get_format


@pytest.fixture(params=["tiny-fenced", "qwen-fenced", "qwen-tool_call"])
def encoder(request, tiny_tokenizer, qwen_tokenizer):
    name, tool_format = request.param.split("-")
    return ChatEncoder({"tiny": tiny_tokenizer, "qwen": qwen_tokenizer}[name], get_format(tool_format))


@pytest.fixture
def trajectories(encoder):
    return roll_out(encoder)


@pytest.fixture(params=SOURCES)
def batch(request, encoder, trajectories):
    return batch_of(request.param, trajectories, encoder.tokenizer)


@pytest.fixture
def turns(trajectories):
    """Spans of the first rollout's turns and observations."""
    layout = known_layout(AuditBatch.from_trajectories(trajectories).rows[0], frozenset())
    assert (len(layout.turns), len(layout.observations)) == (3, 2)
    return layout
