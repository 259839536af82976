"""Profiles: what comes with the package makes sense, what a file says comes back, what makes no sense is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from andes_sglang.kv_codecs.prices import CodecPrice
from andes_sglang.sim import profile
from andes_sglang.sim.engine import Costs, EngineModel, Overlap
from andes_sglang.sim.profile import Profile, ProfileError

MEASURED = """
hardware = "h"
model = "m"
source = "s"
[engine]
kv_capacity_tokens = 1000
overlap = "sync"
[costs]
decode_fixed_s = 0.01
decode_request_s = 1e-3
decode_context_s = 0
prefill_fixed_s = 0.01
prefill_token_s = 1e-4
"""
ROOFLINE = """
hardware = "h"
model = "m"
source = "s"
[engine]
chunk_tokens = 512
[roofline]
devices = 2
parameters = 1e9
layers = 10
query_heads = 8
kv_heads = 4
head_dim = 100
flops = 1e14
bandwidth_bytes_per_s = 1e12
memory_bytes = 1e10
host_bytes_per_s = 1e10
host_memory_bytes = 1e10
overhead_s = 1e-3
flops_efficiency = 0.5
bandwidth_efficiency = 0.5
memory_share = 0.5
"""


def read(path: Path, text: str) -> Profile:
    path.write_text(text)
    return profile.load(str(path))


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_of_the_package_serves_a_chat_and_says_where_it_is_from(name: str) -> None:
    p = profile.load(name)
    assert p.source
    assert p.engine.kv_capacity_tokens > 4000
    assert 0 < p.engine.costs.decode_s(1, 1000) < 1 / 4.8, "one reader alone is served at reading speed"


def test_a_roofline_is_what_the_data_sheet_gives(tmp_path: Path) -> None:
    engine = read(tmp_path / "p.toml", ROOFLINE).engine
    kv_token_bytes = 2 * 10 * 4 * 100 * 2
    assert engine.kv_capacity_tokens == int((2 * 1e10 * 0.5 - 2e9) / kv_token_bytes)
    assert engine.costs.decode_fixed_s == pytest.approx(2e9 / 1e12 + 1e-3)
    assert engine.costs.decode_context_s == pytest.approx(kv_token_bytes / 1e12)
    assert engine.costs.prefill_token_s == pytest.approx(2e9 / 1e14)
    assert engine.host_tokens_per_s == pytest.approx(2e10 / kv_token_bytes)
    assert engine.kv_token_bytes == kv_token_bytes
    halved = read(tmp_path / "derived.toml", ROOFLINE + "kv_bytes = 1\n").engine
    assert halved.host_tokens_per_s == 2 * engine.host_tokens_per_s
    assert halved.kv_token_bytes == 0, "no codec has a price for numbers of 8 bits"


def test_a_measured_profile_is_written_and_read_back(tmp_path: Path) -> None:
    costs = Costs(0.004, 5e-4, 1.2e-6, 0.005, 3e-5, 3e-3)
    codec = CodecPrice("mine", 0.5, 1e-6, 2e-6, on_device=True, equal_tokens=0.99)
    engine = EngineModel(costs, 8192, 64, 8192, overlap=Overlap.SYNC, kv_token_bytes=4096.0, codec=codec)
    before = Profile("mine", '2 "cores"', "m", "measured", engine, 12.5, None)
    assert read(tmp_path / "mine.toml", profile.dump(before)) == before


@pytest.mark.parametrize(
    ("base", "old", "new", "text"),
    [
        (MEASURED, "= 1000", "= 0", "engine.kv_capacity_tokens must be > 0, got 0"),
        (MEASURED, "= 1000", '= "many"', "engine.kv_capacity_tokens must be a whole number, got 'many'"),
        (MEASURED, "kv_capacity_tokens = 1000", "", "engine.kv_capacity_tokens: missing"),
        (MEASURED, '"sync"', '"twice"', "engine.overlap must be one of none, async, sync, got 'twice'"),
        (MEASURED, "= 1e-4", "= -1e-4", "costs.prefill_token_s must be a number of seconds >= 0, got -0.0001"),
        (MEASURED, "= 1e-4", "= inf", "costs.prefill_token_s must be a number of seconds >= 0, got inf"),
        (MEASURED, "[costs]", "speed = 3\n[costs]", "engine.speed: unknown field (value 3)"),
        (MEASURED, 'source = "s"', "", "source: missing"),
        (MEASURED, 'source = "s"', 'source = "s"\nprice_per_hour = 0', "price_per_hour must be > 0, got 0.0"),
        (
            MEASURED,
            "[costs]",
            '[codec]\nname = "x"\nbytes_factor = 3\n[costs]',
            "codec.bytes_factor must be in (0, 2], got 3.0",
        ),
        (MEASURED, "[costs]", '[codec]\nname = "x"\n[costs]', "codec.bytes_factor: missing"),
        (MEASURED, "[costs]", "[prices]", "needs one of the tables [costs] and [roofline]"),
        (MEASURED, "[engine]", "[engine", "no TOML"),
        (ROOFLINE, "= 1e12", "= 0", "roofline.bandwidth_bytes_per_s must be > 0, got 0.0"),
        (ROOFLINE, "= 0.5", "= 1.5", "roofline.flops_efficiency must be a share between 0 and 1, got 1.5"),
        (ROOFLINE, "parameters = 1e9", "parameters = 1e10", "roofline.memory_bytes 1e+10 on 2 devices: no room for KV"),
    ],
)
def test_what_makes_no_sense_is_named_with_file_field_and_value(
    base: str, old: str, new: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ProfileError, match=rf"p\.toml: {re.escape(text)}"):
        read(tmp_path / "p.toml", base.replace(old, new, 1))


def test_an_unknown_profile_is_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"'h200': not known; give a .toml file or one of .*h100-llama-3.1-8b"):
        profile.load("h200")
    with pytest.raises(ProfileError, match=r"none.toml: cannot be read \(No such file"):
        profile.load(str(tmp_path / "none.toml"))


def test_those_of_ones_own_go_by_name_and_before_the_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(MEASURED)
    (tmp_path / "l4-llama-3.1-8b.toml").write_text(MEASURED)
    with pytest.raises(ProfileError, match="'mine': not known"):
        profile.load("mine")
    monkeypatch.setenv(profile.FOLDER_VARIABLE, str(tmp_path))
    assert {"mine", "h100-llama-3.1-8b"} <= set(profile.names())
    assert (profile.load("mine").name, profile.load("mine").hardware) == ("mine", "h")
    assert profile.load("l4-llama-3.1-8b").hardware == "h"
    with pytest.raises(ProfileError, match=r"'yours': not known.*mine"):
        profile.load("yours")
