"""The search for rewards that can be earned blind, over all tasks.

    python -m tests.attack.rewards --trials 2000 --seed 0
    python -m tests.attack.rewards --only counting "counting, paper" --trials 200

Each line is an attack: what the best blind answer earns and what honest answers of a stated quality earn, in the mean
over the same 50 examples.
"""

import argparse
import sys
from dataclasses import replace
from typing import Callable, Mapping, Sequence

from . import rewards_one_shot, rewards_sensing
from .reward_search import Attack, climb, fault

ATTACKS: Mapping[str, Callable[[], Attack]] = {**rewards_one_shot.ATTACKS, **rewards_sensing.ATTACKS}
"""Every attack on the default rewards, by name."""

HACKED: Mapping[str, Callable[[], Attack]] = {**rewards_one_shot.HACKED, **rewards_sensing.HACKED}
"""Attacks on papers' formulas that a flag chooses, which are known to succeed."""

SLOW: Mapping[str, Callable[[], Attack]] = rewards_sensing.SLOW
"""Attacks on the default rewards, with a model in the place of an oracle."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the attacks that were asked for; the exit code is 1 if one succeeds."""
    known = {**ATTACKS, **HACKED, **SLOW}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="changes tried per attack [2000]")
    parser.add_argument("--seed", type=int, default=0, help="of the search [0]")
    parser.add_argument(
        "--only", nargs="*", default=list(ATTACKS), choices=list(known), metavar="ATTACK", help="; ".join(known)
    )
    options = parser.parse_args(argv)
    trials, faults = 0, []
    for name in options.only:
        attack = replace(known[name](), name=name)
        found = climb(attack, options.trials, options.seed)
        trials += found.trials
        faults += [said for said in [fault(attack, found)] if said]
        honest = ", ".join(f"{reward:.2f} ({quality})" for quality, reward in attack.honest.items())
        print(f"{name}: blind {found.reward:.2f}, honest {honest}", flush=True)
    print(*faults, sep="\n")
    print(f"rewards {trials} {len(faults)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
