"""The small virtual machine in which real kernel verbs run: QEMU, Debian's kernel, soft-RoCE, and the host's own files.

`tools/setup --vm` brings what it needs. The guest's root is the host's, read only over 9p under an overlay in memory
(init.sh), so it runs the very tree and environment from which it was started. One line of JSON each way at a time goes
over a virtio port: the host says what to run, the guest's agent (agent.py) sends back reports. The guest sees no
network and no disk of the host. It works without KVM, in a minute of two CPUs, and uses KVM where a guest starts on it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musidecar.process import die_with_parent, how_it_ended
from musidecar.testbed import cpu_seconds

TREE = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
REMEDY = "tools/setup --vm"
MEMORY_MB = 2048
CPUS = 2
HERD = ("HERD_MAIN", "HERD_WORKERS", "HERD_HUGE_PAGES")  # see tests/vm/herd_double.py
EMULATED_CPU = "Nehalem,+rdrand"  # has SSE 4.2; one with AVX tempts the C library into what is slow to emulate
BOOT_TIMEOUT_S = 300.0
BOOT_CPU_S = 70.0  # twelve are enough; what burns more is stuck, what has had less only waits for its turn
KVM_TRIAL_S = 5.0
CONSOLE_TAIL_BYTES = 16_000

# What the guest loads; what they need comes with them. rxe makes its checksums with crc32_generic, and says only
# "failed to add" without it.
MODULES = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "dummy", "veth", "bridge"),
    *("crc32_generic", "ib_uverbs", "rdma_rxe", "rdma_ucm"),
)


class MachineError(Exception):
    """The guest did not come up, or went away."""


class Kernel:
    """A kernel image and the modules to it, unpacked under `root`."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version
        plain = root / "boot" / f"vmlinux-{version}"
        self.image = plain if plain.exists() else root / "boot" / f"vmlinuz-{version}"
        self.modules = root / "lib" / "modules" / version

    def load_order(self) -> list[Path]:
        """The files of MODULES and of all they depend on, in the order of loading."""
        needs: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, after = line.partition(":")
            needs[path] = after.split()
            names[_module_name(path)] = path
        order: list[str] = []

        def add(path: str) -> None:
            for need in reversed(needs[path]):
                add(need)
            if path not in order:
                order.append(path)

        for name in MODULES:
            if name in names:  # or else it is built in
                add(names[name])
        return [self.modules / path for path in order]


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def find_kernel() -> Kernel | None:
    """The newest kernel that `tools/setup --vm` unpacked, or else one that is installed here and knows soft-RoCE."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musidecar" / "vm"
    roots = sorted((path.parent for path in cache.glob("linux-image-*/ready")), key=_version_key, reverse=True)
    for root in [*roots, Path("/")]:
        for image in sorted((root / "boot").glob("vmlinuz-*"), key=_version_key, reverse=True):
            kernel = Kernel(root, image.name.removeprefix("vmlinuz-"))
            if (kernel.modules / "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko").exists():
                return kernel
    return None


def _version_key(path: Path) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", path.name)]


def why_not() -> str:
    """Why no guest can run here, with the remedy; empty when one can."""
    missing = []
    if platform.machine() != "x86_64":
        return "the virtual machine is for x86_64 hosts only"
    if shutil.which(QEMU) is None:
        missing.append(QEMU)
    if find_kernel() is None:
        missing.append("a Debian kernel with rdma_rxe")
    if not Path("/bin/busybox").exists():
        missing.append("busybox")
    if not Path("/usr/lib/python3/dist-packages/pyverbs").exists():
        missing.append("pyverbs")
    if shutil.which("rdma", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
        missing.append("rdma (iproute2)")
    return f"no virtual machine without {', '.join(missing)}: {REMEDY}" if missing else ""


class Machine:
    """One running guest. A context manager: leaving it ends QEMU and removes every file."""

    def __init__(self, accelerator: str | None = None) -> None:
        self.began = time.monotonic()
        self.boot_s = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="mu-vm-"))
        self.console_path = self.folder / "console"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._pending = b""
        try:
            self.accelerator = accelerator or best_accelerator()
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        kernel = find_kernel()
        if kernel is None:
            raise MachineError(why_not())
        initramfs = self.folder / "initramfs"
        write_initramfs(initramfs, kernel)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "agent"))
            listener.listen(1)
            self._qemu = _spawn(self._command(kernel, initramfs), self.folder / "qemu.err")
            listener.settimeout(20)  # QEMU itself, not the guest
            try:
                self._port, _ = listener.accept()
            except TimeoutError:
                raise MachineError(f"{QEMU} did not start: {self.log()}") from None

    def _command(self, kernel: Kernel, initramfs: Path) -> list[str]:
        words = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", "random.trust_cpu=on", "no_timer_check"]
        words += [f"TREE={TREE}", f"PYTHON={sys.executable}"]
        words += [f"{name}={value}" for name, value in os.environ.items() if name in HERD]
        share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        return [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"),
            *("-accel", self.accelerator, "-cpu", "host" if self.accelerator == "kvm" else EMULATED_CPU),
            *("-smp", str(CPUS), "-m", os.environ.get("HERD_MEMORY_MB", str(MEMORY_MB))),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", " ".join(words)),
            *("-serial", f"file:{self.console_path}"),
            *("-virtfs", share),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self.folder}/agent"),
            *("-device", "virtserialport,chardev=agent,name=musidecar"),
        ]

    # ---- talking to the agent ----------------------------------------------------------------------------------

    def send(self, message: dict[str, Any]) -> None:
        """One message to the agent. MachineError when the guest is gone."""
        assert self._port is not None
        self._port.settimeout(10)
        try:
            self._port.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"the guest does not listen: {error}") from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The agent's next message. MachineError when none comes in time or the guest is gone."""
        assert self._port is not None and self._qemu is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(f"the guest said nothing for {timeout_s:.0f} s")
            self._port.settimeout(left)
            try:
                data = self._port.recv(1 << 20)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                raise MachineError(f"the guest went away ({QEMU}: {how_it_ended(self._qemu.wait(10))})")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def wait_ready(self) -> None:
        """Until the agent says hello. MachineError with the console when it does not."""
        assert self._qemu is not None and self._port is not None
        while not select.select([self._port], [], [], 1.0)[0]:
            used_s = cpu_seconds(self._qemu.pid)
            if used_s > BOOT_CPU_S or time.monotonic() > self.began + BOOT_TIMEOUT_S:
                raise MachineError(f"no agent after {used_s:.0f} s of CPU\n{self.log()}")
        try:
            hello = self.receive(1.0)
        except MachineError as error:
            raise MachineError(f"{error}\n{self.log()}") from None
        assert "hello" in hello, hello
        self.boot_s = time.monotonic() - self.began

    def log(self) -> str:
        """The end of what the guest wrote to its console, and of what QEMU said."""
        parts = []
        for path in (self.folder / "qemu.err", self.console_path):
            if path.exists():
                parts.append(path.read_bytes()[-CONSOLE_TAIL_BYTES:].decode(errors="replace").replace("\r", ""))
        return "".join(parts)

    def wait_end(self, timeout_s: float) -> bool:
        """Whether the guest switched itself off in time."""
        assert self._qemu is not None
        try:
            self._qemu.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends the guest, as by pulling its plug."""
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
        if self._port is not None:
            self._port.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _spawn(command: list[str], errors: Path) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    with errors.open("wb") as err:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=err,
            stderr=err,
            process_group=0,  # Ctrl-C is for us, who then end it
            preexec_fn=lambda: die_with_parent(parent),
        )


# ---- KVM ---------------------------------------------------------------------------------------------------------


def best_accelerator() -> str:
    """`kvm` if an ordinary guest kernel starts on it here, else the emulator.

    That /dev/kvm opens says little: in a virtual machine of some clouds the guest then hangs in its first instructions.
    So the kernel is tried once, on its own, and the answer kept until the host boots again or has another kernel.
    """
    emulator = "tcg,thread=multi"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return emulator
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = TREE / "build" / "vm-kvm"
    kernel = find_kernel()
    key = f"{boot} {kernel.version if kernel else ''}"
    if kept.exists() and kept.read_text().startswith(key):
        return "kvm" if kept.read_text().endswith("yes") else emulator
    works = kernel is not None and _kvm_works(kernel)
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(f"{key} {'yes' if works else 'no'}")
    return "kvm" if works else emulator


def _kvm_works(kernel: Kernel) -> bool:
    """Without an initramfs a kernel that runs gets to the panic that ends QEMU."""
    command = [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"),
        *("-accel", "kvm", "-cpu", "host", "-m", "512", "-serial", "stdio"),
        *("-kernel", str(kernel.image), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_TRIAL_S)
    except subprocess.TimeoutExpired:
        return False
    return b"Unable to mount root" in done.stdout


# ---- initramfs ---------------------------------------------------------------------------------------------------


def write_initramfs(path: Path, kernel: Kernel) -> None:
    """What the kernel starts from: busybox, the modules, and init.sh."""
    with path.open("wb") as out:
        out.write(b"".join(_archive(kernel)))


def _archive(kernel: Kernel) -> Iterator[bytes]:
    for name in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new", "tree"):
        yield _entry(name, 0o040755)
    yield _entry("bin/busybox", 0o100755, Path("/bin/busybox").read_bytes())
    yield _entry("init", 0o100755, (Path(__file__).parent / "init.sh").read_bytes())
    order = kernel.load_order()
    for file in order:
        yield _entry(f"modules/{file.name}", 0o100644, file.read_bytes())
    yield _entry("modules/order", 0o100644, "".join(f"{file.name}\n" for file in order).encode())
    yield _entry("TRAILER!!!", 0)


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """One file of a cpio archive ("newc": docs of the kernel, early-userspace/buffer-format)."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
