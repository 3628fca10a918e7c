"""``bench --url``: what is typed, and what cannot be meant."""

from __future__ import annotations

import pytest

from vggdeploy.bench.remote.target import parse_url
from vggdeploy.cli.app import run
from vggdeploy.cli.options import number_list
from vggdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ftp://host", "no address"),
        ("http://", "no address"),
        ("http://host:port", "no address"),
        ("http://me:secret@host", "more than an address"),
        ("http://host?x=1", "more than an address"),
        ("grpc://host/path", "more than an address"),
    ],
)
def test_what_is_no_address_is_refused_and_a_password_is_not_repeated(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("text", "url"), [("host:9", "http://host:9"), ("https://[::1]/a/v2/", "https://[::1]:443/a")])
def test_addresses_are_read_as_they_are_meant(text: str, url: str) -> None:
    assert parse_url(text).url == url


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (["--url", "http://127.0.0.1:9", "--concurrency", "1"], 1, "nobody answers at http://127.0.0.1:9"),
        (["--url", "grpc://127.0.0.1:9", "--concurrency", "1"], 1, "UNAVAILABLE"),
        (["--url", "http://127.0.0.1:9"], 2, "without a load"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "0"], 2, "no list of numbers"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "1.5"], 2, "whole numbers"),
        (["--url", "http://127.0.0.1:9", "--rates", "1:9e8:1"], 2, "no list of numbers"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "1", "--batch", "1,8"], 2, "one batch size"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "1", "--variant", "onnx-fp32"], 2, "give the BUNDLE"),
        (["--url", "http://127.0.0.1:9", "--find-qps"], 2, "needs a bound"),
        (["--url", "http://127.0.0.1:9", "--rates", "5", "--latency-bound", "0"], 2, "--latency-bound is 0"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "1", "--latency-bound", "-3"], 2, "--latency-bound is -3"),
        (["--url", "http://127.0.0.1:9", "--find-qps", "--latency-bound", "nan"], 2, "--latency-bound is nan"),
        (["--url", "http://127.0.0.1:9", "--concurrency", "1", "--rounds", "3"], 2, "does not go with --url"),
        (["--rates", "5"], 2, "--rates belongs to --url"),
        ([], 2, "measures a bundle, or a server"),
    ],
)
def test_a_call_that_cannot_mean_anything_is_answered(
    line: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *line]) == code
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_range_has_its_last_number_though_its_step_is_no_binary_fraction() -> None:
    assert number_list("0.1:0.3:0.1", "--rates") == pytest.approx([0.1, 0.2, 0.3])
    assert number_list("1:8:2", "--concurrency") == [1, 3, 5, 7]
