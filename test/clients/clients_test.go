package clients

import (
	"strings"
	"syscall"
	"testing"

	"github.com/slash32/slash32/pkg/responder"
)

const (
	show4  = "ip -4 address show dev eth0"
	show6  = "ip -6 address show dev eth0"
	route4 = "ip -4 route"
	route6 = "ip -6 route"
)

func TestUdhcpc(t *testing.T) {
	t.Parallel()
	need(t, "udhcpc", "udhcpc")
	need(t, "busybox", "busybox-static")
	l := newLab(t, nil)
	c := l.guest.start("udhcpc", "-f", "-v", "-i", "eth0", "-t", "5", "-T", "1")
	l.has(show4, "inet "+first+"/32...")
	// Debian's script writes the route in one line.
	l.has(route4, "default via "+gateway+" dev eth0 onlink")
	l.has("cat /etc/resolv.conf", "nameserver 9.9.9.9", "domain example.org")
	l.reaches()

	c.signal(syscall.SIGUSR1)
	l.sees("dhcp4_ack_renew", 0)

	l.change(address(second))
	c.signal(syscall.SIGUSR1)
	l.sees("dhcp4_nak", 0)
	l.has(show4, "inet "+second+"/32...")
	l.lacks(show4, first)

	c.signal(syscall.SIGUSR2)
	l.sees("dhcp4_release", 0)
	l.lacks(show4, second)
}

// udhcpc goes by the lease alone: half of it is gone, less than a minute is
// left, so it rebinds.
func TestUdhcpcRebinds(t *testing.T) {
	t.Parallel()
	need(t, "udhcpc", "udhcpc")
	need(t, "busybox", "busybox-static")
	l := newLab(t, func(n *responder.NIC) { n.V4.Lease, n.V4.T1, n.V4.T2 = 20, 10, 17 })
	l.guest.start("udhcpc", "-f", "-v", "-i", "eth0", "-t", "5", "-T", "1")
	l.has(show4, "inet "+first+"/32...")
	l.deaf()
	l.sees("dhcp4_ack_rebind", 0)
	l.has(show4, "inet "+first+"/32...")
}

const (
	dhclient4 = "-4 -d -v -pf /run/dhclient.pid -lf /var/lib/dhcp/dhclient.leases eth0"
	dhclient6 = "-6 -d -v -pf /run/dhclient6.pid -lf /var/lib/dhcp/dhclient6.leases eth0"
)

func (l *lab) dhclient(arguments string) *process {
	l.t.Helper()
	need(l.t, "dhclient", "isc-dhcp-client")
	return l.guest.start(append([]string{"dhclient"}, strings.Fields(arguments)...)...)
}

// The routes are those of the setup that the program is named after.
func TestDhclient(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	c := l.dhclient(dhclient4)
	l.has(show4, "inet "+first+"/32...")
	l.has(route4, "default via "+gateway+" dev eth0", gateway+" dev eth0 scope link")
	l.has("cat /etc/resolv.conf", "nameserver 9.9.9.9", "domain example.org")
	l.has("grep host-name /var/lib/dhcp/dhclient.leases", `option host-name "web1";`)
	l.reaches()

	c.kill(syscall.SIGKILL) // as at a reboot: the lease is still in the file
	l.guest.must("ip address flush dev eth0")
	c = l.dhclient(dhclient4)
	l.sees("dhcp4_ack_reboot", 0)
	l.has(route4, "default via "+gateway+" dev eth0", gateway+" dev eth0 scope link")

	c.kill(syscall.SIGKILL)
	l.change(address(second))
	c = l.dhclient(dhclient4)
	l.sees("dhcp4_nak", 0)
	l.has(show4, "inet "+second+"/32...")
	l.has(route4, "default via "+gateway+" dev eth0", gateway+" dev eth0 scope link")

	c.kill(syscall.SIGKILL)
	l.guest.must("dhclient -r " + strings.ReplaceAll(dhclient4, "-d ", ""))
	l.sees("dhcp4_release", 0)
}

func TestDhclientRenewsAndRebinds(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(n *responder.NIC) { n.V4.Lease, n.V4.T1, n.V4.T2 = 30, 2, 6 })
	l.dhclient(dhclient4)
	l.has(show4, "inet "+first+"/32...")
	l.sees("dhcp4_ack_renew", 0)
	l.deaf()
	l.sees("dhcp4_ack_rebind", 0)
	l.hear()
	l.sees("dhcp4_ack_renew", l.count("dhcp4_ack_renew"))
	l.has(route4, "default via "+gateway+" dev eth0", gateway+" dev eth0 scope link")
	l.reaches()
}

func TestDhclient6(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(n *responder.NIC) { n.V6.Preferred, n.V6.Valid = 12, 60 })
	l.has(show6, "inet6 fe80::...")
	l.lacks(show6, "tentative") // dhclient gives up when its own address is not ready
	c := l.dhclient(dhclient6)
	l.has(show6, "inet6 "+first6+"/128...")
	l.has(route6, "default via fe80::1 dev eth0 proto ra...")
	l.has("cat /etc/resolv.conf", "nameserver 2620:fe::fe")
	l.sees("dhcp6_renew", 0)

	// The responder is away when the client wants to renew, and another one is
	// there when it asks everybody.
	l.responder.kill(syscall.SIGKILL)
	until(t, func() error { return contains(c.output.String(), "XMT: Rebind") })
	l.serve()
	l.sees("dhcp6_rebind", 0)
	l.has(show6, "inet6 "+first6+"/128...")

	c.kill(syscall.SIGKILL)
	c = l.dhclient(dhclient6)
	l.sees("dhcp6_confirm", 0)

	c.kill(syscall.SIGKILL)
	l.guest.must("dhclient -r " + strings.ReplaceAll(dhclient6, "-d ", ""))
	l.sees("dhcp6_release", 0)
}

func (l *lab) dhcpcd() *process {
	l.t.Helper()
	need(l.t, "dhcpcd", "dhcpcd-base")
	return l.guest.start("dhcpcd", "-B", "-d", "eth0")
}

// settled waits until dhcpcd has done all that follows a lease: a signal that
// comes while its script runs is lost on it.
func settled(c *process, addr string) {
	c.t.Helper()
	until(c.t, func() error { return contains(c.output.String(), "ARP announcing "+addr+" (2 of 2)") })
}

func TestDhcpcd(t *testing.T) {
	t.Parallel()
	l := newLab(t, nil)
	c := l.dhcpcd()
	l.has(show4, "inet "+first+"/32...")
	l.has(route4, "default via "+gateway+" dev eth0 proto dhcp src "+first+"...", gateway+" dev eth0 proto dhcp scope link src "+first+"...")
	l.has(show6, "inet6 "+first6+"/128...")
	l.has(route6, "default via fe80::1 dev eth0 proto ra...")
	l.reaches()

	settled(c, first)
	c.signal(syscall.SIGUSR1) // what "dhcpcd -N" sends
	l.sees("dhcp4_ack_renew", 0)
	l.sees("dhcp6_renew", 0)

	l.crash() // as at a reboot: the lease is still in its file
	l.guest.must("ip address flush dev eth0 scope global")
	l.dhcpcd()
	l.sees("dhcp4_ack_reboot", 0)
	l.has(show4, "inet "+first+"/32...")

	l.crash()
	l.guest.must("ip address flush dev eth0 scope global")
	l.change(address(second))
	c = l.dhcpcd()
	l.sees("dhcp4_nak", 0)
	l.has(show4, "inet "+second+"/32...")
	l.has(route4, "default via "+gateway+" dev eth0 proto dhcp src "+second+"...")

	settled(c, second)
	// The kernel must know the gateway's MAC: dhcpcd sends RELEASE by a socket and
	// takes the address away at once, and what still waits for ARP goes with it.
	l.reaches()
	c.signal(syscall.SIGALRM) // what "dhcpcd -k" sends
	l.sees("dhcp4_release", 0)
	l.sees("dhcp6_release", 0)
}

func TestDhcpcdRenewsAndRebinds(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(n *responder.NIC) { n.V4.Lease, n.V4.T1, n.V4.T2 = 40, 3, 8 })
	l.dhcpcd()
	l.has(show4, "inet "+first+"/32...")
	l.sees("dhcp4_ack_renew", 0)
	l.deaf()
	l.sees("dhcp4_ack_rebind", 0)
	l.has(show4, "inet "+first+"/32...")
}
