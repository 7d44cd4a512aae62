"""How large advantages are in recorded groups before clipping, and which groups have large ones.

    python benchmarks/advantage_sizes.py RUN_DIR [RUN_DIR ...]
    python benchmarks/advantage_sizes.py --sampled
    python benchmarks/advantage_sizes.py --made

The recorded returns are normalised again in each of the three ways, without `advantage_clip`. Over all turns with a
nonzero advantage, the table shows quantiles and the maximum of its absolute value and the shares above 5 and above 10;
it also shows the number of groups with an advantage above 10. `--sampled` uses groups of 8 from the processes of
`benchmarks/tabular.py`, 20,000 per process, with gamma 0.9 and with gamma set by the number of turns. `--made` prints
constructed groups with large advantages: a success of T turns, and failures shaped to nearly the return of its first
turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gtpo import functional as F
from gtpo.errors import GtpoError
from gtpo.lab.tabular import CallProcess, estimator, policy_with_success
from gtpo.run_directory import RunFiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--sampled", action="store_true")
    parser.add_argument("--made", action="store_true")
    args = parser.parse_args()
    if args.sampled:
        sampled()
    if args.made:
        made()
    groups = [group for run in args.runs for group in recorded(run)]
    if not groups:
        return
    print(
        "| normalize_over | groups | turns | median | 99 % | 99.9 % | largest | above 5 | above 10 | groups above 10 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for over in F.NORMALIZE_OVER:
        sizes = [sizes_of(group, over) for group in groups]
        pooled = torch.cat(sizes)
        pooled = pooled[pooled > 0]
        quantiles = torch.quantile(pooled, torch.tensor([0.5, 0.99, 0.999], dtype=pooled.dtype)).tolist()
        shown = [f"{value:.2f}" for value in (*quantiles, float(pooled.max()))]
        shares = [f"{float((pooled > bound).double().mean()):.5f}" for bound in (5, 10)]
        large = sum(bool((size > 10).any()) for size in sizes)
        signal = sum(bool((size > 0).any()) for size in sizes)
        print(f"| {over} | {signal} | {len(pooled)} | {' | '.join([*shown, *shares])} | {large} |")


def recorded(run: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Returns, turns and verdicts of each recorded group, masked rollouts left out."""
    files = RunFiles(run)
    for step in files.steps():
        try:
            rows = [row for row in files.rollouts(step) if not row["masked"]]
        except GtpoError as error:
            print(f"{run}: step {step} skipped: {error}")
            continue
        for group in sorted({row["group"] for row in rows}):
            yield tensors([row for row in rows if row["group"] == group])


def tensors(rows: Sequence[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (padded), numbers of turns and verdicts of rollouts."""
    returns = [[turn["return"] for turn in row["turns"]] for row in rows]
    longest = max(map(len, returns))
    padded = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in returns], dtype=torch.float64)
    return padded, torch.tensor(list(map(len, returns))), torch.tensor([row["passed"] for row in rows])


def sizes_of(group: tuple[Tensor, Tensor, Tensor], over: str) -> Tensor:
    """Sizes of the advantages of one group's turns."""
    returns, turns, passed = group
    ids = torch.zeros(len(turns), dtype=torch.long)
    found = F.group_advantages(returns, turns, ids, passed_B=passed, normalize_over=over, advantage_clip=0.0)
    return found[torch.arange(found.shape[1]) < turns[:, None]].abs()


def sampled(groups: int = 20_000) -> None:
    """Sizes in groups of the known processes, normalised over first turns."""
    print("| turns | success rate | gamma | 99.9 % | largest | turns above 10 | groups above 10 |")
    print("|---|---|---|---|---|---|---|")
    for turns, process in ((2, CallProcess(1, 4)), (4, CallProcess(3, 8)), (8, CallProcess(7, 12))):
        for success in (0.02, 0.1, 0.3, 0.6):
            table = policy_with_success(process, success)
            rollouts = process.sample(table.expand(8 * groups, -1, -1), torch.Generator().manual_seed(3))
            ids = torch.arange(8 * groups) // 8
            for gamma in (0.9, F.gamma_for_turns(process.max_turns)):
                advantage = estimator(process, 8, gamma=gamma, advantage_clip=0.0)
                sizes = advantage(rollouts, ids).abs()
                some = sizes[sizes > 0]
                above = sizes.amax(dim=1).view(groups, 8).amax(dim=1) > 10
                top = float(some.kthvalue(int(0.999 * len(some))).values)
                share = float((some > 10).double().mean())
                print(
                    f"| {turns} | {success:g} | {gamma:.3f} | {top:.2f} | {float(some.max()):.2f} | {share:.6f} | "
                    f"{float(above.double().mean()):.5f} |"
                )


def made() -> None:
    """One success among seven failures that are shaped to within `apart` of what its first turn has."""
    print("| gamma | turns of the success | difference | largest under first_turns |")
    print("|---|---|---|---|")
    for gamma, turns in ((0.9, 8), (0.9, 16), (0.7 ** (1 / 7), 8)):
        for apart in (0.1, 0.01, 1e-3, 1e-4):
            first = gamma ** (turns - 1)
            returns = torch.zeros(8, turns, dtype=torch.float64)
            returns[0] = gamma ** torch.arange(turns - 1, -1, -1, dtype=torch.float64)
            returns[1:, 0] = min(first - apart, 0.5)  # alpha bounds what a failure may get
            group = returns, torch.tensor([turns, *[1] * 7]), torch.tensor([True, *[False] * 7])
            print(f"| {gamma:.3f} | {turns} | {apart:g} | {float(sizes_of(group, 'first_turns').max()):.1f} |")


if __name__ == "__main__":
    main()
