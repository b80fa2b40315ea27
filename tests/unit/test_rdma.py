"""What doctor says of RDMA devices it is shown. Real ones: tests/vm/guest/test_doctor.py."""

import resource
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from musidecar import pyverbs, rdma
from musidecar.config import load
from musidecar.doctor import Check
from musidecar.rdma import Device, Gid, Port, Wanted, judge, judge_memlock

LOCAL = Gid(0, "fe80:0000:0000:0000:b82c:bcff:fee0:c5bc", "RoCE v2")
IPV4 = Gid(1, "0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v2")
OLD = Gid(2, "0000:0000:0000:0000:0000:ffff:0a09:0001", "RoCE v1")
ROCE = Port(1, rdma.ACTIVE, 1024, 0, True, (LOCAL, IPV4, OLD))
INFINIBAND = Port(1, rdma.ACTIVE, 4096, 17, False, (Gid(0, "fe80::", "IB"),))


def device(*ports: Port, name: str = "rxe0", **more: int) -> Device:
    return replace(Device(name, ports or (ROCE,), 1000, 1000, 16, 1 << 40), **more)


def said(found: list[Device], wanted: Wanted, verdict: str) -> list[Check]:
    return [one for one in judge(found, wanted) if one.verdict == verdict]


def test_a_good_device_is_good_and_its_ipv4_gid_is_taken() -> None:
    found = list(judge([device()], Wanted()))
    assert [one.verdict for one in found] == ["ok", "ok"]
    assert "takes 1" in found[1].text and "1 (RoCE v2, 10.9.0.1)" in found[1].text


def test_infiniband_needs_a_lid_and_no_gid() -> None:
    assert not said([device(INFINIBAND)], Wanted(), "bad")
    (bad,) = said([device(replace(INFINIBAND, lid=0))], Wanted(), "bad")
    assert "subnet manager" in bad.remedy


@pytest.mark.parametrize(
    ("found", "wanted", "text", "remedy"),
    [
        ([], Wanted(), "none is here", "rdma link add"),
        ([], Wanted(device="mlx5_0"), "no such device: none", "rdma link add"),
        ([device()], Wanted(device="mlx5_0"), "no such device: rxe0", "verbs.device may be one of rxe0"),
        ([device(replace(ROCE, state=1))], Wanted(), "DOWN", "ip link set"),
        ([device()], Wanted(port=2), "no such port: it has 1", "give verbs.port one"),
        ([device()], Wanted(gid_index=7), "there is no 7", "give verbs.gid_index one"),
        ([device(replace(ROCE, gids=()))], Wanted(), "GIDs none", "IPv4 address"),
        ([device()], Wanted(mtu=4096), "4096 is configured", "verbs.mtu = 1024 at most"),
        ([device(queue_pairs=4)], Wanted(), "8 of 64 and 1 are needed", "another device"),
        ([device(sends=16)], Wanted(), "16 sends", "another device"),
        ([Device("mlx5_0", trouble="Permission denied")], Wanted(), "Permission denied", "/dev/infiniband"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(found: list[Device], wanted: Wanted, text: str, remedy: str) -> None:
    (bad,) = said(found, wanted, "bad")
    assert text in bad.text and remedy in bad.remedy


@pytest.mark.parametrize(
    ("port", "wanted", "text"),
    [
        (ROCE, Wanted(gid_index=2), "2 is chosen"),
        (replace(ROCE, gids=(LOCAL,)), Wanted(), "none is RoCE v2 over IPv4"),
        (replace(ROCE, mtu=512), Wanted(), "MTU 512"),
    ],
)
def test_what_works_and_might_be_better_is_a_note(port: Port, wanted: Wanted, text: str) -> None:
    (note,) = said([device(port)], wanted, "note")
    assert text in note.text and note.remedy
    assert not said([device(port)], wanted, "bad")


def test_one_good_device_beside_a_bad_one_will_do_unless_the_bad_one_is_named() -> None:
    both = [device(replace(ROCE, state=1), name="mlx5_0"), device(name="mlx5_1")]
    assert not said(both, Wanted(), "bad") and said(both, Wanted(), "note")
    assert said(both, Wanted(device="mlx5_0"), "bad")


def test_a_device_without_its_driver_is_named() -> None:
    first = next(iter(judge([], Wanted(), ["mlx5_0"])))
    assert first.name == "RDMA device mlx5_0" and "ibverbs-providers" in first.remedy


def test_locked_memory() -> None:
    wanted = Wanted(locked_bytes=16 << 20)
    bad = judge_memlock(wanted, 8 << 20, False)
    assert bad.verdict == "bad" and "16384 KiB" in bad.text and "ulimit -l" in bad.remedy
    assert judge_memlock(wanted, 8 << 20, True).verdict == "ok"
    assert judge_memlock(wanted, 16 << 20, False).verdict == "ok"
    assert judge_memlock(wanted, resource.RLIM_INFINITY, False).verdict == "ok"


def test_without_pyverbs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "pyverbs", raising=False)
    with pytest.raises(pyverbs.PyverbsMissing, match="apt-get install python3-pyverbs"):
        pyverbs.load(str(tmp_path))
    (tmp_path / "pyverbs").mkdir()
    (tmp_path / "pyverbs" / "__init__.py").write_text("")
    with pytest.raises(pyverbs.PyverbsMissing, match=r"does not load: .*apt-get install"):
        pyverbs.load(str(tmp_path))


def test_doctor_speaks_of_verbs_and_a_cluster_on_shared_memory_does_not_need_them(
    command: Callable[..., subprocess.CompletedProcess[str]], free_port: int
) -> None:
    done = command("doctor", "--port", str(free_port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verbs fabric: " in done.stdout and "RDMA device" in done.stdout


@pytest.mark.parametrize("name", ["roce", "soft-roce"])
def test_the_worked_examples_are_configurations(root: Path, name: str) -> None:
    config = load(root / "configs" / f"{name}.toml")
    assert config.fabric == "verbs" and all(node.mesh for node in config.nodes)
    assert name + ".toml" in (root / "docs" / "rdma.md").read_text()


def test_doctor_judges_what_the_configuration_asks_for(
    command: Callable[..., subprocess.CompletedProcess[str]], root: Path, folder: Path
) -> None:
    """On a host without any such device; with one, tests/vm/guest/test_doctor.py."""
    text = (root / "configs" / "roce.toml").read_text().replace("/etc/musidecar", str(folder))
    (folder / "roce.toml").write_text(text.replace("/var/lib/musidecar", str(folder / "run")))
    done = command("doctor", "--config", folder / "roce.toml")
    assert done.returncode == 1
    assert "bad  RDMA device mlx5_0: no such device" in done.stdout and "mlx5_1" in done.stdout
    assert "locked memory: 1" in done.stdout


def test_without_libibverbs_everything_that_needs_it_says_what_to_install(
    command: Callable[..., subprocess.CompletedProcess[str]], folder: Path, free_port: int
) -> None:
    """A library that is none stands before the real one, if there is one."""
    (folder / "libibverbs.so.1").touch()
    without = {"LD_LIBRARY_PATH": str(folder)}
    cluster = folder / "cluster"
    done = command("local", "--fabric", "verbs", "--port", str(free_port), "--dir", cluster, **without)
    assert done.returncode == 2 and "apt-get install libibverbs" in done.stderr and not done.stdout, done
    done = command("run", "--config", cluster / "cluster.toml", "--node", "1", **without)
    assert done.returncode == 2 and "apt-get install libibverbs" in done.stderr + done.stdout, done
    assert not (cluster / "redis-1").exists(), "its server was started all the same"
    done = command("doctor", "--config", cluster / "cluster.toml", **without)
    assert done.returncode == 1 and "apt-get install libibverbs" in done.stdout, done
    done = command("bench", "replicate", "--fabric", "verbs", **without)
    assert done.returncode == 1 and "apt-get install libibverbs" in done.stderr, done
    assert command("doctor", "--port", str(free_port), **without).returncode == 0, "shared memory does without"
