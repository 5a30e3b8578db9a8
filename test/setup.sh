#!/bin/bash
# test/setup.sh [SET...]: installs the Debian packages that the sets need and that
# are missing. The sets are demo, test, clients and bench; all by default. It starts no
# daemon: while it installs, a policy-rc.d says so (one that is there is left).
set -euo pipefail

lab=(libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 seabios ipxe-qemu
	linux-image-cloud-amd64 busybox-static cpio nftables iproute2 iputils-ping dhcpcd-base tcpdump conntrack
	procps util-linux)
build=(gcc libc6-dev libvirt-dev pkg-config make git ca-certificates)
clients=(isc-dhcp-client udhcpc ndisc6 socat jq strace systemd-container bird2 klibc-utils initramfs-tools-core
	network-manager dbus-daemon dracut-core dracut-network iputils-arping wide-dhcpv6-client)
servers=(isc-dhcp-server kea-dhcp4-server kea-dhcp6-server kea-admin)
routing=(bird2 frr)
firewalls=(iptables ufw firewalld)
firmware=(ovmf ipxe dnsmasq-base)
peers=(isc-dhcp-server dnsmasq-base)

declare -A wanted=()
for set in "${@:-all}"; do
	case $set in
	demo) names=("${lab[@]}" "${build[@]}") ;;
	test) names=("${lab[@]}" "${build[@]}" "${clients[@]}" "${servers[@]}" "${firmware[@]}" "${routing[@]}" "${firewalls[@]}") ;;
	clients) names=("${lab[@]}" "${build[@]}" "${clients[@]}" "${servers[@]}") ;;
	bench) names=("${lab[@]}" "${build[@]}" "${firmware[@]}" "${peers[@]}") ;;
	all) names=("${lab[@]}" "${build[@]}" "${clients[@]}" "${servers[@]}" "${firmware[@]}" "${routing[@]}" "${firewalls[@]}" "${peers[@]}") ;;
	*)
		echo "setup: no set \"$set\"; there are demo, test, clients and bench" >&2
		exit 2
		;;
	esac
	for name in "${names[@]}"; do wanted[$name]=1; done
done

missing=()
for name in $(printf '%s\n' "${!wanted[@]}" | sort); do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) || status=absent
	[ "$status" = installed ] || missing+=("$name")
done
if [ ${#missing[@]} -eq 0 ]; then
	echo "setup: all ${#wanted[@]} packages are installed"
	exit 0
fi
echo "setup: installing ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
	echo "setup: installing packages takes root" >&2
	exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
