"""A random sample of the states that a deployment holds.

Every state that a scan shows has the same chance; where there are more keys than it looks at, the
order of a scan, which follows from a hash, has chosen before.
Rule: tokens only; chance comes from the caller.
"""

from __future__ import annotations

import base64
from typing import Final

import numpy as np

from freshscore.features.redis_keys import fingerprint_name
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.scanning import literal, scanned

# Keys that are looked at, of one node: about two seconds.
_MOST_KEYS: Final = 2_000_000
_TAG_CHARACTERS: Final = 22


def sampled_states(deployment: Deployment, n: int, rng: np.random.Generator) -> list[Wanted]:
    """Up to `n` states of each entity. Raises Unavailable."""
    layouts = deployment.store.maker.layouts
    endings = {
        b"}:" + fingerprint_name(layout.fingerprint): entity
        for entity, layout in enumerate(layouts)
    }
    chosen: list[list[bytes]] = [[] for _ in layouts]
    seen = [0] * len(layouts)
    prefix = deployment.redis_keys.prefix
    for node in range(deployment.nodes.n):
        for key in scanned(deployment.nodes, node, literal(prefix) + b"*", _MOST_KEYS):
            at = len(prefix) + _TAG_CHARACTERS
            entity = endings.get(key[at:])
            if entity is None:
                continue
            token = base64.urlsafe_b64decode(key[len(prefix) : at] + b"==")
            _offer(chosen[entity], token, seen[entity], n, rng)
            seen[entity] += 1
    return [(entity, token) for entity, some in enumerate(chosen) for token in {*some}]


def _offer(
    chosen: list[bytes], one: bytes, n_before: int, n: int, rng: np.random.Generator
) -> None:
    """Keep one of a stream so that each has the same chance (Vitter's algorithm R, 1985)."""
    if n_before < n:
        chosen.append(one)
    elif (place := int(rng.integers(0, n_before + 1))) < n:
        chosen[place] = one
