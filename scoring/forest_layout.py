"""The image: one booster as one block of memory, read by the kernels at raw addresses.

An image begins with a head of words; the words from SEARCH on are the addresses of its parts,
all within the block, each on a cache line of its own.

**Cells** (uint16 a feature). A number is the count of the model's thresholds below it, 0 to m.
A category is its place among those that any split names, in order, or m for every other value.
NAN_CELL and ZERO_CELL stand for a missing value and for a zero that counts as missing, where any
split of that feature tells them from numbers; read as signed they are -1 and -2, so that in
circular order they lie just before cell 0, and the values that go left at a split form one range:
(0 .. j), (-1 .. j) or (-2 .. j).

**Masks**. Of each tree the 2^SLOT_SHIFT leaves that most training rows reached have a slot, which
is a bit in a row of bits over all trees. For each (feature, cell) there is a row whose bit is set
where that feature in that cell does not rule the leaf out. The AND of one row for each feature
leaves at most one bit a tree: the leaf that the vector reaches, for a leaf is the product of its
ranges. This replaces most of the branches of a walk, whose wrong guesses cost more than all else.
Source of the idea: Lucchese et al., "QuickScorer" (SIGIR 2015), which keeps a bit for every leaf
and ANDs by threshold; cells and frequent leaves make it one row for each feature.

**Nodes**. A tree that left no bit is walked, without the leaves that have a slot and the splits
that only they needed. A node is one word, in preorder, the child that more rows took next to it:

    bits 0-12   feature
    bit  13     categorical
    bit  14     the other child is a leaf
    bit  15     the next child is a leaf
    bits 16-47  numeric: first cell (16), width (16) of the circular range that goes on to the next;
                categorical: number (32) of the first word of the set of cells that goes on
    bits 48-63  distance to the other child

A leaf in this stream is one word, its number. Leaves are numbered by tree, slots first.

**Boxes**. For each leaf 2 x BOX_LANES uint16: for each feature the lowest cell, then the complement
of the highest one, so that one maximum over the reached leaves intersects all of them. The highest
cell of a feature that no split on the way tests is ANY_CELL, and at most m otherwise.
"""

from __future__ import annotations

from typing import Final

NAN_CELL: Final = 65535
ZERO_CELL: Final = 65534
ANY_CELL: Final = 65535
# Cells are read as signed 16 bits when they choose a row of masks.
MAX_THRESHOLDS: Final = 32767
MAX_FEATURES: Final = 8192
MAX_DISTANCE: Final = 65535

# The head, in bytes from the image's address.
N_FEATURES: Final = 0
N_TREES: Final = 8
N_USED: Final = 16  # features that any split tests
N_LEAVES: Final = 24
SLOT_SHIFT: Final = 32  # each tree has 2^SLOT_SHIFT bits in a row of masks
SLOT_BITS: Final = 40  # that many ones; 0 where no leaf has a slot, and every tree is walked
MASK_WORDS: Final = 48  # words of one row of masks, whole cache lines
BOX_LANES: Final = 56  # features, rounded up to a vector
LINK: Final = 64
LINK_SCALE: Final = 72  # float64
DIVISOR: Final = 80  # float64: trees whose mean is the raw score, or 1
CALIBRATION: Final = 88  # address of a calibration table (scoring/calibration.py), or 0
SCRATCH_BYTES: Final = 96
SEARCH: Final = 104  # for each feature SEARCH_WORDS words, those with most thresholds first
USED: Final = 112  # for each used feature: its number, the address of its cell 0's row of masks
MASKS: Final = 120
FIRST_LEAVES: Final = 128  # for each tree the number of its first leaf
ROOTS: Final = 136  # for each tree the address of its first node, or ~leaf
NODES: Final = 144
SETS: Final = 152
LEAVES: Final = 160  # float64
BOXES: Final = 168
THRESHOLDS: Final = 176  # float64
LEVELS: Final = 184  # how many steps a search has at most; for each, how many features take part
HEAD_WORDS: Final = 24

# Of each feature's search: its number in the vector, the address of its thresholds, how it treats
# what is no plain number, the cell of a missing value, how many thresholds or categories it has.
SEARCH_FEATURE: Final = 0
SEARCH_AT: Final = 8
SEARCH_KIND: Final = 16
SEARCH_NAN: Final = 24
SEARCH_COUNT: Final = 32
SEARCH_WORDS: Final = 5
KIND_CATEGORICAL: Final = 1
KIND_ZERO: Final = 2

NODE_FEATURE: Final = 0x1FFF
NODE_CATEGORICAL: Final = 0x2000
NODE_OTHER_IS_LEAF: Final = 0x4000
NODE_NEXT_IS_LEAF: Final = 0x8000

LINK_IDENTITY: Final = 0
LINK_LOGISTIC: Final = 1
LINK_EXPONENTIAL: Final = 2
LINK_SIGNED_SQUARE: Final = 3

# Reached leaves are combined eight at a time; the list is padded with the last box, which is all.
BOX_GROUP: Final = 8
VECTOR_LANES: Final = 32
