"""What `musidecar doctor` says of real devices."""

import subprocess
from collections.abc import Callable

from musidecar import rdma
from musidecar.rdma import Wanted
from tests.vm import hosts


def verdicts(wanted: Wanted) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.text) for one in rdma.judge(rdma.devices(), wanted)}


def test_the_device_its_port_and_its_gids_are_listed_and_judged(rxe0: str) -> None:
    (device,) = rdma.devices()
    (port,) = device.ports
    assert device.name == rxe0 and not device.trouble
    assert port.is_ethernet and port.state_name == "ACTIVE" and port.mtu == 1024
    assert [gid.kind for gid in port.gids] == ["RoCE v2"] * 2 and port.gids[1].shown == f"1 (RoCE v2, {hosts.ADDRESS})"
    assert {verdict for verdict, _ in verdicts(Wanted()).values()} == {"ok"}


def test_the_command_says_it(rxe0: str, command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("doctor")
    assert f"RDMA device {rxe0}" in done.stdout and hosts.ADDRESS in done.stdout
