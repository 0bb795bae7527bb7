"""Which of LightGBM's objectives can be served, and what each makes of a raw score.

Rule: a link is named by the booster's objective, or by the caller for a custom one; never guessed.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.scoring import forest_layout as at
from freshscore.scoring.booster_text import BoosterText


class Link(msgspec.Struct, frozen=True):
    """kind: one of LINK_...; scale: the factor before the raw score in a logistic one."""

    kind: int
    scale: float = 1.0

    def of(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of raw scores under a custom link, float64 (n,), in the kernels' own bits."""
        if self.kind == at.LINK_IDENTITY:
            return raw
        # numpy's exp has other bits than the C library's, which the kernels use.
        return np.array([_logistic(self.scale, value) for value in raw.tolist()])


_KINDS: Final = {
    "regression": at.LINK_IDENTITY,
    "regression_l1": at.LINK_IDENTITY,
    "huber": at.LINK_IDENTITY,
    "fair": at.LINK_IDENTITY,
    "quantile": at.LINK_IDENTITY,
    "mape": at.LINK_IDENTITY,
    "lambdarank": at.LINK_IDENTITY,
    "rank_xendcg": at.LINK_IDENTITY,
    "binary": at.LINK_LOGISTIC,
    "cross_entropy": at.LINK_LOGISTIC,
    "poisson": at.LINK_EXPONENTIAL,
    "gamma": at.LINK_EXPONENTIAL,
    "tweedie": at.LINK_EXPONENTIAL,
}
# What a caller may name for a booster with an objective of its own.
CUSTOM_LINKS: Final = {"identity": at.LINK_IDENTITY, "logistic": at.LINK_LOGISTIC}
_CUSTOM: Final = ("", "custom", "none")


def link_of(booster: BoosterText, custom_link: str | None = None) -> Link:
    """The link of `booster`; `custom_link` names that of a custom objective.

    Raises BadModel for several scores a row, an objective that is not served, a custom one without
    a link, and a link for any other.
    """
    name, *parameters = booster.objective or ("",)
    if booster.num_class > 1 or booster.num_tree_per_iteration > 1:
        raise BadModel(
            f"the booster is multi-class (objective {name or 'custom'},"
            f" {max(booster.num_class, booster.num_tree_per_iteration)} scores a row);"
            " one score a row can be served"
        )
    if name in _CUSTOM:
        if custom_link not in CUSTOM_LINKS:
            raise BadModel(
                "the booster has a custom objective, so its link must be named:"
                f" {' or '.join(CUSTOM_LINKS)}, not {custom_link}"
            )
        return Link(CUSTOM_LINKS[custom_link])
    if custom_link is not None:
        raise BadModel(f"the booster has the objective {name}; it takes no link")
    if name not in _KINDS:
        raise BadModel(f"objective {name} is not served; {', '.join(_KINDS)} are")
    values = _values(parameters)
    if "sqrt" in parameters:
        return Link(at.LINK_SIGNED_SQUARE)
    return Link(_KINDS[name], values.get("sigmoid", 1.0))


def check_leaves(booster: BoosterText, link: Link) -> None:
    """Raise BadModel where leaves could add up to a score that is no finite number.

    An exponential link alone may still overflow, to infinity, which is above every threshold.
    """
    trees = booster.trees
    largest = np.maximum.reduceat(np.abs(trees.leaf_value), trees.leaf_start[:-1])
    # Overflow is what is looked for, and the answer to it is the exception below.
    with np.errstate(over="ignore"):
        furthest = float(largest.sum())
    limit = np.finfo(np.float64).max
    if link.kind == at.LINK_SIGNED_SQUARE:
        limit = np.sqrt(limit)
    if not furthest <= limit:
        raise BadModel(f"the booster's leaves add up to {furthest:g}; scores are finite numbers")


def _logistic(scale: float, raw: float) -> float:
    try:
        return 1.0 / (1.0 + math.exp(-scale * raw))
    except OverflowError:
        return 0.0


def _values(parameters: list[str]) -> dict[str, float]:
    """The numbers among an objective's parameters."""
    values = {}
    for key, colon, text in (parameter.partition(":") for parameter in parameters):
        if colon:
            try:
                values[key] = float(text)
            except ValueError:
                values[key] = math.nan
            if not math.isfinite(values[key]):
                raise BadModel(f"the objective's {key} is {text!r}, not a finite number")
    return values
