"""Messages of other shapes: by a map of dotted paths, and by a team's own callable."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from freshscore.config.errors import BadFile
from freshscore.features.packing import Keys, Packer
from freshscore.features.transaction import Transaction
from freshscore.invalidation import messages as m
from freshscore.invalidation.batches import Refusal
from freshscore.invalidation.message_columns import MessageColumns
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.messages import encode_label, encode_transaction
from tests.invalidation.message_forms import NOW_MS, SECRET, batcher_for, everything, messages
from tests.invalidation.test_messages import PAYMENT

MAP = """
transaction_id = "payment.reference"
time = { column = "payment.created", unit = "s" }
amount = { column = "payment.total", unit = "major" }
currency_column = "payment.currency"
kind = "payment.type"
kinds = { SALE = "authorisation", CREDIT = "refund" }
latitude = "terminal.position.lat"
longitude = "terminal.position.lon"
sent_at = { column = "decided_at", unit = "s" }

[entities]
card = "payment.card.pan"
m = "merchant_number"

[fields]
risk = "scores.risk"
channel = "channel"

[facts]
declined = "outcome.declined"
fraud = "outcome.fraud"
"""
THEIRS: dict[str, Any] = {
    "payment": {
        "reference": "t-1",
        "created": NOW_MS // 1_000,
        "total": 49.99,
        "currency": "EUR",
        "type": "CREDIT",
        "card": {"pan": "c-42", "expiry": "12/30"},
    },
    "merchant_number": 1234,
    "terminal": {"position": {"lat": 50.85, "lon": 4.35}},
    "scores": {"risk": 0.5},
    "channel": "web",
    "outcome": {"declined": True},
    "anything": [{"deep": {"er": [1, 2, None]}}],
}
OURS = PAYMENT | {
    "kind": "refund",
    "entities": {"card": "c-42", "m": "1234"},
    "location": [50.85, 4.35],
    "fields": {"risk": 0.5, "channel": "web"},
    "flags": {"declined": True},
}


def reader(decode: Any = None, text: str | None = MAP) -> MessageReader:
    """A reader by the map, unless there is none."""
    program = everything()
    columns = None if text is None else MessageColumns.from_toml(text, program)
    return MessageReader(program, Keys(program, SECRET), columns, decode)


def ours(payment: dict[str, Any]) -> bytes:
    """The row of a message of our own."""
    return reader(text=None).transaction(json.dumps(payment).encode())


def theirs(**changes: Any) -> bytes:
    """Their message with another payment in it."""
    return json.dumps(THEIRS | {"payment": THEIRS["payment"] | changes}).encode()


def test_a_map_takes_another_shape_to_the_same_row() -> None:
    """Names, units of time and amount, kinds, numbers as identifiers."""
    assert reader().transaction(theirs()) == ours(OURS)


@pytest.mark.parametrize(
    ("changes", "amount_minor", "time_ms"),
    [
        ({"total": "0.1"}, 10, NOW_MS),
        ({"total": 1e3}, 100_000, NOW_MS),
        ({"total": 12.345678}, 1_235, NOW_MS),
        ({"created": NOW_MS / 1_000 + 0.25}, 4_999, NOW_MS + 250),
        ({"created": "2023-11-14T22:13:20"}, 4_999, NOW_MS),
        ({"created": "2023-11-14T23:13:20.5+01:00"}, 4_999, NOW_MS + 500),
    ],
)
def test_amounts_and_instants_in_their_units(
    changes: dict[str, Any], amount_minor: int, time_ms: int
) -> None:
    """As numbers and as texts; timestamps without a zone are UTC."""
    expected = OURS | {"amount_minor": amount_minor, "time": time_ms}
    assert reader().transaction(theirs(**changes)) == ours(expected)


def test_labels_by_a_map() -> None:
    """Facts wherever they stand; entities and time together, or looked up."""
    label = {"payment": {"reference": "t-1"}, "outcome": {"fraud": True}}
    read = reader().label(json.dumps(label | {"decided_at": 1_700_000_000}).encode(), NOW_MS + 5)
    assert read.needs_lookup
    assert (read.given, read.values, read.known_ms, read.sender_ms) == (1, 1, NOW_MS + 5, NOW_MS)
    label["payment"] = THEIRS["payment"]
    assert not reader().label(json.dumps(label).encode(), NOW_MS).needs_lookup


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"reference": None}, "payment.reference is missing"),
        ({"created": None}, "payment.created is missing"),
        ({"created": "yesterday"}, "payment.created is neither a number nor a timestamp"),
        ({"total": {}}, "payment.total is no number"),
        ({"total": "1e999999999"}, "payment.total is no number"),
        ({"total": True}, "payment.total is no number"),
        ({"type": "THEFT"}, "kind is none of those that there are"),
        ({"card": {"pan": ["c-42"]}}, "an identifier needs 1 to 256 bytes of text"),
    ],
)
def test_what_does_not_fit_names_the_path(changes: dict[str, Any], detail: str) -> None:
    """And no value."""
    with pytest.raises(m.MessageRefused) as refused:
        reader().transaction(theirs(**changes))
    assert (refused.value.reason, refused.value.detail) == (m.MALFORMED, detail)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        (
            {"payment": THEIRS["payment"] | {"card": "c-42"}},
            "payment.card.pan needs an object at payment.card, which is a text",
        ),
        (
            {"payment": THEIRS["payment"] | {"card": [{"pan": "c-42"}]}},
            "payment.card.pan needs an object at payment.card, which is a list",
        ),
        ({"payment": 42}, "payment.currency needs an object at payment, which is a number"),
        ({"outcome": False}, "outcome.fraud needs an object at outcome, which is true or false"),
        ({"entities": "c-42"}, "entities.shop needs an object at entities, which is a text"),
        (
            {"terminal": {"position": [50.85, 4.35]}},
            "terminal.position.lat needs an object at terminal.position, which is a list",
        ),
    ],
)
def test_a_barred_path_is_refused(changes: dict[str, Any], detail: str) -> None:
    """A payment whose card stands elsewhere does not count as one without a card."""
    value = json.dumps(THEIRS | changes).encode()
    batcher = batcher_for(everything(), columns=MessageColumns.from_toml(MAP, everything()))
    batch = batcher.build(messages([value]), messages([]), NOW_MS)
    assert batch.refused == [Refusal(False, 0, m.MALFORMED, detail)]


def test_a_barred_path_of_a_label_is_refused() -> None:
    label = {"payment": THEIRS["payment"] | {"card": "c-42"}, "outcome": {"fraud": True}}
    with pytest.raises(m.MessageRefused, match=r"payment\.card\.pan needs an object at payment"):
        reader().label(json.dumps(label).encode(), NOW_MS)


@pytest.mark.parametrize("card", [{"card": None}, {"card": {}}, {}])
def test_what_is_not_there_is_absent(card: dict[str, Any]) -> None:
    """Also where what it would be in is null, or not there at all."""
    payment = {name: value for name, value in THEIRS["payment"].items() if name != "card"}
    value = json.dumps(THEIRS | {"payment": payment | card}).encode()
    assert reader().transaction(value) == ours(OURS | {"entities": {"m": "1234"}})


def test_a_place_without_a_path_is_read_as_ours() -> None:
    """A list under `location`; what is none is refused, as it is without a map."""
    text = "\n".join(line for line in MAP.splitlines() if not line.startswith(("lat", "lon")))
    for place in ([50.85, 4.35], {"latitude": 50.85, "longitude": 4.35}):
        value = json.dumps(THEIRS | {"location": place}).encode()
        assert reader(text=text).transaction(value) == ours(OURS)
    with pytest.raises(m.MessageRefused, match="location needs degrees"):
        reader(text=text).transaction(json.dumps(THEIRS | {"location": [50.85]}).encode())


def never(value: bytes) -> Any:
    """A callable that knows no message but its own."""
    raise AssertionError(len(value))


def own_messages() -> list[bytes]:
    """A payment, its label, and one that is looked up, as scorers produce them."""
    program = everything()
    packer = Packer(program, Keys(program, SECRET))
    transaction = Transaction.of(OURS)
    row, flags = packer.row(transaction), {"fraud": True}
    return [
        encode_transaction(program, SECRET.key_id, transaction, row),
        encode_label(program, SECRET.key_id, row, flags, NOW_MS),
        encode_label(program, SECRET.key_id, row, flags, NOW_MS, looked_up=True),
    ]


@pytest.mark.parametrize(("text", "decode"), [(MAP, None), (None, never), (MAP, never)])
def test_what_scorers_produce_passes_by_map_and_callable(
    text: str | None, decode: Callable[[bytes], Any] | None
) -> None:
    """Scorers write into the topics that a team's own messages come through."""
    columns = None if text is None else MessageColumns.from_toml(text, everything())
    payment, label, looked_up = own_messages()
    readers: list[dict[str, Any]] = [{}, {"columns": columns, "decode": decode}]
    built = [
        batcher_for(everything(), **how).build(
            messages([payment]), messages([label, looked_up]), NOW_MS
        )
        for how in readers
    ]
    for batch in built:
        assert (batch.refused, batch.counts) == ([], {"applied": 2, "looked up": 1})
    assert bytes(built[1].body) == bytes(built[0].body)
    assert [one.label for one in built[1].lookups] == [one.label for one in built[0].lookups]
    # Hashed under another key: refused for that, not as what the map does not know.
    other = payment.replace(SECRET.key_id.encode(), b"00000000")
    batch = batcher_for(everything(), columns=columns, decode=decode).build(
        messages([other]), messages([]), NOW_MS
    )
    assert batch.counts == {m.WRONG_KEY: 1}


@pytest.mark.parametrize(
    "beginning",
    [
        {"v": 1, "ids": "raw"},
        {"v": 1, "ids": SECRET.key_id},
        {"note": m.OWN_BEGINNING.decode()},
        {"ids": SECRET.key_id, "v": 1, "transaction_id": "x"},
    ],
)
def test_what_only_looks_like_ours_goes_through_the_map(beginning: dict[str, Any]) -> None:
    """A team's own message may have members of those names too."""
    compact = json.dumps(beginning | THEIRS, separators=(",", ":")).encode()
    assert reader().transaction(compact) == ours(OURS)
    value = own_messages()[0]
    with pytest.raises(m.MessageRefused, match=r"payment\.reference is missing"):
        reader().transaction(b" " + value)
    with pytest.raises(m.MessageRefused, match="the decode callable raised AssertionError"):
        reader(never, text=None).transaction(compact)


def test_duplicate_names_are_refused_at_any_depth() -> None:
    """One parser takes the first of them, another the last."""
    value = theirs().replace(b'"deep": {', b'"deep": {"er": 1, ')
    with pytest.raises(m.MessageRefused, match="a name comes twice"):
        reader().transaction(value)


class Poisonous:
    """Something that a callable may answer, which raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]  # as it should be


def answers() -> list[Any]:
    """What a callable may answer that is no message."""
    cyclic: dict[str, Any] = {}
    cyclic["payment"] = cyclic
    payment = THEIRS["payment"]
    return [
        *(None, b"", [], {}, {1: 2}, object(), cyclic, Poisonous()),
        {"payment": Poisonous()},
        {"payment": {"reference": Poisonous()}},
        THEIRS | {"payment": payment | {"reference": "\ud800"}},
        THEIRS | {"payment": payment | {"created": datetime(2024, 1, 1)}},
        THEIRS | {"payment": payment | {"created": 10**400}},
        THEIRS | {"payment": payment | {"total": float("nan")}},
        THEIRS | {"payment": payment, "terminal": {"position": {"lat": 10**400, "lon": 0}}},
    ]


@pytest.mark.parametrize("number", range(len(answers())))
def test_whatever_a_callable_answers_is_no_crash(number: int) -> None:
    """It is malformed, and so is what it raises."""
    batcher = batcher_for(
        everything(),
        columns=MessageColumns.from_toml(MAP, everything()),
        decode=lambda _: answers()[number],
    )
    given = messages([b"4111111111111111"])
    batch = batcher.build(given, messages([]), NOW_MS)
    assert batch.counts == {m.MALFORMED: 1}
    batch = batcher.build(messages([]), given, NOW_MS)
    assert sum(batch.counts.values()) == 1
    assert "4111" not in repr(batch.refused)


def test_a_callable_that_raises_is_named_by_its_error() -> None:
    """Without what the error says, which may be the message."""

    def decode(value: bytes) -> Any:
        raise LookupError(value.decode())

    batch = batcher_for(everything(), decode=decode).build(
        messages([b"4111111111111111"]), messages([]), NOW_MS
    )
    assert batch.refused == [
        Refusal(False, 0, m.MALFORMED, "the decode callable raised LookupError")
    ]


def test_a_callable_that_wants_to_end_the_process_ends_a_message() -> None:
    """Every way of failing but the keyboard's is the message's."""
    raised: list[BaseException] = [SystemExit(1), GeneratorExit(), MemoryError()]

    def decode(value: bytes) -> Any:
        raise raised[int(value)]

    for number, problem in enumerate(raised):
        with pytest.raises(m.MessageRefused, match=type(problem).__name__):
            reader(decode, text=None).transaction(b"%d" % number)
    raised[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        reader(decode, text=None).transaction(b"0")


def test_a_callable_without_a_map_answers_in_our_names() -> None:
    """Datetimes included."""
    payment = OURS | {"time": datetime.fromtimestamp(NOW_MS / 1_000, UTC)}
    assert reader(lambda _: payment, text=None).transaction(b"") == ours(OURS)
    label = {"transaction_id": "t-1", "flags": {"fraud": True}, "sent_at": payment["time"]}
    assert reader(lambda _: label, text=None).label(b"", NOW_MS).sender_ms == NOW_MS


def test_a_map_that_is_none_is_refused() -> None:
    """With its source, at start."""
    with pytest.raises(BadFile, match="column map: "):
        MessageColumns.from_toml("colour = 1", everything())
    with pytest.raises(BadFile, match=r"cannot read the column map nowhere\.toml"):
        MessageColumns.named("nowhere.toml", everything())
