"""The URL of Redis is read as it is meant."""

from __future__ import annotations

import pytest

from freshscore.config.redis_url import RedisUrl, redis_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://host", RedisUrl((("host", 6_379),), None, "redis://host")),
        (
            "rediss://u@[::1]:7/2?ssl_cert_reqs=none",
            RedisUrl((("::1", 7),), None, "rediss://u@[::1]:7/2?ssl_cert_reqs=none"),
        ),
        (
            "rediss://u@one, [::1]:7,three?ssl_cert_reqs=none",
            RedisUrl(
                (("one", 6_379), ("::1", 7), ("three", 6_379)),
                None,
                "rediss://u@one?ssl_cert_reqs=none",
            ),
        ),
        (
            "redis+sentinel://one/name",
            RedisUrl((("one", 26_379),), "name", "redis://one"),
        ),
        (
            "rediss+sentinel://u@[::1]:1, two,three:3/na.me/4?ssl_ca_certs=/a/ca.pem",
            RedisUrl(
                (("::1", 1), ("two", 26_379), ("three", 3)),
                "na.me",
                "rediss://u@[::1]:1/4?ssl_ca_certs=/a/ca.pem",
            ),
        ),
        # A primary may be called like a number.
        ("redis+sentinel://one/0", RedisUrl((("one", 26_379),), "0", "redis://one")),
    ],
)
def test_what_a_url_names(text: str, expected: RedisUrl) -> None:
    assert redis_url(text) == expected
