"""Law 7: no card number leaves the process. What identifies a card, merchant, device, address or
person is in nothing that is written, shown, logged, counted or raised; keyed hashes stand for it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshscore.config.errors import FreshscoreError
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer
from tests.laws.law_models import booster_model
from tests.laws.law_specifications import shipped
from tests.laws.traffic import changed
from tests.laws.worlds import MONDAY_MS, entity_rows, records_of

RAW = {
    "card": "4929-5178-2345-8801",
    "merchant": "RAW-merchant-Zürich",
    "device": "RAW-device-77f3",
    "ip": "198.51.100.77",
    "email": "raw.person@example.org",
}
PAYMENT_ID = "RAW-payment-000017"


def found_in(data: bytes) -> list[str]:
    """Which identifiers are in `data`, plainly or in an encoding that anybody would try."""
    lowered = data.lower()
    return [
        text
        for text in RAW.values()
        for needle in needles_of(text)
        if needle in data or needle.lower() in lowered
    ]


def needles_of(text: str) -> Iterator[bytes]:
    """Forms in which a text may hide: encodings, escapes, its digits, hexadecimal, base 64."""
    plain = text.encode()
    yield plain
    yield text.encode("utf-16-le")
    yield text.encode("utf-32-le")
    yield text.encode("unicode_escape")
    yield plain[::-1]
    yield plain.hex().encode()
    # Whatever stands before it, some two of three bytes begin a group of base 64.
    for skipped in range(3):
        yield base64.b64encode(plain[skipped:])[:-4].rstrip(b"=")
    digits = "".join(filter(str.isdigit, text))
    if len(digits) > 8:
        yield digits.encode()


def payment(number: int = 0, **changes: Any) -> Transaction:
    """A payment of all that is raw."""
    made = Transaction(
        f"{PAYMENT_ID}-{number}",
        MONDAY_MS + 1_000 * number,
        2_500,
        "EUR",
        RAW,
        location=(50.85, 4.35),
    )
    return changed(made, **changes)


@pytest.fixture
def scorer(tmp_path: Path, seed: int) -> Iterator[Scorer]:
    """A scorer with a folder, which has seen some payments, facts and answers."""
    model = booster_model(shipped("payments"), seed)
    settings = {"store.path": str(tmp_path / "store"), "cache.max_bytes": 1 << 20}
    with Scorer.open(settings=settings, model=model) as opened:
        for number in range(10):
            opened.score(payment(number))
            opened.observe(payment(number))
        opened.label(f"{PAYMENT_ID}-3", fraud=True)
        yield opened


def test_the_canary_would_be_found_in_every_form() -> None:
    """Each needle, in the middle of something else."""
    for text in RAW.values():
        for form in (
            text,
            text.encode("utf-16-le"),
            text.encode().hex(),
            text.encode().hex().upper(),
            base64.b64encode(b"x" + text.encode()),
            base64.b64encode(b"xy" + text.encode()),
            base64.b64encode(text.encode()),
            repr({"entity": text}),
        ):
            data = form if isinstance(form, bytes) else form.encode()
            assert text in found_in(b"before " + data + b" after"), form
    assert found_in(b"nothing of the kind") == []


def test_no_file_of_a_saved_store_has_an_identifier(scorer: Scorer, tmp_path: Path) -> None:
    scorer.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"state", "secret"}
    for path in files:
        data = path.read_bytes()
        assert found_in(data) == [], path
        assert found_in(str(path).encode()) == []
        # Payments are hashed there as well.
        assert PAYMENT_ID.encode() not in data


def test_the_stores_memory_holds_hashes_alone(scorer: Scorer) -> None:
    store = scorer._store
    held = [words.tobytes() for words in records_of(store)]
    held += [entity_rows(store, entity).tobytes() for entity in range(5)]
    held += [store._payments.tobytes(), store.scratch.tobytes()]
    serving = scorer._serving
    assert serving is not None
    held += [serving.tier._entries.tobytes(), serving.tier._features.tobytes()]
    assert sum(map(len, held)) > 10_000
    assert found_in(b"".join(held)) == []
    assert PAYMENT_ID.encode() not in b"".join(held)


def test_nothing_that_is_shown_of_any_object_has_an_identifier(scorer: Scorer) -> None:
    result = scorer.score(payment(1))
    batch = scorer.score_many([payment(2), {"transaction_id": "bad", "entities": RAW}])
    explained = scorer.explain(payment(3))
    shown = [
        payment(1),
        result,
        batch,
        explained,
        scorer,
        scorer._store,
        scorer._feed,
        scorer._serving,
        scorer.stats(),
        scorer._settings,
        result.state_versions,
        result.raw,
        pickle.dumps(scorer.stats()),
    ]
    for one in shown:
        assert found_in(f"{one!r} {one}".encode()) == [], type(one)
    # Nor does anything name the payment, unless it is asked for its name.
    assert [one for one in shown if PAYMENT_ID in f"{one!r} {one}"] == []
    assert PAYMENT_ID in result.transaction_id
    assert found_in(pickle.dumps(result.raw)) == []


def test_no_frame_of_answers_has_an_identifier(scorer: Scorer) -> None:
    import pandas as pd

    rows = [
        {
            "transaction_id": f"f{i}",
            "time_ms": MONDAY_MS,
            "amount_minor": 100 if i else -1,
            "currency": "EUR",
            **RAW,
        }
        for i in range(3)
    ]
    answers = scorer.score_many(pd.DataFrame(rows))
    assert answers["error"].notna().sum() == 1
    assert found_in(answers.to_csv().encode()) == []


BAD: dict[str, dict[str, Any]] = {
    **{f"long {name}": {"entities": RAW | {name: text * 30}} for name, text in RAW.items()},
    "identifier that is bytes": {"entities": RAW | {"card": RAW["card"].encode()}},
    "identifier that is a list": {"entities": RAW | {"card": [RAW["card"]]}},
    "identifier that is no Unicode": {"entities": RAW | {"card": RAW["card"] + "\ud800"}},
    "entities that are a text": {"entities": RAW["card"]},
    "entities that are a list": {"entities": list(RAW.items())},
    "bad amount": {"amount_minor": -1},
    "bad time": {"time": 7},
    "bad kind": {"kind": "purchase"},
    "bad currency": {"currency": "euro"},
    "another currency": {"currency": "USD"},
    "bad flag": {"flags": {"stolen": True}},
    "bad field": {"fields": {"risk": [RAW["email"]]}},
    "long field": {"fields": {"note": RAW["email"] * 20}},
    "field of a card": {"fields": {"pan": RAW["card"]}, "amount_minor": -1},
    "bad location": {"location": RAW["ip"]},
    "unknown name": {"pan": RAW["card"]},
}


@pytest.mark.parametrize("case", BAD)
def test_no_error_shows_an_identifier(scorer: Scorer, case: str) -> None:
    """Not in its message, nor in what it was raised from, however it is used."""
    bad = {
        "transaction_id": "t",
        "time": MONDAY_MS,
        "amount_minor": 100,
        "currency": "EUR",
        "entities": RAW,
        **BAD[case],
    }
    raised = []
    for call in (scorer.score, scorer.observe, scorer.explain):
        try:
            call(bad)
        except FreshscoreError as problem:
            raised.append(problem)
    if case != "field of a card":
        assert raised or case in ("identifier that is a list",), case
    assert [found_in(everything_said(one)) for one in raised] == [[]] * len(raised)
    (listed,) = scorer.score_many([bad])
    assert found_in(repr(listed).encode()) == []


def everything_said(problem: BaseException | None) -> bytes:
    """The messages and arguments of an exception and of all that it came from."""
    said = b""
    while problem is not None:
        said += f"{problem!r} {problem} {problem.args!r} {vars(problem)!r}".encode()
        if problem.__suppress_context__:
            problem = problem.__cause__
        else:
            problem = problem.__cause__ or problem.__context__
    return said


def test_errors_of_the_feed_and_of_limits_show_no_identifier(seed: int) -> None:
    model = booster_model(shipped("payments"), seed)
    raised: list[FreshscoreError] = []
    with Scorer.open("tiny", model=model) as scorer:
        calls: list[Any] = [
            lambda: scorer.label(f"{PAYMENT_ID}-unknown", fraud=True),
            lambda: scorer.label("t", fraud="yes"),  # type: ignore[arg-type]  # what is refused
            lambda: scorer.label("t", stolen=True),
            lambda: scorer.label("t", entities=RAW, fraud=True),
            lambda: scorer.label("t", entities={"card": RAW["card"] * 20}, time=1, fraud=True),
            lambda: scorer.observe(payment(1), arrival=MONDAY_MS + 10_000_000),
            lambda: scorer.score(payment(1), as_of=MONDAY_MS - 1),
            *(
                lambda n=n: scorer.observe(
                    payment(n, entities={name: f"{text}{n}" for name, text in RAW.items()})
                )
                for n in range(200)
            ),
            lambda: scorer.score(payment(0), as_of=MONDAY_MS + 1),
        ]
        for call in calls:
            try:
                call()
            except FreshscoreError as problem:
                raised.append(problem)
    assert len({type(problem) for problem in raised}) >= 5
    assert [found_in(everything_said(one)) for one in raised] == [[]] * len(raised)
    assert [one for one in raised if PAYMENT_ID.encode() in everything_said(one)] == []


def test_nothing_is_logged_with_an_identifier(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, seed: int
) -> None:
    """A secret that is made is said; nothing of a payment is."""
    caplog.set_level(logging.DEBUG)
    model = booster_model(shipped("payments"), seed)
    with Scorer.open(settings={"store.path": str(tmp_path)}, model=model) as scorer:
        scorer.observe(payment(0))
        scorer.score(payment(0))
        with contextlib.suppress(FreshscoreError):
            scorer.score({"entities": RAW})
    secret = (tmp_path / "secret").read_text().strip()
    assert "secret" in caplog.text
    assert secret not in caplog.text
    assert found_in(caplog.text.encode()) == []


def test_the_secret_is_shown_nowhere(scorer: Scorer, tmp_path: Path) -> None:
    secret = (tmp_path / "store" / "secret").read_text().strip()
    raw = bytes.fromhex(secret)
    shown = f"{scorer.stats()!r} {scorer._settings!r} {scorer._store.keys!r} {scorer._state!r}"
    assert secret not in shown
    scorer.close()
    state = (tmp_path / "store" / "state").read_bytes()
    assert raw not in state
    assert secret.encode() not in state
    for key in (scorer._store.keys.record, scorer._store.keys.row_keys.tobytes()):
        assert key not in state


def test_canary_an_identifier_left_in_an_array_is_found() -> None:
    memory = np.zeros(1_000, np.uint8)
    memory[100 : 100 + len(RAW["card"])] = np.frombuffer(RAW["card"].encode(), np.uint8)
    assert set(found_in(memory.tobytes())) == {RAW["card"]}
