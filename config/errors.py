"""Every typed error that freshscore raises: weather and bad input, never bugs.

Rule: each derives from the built-in that a caller would already catch, and knows whether the same
call can succeed later without anybody changing anything (`retryable`).
Messages say what, which, the limit and the actual value; never an identifier of a card.
"""

from __future__ import annotations


class FreshscoreError(Exception):
    """The base of the family."""

    retryable: bool = False


class SettingsError(FreshscoreError, ValueError):
    """A setting that is unknown, impossible by itself, or impossible beside another one."""


class BadTransaction(FreshscoreError, ValueError):
    """A transaction, or the `as_of` asked for it, that breaks the schema or a limit."""


class BadFact(FreshscoreError, ValueError):
    """A fact with an undeclared name, an impossible value or time, or only half of its keys."""


class BadFile(FreshscoreError, ValueError):
    """A file that cannot be read as what it was said to be: empty, cut short, wrong columns."""


class BadSpecification(FreshscoreError, ValueError):
    """A feature specification that contradicts itself or names what does not exist."""


class BadModel(FreshscoreError, ValueError):
    """A model of a kind that cannot be served; the message names the kind."""


class NoModel(FreshscoreError, LookupError):
    """No model has been trained or imported yet, or none of the version asked for."""


class ModelMismatch(FreshscoreError, ValueError):
    """A model that does not fit the specification or this host; the message has the difference."""


class DamagedModel(FreshscoreError, ValueError):
    """A stored model whose bytes fail their check."""


class DamagedState(FreshscoreError, ValueError):
    """A stored state, or a file of them, whose bytes fail their check."""


class WrongSecret(FreshscoreError, ValueError):
    """A store that was written under another identifier secret than the one at hand."""


class StoreInUse(FreshscoreError, RuntimeError):
    """A store's folder that another process or scorer writes to, or has written to meanwhile."""


class EventRefused(FreshscoreError, ValueError):
    """An event outside what its arrival allows: too late for the horizon, or too early."""


class UnknownTransaction(FreshscoreError, LookupError):
    """A fact whose transaction is in no index: it is set aside, never guessed."""


class AsOfTooOld(FreshscoreError, ValueError):
    """An instant older than what the state still holds in full; history can answer it."""


class StoreFull(FreshscoreError, MemoryError):
    """A store at one of its limits on entities, payments or bytes; nothing was changed."""


class Unavailable(FreshscoreError, ConnectionError):
    """A server that does not answer within its limit."""

    retryable = True


class DeadlineExceeded(FreshscoreError, TimeoutError):
    """A wait that reached its limit before the answer was there."""

    retryable = True


class Backpressure(FreshscoreError, RuntimeError):
    """More work is waiting than a limit allows; nothing was begun."""

    retryable = True


class Closed(FreshscoreError, RuntimeError):
    """A use after `close()`."""


class ForkedScorer(FreshscoreError, RuntimeError):
    """A scorer used in a child process of the one that opened it: open it in the worker."""
