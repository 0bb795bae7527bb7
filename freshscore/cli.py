"""The command line: finds the command, imports its module alone, and turns errors into exit codes.

Rule: what was not asked for is not imported, so that `freshscore --help` answers at once.
Exit codes: 0 done, 1 a check failed, 2 wrong usage or bad input.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import freshscore
from freshscore.arguments import add_shared_arguments
from freshscore.config.errors import FreshscoreError
from freshscore.config.extras import clients_of_servers
from freshscore.destinations import check_destinations

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130

# The words of each command, and its line in the help. The module is freshscore.commands.<words
# and dashes joined by _>.
COMMANDS: dict[str, str] = {
    "backfill": "load past payments, and what became known of them, into a store",
    "cache invalidate": "end cached scores everywhere: of an entity, a model, a cohort, or all",
    "cache show": "the scores that are kept in Redis for one entity",
    "consume": "apply what comes through Kafka to the states in Redis, until it is stopped",
    "dead-letters list": "what was refused and why, by its position in the log",
    "dead-letters resend": "try what was refused again, from the log, once its cause is mended",
    "demo": "generate, train, replay a week, and show what the cache saves",
    "entities forget": "erase the history of one entity, everywhere and for good",
    "entities show": "the shared state of one entity, and its aggregates now",
    "explain": "why one transaction has its score, and why the cache did or did not serve it",
    "features compute": "point-in-time features of a whole file, as serving would have seen them",
    "generate": "make payments like the Handbook's, of any size and seed, frauds included",
    "lag": "how far the states in Redis are behind the log, by partition and by node",
    "models evaluate": "the Handbook's protocol on a file or on generated payments",
    "models import": "make a LightGBM model of your own the champion",
    "models list": "what was champion since when, and why",
    "models show": "what a model is, was made from, and where its thresholds lie",
    "replay": "a file through the production scorer: what re-use of scores gives, and its proof",
    "score": "score a file of payments, or one transaction",
    "secret next": "make the successor of the identifier secret, for payments from an instant on",
    "secret status": "which identifier keys states are under, and how long a former one is needed",
    "shadow": "score every payment of the topic with nothing in its path; decisions are marked",
    "settings show": "every setting, its value and where that came from",
    "settings reference": "the reference file: every setting with its default, unit and reason",
    "topics check": "whether the topics keep what states are rebuilt from; --create makes them",
    "train": "train a model on a file of payments; it is champion from then on",
    "verify": "compute a sample of states and scores again from the log, and compare",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            code = _run(words)
        except SystemExit:
            # argparse has printed its help; at exit nobody could say that this fails.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except FreshscoreError as problem:
        return _say(str(problem))
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing more to say.
        _drop_output()
        return DONE
    except OSError as problem:
        return _say(f"{problem.filename or _output_that_fails()}: {problem.strerror or problem}")


def _drop_output() -> None:
    """What is left of standard output goes nowhere, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_that_fails() -> str:
    """What an error without a file is of, by writing an empty line."""
    try:
        print(flush=True)
    except OSError:
        _drop_output()
        return "standard output"
    return "a file or stream"


def _run(words: list[str]) -> int:
    name = _command_of(words)
    if name is None:
        return _no_command(words)
    module = importlib.import_module(f"freshscore.commands.{module_of(name)}")
    parser = argparse.ArgumentParser(
        prog=f"freshscore {name}", description=COMMANDS[name], allow_abbrev=False
    )
    module.add_arguments(parser)
    add_shared_arguments(parser)
    arguments, others = parser.parse_known_args(words[len(name.split()) :])
    if others:
        parser.error(_unrecognized(others))
    check_destinations(arguments)
    with clients_of_servers():
        code: int = module.run(arguments)
    return code


def _unrecognized(words: Sequence[str]) -> str:
    """What is wrong with words that no option takes; one may be an identifier, given by mistake."""
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    n_others = len(words) - len(options)
    others = [f"{n_others} that are no options, not shown here"] if n_others else []
    return f"unrecognized arguments: {', '.join(options + others)}"


def module_of(name: str) -> str:
    """The module of a command, in freshscore.commands."""
    return name.replace(" ", "_").replace("-", "_")


def _command_of(words: Sequence[str]) -> str | None:
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return name
    return None


def _no_command(words: Sequence[str]) -> int:
    """Answer what names no command: the general options, or an error that lists what there is."""
    if words[:1] == ["--version"]:
        print(f"freshscore {freshscore.__version__}")
        return DONE
    leading = [word for word in words if not word.startswith("-")]
    group = {name: line for name, line in COMMANDS.items() if name.split()[:1] == leading[:1]}
    if "--help" in words or "-h" in words:
        print(_help(group if leading and group else COMMANDS))
        return DONE
    if not words or (group and len(leading) == 1):
        print(_help(group or COMMANDS), file=sys.stderr)
        return BAD_INPUT
    name = " ".join(leading[:2]) or words[0]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`freshscore --help` lists them"
    raise UnknownCommand(f"no command {name!r}; {hint}")


class UnknownCommand(FreshscoreError, LookupError):
    """A command that does not exist."""


def _help(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {line}" for name, line in sorted(commands.items())]
    return "\n".join(
        [
            "usage: freshscore COMMAND [OPTION]...",
            "",
            *lines,
            "",
            "`freshscore COMMAND --help` shows its options; `freshscore --version` the version.",
        ]
    )


def _say(message: str) -> int:
    print(f"freshscore: {message}", file=sys.stderr)
    return BAD_INPUT
