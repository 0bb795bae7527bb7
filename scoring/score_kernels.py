"""Scoring one transaction, in one call: memo, box, cell, or computed.

Law 1 rests on three facts that this file keeps together. A memo is served only for the same
content, on the same states (their versions, its own records aside) at an instant before
`valid_until`: then every feature's cell is one that lies in the box. A box or cell hit evaluates
the features at `as_of`, and only re-uses what a walk on their cells would give. All else is
computed. Everything happens under the interpreter lock, so no state can change between the steps.

One entry point does it all, for one row: machine code is made once for it, and what it calls is
optimised again at each level of calls, so levels that are only names are inlined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.applying import (
    ask_for_rows,
    ask_for_tables,
    make_event,
    record_digest,
)
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import NEVER
from freshscore.features.finishing import finished
from freshscore.features.memory import (
    bits_of,
    f64,
    i32,
    i64,
    move,
    put_f64,
    put_i32,
    put_i64,
    put_u64,
    signed,
    u64,
)
from freshscore.features.reading_states import (
    ACCUMULATORS,
    FILLED,
    ROWS,
    accumulate,
    accumulate_span,
    ask_for_states,
    changes_of,
    find_states,
    has_long_state,
    own_records,
    states_version,
)
from freshscore.features.siphash import sip_absorbed, sip_finished, sip_started
from freshscore.scoring import cache_layout as c
from freshscore.scoring.cache_kernels import (
    NONE,
    ask_for_entry,
    find,
    find_cell,
    hint_cell,
    is_valid,
    place,
    random_bits,
    use,
)
from freshscore.scoring.forest_kernels import (
    cells_digest,
    cells_of,
    inside,
    score_of,
    walk,
    walk_box,
)

if TYPE_CHECKING:
    Hash = tuple[np.uint64, np.uint64]

_CANONICAL_NAN: Final = 0x7FF8000000000000


@kernel
def without_own(store: int, row: int, low: np.uint64, high: np.uint64, scratch: int) -> Hash:
    """The versions of the transaction's states, `low` and `high`, its own records aside.

    Where its own event is known and nothing else of it, its records follow from the row; so a memo
    is confirmed without looking into any state. If the row differs from what was observed, the
    result is another number, and no memo is served.
    """
    entry = t.find_payment(store, u64(row))
    known = i64(entry + t.PAYMENT_TIME)
    if known == 0:
        return low, high
    if known & 0xFFFF != 0 or known >> 16 != i64(row + r.TIME):
        own_low, own_high = own_records(store, row, scratch)
    else:
        own_low, own_high = _own_from_row(store, row, scratch)
    borrow = np.uint64(1) if low < own_low else np.uint64(0)
    return low - own_low, high - own_high - borrow


@kernel
def _own_from_row(store: int, row: int, scratch: int) -> Hash:
    low = np.uint64(0)
    high = np.uint64(0)
    record = i64(store + t.STAGED)
    for e in range(i64(store + t.N_ENTITIES)):
        if i64(scratch + 8 * (ROWS + e)) == 0:
            continue
        make_event(store, e, row, record)
        width = i64(t.entity_head(store, e) + t.WIDTH)
        one, other = record_digest(record, width, i64(store + t.RECORD_KEY) + 16 * e)
        added = low + one
        carry = np.uint64(1) if added < low else np.uint64(0)
        low = added
        high += other + carry
    return low, high


@kernel
def _cell_hash(tier: int, cells: int, features: int) -> Hash:
    """The feature-aggregate hash: of the cells, or of the features' own bits."""
    n = i64(tier + c.N_FEATURES)
    if i64(tier + c.RAW) == 0:
        return cells_digest(cells, n, u64(tier + c.HASH_KEY), u64(tier + c.HASH_KEY + 8))
    lanes = sip_started(u64(tier + c.HASH_KEY), u64(tier + c.HASH_KEY + 8))
    for at in range(features, features + 8 * n, 8):
        value = f64(at)
        bits = u64(at) if value == value else np.uint64(_CANONICAL_NAN)
        lanes = sip_absorbed(lanes, bits)
    return sip_finished(lanes, np.uint64(0), 8 * n)


@kernel
def _state_mark(store: int, scratch: int, entity: int) -> int:
    """32 bits that tell what moved in a state: 16 of its version, 16 of its number of facts."""
    state = i64(scratch + 8 * (ROWS + entity))
    if state == 0:
        return 0
    return (i64(state + t.VERSION) & 0xFFFF) << 16 | (i64(state + t.N_FACTS) & 0xFFFF)


@kernel
def _cause(
    store: int, row: int, tier: int, entry: int, as_of: int, same: bool, scratch: int
) -> int:
    """Why a payment's last score cannot be served as it stands; counts which entity moved."""
    if u64(entry + c.CONTENT_LOW) != u64(row + r.CONTENT_LOW):
        return c.CONTENT
    if same:
        return c.EARLIER if as_of < i64(entry + c.EVALUATED) else c.TIME
    statistics = i64(tier + c.STATISTICS)
    cause = c.OWN_EVENT
    for e in range(i64(store + t.N_ENTITIES)):
        held = i32(entry + i64(tier + c.STATE_MARKS) + 4 * e) & 0xFFFFFFFF
        mark = _state_mark(store, scratch, e) & 0xFFFFFFFF
        if held != mark:
            counter = statistics + 8 * (c.BY_ENTITY + e)
            put_i64(counter, i64(counter) + 1)
            if held & 0xFFFF != mark & 0xFFFF:
                cause = c.FACTS
            elif cause != c.FACTS:
                cause = c.OTHER_EVENTS
    return cause


@kernel
def _same_key(tier: int, entry: int) -> bool:
    """Whether the vector in CELLS (and FEATURES) has the score of `entry`."""
    if i64(tier + c.HAS_BOX) != 0:
        n = i64(tier + c.N_FEATURES)
        box = entry + c.BOX
        return inside(box, box + 2 * n, i64(tier + c.CELLS), n)
    low, high = _cell_hash(tier, i64(tier + c.CELLS), i64(tier + c.FEATURES))
    return bool(low == u64(entry + c.HASH_LOW) and high == u64(entry + c.HASH_HIGH))


@kernel(inline="always")
def _next_change(code: int, scratch: int) -> int:
    changes = changes_of(code, scratch)
    first = NEVER
    for at in range(changes, changes + 8 * i64(code + 8 * p.N_WINDOWS), 8):
        first = min(first, i64(at))
    return first


@kernel
def _advance(context: int, row: int, change: int) -> int:
    """Evaluate anew the windows that change at the instant `change`; when the next one does."""
    store = i64(context + c.STORE)
    code = i64(context + c.CODE)
    scratch = i64(context + c.SCRATCH)
    span = code + 8 * i64(code + 8 * p.SPANS_AT)
    for _ in range(i64(code + 8 * p.N_SPANS)):
        first = changes_of(code, scratch) + 8 * i64(span + 8 * p.SPAN_FIRST_WINDOW)
        for at in range(first, first + 8 * i64(span + 8 * p.SPAN_N_WINDOWS), 8):
            if i64(at) <= change:
                accumulate_span(store, code, span, row, change, scratch)
                break
        span += 8 * i64(span + 8 * p.SPAN_NEXT)
    _finish(context, row)
    return _next_change(code, scratch)


@kernel
def _finish(context: int, row: int) -> None:
    """From accumulators to features and cells."""
    tier = i64(context + c.TIER)
    features = i64(tier + c.FEATURES)
    accumulators = i64(context + c.SCRATCH) + 8 * ACCUMULATORS
    finished(i64(context + c.CODE), accumulators, row, features)
    if i64(tier + c.RAW) == 0:
        image = i64(context + c.IMAGE)
        cells_of(image, features, i64(tier + c.CELLS), i64(tier + c.FOREST_SCRATCH))


@kernel(inline="always")
def _valid_until(context: int, row: int, as_of: int, entry: int) -> int:
    """The instant up to which time alone cannot take the vector out of the entry's key.

    Goes from one change of a window to the next and evaluates what changed, up to a cap on time
    and on steps; a long state changes every few seconds, so there its next change is all that is
    told. Leaves the accumulators at a later instant.
    """
    tier = i64(context + c.TIER)
    scratch = i64(context + c.SCRATCH)
    until = as_of + i64(tier + c.CAP_MS)
    change = _next_change(i64(context + c.CODE), scratch)
    steps = 0 if has_long_state(i64(context + c.STORE), scratch) else i64(tier + c.MAX_STEPS)
    while change < until and steps > 0:
        following = _advance(context, row, change)
        if not _same_key(tier, entry):
            break
        change = following
        steps -= 1
    return min(change, until)


@kernel(inline="always")
def _remember(
    context: int, row: int, as_of: int, low: np.uint64, high: np.uint64, entry: int
) -> None:
    """Make an entry a memo of this content on these states from `as_of` on."""
    store = i64(context + c.STORE)
    tier = i64(context + c.TIER)
    put_u64(entry + c.CONTENT_LOW, u64(row + r.CONTENT_LOW))
    put_u64(entry + c.CONTENT_HIGH, u64(row + r.CONTENT_HIGH))
    put_u64(entry + c.STATES_LOW, low)
    put_u64(entry + c.STATES_HIGH, high)
    put_i64(entry + c.EVALUATED, as_of)
    for e in range(i64(store + t.N_ENTITIES)):
        mark = _state_mark(store, i64(context + c.SCRATCH), e)
        put_i32(entry + i64(tier + c.STATE_MARKS) + 4 * e, mark)
    put_i64(entry + c.VALID_UNTIL, _valid_until(context, row, as_of, entry))


@kernel
def write_out(
    store: int, tier: int, row: int, as_of: int, entry: int, source: int, cause: int, out: int
) -> None:
    """Report the score of `entry` and its decision, and count it."""
    score = f64(entry + c.SCORE)
    put_f64(out + c.OUT_SCORE, score)
    put_i64(out + c.OUT_SOURCE, source)
    put_i64(out + c.OUT_AS_OF, as_of)
    put_i64(out + c.OUT_VALID_UNTIL, i64(entry + c.VALID_UNTIL))
    put_i64(out + c.OUT_COMPUTED, i64(entry + c.COMPUTED))
    put_i64(out + c.OUT_WATERMARK, max(0, i64(store + t.NEWEST)))
    put_u64(out + c.OUT_HASH_LOW, u64(entry + c.HASH_LOW))
    put_u64(out + c.OUT_HASH_HIGH, u64(entry + c.HASH_HIGH))
    put_i64(out + c.OUT_CAUSE, cause)
    cohort = (i64(row + r.BITS) >> 40) & 0xFF
    thresholds = i64(tier + c.THRESHOLDS) + 16 * cohort
    decision = c.APPROVE
    if score >= f64(thresholds + 8):
        decision = c.DECLINE
    elif score >= f64(thresholds):
        decision = c.REVIEW
    put_i64(out + c.OUT_DECISION, decision)
    age = max(0, as_of - i64(entry + c.COMPUTED))
    # The exponent of a double is the number of its bits, and 0 for zero.
    bucket = min(max(0, (bits_of(float(age)) >> 52) - 1022), c.AGE_BUCKETS - 1)
    if i64(out + c.OUT_COMPLETE_SINCE) != 0:
        _count(tier, c.INCOMPLETE)
    _count(tier, c.BY_SOURCE + source)
    _count(tier, c.AGES + c.AGE_BUCKETS * source + bucket)


@kernel
def _count(tier: int, word: int) -> None:
    counter = i64(tier + c.STATISTICS) + 8 * word
    put_i64(counter, i64(counter) + 1)


@kernel
def _state_out(store: int, looks_from: int, out: int, scratch: int) -> None:
    """Report the versions of the states, whether one has lost events at its limit, and since when
    their history is complete if a window reaches further back.

    looks_from: the earliest instant from which the features look back.
    """
    degraded = i64(store + t.DEGRADED)
    complete_since = i64(store + t.COMPLETE_SINCE)
    for e in range(i64(store + t.N_ENTITIES)):
        state = i64(scratch + 8 * (ROWS + e))
        low = np.uint64(0)
        high = np.uint64(0)
        if state != 0:
            low = u64(state + t.VERSION)
            high = u64(state + t.VERSION + 8)
            lost = i64(state + t.LOST)
            if lost != 0 and looks_from - i64(store + t.HELD) < abs(lost):
                # What was erased is missed on purpose: nobody is to wait for it.
                degraded |= c.TOO_MANY_EVENTS if lost > 0 else 0
                complete_since = max(complete_since, abs(lost))
        put_u64(out + c.OUT_VERSIONS + 16 * e, low)
        put_u64(out + c.OUT_VERSIONS + 16 * e + 8, high)
    put_i64(out + c.OUT_DEGRADED, degraded)
    held = i64(store + t.HELD)
    if held == 0 or looks_from - held >= complete_since:
        complete_since = 0
    put_i64(out + c.OUT_COMPLETE_SINCE, complete_since)


@kernel
def _states_moved(store: int, out: int, scratch: int) -> bool:
    """Whether a state has another version than `out` reports."""
    for e in range(i64(store + t.N_ENTITIES)):
        state = i64(scratch + 8 * (ROWS + e))
        low = u64(state + t.VERSION) if state != 0 else np.uint64(0)
        high = u64(state + t.VERSION + 8) if state != 0 else np.uint64(0)
        at = out + c.OUT_VERSIONS + 16 * e
        if low != u64(at) or high != u64(at + 8):
            return True
    return False


@kernel
def _evaluate(context: int, row: int, as_of: int) -> None:
    """Features and cells of the transaction at `as_of`."""
    store = i64(context + c.STORE)
    accumulate(store, i64(context + c.CODE), row, as_of, i64(context + c.SCRATCH))
    _finish(context, row)


@kernel(inline="always")
def _probe(context: int, row: int, as_of: int, entry: int) -> None:
    """Compute a served score again, and count whether it differs (law 1 says that none does)."""
    tier = i64(context + c.TIER)
    image = i64(context + c.IMAGE)
    _evaluate(context, row, as_of)
    fresh = score_of(image, walk(image, i64(tier + c.CELLS), i64(tier + c.FOREST_SCRATCH)))
    _count(tier, c.PROBES)
    if bits_of(fresh) != i64(entry + c.SCORE):
        _count(tier, c.MISMATCHES)
        put_f64(entry + c.SCORE, fresh)


@kernel
def _refusal(store: int, code: int, time: int, as_of: int) -> int:
    """Why nothing can be answered at `as_of`, or SERVED."""
    held_from = i64(store + t.NEWEST) - i64(store + t.HORIZON)
    if as_of < time:
        return c.AS_OF_BEFORE_PAYMENT
    if as_of < i64(store + t.SUMMARISED):
        return c.AS_OF_TOO_OLD
    if as_of < held_from or (i64(code + 8 * p.N_LASTS) > 0 and time < held_from):
        return c.AS_OF_TOO_OLD
    return c.SERVED


@kernel
def _is_as_seen(row: int, entry: int, low: np.uint64, high: np.uint64) -> bool:
    """Whether this content was served from `entry` on states of these versions, own records too."""
    return bool(
        u64(entry + c.SEEN_LOW) == low
        and u64(entry + c.SEEN_HIGH) == high
        and u64(entry + c.CONTENT_LOW) == u64(row + r.CONTENT_LOW)
        and u64(entry + c.CONTENT_HIGH) == u64(row + r.CONTENT_HIGH)
    )


@kernel
def _see(entry: int, low: np.uint64, high: np.uint64) -> None:
    put_u64(entry + c.SEEN_LOW, low)
    put_u64(entry + c.SEEN_HIGH, high)


@kernel
def _is_memo(row: int, as_of: int, entry: int, same_states: bool) -> bool:
    return bool(
        same_states
        and u64(entry + c.CONTENT_LOW) == u64(row + r.CONTENT_LOW)
        and u64(entry + c.CONTENT_HIGH) == u64(row + r.CONTENT_HIGH)
        and i64(entry + c.EVALUATED) <= as_of
        and as_of < i64(entry + c.VALID_UNTIL)
    )


@kernel
def score_in(context: int, row: int, as_of: int, out: int) -> int:
    """Score the transaction in `row` at `as_of` (0: the newest event applied) into `out`.

    context: addresses of store, program, image, tier and scratch (scoring/tier.py).
    SERVED; NEEDS_MODEL, with the features behind the versions, where the model is not walked here;
    TO_BE_PROBED, which is served and has them too; or why the instant is refused, with nothing
    written.

    After NEEDS_MODEL the caller calls again, with the same `out` and the bits of the score as
    `as_of`: it is kept and reported for the states of that moment. It becomes a memo only if
    they are still the same; else the next request evaluates, and finds its cell.
    With FOUND as the mode it is a score that another process computed for this cell.
    """
    store = i64(context + c.STORE)
    code = i64(context + c.CODE)
    image = i64(context + c.IMAGE)
    tier = i64(context + c.TIER)
    scratch = i64(context + c.SCRATCH)
    has_box = i64(tier + c.HAS_BOX) != 0
    found = i64(out + c.OUT_MODE) == c.FOUND
    keep = found or i64(out + c.OUT_MODE) == c.KEEP
    time = i64(row + r.TIME)
    score_bits = as_of
    if keep:
        as_of = i64(out + c.OUT_AS_OF)
    elif as_of == 0:
        as_of = max(time, i64(store + t.NEWEST))
    if not keep:
        refusal = _refusal(store, code, time, as_of)
        if refusal != c.SERVED:
            return refusal
    # Waiting for memory is most of what a memo costs: ask for all of it at once.
    ask_for_entry(tier, u64(row))
    ask_for_tables(store, row)
    ask_for_rows(store, row)
    entry = find(tier, u64(row), u64(row + r.IDENTITY_HIGH))
    find_states(store, row, scratch)
    seen_low, seen_high = states_version(store, scratch)
    if entry != NONE and _is_as_seen(row, entry, seen_low, seen_high):
        low, high = u64(entry + c.STATES_LOW), u64(entry + c.STATES_HIGH)
    else:
        low, high = without_own(store, row, seen_low, seen_high, scratch)
    # A set of which a part is missing is not remembered: what is found of it next is another one.
    moved = i64(store + t.DEGRADED) != 0
    cause = i64(out + c.OUT_CAUSE)
    evaluated = False
    now = i64(tier + c.NOW)
    cache_on = i64(context + c.CACHE_OFF) == 0 and not keep
    served = cache_on
    if keep:
        now = i64(out + c.OUT_NOW)
        # During the call the instant may have become one for which records are not held any more.
        moved = (
            moved
            or _states_moved(store, out, scratch)
            or _refusal(store, code, time, as_of) != c.SERVED
        )
        evaluated = i64(out + c.OUT_FILLED) == i64(scratch + 8 * FILLED)
    else:
        # The last event and pairs are looked for before the payment's own time.
        looks_from = time if i64(code + 8 * p.N_LASTS) > 0 else as_of
        _state_out(store, looks_from, out, scratch)
    source = c.CELL if found else c.COMPUTED_NOW
    status = c.SERVED
    if entry != NONE and not keep:
        same = bool(u64(entry + c.STATES_LOW) == low and u64(entry + c.STATES_HIGH) == high)
        served = cache_on and is_valid(tier, i64(store + t.N_ENTITIES), row, entry)
        if not served:
            cause = c.NOT_TO_BE_SERVED
        elif _is_memo(row, as_of, entry, same):
            source = c.MEMO
            _see(entry, seen_low, seen_high)
        else:
            cause = _cause(store, row, tier, entry, as_of, same, scratch)
    if source != c.MEMO:
        if not evaluated:
            ask_for_states(store, scratch)
            _evaluate(context, row, as_of)
        if served and entry != NONE and _same_key(tier, entry):
            source = c.BOX_HIT if has_box else c.CELL
            _count(tier, c.BY_CAUSE + cause)
            _count(tier, c.ABSORBED + cause)
        else:
            cells = i64(tier + c.CELLS)
            other = NONE
            if keep:
                hash_low, hash_high = u64(out + c.OUT_HASH_LOW), u64(out + c.OUT_HASH_HIGH)
            else:
                hash_low, hash_high = _cell_hash(tier, cells, i64(tier + c.FEATURES))
                if cache_on:
                    other = find_cell(tier, hash_low, hash_high)
                    if other != NONE and not is_valid(tier, i64(store + t.N_ENTITIES), row, other):
                        other = NONE
                if other != NONE:
                    _count(tier, c.ABSORBED + cause)
                elif not has_box:
                    _ask_for_model(context, as_of, cause, hash_low, hash_high, now, out)
                    return c.NEEDS_MODEL
            _count(tier, c.BY_CAUSE + cause)
            if other != NONE:
                use(tier, other)
            if found:
                _count(tier, c.ABSORBED + cause)
            if entry == NONE:
                entry = place(tier, u64(row), u64(row + r.IDENTITY_HIGH))
            if other != NONE:
                source = c.CELL
                if entry != other:
                    move(entry + c.SCORE, other + c.SCORE, i64(tier + c.STATE_MARKS) - c.SCORE)
            else:
                if keep:
                    put_i64(entry + c.SCORE, score_bits)
                else:
                    box = entry + c.BOX
                    high_cells = box + 2 * i64(tier + c.N_FEATURES)
                    raw = walk_box(image, cells, i64(tier + c.FOREST_SCRATCH), box, high_cells)
                    put_f64(entry + c.SCORE, score_of(image, raw))
                put_i64(entry + c.COMPUTED, i64(out + c.OUT_FOUND) if found else as_of)
                put_i64(entry + c.GENERATION, now)
            # A new entry may stand in the place of the one whose cell was found.
            put_u64(entry + c.HASH_LOW, hash_low)
            put_u64(entry + c.HASH_HIGH, hash_high)
            hint_cell(tier, hash_low, hash_high, entry)
    if source != c.COMPUTED_NOW:
        use(tier, entry)
        if not keep and signed(random_bits(tier) >> np.uint64(11)) < i64(tier + c.PROBE_BELOW):
            if has_box:
                _probe(context, row, as_of, entry)
            else:
                status = c.TO_BE_PROBED
                if source == c.MEMO:
                    _evaluate(context, row, as_of)
                _features_out(context, out)
    if source != c.MEMO:
        _see(entry, seen_low, seen_high)
        _remember(context, row, as_of, low, high, entry)
        if moved:
            put_i64(entry + c.VALID_UNTIL, as_of)
    write_out(store, tier, row, as_of, entry, source, cause, out)
    return status


@kernel
def _ask_for_model(
    context: int,
    as_of: int,
    cause: int,
    hash_low: np.uint64,
    hash_high: np.uint64,
    now: int,
    out: int,
) -> None:
    """Leave in `out` what the model needs, and what must be known when its score is kept."""
    put_i64(out + c.OUT_MODE, c.KEEP)
    put_i64(out + c.OUT_FILLED, i64(i64(context + c.SCRATCH) + 8 * FILLED))
    put_u64(out + c.OUT_HASH_LOW, hash_low)
    put_u64(out + c.OUT_HASH_HIGH, hash_high)
    put_i64(out + c.OUT_AS_OF, as_of)
    put_i64(out + c.OUT_CAUSE, cause)
    put_i64(out + c.OUT_NOW, now)
    _features_out(context, out)


@kernel
def _features_out(context: int, out: int) -> None:
    """Leave the features behind the versions, for a model that is not walked here."""
    tier = i64(context + c.TIER)
    behind = out + c.OUT_VERSIONS + 16 * i64(i64(context + c.STORE) + t.N_ENTITIES)
    move(behind, i64(tier + c.FEATURES), 8 * i64(tier + c.N_FEATURES))
