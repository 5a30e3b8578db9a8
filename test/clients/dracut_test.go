package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
)

// Hooks of the initramfs: there is a root, of which nobody asks more, and what the
// network looks like once it is up.
const (
	rootHook = "rootok=1\n"
	showHook = `{
	ip -4 address show dev eth0
	ip -4 route
	ip link show dev eth0
	cat /etc/resolv.conf
	ping -c 1 -w 10 ` + outside + ` && echo it reaches outside
	ip neigh show dev eth0
	echo that is all
} >/dev/console 2>&1
while :; do sleep 60; done
`
)

// dracutImage makes an initramfs with dracut's network and its hooks, and returns
// its path and the kernel's.
func dracutImage(t *testing.T) (kernel, image string) {
	t.Helper()
	need(t, "dracut", "dracut-core")
	need(t, "arping", "iputils-arping")
	if _, err := os.Stat("/usr/lib/dracut/modules.d/35network-legacy"); err != nil {
		t.Fatalf("%v. Fix: apt-get install dracut-network", err)
	}
	kernels, err := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if err != nil || len(kernels) == 0 {
		t.Fatalf("there is no kernel for guests (%v). Fix: apt-get install linux-image-cloud-amd64", err)
	}
	kernel = slices.Max(kernels)
	dir := t.TempDir()
	for name, text := range map[string]string{"cmdline/99-root.sh": rootHook, "initqueue/online/99-show.sh": showHook} {
		path := filepath.Join(dir, "hooks", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image = filepath.Join(dir, "initramfs")
	cmd := exec.Command("dracut", "--force", "--quiet", "--no-hostonly", "--no-compress", "--tmpdir", dir,
		"--modules", "base bash network-legacy network udev-rules", "--add-drivers", "virtio_net virtio_pci",
		"--include", filepath.Join(dir, "hooks"), "/lib/dracut/hooks",
		"--kver", strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-"), image)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return kernel, image
}

// boot runs a machine on the bridge in place of the guest's namespaces. What it
// prints is its console.
func (l *lab) boot(kernel, image, commandLine string) *process {
	l.t.Helper()
	need(l.t, "qemu-system-x86_64", "qemu-system-x86")
	l.host.must(`
		nft delete table netdev wire
		ip link del port
		ip tuntap add port mode tap
		ip link set port master br0 addrgenmode none
		ip link set port up
		` + countUnicast)
	return l.host.start("qemu-system-x86_64", "-machine", "q35,accel=kvm:tcg", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-kernel", kernel, "-initrd", image, "-append", "console=ttyS0 "+commandLine,
		"-netdev", "tap,id=net,ifname=port,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net,mac="+guestMAC+",romfile=")
}

// dracut's own network set-up in a real machine: Fedora's initramfs and its kin.
func TestDracut(t *testing.T) {
	t.Parallel()
	kernel, image := dracutImage(t)
	l := newLab(t, func(n *responder.NIC) { n.V4.T1, n.V4.T2, n.V4.Lease = 5, 12, 120 })
	r := table.row(t, "dracut network-legacy")
	p := l.boot(kernel, image, "ip=dhcp rd.neednet=1 net.ifnames=0 root=none quiet")
	// Without KVM and beside two dozen others a machine takes minutes to boot.
	within(t, 5*time.Minute, func() error { return contains(p.output.String(), "that is all") })
	shown := func(lines ...string) {
		for _, want := range lines {
			if !hasLine(p.output.String(), want) {
				t.Errorf("the console has no line %q", want)
			}
		}
	}
	r.shows(leased, "/32", func() { shown("inet " + first + "/32...") })
	r.check(route, func() {
		shown("default via "+gateway+" dev eth0", gateway+" dev eth0 scope link", "it reaches outside")
	})
	r.check(neighbour, func() {
		shown(gateway + " lladdr " + marks.GatewayMAC + " REACHABLE")
		l.sees("arp_reply", 0)
	})
	r.check(settings, func() {
		shown(fmt.Sprintf("2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu %s ...", mtu), "nameserver 9.9.9.9", "search example.org. eng.example.org. example.org")
	})
	r.check(renew, func() {
		l.sees("dhcp4_ack_renew", 0)
		if l.unicasts() == 0 {
			t.Error("it renewed without a unicast")
		}
	})
	r.check(rebind, func() {
		l.deaf()
		l.sees("dhcp4_ack_rebind", 0)
	})
	l.never("dhcp4_decline")
}
