"""Redis URLs: valid, invalid, printed without password."""

from __future__ import annotations

import pytest

from viewport_relay.backplane.redisserver import RedisAddress
from viewport_relay.config import ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379", RedisAddress("127.0.0.1", 6379, False)),
        ("redis://cache", RedisAddress("cache", 6379, False)),
        ("rediss://cache:6380/2", RedisAddress("cache", 6380, True, (("SELECT", 2),))),
        ("redis://:p%40ss@h/0", RedisAddress("h", 6379, False, (("AUTH", "p@ss"), ("SELECT", 0)))),
        ("redis://user:p%3Aw@[::1]:7000/", RedisAddress("::1", 7000, False, (("AUTH", "user", "p:w"),))),
    ],
)
def test_valid_urls(url: str, expected: RedisAddress) -> None:
    assert RedisAddress.from_url(url) == expected


@pytest.mark.parametrize(
    "url", ["redis://h/x", "redis://h/-1", "redis://h/1/2", "redis://h?db=1", "redis://h/1#x"]
)
def test_invalid_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="RELAY_REDIS_URL"):
        RedisAddress.from_url(url)


def test_the_password_is_not_printed() -> None:
    assert "hunter2" not in repr(RedisAddress.from_url("redis://:hunter2@h"))
