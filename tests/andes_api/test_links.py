"""Scores of readers on links that lose packets, over a network of this machine's own kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import slow_links
from benchmarks.links import CLIENTS, Link, Network, missing

LACKS = missing()


def test_a_link_sends_one_packet_after_the_other_and_stands_still_when_told() -> None:
    link = Link(delay_s=0.1, rate=1000.0, queue=3)
    assert [link.arrival_s(500, 10.0) for _ in range(4)] == [10.6, 11.1, 11.6, None]
    assert (link.carried, link.dropped) == (3, 1)
    assert link.arrival_s(500, 11.2) == pytest.approx(12.1), "two have left"
    link.stall(20.0)
    assert link.arrival_s(1000, 13.0) == pytest.approx(21.1)


def test_a_link_loses_the_share_it_is_told() -> None:
    link = Network(1, seed=3).to[0]
    link.loss, link.queue = 0.1, 10_000
    found = [link.arrival_s(100, float(k)) for k in range(5000)]
    assert link.lost == found.count(None) == pytest.approx(500, abs=80)


def test_a_packet_goes_over_the_link_of_its_client() -> None:
    links = [Link(), Link()]
    packet = bytearray(20)
    packet[0], packet[16:20] = 0x45, CLIENTS + bytes([2])
    assert Network._link(bytes(packet), 16, links) is links[1]
    packet[19] = 3
    assert Network._link(bytes(packet), 16, links) is None
    packet[0], packet[19] = 0x60, 1
    assert Network._link(bytes(packet), 16, links) is None, "IPv6"


@pytest.mark.server
@pytest.mark.skipif(bool(LACKS), reason=f"NO LINKS THAT LOSE PACKETS: {LACKS}")
def test_the_score_of_a_reader_who_loses_packets_is_its_own() -> None:
    """A far link that loses every twentieth packet, and one on which all are lost for some seconds: with what the kernel has
    sent again, the gateway's score is much nearer the reader's than what its socket has taken would make it."""
    links = ["--links", "far-lossy,breaks", "--each", "2", "--speed", "0.2"]
    asked = [*links, "--tokens", "120", "--tds", "12", "--stall-s", "5"]
    command = [sys.executable, str(Path(slow_links.__file__)), "scores", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 2
    for _, streams, lost, own, told, worst, written in rows:
        assert int(lost.split()[0]) > 0
        assert streams == "2"
        assert float(own) < float(written)
        assert float(worst) < (float(written) - float(own)) / 2, f"{told} by the gateway"
