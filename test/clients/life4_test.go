package clients

import (
	"fmt"
	"testing"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
)

const (
	show4  = "ip -4 address show dev eth0"
	show6  = "ip -6 address show dev eth0"
	route4 = "ip -4 route"
	route6 = "ip -6 route"
	link0  = "ip -o link show dev eth0"
)

// client4 is a DHCPv4 client and how it is handled.
type client4 struct {
	row     string
	classic bool // it does not ask for option 121

	// start runs it and returns when it has been started; what it started before
	// may still be there.
	start func(*lab) *process
	// routes are lines of "ip -4 route" with the given lease.
	routes func(addr string) []string
	// settled waits until the client is done with what follows a lease; nil: it
	// can be asked for the next thing at once.
	settled func(*lab, *process, string)
	// crash ends it as if the power had failed, and restart is the next boot; nil:
	// off and start.
	crash   func(*lab)
	restart func(*lab) *process
	// refuse makes a client that keeps no lease over a restart ask for the address
	// that is not its own any more; nil: it is crashed and started.
	refuse func(*process)
	// release ends it in the way in which it gives its lease back, or would if it
	// were one that does.
	release func(*lab, *process)
	keeps   bool // it is none
	// resolver is a command and the lines of what it prints when the resolvers and
	// search domains are in use.
	resolver []string
	// mtu is the same for the MTU; nil: it is the interface's.
	mtu []string

	// short are T1, T2 and lease time in seconds that the client takes.
	short [3]uint32
}

func (c client4) prefix() string {
	if c.classic {
		return "/24"
	}
	return "/32"
}

func (c client4) gateway() string {
	if c.classic {
		return router
	}
	return gateway
}

// off is what a power failure leaves of a client whose files are on disk.
func off(l *lab) {
	l.crash()
	l.guest.must("ip address flush dev eth0 scope global; ip link set eth0 down; ip link set eth0 mtu 1500 addrgenmode eui64; ip link set eth0 up")
}

// again is the next boot of a client that ran as p.
func again(l *lab, c client4, p *process) *process {
	if q := c.restart(l); q != nil {
		return q
	}
	return p
}

// live goes with a client from its first lease to its last message.
func (c client4) live(t *testing.T) {
	l, r := newLab(t, nil), table.row(t, c.row)
	if c.crash == nil {
		c.crash, c.restart = off, c.start
	}
	p := c.start(l)
	r.shows(leased, c.prefix(), func() { l.has(show4, "inet "+first+c.prefix()+"...") })
	r.check(route, func() {
		l.has(route4, c.routes(first)...)
		l.guest.must("busybox ping -c 1 -W 5 " + outside)
	})
	r.check(neighbour, func() { l.knowsGateway(c.gateway()) })
	if c.classic {
		r.check(neighbour, func() { l.seesAllOnLink() })
	}
	r.check(settings, func() {
		if c.mtu == nil {
			c.mtu = []string{link0, "2: eth0@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu " + mtu + " ..."}
		}
		l.has(c.mtu[0], c.mtu[1:]...)
		l.has(c.resolver[0], c.resolver[1:]...)
	})
	if c.settled != nil {
		c.settled(l, p, first)
	}
	if c.refuse == nil {
		c.crash(l)
		r.check(reboot, func() {
			p = again(l, c, p)
			l.sees("dhcp4_ack_reboot", 0)
			l.has(show4, "inet "+first+c.prefix()+"...")
			l.has(route4, c.routes(first)...)
		})
		if c.settled != nil {
			c.settled(l, p, first)
		}
		c.crash(l)
	}
	l.change(address(second))
	r.check(wrong, func() {
		if c.refuse != nil {
			c.refuse(p)
		} else {
			p = again(l, c, p)
		}
		l.sees("dhcp4_nak", 0)
		l.has(show4, "inet "+second+c.prefix()+"...")
		l.lacks(show4, first+"/")
		l.has(route4, c.routes(second)...)
	})
	if c.settled != nil {
		c.settled(l, p, second)
	}
	bye := func() {
		// The kernel must know the gateway's MAC: some send RELEASE by a socket and
		// take the address away at once, and what still waits for ARP goes with it.
		l.knowsGateway(c.gateway())
		c.release(l, p)
		l.lacks(show4, second+"/")
	}
	if c.keeps {
		bye()
		l.never("dhcp4_release")
		return
	}
	r.check(release, func() {
		bye()
		l.sees("dhcp4_release", 0)
	})
}

// keep goes with a client through RENEWING and REBINDING.
func (c client4) keep(t *testing.T) {
	l := newLab(t, func(n *responder.NIC) { n.V4.T1, n.V4.T2, n.V4.Lease = c.short[0], c.short[1], c.short[2] })
	r := table.row(t, c.row)
	c.start(l)
	l.has(show4, "inet "+first+c.prefix()+"...")
	r.check(renew, func() {
		l.sees("dhcp4_ack_renew", 0)
		if got, want := l.unicasts(), l.count("dhcp4_ack_renew"); uint64(got) < want {
			t.Errorf("%d messages by unicast, though %d were taken for such", got, want)
		}
	})
	r.check(rebind, func() {
		l.deaf()
		l.sees("dhcp4_ack_rebind", 0)
	})
	l.hear()
	r.check(renew, func() {
		l.sees("dhcp4_ack_renew", l.count("dhcp4_ack_renew"))
		l.has(show4, "inet "+first+c.prefix()+"...")
		l.has(route4, c.routes(first)...)
		l.guest.must("busybox ping -c 1 -W 5 " + outside)
	})
	if n := l.count("dhcp4_nak") + l.count("dhcp4_decline"); n != 0 {
		t.Errorf("%d NAKs and DECLINEs", n)
	}
}

// never checks that there was nothing of a kind: what the matrix says that a
// client does not do, it does not do.
func (l *lab) never(verdict string) {
	l.t.Helper()
	if n := l.count(verdict); n != 0 {
		l.t.Errorf("%s was seen %d times, though it should not be there", verdict, n)
	}
}

// knowsGateway checks that the guest has learned the gateway's MAC by its own
// question, and that duplicate detection found nobody.
func (l *lab) knowsGateway(gw string) {
	l.t.Helper()
	l.guest.must("busybox ping -c 1 -W 5 " + outside)
	l.has("ip neigh show dev eth0", gw+" lladdr "+marks.GatewayMAC+" ...")
	if l.count("arp_reply")+l.count("arp_proxy") == 0 {
		l.t.Error("the gateway's MAC is known without ARP")
	}
	if n := l.count("dhcp4_decline"); n != 0 {
		l.t.Errorf("the client declined %d times", n)
	}
}

// seesAllOnLink checks what a guest with a classic lease believes on its link:
// everybody is there, at the gateway's MAC, but for its own address.
func (l *lab) seesAllOnLink() {
	l.t.Helper()
	l.has("busybox arping -c 1 -w 2 -I eth0 "+stranger, fmt.Sprintf("Unicast reply from %s [%s]...", stranger, marks.GatewayMAC))
	l.guest.must("busybox ping -c 1 -W 5 " + gateway) // it is the server
	if out, err := l.guest.sh("busybox arping -D -c 1 -w 1 -I eth0 " + first); err != nil {
		l.t.Errorf("somebody answers for the guest's own address: %v: %s", err, out)
	}
}
