"""Secrets are told by their names, their forms and their places; nothing else is touched."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import fields
from urllib.parse import quote

import pytest

from counterpoint import masking
from counterpoint.config import CPOConfig
from counterpoint.masking import Mask, MaskingFilter, is_secret, keep_secrets, masked


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_kept", set())
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # names the parameters of a test, secrets among them


CALLED_SECRETS = re.findall(
    r"\S+",
    """
hub_token HF_TOKEN WANDB_API_KEY db-password AWS_SECRET_ACCESS_KEY PGPASSWORD DB_PASS MYSQL_PWD
GITHUB_PAT SERVICE_CREDENTIALS AUTH CLIENT_SECRETS ACCESSKEY authToken SLACK_WEBHOOK DBPASSWORD
MYSQLPWD PGPASS REDIS_PW PASSWORD PASS PASSPHRASE SSH_PASSPHRASE SMTP_PASS RABBITMQ_DEFAULT_PASS
clientSecret APIKey apikey OPENAI_APIKEY API_KEYS GITHUB_TOKENS privateKey PRIVATEKEY SECRETKEY
accessToken refresh_token SESSIONTOKEN HTTP_BASIC_AUTH NPM_AUTH OAUTH NETRC_PASSWORD GITLAB_PAT2
AZURE_PAT JWT BEARER AUTHORIZATION DISCORD_WEBHOOK_URL COOKIE credentials creds AWS_CREDENTIALS
GoogleCredentials USERPASSWORD ROOTPASS sshKey ENCRYPTION_KEY MNEMONIC X-Api-Key sql.password
VAULT_TOKEN CI_JOB_TOKEN DOCKER_PASSWORD KAGGLE_KEY TWINE_PASSWORD
""",
)

ORDINARY_NAMES = re.findall(
    r"\S+",
    """
tokenizer max_micro_batch_tokens keyboard PWD OLDPWD PATH AUTHOR GIT_AUTHOR_NAME KEYBOARD PASSAGE
TOKENIZERS_PARALLELISM HOME USER LANG SHELL TERM XAUTHORITY SECRETARY PASSENGER COMPASS BYPASS
monkey TURKEY pass_rate first_pass_rows eval_sample_tokens num_input_tokens_seen loss_type PATTERN
PATCH COOKIECUTTER AUTHENTIC keyword DESKTOP_SESSION XKB_LAYOUT max_length AUTH_TYPE TOKEN_COUNT
KEY_LENGTH PASSWORD_REQUIRED spat tokens keys column_keys passing tokenised BEARING STATE NODE_ENV
OMP_NUM_THREADS CUDA_VISIBLE_DEVICES PYTHONPATH MASTER_PORT
""",
)


@pytest.mark.parametrize("name", CALLED_SECRETS)
def test_these_are_called_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ORDINARY_NAMES)
def test_these_are_not(name: str) -> None:
    assert not is_secret(name)


def test_of_all_options_the_hubs_token_alone_is_called_a_secret() -> None:
    assert [one.name for one in fields(CPOConfig) if is_secret(one.name)] == ["hub_token"]


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "SERVICE_CREDENTIALS", "AUTH"),
        *("CLIENT_SECRETS", "ACCESSKEY", "authToken", "SLACK_WEBHOOK"),
    ],
)
def test_the_values_of_these_variables_are_masked_wherever_they_are_echoed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "canary-of-mine/42")
    told = Mask().of({"run_name": "of canary-of-mine/42", "at": quote("canary-of-mine/42")})
    assert told == {"run_name": "of ***", "at": "***"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DB_PASS", "hunter2", "*** hunter22 main"),  # short, but a word of its own
        ("PGPASSWORD", "s3cr3t", "hunter2 hunter22 main"),
        ("DB_PASS", "main", "hunter2 hunter22 main"),
        ("DB_PASS", "hunter", "hunter2 hunter22 main"),
        ("SORT_KEY", "hunter2", "hunter2 hunter22 main"),
        ("PASSWORD", "1", "hunter2 hunter22 main"),
        ("PGPASSWORD", "postgres", "hunter2 hunter22 main"),
    ],
)
def test_short_and_common_values_are_told_from_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    assert masked("hunter2 hunter22 main") == told


@pytest.mark.parametrize(
    ("name", "value", "alone"),
    [
        ("DATABASE_URL", "postgres://ann:canary-of-mine@db/x", "canary-of-mine"),
        ("DATABASE_URL", "postgres://ann:canary%2Fof%2Fmine@db/x", "canary/of/mine"),
        ("DATABASE_URL", "postgres://ann:c@nary/of@mine@db/x", "c@nary/of@mine"),
        ("PIP_INDEX_URL", "https://canary-of-mine@index.example.org", "canary-of-mine"),
        ("CALLBACK", "https://example.org/?code=canary-of-mine", "canary-of-mine"),
        ("STORE", "AccountName=ann;AccountKey=canaryOfMine+/2==;Suffix=x", "canaryOfMine+/2=="),
        ("DSN", "host=db user=ann password=canary-of-mine dbname=x", "canary-of-mine"),
        ("GCP", '{"type": "account", "private_key": "canary-of-mine"}', "canary-of-mine"),
        ("APP", '[{"db": {"password": "canary-of-mine"}}]', "canary-of-mine"),
        ("REGISTRY_AUTH", "ann:canary-0f-mine", "canary-0f-mine"),
        ("API_KEYS", "canary-0f-mine,another-0ne", "another-0ne"),
    ],
)
def test_what_a_value_holds_is_masked_alone_too(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, alone: str
) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"login failed for <{alone}>") == "login failed for <***>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgres://localhost:5432/experiments"),
        ("HF_ENDPOINT", "https://huggingface.co/mirror"),
        ("GREETING", "hello world, this is ann"),
        ("OPTIONS", '{"model": "a-model-of-ours", "beta": 0.1}'),
        ("LESS", "--mouse --quiet-all"),
        ("PWD", "/data/ann/experiments"),
        ("OLDPWD", "/data/ann/elsewhere"),
        ("GIT_AUTHOR_NAME", "Ann of Elsewhere"),
        ("AUTH_TYPE", "certificate"),
        ("MAX_TOKENS", "100000000"),
    ],
)
def test_ordinary_variables_hide_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"seen: {value}") == f"seen: {value}"


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


PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bq0\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("hf_" + "aB3" * 11, "***"),
        ("key sk-proj-" + "a1_-" * 8 + ".", "key ***."),
        ("sk-ant-api03-" + "a1_-" * 8, "***"),
        ("sk_live_" + "a1" * 10, "***"),
        ("whsec_" + "a1" * 10, "***"),
        ("ghp_" + "a" * 36, "***"),
        ("gho_" + "a" * 36, "***"),
        ("github_pat_" + "a1_" * 20, "***"),
        ("glpat-" + "a1_-" * 5, "***"),
        ("AKIA" + "A1" * 8, "***"),
        ("ASIA" + "A1" * 8, "***"),
        ("AIza" + "a1_-" * 9, "***"),
        ("xoxb-123-abc-456789", "***"),
        ("xapp-1-A0B1-" + "a1" * 10, "***"),
        ("npm_" + "a1" * 18, "***"),
        ("pypi-AgEIcHlwaS5vcmc" + "a1_-" * 5, "***"),
        ("gsk_" + "a1" * 20, "***"),
        ("123456789:AA" + "b2_-" * 8, "***"),
        ("SG." + "a1" * 10 + "." + "b2" * 10, "***"),
        ("a eyJhbGciOiJI.eyJzdWIiOiI.s1-_g b", "a *** b"),
        ("to https://hooks.slack.com/services/T0/B0/abc1, and", "to ***, and"),
        ("hooks.slack.com/services/T0/B0/abc1", "***"),
        ("https://discord.com/api/webhooks/1234/ab-c_d", "***"),
        ("https://ann.webhook.office.com/webhookb2/a@b/x", "***"),
        (PEM, "***"),
        (repr(PEM), "'***'"),
        (" ".join(PEM.split()), "***"),
        (PEM[:50] + " and more", "*** and more"),
        (PEM.replace("RSA", "OPENSSH"), "***"),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("Authorization: Basic YW5uOnBhNTU=", "Authorization: Basic ***"),
        ("{'authorization': 'token abcdefgh'}", "{'authorization': 'token ***'}"),
        ("X-Api-Key: abcdefgh1", "X-Api-Key: ***"),
    ],
)
def test_keys_are_known_by_their_form(text: str, public: str) -> None:
    assert masked(text) == public


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://ann:pa55@host/x?a=1", "https://***@host/x?a=1"),
        ("https://token@host/x", "https://***@host/x"),
        ("https:/ann:pa55@host/x", "https:/***@host/x"),  # as a path writes it
        ("//ann:pa55@host/x", "//***@host/x"),
        ("https://ann:p@ss@host/x", "https://***@host/x"),
        ("https://ann:p@s@s@host/x", "https://***@host/x"),
        ("https://ann:pa/ss@host/x", "https://***@host/x"),
        ("https://ann:p@/s/@s@host/x", "https://***@host/x"),
        ("https://ann:12/ss@host/x", "https://***@host/x"),
        ("https://ann:pa?ss@host/x", "https://***@host/x"),
        ("https://ann:pa#ss@host/x", "https://***@host/x"),
        ("https://ann:pa'ss@host/x", "https://***@host/x"),
        ("https://ann:p%40s%2Fs@host/x", "https://***@host/x"),
        ("https://ann:pa55@host/x?to=ann@example.org", "https://***@host/x?to=ann@example.org"),
        ("https%3A%2F%2Fann%3Apa55%40host%2Fx", "https%3A%2F%2F***%40host%2Fx"),
        ("https%253A%252F%252Fann%253Apa55%2540host", "https%253A%252F%252F***%2540host"),
        ("postgresql+psycopg://ann:pa55@[::1]:5432/x", "postgresql+psycopg://***@[::1]:5432/x"),
        ("redis://:pa55@host:6379", "redis://***@host:6379"),
        ("'https://ann:pa55@host/x': no", "'https://***@host/x': no"),
        ("https://a.org/?to=https://ann:pa55@b/x", "https://a.org/?to=https://***@b/x"),
        ("s3://b/x?a=1&X-Amz-Signature=abc&b=2", "s3://b/x?a=1&X-Amz-Signature=***&b=2"),
        ("/x?X-Amz-Credential=AK%2F20&X-Amz-Date=1", "/x?X-Amz-Credential=***&X-Amz-Date=1"),
        ("/x?X-Amz-Security-Token=abc", "/x?X-Amz-Security-Token=***"),
        ("/x?X-Goog-Signature=abc", "/x?X-Goog-Signature=***"),
        ("blob?sv=2022&sig=ab%2Bc%3D", "blob?sv=2022&sig=***"),
        ("/x?auth=abc&b=2", "/x?auth=***&b=2"),
        ("/x?code=abc", "/x?code=***"),
        ("/x?token=a/b;c", "/x?token=***"),
        ("/x?access_token=abc", "/x?access_token=***"),
        ("/x?accessToken=abc", "/x?accessToken=***"),
        ("/x?api-key=abc", "/x?api-key=***"),
        ("/x?apikey=abc", "/x?apikey=***"),
        ("/x?key=abc", "/x?key=***"),
        ("/x?password=ab'cd'", "/x?password=***'"),
        ("/x?pwd=abc", "/x?pwd=***"),
        ("/x?client_secret=abc", "/x?client_secret=***"),
        ("/x#access_token=abc&b=2", "/x#access_token=***&b=2"),
        ("/x?a=1;token=abc", "/x?a=1;token=***"),
        ("/x?auth[token]=abc", "/x?auth[token]=***"),
        ("?to=https%3A%2F%2Fa%3Ftoken%3Dabc%26b%3D2", "?to=https%3A%2F%2Fa%3Ftoken%3D***%26b%3D2"),
        ("%3Fa%3D1%26code%3Dabc%26sig%3Dd", "%3Fa%3D1%26code%3D***%26sig%3D***"),
        ("%253Ftoken%253Dabc", "%253Ftoken%253D***"),
    ],
)
def test_every_place_of_an_address_that_holds_a_credential_is_masked(
    text: str, public: str
) -> None:
    assert masked(text) == public


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download of risk-averse-people-and-others",
        "sk-learn-and-all-of-its-friends",
        "mail ann@example.org about https://example.org/a?page=2",
        "loss 0.1234, 17 tokens, key rows",
        "https://example.org:8080/@ann/x@v2",
        "https://localhost:8080/x@v2",
        "https://medium.com/@ann/story",
        "hf://datasets/ann/pairs@main/train.jsonl",
        "git+https://github.com/ann/x@v1.2#egg=x",
        "s3://bucket/a@b/c.parquet",
        "file:///data/ann/a:b/c@d",
        "/x?page=2&design=3&keyword=a&keyboard=b&monkey=c&author=d&passage=e&encode=f",
        "C:/users/ann/x@y",
        "mailto:ann@example.org",
        "git@github.com:ann/x.git",
        "a // b: c@d",
        "Bearer of news; Basic understanding of authorization",
        "-----BEGIN PUBLIC KEY-----",
        "SG.1 and xoxo and eyJ and gsk_learn_and_all_of_its_friends",
        "CP103 beta=0.1 should be above 0; key=value, code=3",
    ],
)
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_a_long_text_is_masked_in_time_that_grows_with_it() -> None:
    hostile = ["a://" * 2**14, "a.b" * 2**14, "-----BEGIN PRIVATE KEY-----" * 2**12, "@" * 2**16]
    begun = time.process_time()
    for text in (*hostile, "x://a:" + "b@" * 2**14, "?key=" * 2**14, "x://a:b" + "?q=@" * 2**14):
        masked(text)
    assert time.process_time() - begun < 10  # where it grew with the square: minutes


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
