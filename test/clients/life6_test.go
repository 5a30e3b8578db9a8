package clients

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
)

// client6 is a DHCPv6 client and how it is handled; where the fields are those of
// client4, they mean the same.
type client6 struct {
	row      string
	start    func(*lab) *process
	settled  func(*lab, *process, string)
	confirms bool // it sends CONFIRM after a reboot
	release  func(*lab, *process)
	keeps    bool
	resolver []string

	// preferred is a preferred lifetime in seconds by whose T1 and T2 it goes; 0: 12.
	preferred uint32
}

const default6 = "default via fe80::1 dev eth0 ..."

// ready waits until the guest's link-local address can be used: dhclient gives up
// when it is not.
func (l *lab) ready() {
	l.t.Helper()
	l.has(show6, "inet6 fe80::...")
	l.lacks(show6, "tentative")
}

func (c client6) live(t *testing.T) {
	l, r := newLab(t, nil), table.row(t, c.row)
	l.ready()
	p := c.start(l)
	r.shows(leased, "/128", func() { l.has(show6, "inet6 "+first6+"/128...") })
	r.check(route, func() {
		l.has(route6, default6)
		l.lacks(show6, "tentative")
		l.guest.must("busybox ping -6 -c 1 -W 5 " + outside6)
	})
	r.check(neighbour, func() {
		l.guest.must("ip neigh flush dev eth0; busybox ping -6 -c 1 -W 5 " + outside6)
		l.has("ip -6 neigh show dev eth0", "fe80::1 lladdr "+marks.GatewayMAC+" ...")
		l.sees("nd_advert", 0)
	})
	r.check(settings, func() {
		l.has("cat /proc/sys/net/ipv6/conf/eth0/mtu", mtu)
		l.has(c.resolver[0], c.resolver[1:]...)
	})
	if c.settled != nil {
		c.settled(l, p, first6)
	}
	p = c.confirm(l, r, p)
	if c.keeps {
		c.release(l, p)
		l.never("dhcp6_release")
	} else {
		r.check(release, func() {
			c.release(l, p)
			l.sees("dhcp6_release", 0)
		})
	}
	if n := l.count("dhcp6_decline"); n != 0 {
		t.Errorf("the client declined %d times", n)
	}
}

// confirm reboots the guest, and once more after its address has changed.
func (c client6) confirm(l *lab, r record, p *process) *process {
	for _, again := range []struct {
		column  column
		addr    string
		verdict string
	}{{reboot, first6, "dhcp6_confirm"}, {wrong, second6, "dhcp6_not_on_link"}} {
		off(l)
		l.ready()
		l.change(address6(again.addr))
		boot := func() {
			p = c.start(l)
			l.has(show6, "inet6 "+again.addr+"/128...")
			if again.addr != first6 {
				l.lacks(show6, first6+"/")
			}
		}
		if c.confirms {
			r.check(again.column, func() {
				boot()
				l.sees(again.verdict, 0)
			})
		} else {
			boot()
			l.never(again.verdict)
		}
		if c.settled != nil {
			c.settled(l, p, again.addr)
		}
	}
	return p
}

func (c client6) keep(t *testing.T) {
	if c.preferred == 0 {
		c.preferred = 12
	}
	l := newLab(t, func(n *responder.NIC) { n.V6.Preferred, n.V6.Valid = c.preferred, 10*c.preferred })
	r := table.row(t, c.row)
	l.ready()
	c.start(l)
	l.has(show6, "inet6 "+first6+"/128...")
	r.check(renew, func() { l.sees("dhcp6_renew", 0) })
	r.check(rebind, func() {
		l.deaf()
		l.sees("dhcp6_rebind", 0)
	})
	l.hear()
	r.check(renew, func() {
		l.sees("dhcp6_renew", l.count("dhcp6_renew"))
		l.has(show6, "inet6 "+first6+"/128...")
		l.has(route6, default6)
	})

	// The pool upstream changes: the new address is there with the next renewal, and
	// the old one is deprecated and works until it ends.
	l.change(func(n *responder.NIC) {
		n.V6.Addrs = []netip.Addr{netip.MustParseAddr(second6)}
		n.V6.Terms = responder.Terms{{Addr: netip.MustParseAddr(first6), Until: time.Now().Add(10 * time.Minute).Unix()}}
	})
	l.has(show6, "inet6 "+second6+"/128...")
	l.ages("eth0", netip.PrefixFrom(netip.MustParseAddr(first6), 128))
	l.guest.must("busybox ping -6 -c 1 -W 5 " + outside6)
	until(t, func() error { // NetworkManager's was not usable at the first try
		out, err := l.guest.sh("busybox ping -6 -c 1 -W 1 -I " + first6 + " " + outside6)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
