"""One deployment has one secret: whoever comes with another is refused, whatever he computes."""

from __future__ import annotations

import pytest

from freshscore.config.errors import WrongSecret
from freshscore.scoring.scorer import Scorer
from tests.freshscore.shared_deployment import SharedDeployment, recent

OTHER_SECRET = "0dd5ec" * 8


def test_another_secret_is_told_under_another_specification_too(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its states have epochs of their own, so no node's markers would tell."""
    deployment.send(recent(5))
    assert deployment.consume()["applied"] == 5
    # A restart under the same secret, and another specification under it, are welcome.
    assert deployment.run("consume", "--until-caught-up") == 0
    changed = {"store.specification": "handbook"}
    given = deployment.given | changed
    with Scorer.open("shared", settings=given, model=lambda rows: rows[:, 0] * 0.0) as scorer:
        payment = recent(1)[0]
        payment["entities"]["terminal"] = "t-1"
        assert scorer.score(payment).degraded == ("state lost",)
    monkeypatch.setenv("FRESHSCORE_SECRET", OTHER_SECRET)
    capsys.readouterr()
    for specification in (deployment.given["store.specification"], "handbook"):
        words = ("consume", "--until-caught-up")
        assert deployment.run(*words, store__specification=specification) == 2
        assert "under identifier key" in capsys.readouterr().err
        settings = deployment.given | {"store.specification": specification}
        with pytest.raises(WrongSecret, match="under identifier key"):
            Scorer.open("shared", settings=settings, model=lambda rows: rows[:, 0] * 0.0)
