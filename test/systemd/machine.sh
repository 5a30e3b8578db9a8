#!/bin/bash
# machine.sh SOURCE: boots systemd in an overlay of this machine's own root, with
# SOURCE at /src. It is PID 1 of its own PID and mount namespaces, so its end is
# the end of all that it makes; it ends when its standard input does.
set -eu
source=$1

mount --make-rprivate /
mount -t proc proc /proc
# A folder that is on no tmpfs of the host's and that nobody needs meanwhile.
base=/mnt
mount -t tmpfs tmpfs "$base"
mkdir "$base"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
root=$base/root

# An empty resolv.conf: a server that can't be reached holds up the boot.
rm -f "$root/etc/resolv.conf" "$root/etc/machine-id" "$root/usr/sbin/policy-rc.d"
: >"$root/etc/resolv.conf"
: >"$root/etc/fstab"
echo slash32-test >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 slash32-test\n::1 localhost\n' >"$root/etc/hosts"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
# What this machine may have installed and the test does not need.
for unit in apt-daily{,-upgrade}.timer e2scrub_all.timer e2scrub_reap.service man-db.timer fstrim.timer logrotate.timer \
	getty.target systemd-timesyncd.service postgresql.service bird.service frr.service isc-dhcp-server.service \
	kea-dhcp4-server.service kea-dhcp6-server.service dnsmasq.service ufw.service firewalld.service libvirt-guests.service networking.service; do
	ln -sfn /dev/null "$root/etc/systemd/system/$unit"
done
rm -rf "$root/etc/slash32" "$root/var/lib/slash32" "$root"/etc/libvirt/{hooks,qemu/*.xml,qemu/autostart,qemu/networks/autostart} "$root/var/lib/libvirt/qemu/save"
mkdir -p "$root/src"

echo ready
read -r _ # the test's files are written: go
systemd-nspawn --quiet --directory="$root" --machine=slash32-test --register=no --keep-unit --private-network \
	--resolv-conf=off --timezone=off --link-journal=no --console=pipe --capability=all \
	--bind=/dev/net/tun --bind-ro="$source:/src" --boot systemd.unit=multi-user.target </dev/null 2>&1 &
cat >/dev/null
