"""`freshscore verify`: a sample of shared states and scores, computed again and compared."""

from __future__ import annotations

import argparse
from collections import Counter

from freshscore.arguments import seed, settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many, and which."""
    parser.add_argument(
        "--sample",
        metavar="N",
        type=sample_size,
        default=50,
        help="states of each entity, newest payments of each partition, and newest decisions"
        " (default: 50)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=seed, help="chooses the same states again, if nothing moved"
    )


def sample_size(text: str) -> int:
    """An option that says how many: 1 or more, for what looks at nothing finds nothing wrong."""
    value = int(text) if text.isascii() and text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no sample; it must be 1 or more")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Compare and say what differs; 1 if something does. Raises FreshscoreError."""
    import msgspec
    import numpy as np

    from freshscore.config.clock import readable
    from freshscore.config.secret import random_seed
    from freshscore.invalidation.deployment import opened
    from freshscore.invalidation.sampling import sampled_states
    from freshscore.invalidation.verifying import verify_states
    from freshscore.output import print_table, write_json
    from freshscore.scoring.registry import Registry
    from freshscore.scoring.score_verifying import verify_scores

    settings = settings_of(arguments)
    chosen = random_seed() if arguments.seed is None else arguments.seed
    print(f"seed: {chosen}")
    with opened(settings) as deployment:
        n: int = arguments.sample
        wanted = sampled_states(deployment, n, np.random.default_rng(chosen))
        states = verify_states(deployment, wanted, n)
        scores = verify_scores(deployment, Registry.of(settings.store.path), n)
    verdicts = Counter((one.entity, one.verdict) for one in states.findings)
    # "equal" says nothing of a state of which the log holds nothing: so it is said of how much.
    records: Counter[tuple[str, str]] = Counter()
    for one in states.findings:
        records[one.entity, one.verdict] += one.n_of_log
    print_table(
        ["states of", "compared with the log", "states", "records of the log, not folded"],
        [(*which, count, records[which]) for which, count in sorted(verdicts.items())],
    )
    if states.line_ms:
        print(
            f"compared: what happened from {readable(states.line_ms)} on; of what was before, or"
            " came with a backfill, the log cannot tell"
        )
    if states.n_letters_left_out:
        print(
            f"{states.n_letters_left_out:,} dead letters are more than fit and were left out: what"
            " they set aside may be called missing"
        )
    print_table(["scores", "decisions"], sorted(scores.outcomes.items()))
    different = [one for one in states.findings if one.is_difference]
    if different:
        print_table(
            ["entity", "hash", "difference", "records", "of the log"],
            [msgspec.structs.astuple(one) for one in different],
        )
    if scores.differences:
        print_table(
            ["transaction (hash)", "model", "what", "stored", "computed"],
            [msgspec.structs.astuple(one) for one in scores.differences],
        )
    figures = {"seed": chosen, "states": states, "scores": scores}
    write_json(arguments.json, msgspec.to_builtins(figures))
    return int(bool(different or scores.differences))
