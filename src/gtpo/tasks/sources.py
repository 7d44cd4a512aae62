"""Where problems come from, each named by one line of text, so that a flag or a config file can hold it.

    problems.jsonl                                a file: JSON Lines, or Parquet (.parquet)
    hub:OWNER/NAME?config=main&split=train        a data set of the Hugging Face Hub
    reasoning-gym:NAME?size=500&seed=1            problems made by reasoning-gym
    mixture.yaml                                  several of these, with weights
    gsm8k                                         a benchmark by name (`gtpo.tasks.benchmarks`)

From Python a source may also be the rows themselves: problems, dictionaries, or a `Dataset` of the library `datasets`.
Rows may be those of a published data set, as they are (`gtpo.tasks.row_forms`).

What follows `?` are settings, `name=value` joined by `&`. For files and the Hub: `question=COLUMN` and the like say
which column holds which field of a problem, `domain=NAME` and `verifier=NAME` hold for all rows, `limit=N` takes the
first N. For the Hub also `config`, `split` (default: train) and `revision`; without a revision, what the Hub has today
is taken, so pin one for what has to be repeated. For reasoning-gym `size`, `seed`, and whatever the generator takes.

A mixture is a YAML file:

    size: 3000              # problems in all; without it, as many as the weights allow without repeating any
    seed: 0                 # of the draw and of the order
    sources:
      - {source: "gsm8k_train.jsonl", weight: 2}
      - {source: "reasoning-gym:chain_sum?size=1000", weight: 1}
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from gtpo._jsonl import numbered_rows
from gtpo._yaml import read_yaml
from gtpo.errors import ConfigError, DataError
from gtpo.tasks.benchmarks import BENCHMARKS, get_benchmark
from gtpo.tasks.problems import (
    VERIFIERS,
    Problem,
    draw_key,
    load_problems,
    no_row_verifier,
    problems_of_rows,
    sample,
)
from gtpo.tasks.row_forms import FIELDS, Columns
from gtpo.tasks.verifiers import Verifier

_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """A source of problems, parsed.

    Attributes:
        kind: file, hub, reasoning-gym, mixture or benchmark.
        name: path, Hub id, generator or benchmark.
        settings: what follows the question mark.
    """

    kind: str
    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises ConfigError if the text names no kind of source."""
        head, _, query = text.partition("?")
        settings = dict(parse_qsl(query, keep_blank_values=True))
        for prefix in ("hub", "reasoning-gym"):
            if head.startswith(f"{prefix}:"):
                return cls(prefix, head.removeprefix(f"{prefix}:"), settings)
        suffix = Path(head).suffix.lower()
        if suffix in (".yaml", ".yml"):
            return cls("mixture", head, settings)
        if suffix or "/" in head or Path(head).exists():
            return cls("file", head, settings)
        if head in BENCHMARKS:
            return cls("benchmark", head, settings)
        raise ConfigError(
            f"{text!r} is no source of problems: give a file (.jsonl, .parquet), hub:OWNER/NAME, reasoning-gym:NAME, a "
            f"mixture (.yaml), or a benchmark: {', '.join(BENCHMARKS)}"
        )


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Attributes:
        columns: see `gtpo.tasks.row_forms`.
        answers: whether each row must have an answer.
        data_dir: where benchmarks lie as `NAME.jsonl`, in place of the Hub.
    """

    columns: Columns = None
    answers: bool = True
    data_dir: Path | None = None

    @property
    def require(self) -> tuple[str, ...]:
        """Fields that each row must have."""
        return ("question", "answer") if self.answers else ("question",)


def problems_from(
    source: str | Path | Iterable[Any],
    *,
    limit: int | None = None,
    data_dir: str | Path | None = None,
    columns: Columns = None,
    answers: bool = True,
) -> list[Problem]:
    """The problems of a source.

    Args:
        source: see the module.
        limit: take the first `limit` problems only.
        data_dir: where benchmarks lie as `NAME.jsonl` in our row format, in place of the Hub.
        columns: which column holds which field, or a function from a row to a row of ours, where the rows can't be read
            as they are; see `gtpo.tasks.row_forms`. Settings behind the source's question mark stand above it.
        answers: whether each row must have an answer; False for problems that reward functions score.

    Raises:
        ConfigError: no such source, or settings that it does not have.
        DataError: rows that can't be used; the message names source, row and field.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give 1 or more, or None for all problems")
    reading = Reading(columns, answers, Path(data_dir) if data_dir else None)
    if not isinstance(source, str | Path):
        return _from_python(source, limit, reading)
    parsed = Source.parse(str(source))
    if columns is not None and parsed.kind in ("benchmark", "reasoning-gym"):
        raise ConfigError(f"{source}: its columns are known; leave out columns")
    return _LOADERS[parsed.kind](parsed, reading)[:limit]


def verifiable(problems: Sequence[Problem], verifier: Verifier | None, say: Callable[[str], None]) -> list[Problem]:
    """The problems whose gold answers can be read; says which ones are left out, and why.

    Args:
        problems: the problems.
        verifier: checks answers; None: reward functions score, and no answer is needed.
        say: told of those that are left out.

    Raises:
        DataError: none is left.
    """
    if verifier is None:
        return list(problems)
    unusable = {p.id: str(p.extras["no_answer"]) for p in problems if not p.answer.strip() and "no_answer" in p.extras}
    unusable |= verifier.unusable([problem for problem in problems if problem.id not in unusable])
    for problem_id, why in list(unusable.items())[:_SHOWN]:
        say(f"left out: problem {problem_id}: {why}")
    if len(unusable) > _SHOWN:
        say(f"left out: {len(unusable) - _SHOWN} more problems without an answer that can be verified")
    left = [problem for problem in problems if problem.id not in unusable]
    if not left:
        raise DataError("no problem has an answer that can be verified", field="answer")
    return left


def _from_python(rows: Iterable[Any], limit: int | None, reading: Reading) -> list[Problem]:
    """Problems, or rows as dictionaries, of a list or a data set."""
    from datasets import DatasetDict, IterableDatasetDict

    if isinstance(rows, DatasetDict | IterableDatasetDict):
        raise ConfigError(f"problems: a data set with splits; choose one of them: {', '.join(rows)}")
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise ConfigError(f"problems: a {type(rows).__name__}; give a source, a list of rows or problems, or a Dataset")
    first: list[Any] = []
    for row in rows:
        first.append(row)
        if limit is not None and len(first) == limit:
            break
    if first and all(isinstance(row, Problem) for row in first):
        return first
    if odd := next((row for row in first if not isinstance(row, Mapping)), None):
        raise DataError(f"a {type(odd).__name__}; give dictionaries with question and answer", path="problems")
    numbered: Any = enumerate((dict(row) for row in first), start=1)
    return problems_of_rows(numbered, "problems", require=reading.require, columns=reading.columns)


def _from_file(source: Source, reading: Reading) -> list[Problem]:
    path = Path(source.name)
    if path.suffix.lower() != ".parquet":
        rows: Any = numbered_rows(path)
        return _made(rows, path, source.settings, reading)
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"no such file (looked for {path.absolute()})", path=path)
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"not a Parquet file: {error}", path=path) from error
    return _made(enumerate(table.to_pylist(), start=1), path, source.settings, reading)


def _made(
    rows: Any, where: str | Path, settings: Mapping[str, str], reading: Reading, extra: tuple[str, ...] = ()
) -> list[Problem]:
    """Problems of rows, under the settings that files and Hub share."""
    known = {*FIELDS, "domain", "verifier", "limit", *extra}
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"{where}: unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if (named := settings.get("verifier")) is not None and named not in VERIFIERS:
        raise ConfigError(f"{where}: setting 'verifier': {no_row_verifier(named)}")
    columns: Columns = {name: settings[name] for name in FIELDS if name in settings} or reading.columns
    problems = problems_of_rows(
        rows,
        where,
        limit=_whole(settings, "limit", where),
        require=reading.require,
        columns=columns,
        domain=settings.get("domain"),
    )
    if "verifier" in settings:
        problems = [replace(p, extras={**p.extras, "verifier": settings["verifier"]}) for p in problems]
    return problems


def _from_hub(source: Source, reading: Reading) -> list[Problem]:
    settings = source.settings
    data = _hub_rows(source.name, settings.get("config"), settings.get("split", "train"), settings.get("revision"))
    return _made(enumerate(data, start=1), source.name, settings, reading, ("config", "split", "revision"))


def _hub_rows(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        data = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the package raises errors of many libraries, also of the network
        raise DataError(
            f"the Hub's data set is unavailable (config {config}, split {split}, revision {revision}): {error}",
            path=name,
        ) from error
    yield from (dict(row) for row in data)


def _from_benchmark(source: Source, reading: Reading) -> list[Problem]:
    benchmark = get_benchmark(source.name)
    limit = _whole(source.settings, "limit", source.name)
    if set(source.settings) - {"limit"}:
        raise ConfigError(f"benchmark {source.name}: only `limit` can be set; use hub: for other columns")
    if reading.data_dir is not None:
        problems = load_problems(reading.data_dir / f"{benchmark.name}.jsonl", limit=limit)
    else:
        raw = _hub_rows(benchmark.hub, benchmark.config, benchmark.split, benchmark.revision)
        rows = ((number, _with_id(benchmark.row(row), benchmark.name, number)) for number, row in enumerate(raw, 1))
        problems = problems_of_rows(rows, benchmark.name, limit=limit, domain=benchmark.domain)
    return [replace(p, extras={"verifier": benchmark.verifier, **p.extras}) for p in problems]


def _with_id(row: dict[str, Any], benchmark: str, number: int) -> dict[str, Any]:
    return {**row, "id": f"{benchmark}/{row.get('id', number - 1)}"}


def _from_reasoning_gym(source: Source, reading: Reading) -> list[Problem]:
    """Rows carry the generator's entry, which its scorer needs."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError("reasoning-gym is not installed: pip install 'gtpo[reasoning-gym]'") from error
    settings = {name: _literal(value) for name, value in source.settings.items()}
    settings = {"size": 500, "seed": 0, **settings}
    try:
        entries = list(reasoning_gym.create_dataset(source.name, **settings))
    except Exception as error:  # generators check their settings by assertions
        raise ConfigError(f"reasoning-gym:{source.name}: can't be made with {settings}: {error!r}") from error
    made = {"dataset": source.name, "settings": settings}
    return [
        Problem(
            id=f"{source.name}/{settings['seed']}/{number}",
            question=entry["question"],
            answer=str(entry["answer"]),
            domain="reasoning",
            extras={"verifier": "reasoning_gym", "reasoning_gym": made, "entry": _as_json(entry)},
        )
        for number, entry in enumerate(entries)
    ]


def _as_json(entry: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(entry, default=str))


def _from_mixture(source: Source, reading: Reading) -> list[Problem]:
    path = Path(source.name)
    try:
        mixture = read_yaml(path)
    except ValueError as error:
        raise DataError(str(error), path=path) from error
    if not isinstance(mixture, dict) or not isinstance(mixture.get("sources"), list) or not mixture["sources"]:
        raise DataError("a mixture has a list `sources`, each with `source` and `weight`", path=path)
    if unknown := sorted(map(str, set(mixture) - {"sources", "size", "seed"})):
        raise DataError(f"unknown: {', '.join(unknown)}; known are sources, size, seed", path=path)
    weights, parts = [], []
    for part in mixture["sources"]:
        if not isinstance(part, dict) or set(part) - {"source", "weight"} or not isinstance(part.get("source"), str):
            raise DataError(f"a source is {{source: TEXT, weight: NUMBER}}, not {part!r}", path=path, field="sources")
        weight = part.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise DataError(
                f"the weight of {part['source']} must be a finite number above 0", path=path, field="weight"
            )
        if Source.parse(part["source"]).kind == "mixture":
            raise DataError(
                "a mixture cannot contain a mixture; list the sources of the inner one here", path=path, field="sources"
            )
        weights.append(float(weight))
        parts.append(
            problems_from(part["source"], data_dir=reading.data_dir, columns=reading.columns, answers=reading.answers)
        )
    return _mixed(parts, weights, mixture.get("size"), mixture.get("seed", 0), path)


def _mixed(parts: list[list[Problem]], weights: list[float], size: Any, seed: int, path: Path) -> list[Problem]:
    """Problems of all parts in the shares of the weights, none twice, in an order drawn by the seed."""
    most = int(min(len(part) / weight for part, weight in zip(parts, weights, strict=True)) * sum(weights) + 1e-9)
    size = most if size is None else size
    if not isinstance(size, int) or not 1 <= size <= most:
        raise DataError(
            f"size {size!r}: with these weights there are problems for 1 to {most}, none used twice; make it "
            "smaller, or change the weights",
            path=path,
            field="size",
        )
    ends = [round(size * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    drawn = [p for part, count in zip(parts, counts, strict=True) for p in sample(part, min(count, len(part)), seed)]
    repeated = [name for name, count in Counter(problem.id for problem in drawn).items() if count > 1]
    if repeated:
        raise DataError(f"the id {repeated[0]!r} comes from two sources; ids must be unique", path=path, field="id")
    return sorted(drawn, key=lambda problem: draw_key(problem, seed))


def _whole(settings: Mapping[str, str], name: str, where: str | Path) -> int | None:
    if name not in settings:
        return None
    try:
        return int(settings[name])
    except ValueError:
        raise ConfigError(f"{where}: {name} must be a whole number, not {settings[name]!r}") from None


def _literal(text: str) -> Any:
    """A number, true or false, a list, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


_LOADERS = {
    "file": _from_file,
    "hub": _from_hub,
    "reasoning-gym": _from_reasoning_gym,
    "mixture": _from_mixture,
    "benchmark": _from_benchmark,
}
