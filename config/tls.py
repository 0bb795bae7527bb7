"""The error of TLS behind what a client library raises: libraries wrap it, each in its own way.

Rule: pure; what an error means for the user is for each door to say.
"""

from __future__ import annotations

import ssl


def tls_problem_of(problem: BaseException) -> ssl.SSLError | None:
    """The first that is found in `problem`, its arguments, and what it was raised from."""
    found: BaseException | None = problem
    while found is not None:
        for one in (found, *found.args):
            if isinstance(one, ssl.SSLError):
                return one
        found = found.__cause__ or found.__context__
    return None
