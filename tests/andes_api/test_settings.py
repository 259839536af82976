"""Settings: where they come from, and that every fault is named at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from andes_api import cli
from andes_api.gateway import Gateway
from andes_api.reference import references, settings_table
from andes_api.settings import ClassSettings, GatewaySettings, GatewaySettingsError, load, with_classes
from andes_sglang.admission import Wish
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.flags import UsageError
from andes_sglang.qoe import QoETarget

URL = "http://127.0.0.1:30000"


def faults(file: Path | None = None, **arguments: object) -> list[str]:
    with pytest.raises(GatewaySettingsError) as caught:
        load(file, **arguments)
    return str(caught.value).splitlines()


def test_arguments_come_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("upstreams: [http://a:1/v1/]\nport: 1\npolicy: prefix\nclasses: {reading: {tds: 6}}\n")
    monkeypatch.setenv("ANDES_GATEWAY_PORT", "2")
    monkeypatch.setenv("ANDES_GATEWAY_POLICY", "least_load")
    settings = load(file, port=3)
    assert (settings.port, settings.policy, settings.upstreams) == (3, "least_load", ("http://a:1",))
    assert settings.classes["reading"].tds == 6
    assert settings.classes["batch"].ttft_s == 30


def test_every_fault_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("upstreams: [ftp://x]\nclasses: {reading: {tds: -1}}\nretries: many\nnonsense: 1\n")
    monkeypatch.setenv("ANDES_GATEWAY_POTR", "2")
    said = "\n".join(faults(file))
    for name in ("ANDES_GATEWAY_POTR", "upstreams", "ftp://x", "classes.reading.tds", "retries", "'many'", "nonsense"):
        assert name in said, said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "upstreams"),
        ({"upstreams": ["dns://name"]}, "dns://NAME:PORT"),
        ({"upstreams": ["http://u:p@host"]}, "only an address"),
        ({"upstreams": [URL], "dns_server": "name:53"}, "IP:PORT"),
        ({"upstreams": [URL], "dns_server": "10.0.0.1:x"}, "IP:PORT"),
        ({"upstreams": [URL], "default_class": "none"}, "no class 'none'"),
        ({"upstreams": [URL], "service_tiers": {"flex": "none"}}, "service_tiers.flex"),
        ({"upstreams": [URL], "classes": {"Ü": {}}, "default_class": "Ü", "service_tiers": {}}, "classes.Ü"),
        ({"upstreams": [URL], "otlp_endpoint": "localhost:4318"}, "otlp_endpoint"),
        ({"upstreams": [URL], "otlp_endpoint": "grpc://"}, "otlp_endpoint"),
        ({"upstreams": [URL], "policy": "best"}, "policy"),
        (
            {"upstreams": [URL], "batches": {"per_engine": 8}},
            "batches.per_engine: goes with batches.directory, which turns",
        ),
        (
            {"upstreams": [URL], "tenants": [{"name": "a", "key_sha256": "0" * 64, "batches": {"files": 2}}]},
            "tenants.a.batches: goes with batches.directory",
        ),
    ],
)
def test_a_fault_is_named(arguments: dict[str, object], said: str) -> None:
    assert said in "\n".join(faults(**arguments))


def test_a_key_is_never_shown() -> None:
    tenant = {"name": "a", "key_sha256": "a-key-in-the-clear"}
    assert "in-the-clear" not in "\n".join(faults(upstreams=[URL], tenants=[tenant]))
    assert "hunter2" not in repr(GatewaySettings(upstreams=(URL,), upstream_api_key="hunter2"))


@pytest.mark.parametrize("content", ["- a list", "a: [", "\0"])
def test_a_file_that_is_no_mapping(content: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(content)
    assert str(file) in faults(file)[0]
    assert str(tmp_path / "absent") in faults(tmp_path / "absent")[0]


def test_classes_are_changed_field_by_field_and_taken_away() -> None:
    settings = GatewaySettings(
        upstreams=(URL,), service_tiers={}, classes={"batch": {"tds": 2}, "code": None, "own": ClassSettings(tds=7)}
    )
    assert (settings.classes["batch"].tds, settings.classes["batch"].ttft_s, settings.classes["own"].tds) == (2, 30, 7)
    assert "code" not in settings.classes


def test_a_class_clamps_and_has_its_own_default_in_bounds() -> None:
    cls = ClassSettings(ttft_s=1, tds=5, min_ttft_s=0.5, max_ttft_s=2, min_tds=4, max_tds=6)
    assert cls.clamp(ReaderExpectation(QoETarget(0, 100))).target == QoETarget(0.5, 6)
    assert cls.clamp(ReaderExpectation(QoETarget(9, 1))).target == QoETarget(2, 4)
    with pytest.raises(ValueError, match="tds 7 is outside"):
        ClassSettings(tds=7, max_tds=6)
    with pytest.raises(ValueError, match=r"tds must be a number of tokens/s from 1e-3 to 1e9, got 1e-05"):
        ClassSettings(min_tds=1e-5)


def test_a_class_bounds_weight_yield_and_length_too() -> None:
    def clamped(cls: ClassSettings, **said: Any) -> ReaderExpectation:
        return cls.clamp(ReaderExpectation(**said), max_tokens=500)

    cls = ClassSettings(weight=0.5)
    assert [clamped(cls, weight=w).weight for w in (0.1, 0.5, 9.0)] == [0.1, 0.5, 0.5], "never more than its class"
    assert [clamped(cls, yields=y).yields for y in (False, True)] == [False, True]
    assert clamped(ClassSettings(yields=True)).yields, "a class without readers stays one"
    assert [clamped(cls, expected_tokens=n).expected_tokens for n in (None, 400, 600)] == [None, 400, 500]
    assert cls.clamp(ReaderExpectation(expected_tokens=600)).expected_tokens == 600
    assert ClassSettings(weight=0.5, yields=True).expectation == ReaderExpectation(weight=0.5, yields=True)


def test_the_page_is_off_outside_loopback() -> None:
    assert GatewaySettings(upstreams=(URL,)).show_page
    assert not GatewaySettings(upstreams=(URL,), host="0.0.0.0").show_page  # noqa: S104
    assert GatewaySettings(upstreams=(URL,), host="0.0.0.0", page=True).show_page  # noqa: S104


def test_classes_of_a_file_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {reading: {tds: 6}, own: {ttft_s: 2}}")
    settings = with_classes(GatewaySettings(upstreams=(URL,)), file)
    assert (settings.classes["reading"].tds, settings.classes["own"].ttft_s, settings.classes["code"].tds) == (6, 2, 10)
    for content, named in (("port: 1", "nothing else"), ("classes: {reading: {tds: -1}, x: 3}", "classes.reading.tds")):
        file.write_text(content)
        with pytest.raises(GatewaySettingsError, match=named):
            with_classes(settings, file)


# One place for name, default, range and help


def test_classes_that_cannot_be_read_stay_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {reading: {tds: 6}}")
    running = Gateway(GatewaySettings(upstreams=(URL,), classes_file=file))
    file.unlink()
    file.mkdir()
    running.reread_classes()
    assert running.settings.classes["reading"].tds == 6
    file.rmdir()
    running.reread_classes()
    assert running.settings.classes["reading"].tds == 4.8


def test_the_table_of_the_docs_is_the_settings() -> None:
    docs = Path(__file__).parents[2] / "docs" / "gateway.md"
    assert settings_table() in docs.read_text(), (
        "put what andes_api.reference.settings_table() returns into docs/gateway.md"
    )


def test_every_setting_is_described() -> None:
    for setting in references():
        assert setting.description, setting.name
        assert setting.flag == "--" + setting.name.replace("_", "-")
    by_name = {setting.name: setting for setting in references()}
    assert (by_name["retries"].default, by_name["retries"].values) == ("2", ">= 0")
    assert (by_name["count_tokens"].default, by_name["count_tokens"].values) == ("usage", "usage or events")
    assert (by_name["port"].values, by_name["hold_s"].values) == (">= 0, <= 65535", ">= 0")
    assert (by_name["admission"].default, by_name["admission"].values) == ("true", "true or false")
    assert by_name["upstream_api_key"].secret
    assert by_name["tenants"].as_json
    assert by_name["max_held"].variable == "ANDES_GATEWAY_MAX_HELD"


def from_flags(*flags: str) -> GatewaySettings:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args(flags)
    return load(Path(args.config) if args.config else None, **cli._given(args))


def test_every_setting_is_a_flag_but_secrets() -> None:
    settings = from_flags(
        "--upstream", URL, "--upstream", "http://b:1", "--retries", "0", "--hold-s", "1.5", "--admission", "false", "--policy",
        "prefix", "--policy-options", '{"bound": 2}', "--classes", '{"reading": {"tds": 6}}', "--service-tiers", "{}",
        "--media-hosts", '["a.example"]', "--classes-file", "x.yaml", "--page", "true", "--count-tokens", "events",
    )  # fmt: skip
    assert settings.upstreams == (URL, "http://b:1")
    assert (settings.retries, settings.hold_s, settings.admission, settings.page) == (0, 1.5, False, True)
    assert (settings.policy, settings.routing_options) == ("prefix", {"bound": 2})
    assert (settings.classes["reading"].tds, settings.service_tiers, settings.media_hosts) == (6, {}, ("a.example",))
    assert (settings.classes_file, settings.count_tokens) == (Path("x.yaml"), "events")
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert {s.flag for s in references() if not s.secret} <= flags
    assert "--upstream-api-key" not in flags


def test_an_empty_flag_is_none() -> None:
    settings = from_flags("--upstream", URL, "--otlp-endpoint", "", "--name", "", "--policy-options", "")
    assert (settings.otlp_endpoint, settings.name, settings.policy_options) == (None, "gateway", {})


def test_upstreams_that_are_no_list_are_named() -> None:
    with pytest.raises(GatewaySettingsError, match=r"upstreams\.0"):
        from_flags("--upstreams", "5", "--upstream", URL)


def test_a_fault_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDES_GATEWAY_UPSTREAMS", URL)
    assert faults() == ["ANDES_GATEWAY_UPSTREAMS: expected JSON"]


def test_options_of_the_routing_policy_may_stand_alone_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDES_GATEWAY_POLICY_OPTIONS__BOUND", "2")
    assert load(None, upstreams=[URL], policy="prefix").routing_options == {"bound": 2}
    monkeypatch.setenv("ANDES_GATEWAY_POLICY_OPTIONS__BOUND", "much")
    assert faults(upstreams=[URL], policy="prefix")[0].endswith("got 'much'")


def test_a_fault_on_the_command_line_names_the_flag_or_the_setting() -> None:
    with pytest.raises(UsageError, match=r"--classes: expected JSON, got '\{'"):
        from_flags("--upstream", URL, "--classes", "{")
    with pytest.raises(GatewaySettingsError, match=r"retries: .*greater than or equal to 0 .got '-1'"):
        from_flags("--upstream", URL, "--retries", "-1")
    with pytest.raises(UsageError, match="unknown argument '--nope'"):
        cli.run(argparse.Namespace(), ["--nope"])


def test_an_old_name_of_a_routing_policy_works_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="least_load"):
        assert load(None, upstreams=[URL], policy="least_requests").policy == "least_load"


def test_options_of_the_routing_policy_are_checked() -> None:
    assert GatewaySettings(upstreams=(URL,), horizon_s=9.0).routing_options == {"horizon_s": 9.0}
    assert GatewaySettings(upstreams=(URL,), policy="prefix", bounded_load=2.0).routing_options == {"bound": 2.0}
    assert GatewaySettings(upstreams=(URL,), policy="least_load").routing_options == {}
    assert "bound must be a ratio" in "\n".join(faults(upstreams=[URL], policy="prefix", policy_options={"bound": 0.1}))


def test_grpc_without_its_package_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andes_api.addresses.find_spec", lambda _name: None)
    with pytest.raises(GatewaySettingsError, match="needs the package opentelemetry-exporter-otlp-proto-grpc"):
        load(upstreams=[URL], otlp_endpoint="grpc://collector:4317")


def test_what_a_class_would_rather_be_told_at_once() -> None:
    assert ClassSettings().wish == Wish(shed_below=0.05, max_wait_s=None)
    assert ClassSettings(shed_below=0.3, max_wait_s=8).wish == Wish(0.3, 8.0)
    for value in (0, -1, float("inf"), "soon"):
        with pytest.raises(ValidationError, match="max_wait_s"):
            ClassSettings.model_validate({"max_wait_s": value})
