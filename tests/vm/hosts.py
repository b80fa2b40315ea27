"""Soft-RoCE devices, and hosts with one each, made of what the guest's kernel has. As the guest's root."""

from __future__ import annotations

import subprocess
from pathlib import Path

DEVICE, LONE_NETDEV = "rxe0", "d0"
ADDRESS = "10.9.1.1"


def run(*command: str) -> str:
    """What a command prints. Raises RuntimeError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def ip(words: str) -> str:
    """`ip WORDS`."""
    return run("ip", *words.split())


def add_rxe(device: str, netdev: str) -> None:
    """A soft-RoCE device on a network interface that is up and has an address."""
    run("rdma", "link", "add", device, "type", "rxe", "netdev", netdev)


def remove_rxe(device: str) -> None:
    """Takes it away again; no error if it is gone."""
    if Path("/sys/class/infiniband", device).exists():
        run("rdma", "link", "delete", device)


def add_lone_device() -> None:
    """rxe0 on a dummy interface with 10.9.1.1: for everything that is only one host. GID index 1 is the IPv4 one."""
    ip(f"link add {LONE_NETDEV} type dummy")
    ip(f"addr add {ADDRESS}/24 dev {LONE_NETDEV}")
    ip(f"link set {LONE_NETDEV} up")
    add_rxe(DEVICE, LONE_NETDEV)


class Network:
    """Hosts 1..count on one Ethernet switch. Host i has a network namespace `h<i>`, in which its processes run, with
    eth0 at 10.8.0.i, and the soft-RoCE device `rxe<i>` at 10.9.0.i.

    rxe of this kernel hears its packets only in the first network namespace, so the devices' own interfaces (`r<i>`)
    are there; a process in `h<i>` opens the device all the same (the RDMA subsystem shares devices by default). What
    rxe<i> sends leaves r<i> for the switch and comes back by another host's interface: the switch is a bridge in a
    namespace of its own, and cutting host i's cables there takes both of its networks away.
    """

    def __init__(self, count: int = 3, mtu_bytes: int = 1500) -> None:
        self.count = count
        ip("netns add switch")
        ip("-n switch link add br0 type bridge")
        ip("-n switch link set br0 up")
        # A packet from one of our own addresses comes in by a cable here; between real hosts it is another's.
        for name, value in (("accept_local", 1), ("rp_filter", 0), ("arp_ignore", 1), ("arp_announce", 2)):
            for which in ("all", "default"):
                Path(f"/proc/sys/net/ipv4/conf/{which}/{name}").write_text(f"{value}\n")
        for host in self.hosts:
            self._add(host, mtu_bytes)
        ip("link add c0 type veth peer name c0 netns switch")  # where the clients are
        ip("addr add 10.8.0.100/24 dev c0")
        ip("link set c0 up")
        ip("-n switch link set c0 master br0")
        ip("-n switch link set c0 up")

    @property
    def hosts(self) -> range:
        """Their numbers."""
        return range(1, self.count + 1)

    def _add(self, host: int, mtu_bytes: int) -> None:
        ip(f"netns add h{host}")
        ip(f"-n h{host} link set lo up")
        ip(f"link add eth0 netns h{host} type veth peer name e{host} netns switch")
        ip(f"-n h{host} addr add 10.8.0.{host}/24 dev eth0")
        ip(f"-n h{host} link set eth0 up")
        ip(f"link add r{host} mtu {mtu_bytes} type veth peer name r{host} mtu {mtu_bytes} netns switch")
        ip(f"addr add 10.9.0.{host}/24 dev r{host}")
        ip(f"link set r{host} up")
        for port in (f"e{host}", f"r{host}"):
            ip(f"-n switch link set {port} master br0")
            ip(f"-n switch link set {port} up")
        add_rxe(f"rxe{host}", f"r{host}")

    def cut(self, host: int) -> None:
        """Pulls both cables of a host out of the switch: it vanishes without closing anything."""
        for port in (f"e{host}", f"r{host}"):
            ip(f"-n switch link set {port} down")

    def mend(self, host: int) -> None:
        """Plugs them in again."""
        for port in (f"e{host}", f"r{host}"):
            ip(f"-n switch link set {port} up")

    def netns(self, host: int) -> str:
        """The name of its network namespace."""
        return f"h{host}"

    def on(self, host: int, *command: str) -> list[str]:
        """The command line that runs `command` on a host."""
        return ["ip", "netns", "exec", f"h{host}", *command]

    def remove(self) -> None:
        """Takes everything away."""
        ip("link delete c0")
        for host in self.hosts:
            remove_rxe(f"rxe{host}")
            ip(f"link delete r{host}")
            ip(f"netns delete h{host}")
        ip("netns delete switch")
