"""Secrets are told by their names, their forms and their places; nothing else is touched."""

from __future__ import annotations

import json
import logging
from urllib.parse import quote

import pytest

from counterpoint import masking
from counterpoint.masking import Mask, MaskingFilter, is_secret, keep_secrets, masked


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_kept", set())


@pytest.mark.parametrize(
    "name", ["hub_token", "HF_TOKEN", "WANDB_API_KEY", "db-password", "AWS_SECRET_ACCESS_KEY"]
)
def test_these_are_called_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["tokenizer", "max_micro_batch_tokens", "keyboard", "PWD"])
def test_these_are_not(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "form",
    [str, lambda text: repr(text)[1:-1], lambda text: json.dumps(text)[1:-1], quote],
    ids=["plain", "repr", "JSON", "address"],
)
def test_the_value_of_a_secret_variable_is_masked_however_it_is_quoted(
    monkeypatch: pytest.MonkeyPatch, form
) -> None:
    secret = 's3cr"et\\é and more'
    monkeypatch.setenv("MY_API_KEY", secret)
    assert masked(f"<{form(secret)}>") == "<***>"


def test_a_secret_that_holds_another_one_is_masked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_KEY", "abcdefgh")
    monkeypatch.setenv("TWO_KEY", "abcdefgh-ijkl")
    assert masked("abcdefgh-ijkl abcdefgh") == "*** ***"


def test_short_values_and_paths_are_told_from_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("SORT_KEY", "length")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    assert masked(f"sorted by length in {tmp_path}") == f"sorted by length in {tmp_path}"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("hf_" + "aB3" * 11, "***"),
        ("key sk-proj-" + "a1_-" * 8 + ".", "key ***."),
        ("ghp_" + "a" * 36, "***"),
        ("AKIA" + "A1" * 8, "***"),
        ("https://ann:pa55@host/x?a=1", "https://***@host/x?a=1"),
        ("s3://b/x?a=1&X-Amz-Signature=abc&b=2", "s3://b/x?a=1&X-Amz-Signature=***&b=2"),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----", "***"),
    ],
)
def test_keys_and_addresses_are_known_by_their_form(text: str, public: str) -> None:
    assert masked(text) == public


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download of risk-averse-people-and-others",
        "sk-learn-and-all-of-its-friends",
        "mail ann@example.org about https://example.org/a?page=2",
        "loss 0.1234, 17 tokens, key rows",
    ],
)
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_options_called_secrets_are_left_out_at_any_depth_but_numbers_stay() -> None:
    given = {
        "model_init_kwargs": {"token": "abc", "dtype": "auto"},
        "eval_key": 0.5,
        "list": [{"password": ["x"]}, "https://u:p@h"],
    }
    assert Mask().of(given) == {
        "model_init_kwargs": {"dtype": "auto"},
        "eval_key": 0.5,
        "list": [{}, "https://***@h"],
    }


def test_the_value_of_a_secret_option_is_masked_from_then_on() -> None:
    assert masked("canary-of-mine") == "canary-of-mine"
    keep_secrets({"model_init_kwargs": {"token": "canary-of-mine"}, "seed": 3})
    assert masked("a canary-of-mine b") == "a *** b"


def test_a_log_record_loses_its_secrets_in_text_arguments_and_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-of-mine")
    log = logging.Logger("alone")
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(self.format(record))

    log.addFilter(MaskingFilter())
    log.addHandler(Keep())
    try:
        raise ValueError("canary-of-mine")
    except ValueError:
        log.exception("saw %s", "canary-of-mine")
    assert "canary" not in seen[0]
    assert seen[0].startswith("saw ***\nTraceback")
    assert seen[0].endswith("ValueError: ***")
