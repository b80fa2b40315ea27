#!/bin/busybox sh
# The first process of the guest (tests/vm/machine.py). Its root becomes the host's: read only over 9p, with what is written
# kept in memory on top. So the guest runs the host's own programs, interpreter, virtual environment and source tree, and
# nothing is installed in it. Then it hands over to tests/vm/agent.py, and switches itself off when that ends.
# From the kernel's command line: TREE, the source tree; PYTHON, its interpreter.
b=/bin/busybox
end() { $b echo "init: $*"; $b sync; $b poweroff -f; }

$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module" || end "insmod $module failed"
done </modules/order

$b ip link set lo up

$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,ro,cache=loose host /lower || end "no root from the host"
$b mount -t tmpfs -o mode=755 memory /upper
$b mkdir /upper/upper /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work overlay /new || end "no overlay"
# The host's /tmp and /run belong to its processes. The tree may lie in there: it stays reachable under its own name.
$b mount --bind "/new$TREE" /tree || end "no tree at $TREE"
$b mount -t tmpfs -o mode=1777 memory /new/tmp
$b mount -t tmpfs -o mode=755 memory /new/run
$b mkdir -p "/new$TREE"
$b mount --move /tree "/new$TREE"
for part in proc sys dev; do
    $b mount --move /$part /new/$part
done
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts pts /new/dev/pts
$b mount -t tmpfs -o mode=1777 memory /new/dev/shm

export HOME=/tmp LC_ALL=C.UTF-8 MUSIDECAR_GUEST=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
$b chroot /new /bin/sh -c "cd '$TREE' && exec '$PYTHON' -m tests.vm.agent" </new/dev/null
end "the agent ended with $?"
