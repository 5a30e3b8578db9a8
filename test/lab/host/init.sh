#!/bin/bash
# PID 1 of a lab's hypervisor, in its own PID, mount, UTS, IPC and network
# namespaces. Its end is the lab's end: the kernel kills every process in the
# PID namespace and drops the mounts, the files on tmpfs and the network
# namespaces with it. It ends when the process that made the lab does, because
# that holds the other end of standard input.
set -eu
mount --make-rprivate /
mount -t proc proc /proc

# All of /run is private: libvirtd locks /run/libvirtd.pid, and ip(8) keeps the
# names of network namespaces there.
mount -t tmpfs -o mode=755 run /run

# /etc and /var are the host's to read, and a tmpfs to write.
for dir in etc var; do
	mkdir -p /run/lab/$dir/upper /run/lab/$dir/work
	mount -t overlay -o "lowerdir=/$dir,upperdir=/run/lab/$dir/upper,workdir=/run/lab/$dir/work" "$dir" "/$dir"
done
# The host's own domains must not be seen here. The cache of QEMU's
# capabilities in /var/cache/libvirt may: it saves seconds.
rm -rf /etc/libvirt /var/lib/libvirt /var/log/libvirt /etc/slash32 /var/lib/slash32 /etc/resolv.conf
mkdir -p /etc/libvirt/hooks/qemu.d /etc/slash32 /var/lib/libvirt/dnsmasq /var/log/libvirt /var/lib/lab/console

# The sysfs of this network namespace. The old one goes, with the cgroups below
# it: a second one on top would leave libvirtd a list of cgroups it can't reach.
umount -l /sys
mount -t sysfs sysfs /sys

hostname hv
ip link set lo up

echo ready
read -r _ # the lab's files are written: go
exec >/run/lab/init.log 2>&1

# libvirtd comes back when it is killed. Its orphans (QEMU, responders) are
# reaped by this shell: a zombie would keep "virsh destroy" waiting.
(while :; do /usr/sbin/libvirtd || sleep 0.1; done) &
cat >/dev/null
