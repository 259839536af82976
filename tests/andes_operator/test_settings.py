"""Settings from flags, environment and defaults."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest

from andes_operator import settings
from andes_operator.settings import FLAGLESS, OperatorSettings, OperatorSettingsError, add_arguments, load

VARIABLES = ("POD_NAME", "POD_NAMESPACE", "ANDES_ADMIN_KEY", "OTEL_EXPORTER_OTLP_ENDPOINT")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def given(*flags: str) -> OperatorSettings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return load(parser.parse_args(flags))


def test_what_is_not_given_has_a_default() -> None:
    made = given()
    assert (made.namespace, made.host, made.port, made.lease) == ((), "0.0.0.0", 8080, "andes-operator")  # noqa: S104
    assert (made.lease_namespace, made.lease_s, made.resync_s, made.watch_s) == ("default", 15.0, 60.0, 60)
    assert (made.otlp_endpoint, made.admin_key) == (None, None)
    assert made.identity


def test_every_setting_has_a_flag_but_identity_and_key() -> None:
    flags = {
        "--namespace": "a", "--host": "h", "--port": "1", "--lease": "l", "--lease-namespace": "n", "--lease-seconds": "20",
        "--resync-seconds": "30", "--watch-seconds": "40", "--what-if-seconds": "50", "--otlp-endpoint": "http://c",
    }  # fmt: skip
    made = given(*(f"{flag}={value}" for flag, value in flags.items()), "--namespace=b")
    assert made.model_dump(exclude=set(FLAGLESS)) == {
        "namespace": ("a", "b"), "host": "h", "port": 1, "lease": "l", "lease_namespace": "n", "lease_s": 20.0,
        "resync_s": 30.0, "watch_s": 40, "what_if_s": 50.0, "otlp_endpoint": "http://c",
    }  # fmt: skip


def test_the_environment_says_the_same_and_flags_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "ANDES_OPERATOR_NAMESPACE": '["a"]', "ANDES_OPERATOR_LEASE_S": "20", "POD_NAME": "op-1", "POD_NAMESPACE": "chat",
        "ANDES_ADMIN_KEY": "secret", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = given("--lease-seconds=30")
    assert (made.namespace, made.lease_s, made.identity, made.lease_namespace) == (("a",), 30.0, "op-1", "chat")
    assert made.otlp_endpoint == "http://c"
    assert made.admin_key is not None
    assert made.admin_key.get_secret_value() == "secret"
    assert "secret" not in repr(made)
    monkeypatch.setenv("ANDES_OPERATOR_OTLP_ENDPOINT", "http://own")
    assert given().otlp_endpoint == "http://own"


def test_the_lease_is_in_the_pods_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "namespace"
    file.write_text("chat\n")
    monkeypatch.setattr(settings, "NAMESPACE_FILE", file)
    assert given().lease_namespace == "chat"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=x", "--port: Input should be a valid integer, unable to parse string as an integer (got 'x')"),
        ("--port=70000", "--port: Input should be less than or equal to 65535 (got '70000')"),
        ("--lease-seconds=9", "--lease-seconds: Input should be greater than or equal to 10 (got '9')"),
        ("--resync-seconds=0", "--resync-seconds: Input should be greater than 0 (got '0')"),
    ],
)
def test_what_is_wrong_is_named(flag: str, said: str) -> None:
    with pytest.raises(OperatorSettingsError) as error:
        given(flag)
    assert str(error.value) == said


def test_every_fault_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDES_OPERATOR_PROT", "1")
    with pytest.raises(
        OperatorSettingsError, match=r"ANDES_OPERATOR_PROT: no such setting\n--port: .*\n--watch-seconds: "
    ):
        given("--port=x", "--watch-seconds=y")


def test_a_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = argparse.Namespace(admin_key=1234, host=["secret"])
    with pytest.raises(OperatorSettingsError) as error:
        load(parsed)
    assert str(error.value) == "--host: Input should be a valid string\nadmin_key: Input should be a valid string"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "ANDES_OPERATOR_PORT"):
        monkeypatch.setenv(name, "")
    made = given()
    assert made.identity
    assert (made.lease_namespace, made.admin_key, made.otlp_endpoint, made.port) == ("default", None, None, 8080)


def test_namespaces_that_are_no_json_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDES_OPERATOR_NAMESPACE", "chat")
    with pytest.raises(
        OperatorSettingsError, match=r"""ANDES_OPERATOR_NAMESPACE: expected a JSON list .*, got 'chat'"""
    ):
        given()


def test_the_variables_of_a_service_of_the_operators_name_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes sets them in every pod of the namespace, unless ``enableServiceLinks`` is false."""
    for name, value in {
        "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8080", "SERVICE_PORT_HTTP": "8080", "PORT": "tcp://10.0.0.1:8080",
        "PORT_8080_TCP": "tcp://10.0.0.1:8080", "PORT_8080_TCP_PROTO": "tcp", "PORT_8080_TCP_PORT": "8080",
        "PORT_8080_TCP_ADDR": "10.0.0.1", "METRICS_PORT": "tcp://10.0.0.2:80", "METRICS_SERVICE_HOST": "10.0.0.2",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"ANDES_OPERATOR_{name}", value)
    assert given().port == 8080
    monkeypatch.setenv("ANDES_OPERATOR_PORT", "9090")
    assert given().port == 9090


def test_a_former_flag_still_works_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert given("--sweep-seconds=5").resync_s == 5.0
    assert "use --resync-seconds" in caplog.text
    assert given("--sweep-seconds=5", "--resync-seconds=7").resync_s == 7.0
