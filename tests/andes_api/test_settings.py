"""Settings: where they come from, and that every fault is named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from andes_api.settings import ClassSettings, Settings, SettingsError, load, with_classes
from andes_sglang.expectations import ReaderExpectation
from andes_sglang.qoe import QoETarget

URL = "http://127.0.0.1:30000"


def faults(file: Path | None = None, **arguments: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
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
        ({"upstreams": [URL], "policy": "best"}, "policy"),
    ],
)
def test_a_fault_is_named(arguments: dict[str, object], said: str) -> None:
    assert said in "\n".join(faults(**arguments))


def test_a_key_is_never_shown() -> None:
    tenant = {"name": "a", "key_sha256": "a-key-in-the-clear"}
    assert "in-the-clear" not in "\n".join(faults(upstreams=[URL], tenants=[tenant]))
    assert "hunter2" not in repr(Settings(upstreams=(URL,), upstream_api_key="hunter2"))


@pytest.mark.parametrize("content", ["- a list", "a: [", "\0"])
def test_a_file_that_is_no_mapping(content: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(content)
    assert str(file) in faults(file)[0]
    assert str(tmp_path / "absent") in faults(tmp_path / "absent")[0]


def test_classes_are_changed_field_by_field_and_taken_away() -> None:
    settings = Settings(
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
    assert Settings(upstreams=(URL,)).show_page
    assert not Settings(upstreams=(URL,), host="0.0.0.0").show_page  # noqa: S104
    assert Settings(upstreams=(URL,), host="0.0.0.0", page=True).show_page  # noqa: S104


def test_classes_of_a_file_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("classes: {reading: {tds: 6}, own: {ttft_s: 2}}")
    settings = with_classes(Settings(upstreams=(URL,)), file)
    assert (settings.classes["reading"].tds, settings.classes["own"].ttft_s, settings.classes["code"].tds) == (6, 2, 10)
    for content, named in (("port: 1", "nothing else"), ("classes: {reading: {tds: -1}, x: 3}", "classes.reading.tds")):
        file.write_text(content)
        with pytest.raises(SettingsError, match=named):
            with_classes(settings, file)
