"""A HERD's place on a host, as `doctor` and the configuration see it; what the gate is started with."""

import socket
from pathlib import Path

import pytest

from musidecar.config import ConfigError, load, parse
from musidecar.protocols.backend import BackendError
from musidecar.protocols.herd import checks, driver, leftovers, server
from tests.unit.test_config import FILE, good

LISTING = """       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid
        24          1   666              16777216   100   101      0     0     0     0     0
      3186          2   666             134217728   100   101      0     0     0     0     0
      4185          3   666            1073741824   100   101      0     0     0     0     0
      4184          4   666                  4096   100   101      0     0     0     0     0
        25          5   600                  4096   100   101      0     0     0     0     0
"""


def test_shared_memory_of_an_earlier_herd_is_told_from_others(tmp_path: Path) -> None:
    listing = tmp_path / "shm"
    listing.write_text(LISTING)
    found = leftovers.keys(listing)
    assert found == [24, 3186, 4185]
    assert leftovers.remedy(found) == "end that HERD, then: ipcrm -M 24; ipcrm -M 3186; ipcrm -M 4185"
    assert leftovers.keys(tmp_path / "none") == []


def test_doctor_says_what_is_missing() -> None:
    found = {check.name: check for check in checks.herd({"herd_main": "/nowhere/main", "workers": 2})}
    assert (found["program"].verdict, "is no program" in found["program"].text) == ("bad", True)
    assert "takes 1160 of 2048 KiB (2 workers)" in found["huge pages"].text
    if found["huge pages"].verdict != "ok":
        assert "sysctl vm.nr_hugepages=1160" in found["huge pages"].remedy


def test_doctor_finds_the_registrys_port_taken() -> None:
    with socket.create_server(("127.0.0.77", 11211)):
        found = {check.name: check for check in checks.herd({"registry": "127.0.0.77"})}
        assert found["registry"].verdict == "bad" and "a memcached?" in found["registry"].remedy
        with pytest.raises(BackendError, match=r"cannot listen on 127\.0\.0\.77:11211: Address already in use"):
            server.registry_socket("127.0.0.77")
    assert {check.name: check for check in checks.herd({"registry": "127.0.0.77"})}["registry"].verdict == "ok"


def test_the_gate_is_given_what_is_configured() -> None:
    words = driver.words({"herd_main": Path("/m"), "workers": 3, "registry": "127.0.0.2"})
    given = server.parse(["--socket", "s", *words])
    assert (given.herd_main, given.workers, given.registry) == (Path("/m"), 3, "127.0.0.2")
    assert (given.keys_max, given.answer_ms, given.port_index) == (1 << 22, 1000, 0)


def test_the_example_is_good(root: Path) -> None:
    config = load(root / "configs" / "herd.toml")
    assert config.kind == "herd" and all(node.backend.spawn for node in config.nodes)
    assert config.nodes[2].backend.options()["keys_max"] == 1 << 24


@pytest.mark.parametrize(
    ("more", "expected"),
    [({"spawn": False}, "nodes[0].backend.spawn: has to be true: HERD is behind a gate"),
     ({"workers": 129}, "nodes[0].backend.workers: "),
     ({"registry": "localhost"}, "nodes[0].backend.registry: "),
     ({"memory_bytes": "1 GiB"}, "nodes[0].backend.memory_bytes: is for kind = 'memcached', and this is herd"),
     ({"keys_max": 10}, "nodes[0].backend.keys_max: ")],
)  # fmt: skip
def test_what_cannot_be_is_told(more: dict[str, object], expected: str) -> None:
    data = good()
    for i, node in enumerate(data["nodes"]):
        node["backend"] = {"kind": "herd", "socket": f"h{i}", "spawn": True, **more}
    with pytest.raises(ConfigError) as refused:
        parse(data, FILE)
    assert any(expected in line for line in refused.value.problems)
