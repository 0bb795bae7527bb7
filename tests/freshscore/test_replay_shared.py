"""`freshscore replay --profile shared`: through real Kafka and Redis, and told in the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.freshscore.shared_deployment import SECRET
from tests.freshscore.stored_models import SPECIFICATION, payments, run
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


def test_the_report_tells_lag_latency_and_throughput_beside_the_verdict(
    kafka: KafkaBroker,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)
    payments().to_parquet("payments.parquet")
    given = {
        "kafka.bootstrap_servers": kafka.bootstrap,
        "kafka.session_s": 1.0,
        "redis.url": redis_server.url,
        "redis.heartbeat_s": 0.1,
    }
    servers = [word for name, value in given.items() for word in ("--settings", f"{name}={value}")]
    words = ["--data", "payments.parquet", *SPECIFICATION, "--profile", "shared", *servers]
    words += ["--rescore", "reuse", "--report", "report.html", "--json", "figures.json"]
    words += ["--oracle", "none"]
    assert run("replay", *words) == 0
    said = capsys.readouterr().out
    assert "shared equality check holds" in said
    figures = json.loads(Path("figures.json").read_text("utf-8"))["shared"]
    assert figures["answers beside the embedded ones"] > 0
    assert figures["of these, equal to the bit"] == figures["on the same versions of all states"]
    page = Path("report.html").read_text("utf-8")
    assert "every answer on the same versions is the embedded one" in page
    elsewhere = [figures[f"on other versions, and {which}"] for which in ("equal", "different")]
    same = figures["on the same versions of all states"]
    assert same + sum(elsewhere) == figures["answers beside the embedded ones"]
    assert "Lag behind the log" in page
    for name in ("answers a second", "messages of history a second", "degraded"):
        assert f"<td>{name}</td><td class=n>{figures[name]:,}</td>" in page
    behind = re.search(r"<tr><td>messages behind</td>(.*?)</tr>", page)
    assert behind is not None
    most = figures["messages behind, most"]
    assert re.findall(r">([\d.,]+)<", behind[1])[-1] == f"{round(most, 1):,.6g}"
