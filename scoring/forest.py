"""A booster's trees as one image in memory, and the checked way to score with it.

Rule: a forest gives the bits of `Booster.predict` for every float64 vector, or does not exist:
what the walk does not cover is `NotWalked`, with the reason, and goes to LightGBM's own call.
Never pass a kernel an address that did not come from here.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.scoring import forest_kernels
from freshscore.scoring import forest_layout as at
from freshscore.scoring.booster_text import BoosterText
from freshscore.scoring.calibration import CalibrationTable
from freshscore.scoring.forest_image import Image, grown_image
from freshscore.scoring.forest_splits import NotWalked, Splits, splits_of
from freshscore.scoring.objectives import Link

# A booster of 500 x 63 takes 8 MB of masks; a table beyond the processor's last cache would cost
# more time than it saves.
MASK_BYTES_LIMIT: Final = 16 * 1024 * 1024


class Forest:
    """One booster, ready to score; immutable, and safe to use from several threads.

    n_features: length of the vectors. address: of the image, for kernels, while this object lives.
    Every method takes float64 vectors of the model's features in the vector's order.
    """

    def __init__(
        self,
        booster: BoosterText,
        link: Link,
        *,
        columns: NDArray[np.int64] | None = None,
        n_features: int | None = None,
        calibration: CalibrationTable | None = None,
        mask_bytes_limit: int = MASK_BYTES_LIMIT,
    ) -> None:
        """Build the image; raises NotWalked.

        columns: the place in the vector of each booster feature, by default its own number.
        mask_bytes_limit: the most bytes that masks may take; with 0 every tree is walked.
        """
        if booster.linear:
            raise NotWalked("its leaves are linear models")
        if columns is None:
            columns = np.arange(len(booster.feature_names))
        self.n_features = len(columns) if n_features is None else n_features
        if self.n_features > at.MAX_FEATURES:
            raise NotWalked(f"it has {self.n_features} features of {at.MAX_FEATURES}")
        self._splits = splits_of(booster.trees, columns, self.n_features)
        self._calibration = calibration
        divisor = float(booster.trees.n_trees) if booster.average_output else 1.0
        table = 0 if calibration is None else calibration.address
        self._image = grown_image(
            booster.trees, self._splits, link, divisor, table, mask_bytes_limit
        )
        self.address = self._image.address

    @property
    def splits(self) -> Splits:
        """The splits in cells: thresholds, categories and missing values by feature."""
        return self._splits

    @property
    def image(self) -> Image:
        """What the kernels read."""
        return self._image

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch that a thread needs, to begin on a cache line."""
        return self._image.scratch_bytes

    def scratch(self) -> NDArray[np.uint8]:
        """New scratch for one thread."""
        return aligned_bytes(self.scratch_bytes)

    def cells(self, matrix: NDArray[np.float64]) -> NDArray[np.uint16]:
        """Cells of each row, uint16 (n, n_features)."""
        rows = self._checked(matrix)
        cells = np.empty(rows.shape, np.uint16)
        scratch = self.scratch()
        forest_kernels.cells_of_rows(
            self.address, address_of(rows), len(rows), address_of(cells), address_of(scratch)
        )
        return cells

    def raw_scores(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw scores, before link and calibration, float64 (n,)."""
        cells = self.cells(matrix)
        scratch = self.scratch()
        raw = np.empty(len(cells))
        forest_kernels.raw_scores_of_cells(
            self.address, address_of(cells), len(cells), address_of(raw), address_of(scratch)
        )
        return raw

    def scores(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores, float64 (n,)."""
        rows = self._checked(matrix)
        scratch = self.scratch()
        scores = np.empty(len(rows))
        forest_kernels.score_matrix(
            self.address, address_of(rows), len(rows), address_of(scores), address_of(scratch)
        )
        return scores

    def box(self, row: NDArray[np.float64]) -> Box:
        """The raw score of one vector, float64 (n_features,), and its box."""
        cells = self.cells(row[np.newaxis])[0]
        lowest, highest = np.empty_like(cells), np.empty_like(cells)
        scratch = self.scratch()
        raw = forest_kernels.walk_box(
            self.address,
            address_of(cells),
            address_of(scratch),
            address_of(lowest),
            address_of(highest),
        )
        return Box(raw, cells, lowest, highest)

    def _checked(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        if matrix.ndim != 2 or matrix.shape[1] != self.n_features or matrix.dtype != np.float64:
            raise ValueError(
                f"a matrix of float64 (n, {self.n_features}) is wanted,"
                f" not {matrix.dtype} {matrix.shape}"
            )
        return np.ascontiguousarray(matrix)


class Box(msgspec.Struct, frozen=True):
    """A raw score and the cells (uint16 (n_features,)) over which it holds, both ends included."""

    raw: float
    cells: NDArray[np.uint16]
    lowest: NDArray[np.uint16]
    highest: NDArray[np.uint16]

    def contains(self, cells: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Which rows of `cells` lie inside, bool (n,)."""
        within: NDArray[np.bool_] = np.all(
            (cells >= self.lowest) & (cells <= self.highest), axis=-1
        )
        return within


def aligned_bytes(n: int) -> NDArray[np.uint8]:
    """`n` bytes that begin on a cache line; not cleared."""
    block = np.empty(n + 63, np.uint8)
    begin = -address_of(block) % 64
    return block[begin : begin + n]
