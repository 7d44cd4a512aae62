"""Benchmarks by name: the data set on the Hugging Face Hub, its split, and how a row is converted to a problem.

This module is a table and loads nothing. Ids, splits, columns and revisions come from public sources, named in
`source`; `note` says what could not be confirmed and where reports differ. A revision is a commit of the data set that
public code pins, never a guess; None follows the data set's main branch. `docs/benchmarks.md` documents the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gtpo.errors import ConfigError
from gtpo.tasks import benchmark_rows as rows

_FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
_FLASHRAG_REVISION = "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c"
_FLASHRAG_SOURCE = "PeterGriffinJin/Search-R1: scripts/data_process/qa_search_test_merge.py"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: its name in gtpo.
        domain: math, commonsense or code.
        verifier: the verifier that checks its answers: math, choice, qa or code.
        hub: id of the data set on the Hugging Face Hub.
        config: configuration of the data set; None for the only or default one.
        split: the split that results are reported on.
        revision: the commit that is read; None: the newest.
        samples: number of answers per problem that reports usually average over.
        row: converts a row of the data set to our format; raises DataError if a column is missing or has another form.
        source: a public source for the id and the columns.
        note: choices made, and what is not confirmed; may be "".
    """

    name: str
    domain: str
    verifier: str
    hub: str
    config: str | None
    split: str
    revision: str | None
    samples: int
    row: Callable[[Mapping[str, Any]], dict[str, Any]]
    source: str
    note: str = ""


TABLE = (
    Benchmark(
        name="aime24",
        domain="math",
        verifier="math",
        hub="HuggingFaceH4/aime_2024",
        config=None,
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        samples=32,
        row=rows.aime24,
        source="huggingface/lighteval: src/lighteval/tasks/tasks/aime.py",
        note="30 problems, in the only split. Leading zeros of answers (033) are dropped.",
    ),
    Benchmark(
        name="aime25",
        domain="math",
        verifier="math",
        hub="math-ai/aime25",
        config=None,
        split="test",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        samples=32,
        row=rows.aime25,
        source="UKGovernmentBEIS/inspect_evals: src/inspect_evals/aime2025/aime2025.py",
        note="30 problems, from both papers.",
    ),
    Benchmark(
        name="amc23",
        domain="math",
        verifier="math",
        hub="math-ai/amc23",
        config=None,
        split="test",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        samples=32,
        row=rows.amc23,
        source="https://huggingface.co/datasets/math-ai/amc23",
        note="40 problems of AMC 12, rewritten so that the answer is a number. Some reports use 8 or 16 samples.",
    ),
    Benchmark(
        name="math500",
        domain="math",
        verifier="math",
        hub="HuggingFaceH4/MATH-500",
        config=None,
        split="test",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        samples=4,
        row=rows.math500,
        source="huggingface/lighteval: src/lighteval/tasks/tasks/math_500.py",
        note="500 problems. Reports use 1 to 4 samples.",
    ),
    Benchmark(
        name="olympiadbench",
        domain="math",
        verifier="math",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        samples=4,
        row=rows.olympiadbench,
        source="huggingface/lighteval: src/lighteval/tasks/tasks/olympiade_bench/main.py",
        note="All 674 open, text-only problems in English, including those with several answers or with answers "
        "that are not numbers. Reports with 675 problems use another copy. The context column is not used, as"
        " in the benchmark's own code for mathematics. Reports use 1 to 4 samples.",
    ),
    Benchmark(
        name="gsm8k",
        domain="math",
        verifier="math",
        hub="openai/gsm8k",
        config="main",
        split="test",
        revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        samples=1,
        row=rows.gsm8k,
        source="UKGovernmentBEIS/inspect_evals: src/inspect_evals/gsm8k/gsm8k.py",
        note="1319 problems. Public code also pins the newer 740312add88f781978c0658806c59bc2815b9866.",
    ),
    Benchmark(
        name="svamp",
        domain="math",
        verifier="math",
        hub="ChilleD/SVAMP",
        config=None,
        split="test",
        revision="5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef",
        samples=1,
        row=rows.svamp,
        source="https://huggingface.co/datasets/ChilleD/SVAMP",
        note="The 300 problems of this copy's test split. The authors' set has 1000 problems, for evaluation only,"
        " and some reports use all of them: train and test of this copy.",
    ),
    Benchmark(
        name="gsm_hard",
        domain="math",
        verifier="math",
        hub="reasoning-machines/gsm-hard",
        config=None,
        split="train",
        revision="960448f73503112d4226baeb8eb41d3fb5ae2506",
        samples=1,
        row=rows.gsm_hard,
        source="https://huggingface.co/datasets/reasoning-machines/gsm-hard",
        note="1319 problems, in the only split: GSM8K's test problems with large numbers.",
    ),
    Benchmark(
        name="commonsenseqa",
        domain="commonsense",
        verifier="choice",
        hub="tau/commonsense_qa",
        config=None,
        split="validation",
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        samples=1,
        row=rows.commonsenseqa,
        source="UKGovernmentBEIS/inspect_evals: src/inspect_evals/commonsense_qa/commonsense_qa.py",
        note="1221 questions; the test split has no answers.",
    ),
    Benchmark(
        name="strategyqa",
        domain="commonsense",
        verifier="choice",
        hub="ChilleD/StrategyQA",
        config=None,
        split="test",
        revision="705562638fe1d8ca6bb98c66fc8f94d45fda8c83",
        samples=1,
        row=rows.strategyqa,
        source="https://huggingface.co/datasets/ChilleD/StrategyQA",
        note="Part of the authors' 2290 published questions with answers; others report on all of these. A model "
        "trained on the authors' train set has seen this part. It is not confirmed that qid is a column; rows"
        " without it have no id of their own.",
    ),
    Benchmark(
        name="arc_challenge",
        domain="commonsense",
        verifier="choice",
        hub="allenai/ai2_arc",
        config="ARC-Challenge",
        split="test",
        revision="210d026faf9955653af8916fad021475a3f00453",
        samples=1,
        row=rows.arc,
        source="UKGovernmentBEIS/inspect_evals: src/inspect_evals/arc/arc.py",
        note="1172 questions with three to five options; options labelled 1 to 4 are relabelled with letters.",
    ),
    Benchmark(
        name="openbookqa",
        domain="commonsense",
        verifier="choice",
        hub="allenai/openbookqa",
        config="main",
        split="test",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        samples=1,
        row=rows.openbookqa,
        source="EleutherAI/lm-evaluation-harness: lm_eval/tasks/openbookqa/openbookqa.yaml",
        note="500 questions, without the fact from the book.",
    ),
    Benchmark(
        name="hotpotqa",
        domain="commonsense",
        verifier="qa",
        hub=_FLASHRAG,
        config="hotpotqa",
        split="dev",
        revision=_FLASHRAG_REVISION,
        samples=1,
        row=rows.flashrag,
        source=_FLASHRAG_SOURCE,
        note="7405 questions; the passages are not used. The configuration also has a training file of 570 MB, "
        "which a plain load downloads too.",
    ),
    Benchmark(
        name="2wiki",
        domain="commonsense",
        verifier="qa",
        hub=_FLASHRAG,
        config="2wikimultihopqa",
        split="dev",
        revision=_FLASHRAG_REVISION,
        samples=1,
        row=rows.flashrag,
        source=_FLASHRAG_SOURCE,
        note="12576 questions; the passages are not used.",
    ),
    Benchmark(
        name="musique",
        domain="commonsense",
        verifier="qa",
        hub=_FLASHRAG,
        config="musique",
        split="dev",
        revision=_FLASHRAG_REVISION,
        samples=1,
        row=rows.flashrag,
        source=_FLASHRAG_SOURCE,
        note="2417 questions; the passages are not used.",
    ),
    Benchmark(
        name="bamboogle",
        domain="commonsense",
        verifier="qa",
        hub=_FLASHRAG,
        config="bamboogle",
        split="test",
        revision=_FLASHRAG_REVISION,
        samples=1,
        row=rows.flashrag,
        source=_FLASHRAG_SOURCE,
        note="125 questions. With so few, several samples per question are more informative.",
    ),
    Benchmark(
        name="humaneval",
        domain="code",
        verifier="code",
        hub="openai/openai_humaneval",
        config=None,
        split="test",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        samples=1,
        row=rows.humaneval,
        source="UKGovernmentBEIS/inspect_evals: src/inspect_evals/humaneval/humaneval.py",
        note="164 problems; the model is asked for whole programs, not for completions.",
    ),
    Benchmark(
        name="mbpp",
        domain="code",
        verifier="code",
        hub="google-research-datasets/mbpp",
        config="full",
        split="test",
        revision="4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        samples=1,
        row=rows.mbpp,
        source="EleutherAI/lm-evaluation-harness: lm_eval/tasks/mbpp/mbpp.yaml",
        note="The full test split, ids 11 to 510, as in the paper, with all tests in the question. The sanitized "
        "subset (257 of these problems in its test split) has other columns and is not part of this "
        "benchmark.",
    ),
    Benchmark(
        name="livecodebench",
        domain="code",
        verifier="code",
        hub="lighteval/code_generation_lite",
        config="v6",
        split="test",
        revision="89e5fc5c2a8e748f50e95bc7235fab2372d49bfa",
        samples=10,
        row=rows.livecodebench,
        source="huggingface/lighteval: src/lighteval/tasks/tasks/lcb/main.py",
        note="The 175 problems that release 6 added. This is a copy of livecodebench/code_generation_lite in "
        "Parquet, because the original needs a loading script, which datasets 4 refuses. Reports differ in "
        "the date window; other configurations of the copy are release_v1 to release_v6 and v1 to v6.",
    ),
)
"""All benchmarks, by domain."""

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in TABLE}
"""All benchmarks by name."""


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark with this name.

    Raises:
        ConfigError: there is no such benchmark; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; available: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
