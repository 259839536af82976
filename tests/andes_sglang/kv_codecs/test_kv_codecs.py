"""Every codec gives back what it says it does; what is no coded block is refused."""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sglang.kv_codecs import CODECS, FloatKind, KvBlock, KvCodecError, decode, make_codec, prices, rans
from andes_sglang.kv_codecs.anchored import GROUP_TOKENS
from andes_sglang.kv_codecs.blocks import framed, unframed

KINDS = list(FloatKind)
LOSSY = [name for name, codec in CODECS.items() if not codec.lossless]


def like_kv(seed: int, shape: tuple[int, int, int, int], kind: FloatKind) -> KvBlock:
    """Channels of unlike size around means of their own, tokens that resemble the ones before them."""
    rng = np.random.default_rng(seed)
    layers, _, heads, dim = shape
    size = np.exp(rng.normal(0.0, 1.0, (layers, 1, heads, dim)))
    drift = np.cumsum(rng.normal(0.0, 0.3, shape), axis=1)
    values = size * (rng.normal(0.0, 3.0, (layers, 1, heads, dim)) + drift + rng.normal(0.0, 0.5, shape))
    return KvBlock.of_floats(values.astype(np.float32), kind)


def bits(seed: int, shape: tuple[int, int, int, int], kind: FloatKind) -> KvBlock:
    """Any bits at all: NaN, infinities, subnormal numbers among them."""
    return KvBlock(np.random.default_rng(seed).integers(0, 1 << 16, shape, dtype=np.uint16), kind)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 33), st.integers(1, 3), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), shape=shapes, kind=st.sampled_from(KINDS), noise=st.booleans())
def test_lossless_keeps_every_bit(seed: int, shape: tuple[int, int, int, int], kind: FloatKind, noise: bool) -> None:
    block = bits(seed, shape, kind) if noise else like_kv(seed, shape, kind)
    back = decode(make_codec("lossless").encode(block))
    assert back.kind is kind
    np.testing.assert_array_equal(back.bits, block.bits)


@pytest.mark.parametrize("kind", KINDS)
def test_lossless_is_smaller_where_numbers_are_alike_and_no_larger_than_its_header_where_not(kind: FloatKind) -> None:
    alike, noise = like_kv(1, (4, 64, 2, 32), kind), bits(1, (4, 64, 2, 32), kind)
    codec = make_codec("lossless")
    assert len(codec.encode(alike)) < (0.8 if kind is FloatKind.BF16 else 0.9) * alike.bits.nbytes
    assert len(codec.encode(noise)) < noise.bits.nbytes + 64


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), shape=shapes, kind=st.sampled_from(KINDS))
def test_int8_is_off_by_half_a_step_of_the_channel_at_most(
    seed: int, shape: tuple[int, int, int, int], kind: FloatKind
) -> None:
    block = like_kv(seed, shape, kind)
    back = decode(make_codec("int8").encode(block))
    assert (back.shape, back.kind) == (block.shape, kind)
    values = block.floats()
    step = (values.max(axis=1, keepdims=True) - values.min(axis=1, keepdims=True)) / 255
    rounding = np.abs(values).max(axis=1, keepdims=True) * (2.0**-8 if kind is FloatKind.BF16 else 2.0**-10)
    assert (np.abs(back.floats() - values) <= 0.501 * step + rounding).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), shape=shapes, kind=st.sampled_from(KINDS), level=st.sampled_from([1, 2, 3]))
def test_anchored_is_off_by_half_a_step_of_the_layer_at_most(
    seed: int, shape: tuple[int, int, int, int], kind: FloatKind, level: int
) -> None:
    from andes_sglang.kv_codecs.anchored import Anchored

    block = like_kv(seed, shape, kind)
    back = decode(make_codec(f"anchored-{level}").encode(block))
    assert (back.shape, back.kind) == (block.shape, kind)
    values = block.floats()
    fine, coarse = Anchored(level)._steps(values)
    is_anchor = (np.arange(shape[1]) % GROUP_TOKENS == 0)[None, :, None, None]
    rounding = np.abs(values) * (2.0**-8 if kind is FloatKind.BF16 else 2.0**-10) + 1e-6
    off = np.abs(back.floats() - values)
    assert (off <= 0.51 * np.where(is_anchor, fine, coarse) + 2 * rounding).all()


def test_deeper_levels_are_smaller_and_further_off() -> None:
    block = like_kv(3, (6, 100, 2, 32), FloatKind.BF16)
    sizes, errors = [], []
    for name in ("lossless", "int8", "anchored-1", "anchored-2", "anchored-3"):
        data = make_codec(name).encode(block)
        sizes.append(len(data))
        errors.append(float(np.abs(decode(data).floats() - block.floats()).mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] == 0.0


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("value", [0.0, 7.25, -1e-20, 1e25])
def test_numbers_that_are_all_the_same_come_back(name: str, value: float) -> None:
    block = KvBlock.of_floats(np.full((2, 21, 1, 4), value, dtype=np.float32), FloatKind.BF16)
    np.testing.assert_allclose(decode(make_codec(name).encode(block)).floats(), block.floats(), rtol=0.02)


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_numbers_are_coded_too(name: str, kind: FloatKind) -> None:
    """Subnormal ones, alone and beside 0 of either sign."""
    words = np.array([0x0001, 0x8001, 0x0000, 0x8000, 0x007F, 0x0081], dtype=np.uint16)
    for block in (
        KvBlock(np.resize(words, (3, 22, 2, 4)), kind),
        KvBlock(np.full((2, 11, 1, 3), 0x0001, dtype=np.uint16), kind),
    ):
        back = decode(make_codec(name).encode(block)).floats()
        assert np.abs(back - block.floats()).max() <= max(2e-38, np.abs(block.floats()).max())


@pytest.mark.parametrize("name", LOSSY)
def test_one_huge_number_spoils_only_its_layer(name: str) -> None:
    values = like_kv(5, (3, 40, 2, 8), FloatKind.BF16).floats().copy()
    values[1, 17, 0, 3] = 1e20
    block = KvBlock.of_floats(values, FloatKind.BF16)
    back = decode(make_codec(name).encode(block)).floats()
    assert np.isfinite(back).all()
    for layer in (0, 2):
        assert np.abs(back[layer] - block.floats()[layer]).mean() < 0.3 * np.abs(block.floats()[layer]).mean()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize(("word", "said"), [(0x7F80, "inf"), (0xFFC0, "nan"), (0x7F00, "1.7")])
def test_what_a_lossy_codec_cannot_keep_is_named_with_its_place(name: str, word: int, said: str) -> None:
    block = like_kv(2, (2, 5, 2, 3), FloatKind.BF16)
    block.bits[1, 4, 0, 2] = word
    with pytest.raises(KvCodecError, match=f"layer 1, token 4, head 0, dim 2: .*{said}.* only codec lossless keeps"):
        make_codec(name).encode(block)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_no_coded_block_is_refused(name: str) -> None:
    data = make_codec(name).encode(like_kv(4, (2, 15, 1, 6), FloatKind.BF16))
    for wrong, said in (
        (b"", "0 bytes that do not begin as coded KV does"),
        (b"nonsense" * 10, "do not begin as coded KV does"),
        (data[:-1], "the checksum does not match"),
        (data[:-1] + bytes([data[-1] ^ 1]), "the checksum does not match"),
        (
            framed(99, like_kv(4, (2, 15, 1, 6), FloatKind.BF16), b"later"),
            "a codec with number 99, which this version does not know",
        ),
    ):
        with pytest.raises(KvCodecError, match=said):
            decode(wrong)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("field", [6, 10, 14, 18])
def test_a_header_of_another_shape_is_refused(name: str, field: int) -> None:
    """Layers, tokens, heads, dim: the checksum is of them too."""
    data = bytearray(make_codec(name).encode(like_kv(4, (2, 15, 2, 6), FloatKind.BF16)))
    data[field] += 1
    with pytest.raises(KvCodecError, match="the checksum does not match"):
        decode(bytes(data))


def framed_as(name: str, payload: bytes, *, kind: int = 0, shape: tuple[int, int, int, int] = (2, 15, 1, 6)) -> bytes:
    """A frame whose checksum is right, whatever is in it."""
    header = struct.pack("<4sBBIIII", b"AKV1", make_codec(name).number, kind, *shape)
    return header + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header))) + payload


@pytest.mark.parametrize("name", CODECS)
def test_what_only_looks_like_a_coded_block_is_refused_too(name: str) -> None:
    """The checksum is right and the rest is not: other versions, other shapes, anything."""
    payload = unframed(make_codec(name).encode(like_kv(4, (2, 15, 1, 6), FloatKind.BF16)))[3]
    decode(framed_as(name, payload))
    with pytest.raises(KvCodecError, match="numbers of kind 7, which this version does not know"):
        decode(framed_as(name, payload, kind=7))
    for shape in ((0, 15, 1, 6), (2, 0, 1, 6), (2, 15, 1, 2**32 - 1), (2**32 - 1,) * 4):
        with pytest.raises(KvCodecError, match=r"which \d+ bytes do not hold"):
            decode(framed_as(name, payload, shape=shape))
    for shape in ((2, 16, 1, 6), (3, 15, 1, 6), (2, 15, 2, 6)):
        with pytest.raises(KvCodecError):
            decode(framed_as(name, payload, shape=shape))
    for cut in range(len(payload)):
        with pytest.raises(KvCodecError):
            decode(framed_as(name, payload[:cut]))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(CODECS)), at=st.integers(0, 400), changed=st.binary(min_size=1, max_size=8))
def test_a_changed_payload_gives_a_block_or_a_clear_error(name: str, at: int, changed: bytes) -> None:
    payload = unframed(make_codec(name).encode(like_kv(4, (2, 15, 1, 6), FloatKind.BF16)))[3]
    at = min(at, len(payload))
    data = framed_as(name, payload[:at] + changed + payload[at + len(changed) :])
    with contextlib.suppress(KvCodecError):
        assert decode(data).shape == (2, 15, 1, 6)


def test_exponents_that_swell_are_not_made() -> None:
    """A frame of few bytes that says it holds a gigabyte."""
    zstandard = pytest.importorskip("zstandard")
    coded = zstandard.ZstdCompressor().compress(bytes(2**20))
    with pytest.raises(KvCodecError, match="exponents are not the 180"):
        decode(framed_as("lossless", struct.pack("<Q", len(coded)) + coded + bytes(180)))


def test_a_block_says_what_shape_and_type_it_needs() -> None:
    for wrong in (np.zeros((2, 3), np.uint16), np.zeros((1, 0, 1, 1), np.uint16), np.zeros((1, 1, 1, 1), np.float32)):
        with pytest.raises(KvCodecError, match=r"bits must be uint16 of shape \(layers, tokens, heads, dim\)"):
            KvBlock(wrong, FloatKind.BF16)  # type: ignore[arg-type]
    with pytest.raises(KvCodecError, match="kind must be one of BF16, F16, got 1"):
        KvBlock(np.zeros((1, 1, 1, 1), np.uint16), 1)  # type: ignore[arg-type]
    with pytest.raises(KvCodecError, match="codec 'gzip': not one of lossless, int8"):
        make_codec("gzip")


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(0, 10, (1, 1000, 1, 3)).astype(np.float32)
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(
        KvBlock.of_floats(values, FloatKind.BF16).bits, wanted.view(torch.int16).numpy().view(np.uint16)
    )
    np.testing.assert_array_equal(KvBlock.of_floats(values, FloatKind.BF16).floats(), wanted.float().numpy())
    wide = KvBlock.of_floats(values.astype(np.float64), FloatKind.BF16)  # type: ignore[arg-type]
    np.testing.assert_array_equal(wide.floats(), wanted.float().numpy())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 60), lanes=st.integers(1, 70))
def test_arithmetic_coding_gives_every_symbol_back(seed: int, steps: int, lanes: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, 256, (steps, lanes), dtype=np.uint8)
    tables = rng.integers(0, rans.TABLES, (steps, lanes), dtype=np.uint8)
    states, words = rans.encode(symbols, tables)
    np.testing.assert_array_equal(rans.decode(states, words, tables), symbols)


def test_the_stream_is_as_long_as_the_tables_promise() -> None:
    """Within 3 % and the states: the least that symbols of such probabilities can take."""
    rng = np.random.default_rng(2)
    numbers = np.clip(np.rint(rng.laplace(0, 2.5, (64, 2000))), -rans.LARGEST, rans.LARGEST)
    symbols = (numbers + rans.LARGEST).astype(np.uint8)
    tables = rans.best_tables(symbols)
    _, counts = np.unique(symbols, return_counts=True)
    entropy_bits = -(counts * np.log2(counts / counts.sum())).sum()
    _, words = rans.encode(np.ascontiguousarray(symbols.T), np.broadcast_to(tables, symbols.T.shape))
    assert len(words) * 16 < 1.03 * entropy_bits


def test_tables_are_whole_numbers_that_add_up() -> None:
    """On every machine the same ones: a stream is decoded by the tables that it was coded by."""
    for ratio in rans.RATIOS:
        row = rans._frequencies(ratio)
        assert len(row) == rans.SYMBOLS
        assert (sum(row), min(row) >= 1) == (rans.TOTAL, True)
        assert row[: rans.LARGEST] == row[-2 : rans.LARGEST : -1], "as likely below 0 as above"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bytes_factor": 0.0}, r"bytes_factor must be in \(0, 2\], got 0.0"),
        ({"decode_token_s": -1.0}, "decode_token_s must be a number of seconds >= 0, got -1.0"),
        ({"equal_tokens": 1.5}, r"equal_tokens must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_price_out_of_range_is_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prices.CodecPrice("mine", **{"bytes_factor": 0.5, **changed})


def test_prices_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks" / "kv-codecs.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")
    ]
    assert [row[0] for row in rows] == list(prices.NAMES)
    for name, factor, _, equal, *_ in rows:
        price = prices.packaged(name, 1e5)
        assert price.bytes_factor == pytest.approx(float(factor), abs=0.002)
        assert price.equal_tokens == pytest.approx(float(equal.rstrip("%")) / 100, abs=0.001)


def test_every_codec_has_a_price_and_the_exact_one_is_exact() -> None:
    assert list(prices.NAMES) == list(CODECS)
    for name, codec in CODECS.items():
        price = prices.packaged(name, 1e5)
        assert (price.equal_tokens == 1.0) == codec.lossless
        assert 0 < price.bytes_factor < 1
    assert prices.packaged("int8", 1e5, 4).encode_token_s == 2 * prices.packaged("int8", 1e5, 8).encode_token_s
    with pytest.raises(ValueError, match="codec 'zip': not one of lossless, int8"):
        prices.packaged("zip", 1e5)


def test_lossless_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    block = like_kv(1, (1, 4, 1, 2), FloatKind.BF16)
    with pytest.raises(KvCodecError, match=r"codec lossless needs zstandard: install andes-sglang\[codecs\]"):
        make_codec("lossless").encode(block)
    assert decode(make_codec("int8").encode(block)).shape == block.shape, "the others do without"
