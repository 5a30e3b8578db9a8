package clients

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/responder"
)

// The prefixes of the guest, and those that follow when it is renumbered.
var (
	advertised = netip.MustParsePrefix("2001:db8:1:50::/64")
	pool       = netip.MustParsePrefix("2001:db8:1:a0::/60")
	nextOnLink = netip.MustParsePrefix("2001:db8:2:50::/64")
	nextPool   = netip.MustParsePrefix("2001:db8:2:a0::/60")
)

const (
	noHint = 0
	hint   = 62
)

func withPrefixes(n *responder.NIC) {
	n.V6.Prefixes = responder.Prefixes{
		{Net: advertised, Mode: responder.ModeSLAAC},
		{Net: pool, Mode: responder.ModeDelegate, Length: 64},
	}
}

// renumber is what the agent makes of a change of the pool upstream.
func renumber(n *responder.NIC) {
	until := time.Now().Add(10 * time.Minute).Unix()
	n.V6.Prefixes = responder.Prefixes{
		{Net: nextOnLink, Mode: responder.ModeSLAAC},
		{Net: nextPool, Mode: responder.ModeDelegate, Length: 64},
		{Net: advertised, Mode: responder.ModeSLAAC, Deprecated: true, Until: until},
		{Net: pool, Mode: responder.ModeDelegate, Length: 64, Deprecated: true, Until: until},
	}
}

// client6pd is a client that asks for an address and for a prefix to use on lan0.
type client6pd struct {
	row string
	// start runs it with a hint at the prefix's length, or noHint.
	start    func(l *lab, hint int) *process
	settled  func(*process) // waits until it is done with what follows a lease; nil: it is at once
	release  func(*lab, *process)
	keeps    bool // it releases nothing
	noRapid  bool
	byHand   bool // it leaves the prefix to others
	resolver []string
	// aged waits until it knows that a prefix is deprecated; nil: its address on lan0
	// is.
	aged func(*lab, *process, netip.Prefix)

	// preferred is a preferred lifetime in seconds by whose T1 and T2 it goes; 0: 12.
	preferred uint32
}

// newLab6 is a lab whose guest has a second link, lan0.
func newLab6(t *testing.T, change func(*responder.NIC)) *lab {
	t.Helper()
	l := newLab(t, func(n *responder.NIC) {
		withPrefixes(n)
		if change != nil {
			change(n)
		}
	})
	l.guest.must(`
		ip link add lan0 type veth peer name lan1
		ip link set lan0 up
		ip link set lan1 up
	`)
	l.ready()
	return l
}

// kept are the prefixes in the lease file.
func (l *lab) kept() ([]lease.Prefix, error) {
	state, err := l.spool.Lease(vmID)
	if err != nil || len(state.NICs) == 0 {
		return nil, err
	}
	return state.NICs[0].Prefixes, nil
}

// prefix waits until the lease file has exactly one prefix of a pool: of the
// length and behind the guest's link-local address.
func (l *lab) prefix(of netip.Prefix, bits int) lease.Prefix {
	l.t.Helper()
	var found lease.Prefix
	until(l.t, func() error {
		kept, err := l.kept()
		if err != nil {
			return err
		}
		n := 0
		for _, p := range kept {
			if of.Contains(p.Prefix.Addr()) {
				found, n = p, n+1
			}
		}
		if n != 1 || found.Prefix.Bits() != bits {
			return fmt.Errorf("the lease file has %+v, want one /%d of %s", kept, bits, of)
		}
		return nil
	})
	if own := l.linkLocal(); found.Via != own {
		l.t.Fatalf("the lease file says via %s, the guest is %s", found.Via, own)
	}
	if left := time.Until(time.Unix(found.Expires, 0)); left <= 0 {
		l.t.Fatalf("the lease file has a prefix that expired %v ago", -left)
	}
	return found
}

// linkLocal is the guest's link-local address.
func (l *lab) linkLocal() netip.Addr {
	l.t.Helper()
	return l.addressIn("eth0", netip.MustParsePrefix("fe80::/10"))
}

// addresses6 are the lines of the IPv6 addresses of a guest's link that are in a
// prefix.
func (l *lab) addresses6(link string, in netip.Prefix) (addrs []netip.Addr, lines []string, err error) {
	out, err := l.guest.sh("ip -6 -o address show dev " + link)
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		p, err := netip.ParsePrefix(fields[3])
		if err == nil && in.Contains(p.Addr()) {
			addrs, lines = append(addrs, p.Addr()), append(lines, line)
		}
	}
	return addrs, lines, nil
}

// addressIn waits until a link of the guest's has an address in a prefix that can
// be used.
func (l *lab) addressIn(link string, in netip.Prefix) netip.Addr {
	l.t.Helper()
	var addr netip.Addr
	until(l.t, func() error {
		addrs, lines, err := l.addresses6(link, in)
		if err != nil {
			return err
		}
		for i, line := range lines {
			if !strings.Contains(line, "tentative") && !strings.Contains(line, "deprecated") {
				addr = addrs[i]
				return nil
			}
		}
		return fmt.Errorf("%s has no usable address of %s: %q", link, in, lines)
	})
	return addr
}

// ages waits until all addresses of a prefix are deprecated or gone.
func (l *lab) ages(link string, in netip.Prefix) {
	l.t.Helper()
	until(l.t, func() error {
		_, lines, err := l.addresses6(link, in)
		for _, line := range lines {
			if err == nil && !strings.Contains(line, "deprecated") {
				err = fmt.Errorf("an address of %s is still preferred: %s", in, line)
			}
		}
		return err
	})
}

// follow routes a delegated prefix by the lease file, as the agent does, and pings
// the outside from an address of it.
func (c client6pd) follow(l *lab, p lease.Prefix) {
	l.t.Helper()
	l.host.must(fmt.Sprintf("ip -6 route replace %s via %s dev br0 proto 32", p.Prefix, p.Via))
	if c.byHand {
		l.guest.must(fmt.Sprintf("ip address replace %s/64 dev lan0 nodad", p.Prefix.Addr().Next()))
	}
	from := l.addressIn("lan0", p.Prefix)
	until(l.t, func() error {
		_, err := l.guest.sh(fmt.Sprintf("busybox ping -6 -c 1 -W 1 -I %s %s", from, outside6))
		return err
	})
}

// oneDefaultRoute waits until the guest has exactly one default route.
func (l *lab) oneDefaultRoute() {
	l.t.Helper()
	until(l.t, func() error {
		out, err := l.guest.sh("ip -6 route show default")
		if err == nil && (strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "default via fe80::1 dev eth0 ")) {
			err = fmt.Errorf("the guest's default routes:\n%s", out)
		}
		return err
	})
}

// live goes with a client from its first prefix, which it gives a hint for, to its
// last message.
func (c client6pd) live(t *testing.T) {
	l, r := newLab6(t, nil), table6.row(t, c.row)
	p := c.start(l, hint)
	r.shows(iana, "/128", func() { l.has(show6, "inet6 "+first6+"/128...") })
	r.shows(slaac, "/64", func() { l.addressIn("eth0", advertised) })
	var d lease.Prefix
	r.shows(hinted, fmt.Sprintf("/%d", hint), func() { d = l.prefix(pool, hint) })
	r.check(leaseFile, func() { l.prefix(pool, hint) })
	r.check(delegated, func() { c.follow(l, d) })
	r.check(oneDefault, func() { l.oneDefaultRoute() })
	r.check(resolvers, func() { l.has(c.resolver[0], c.resolver[1:]...) })
	r.shows(linkMTU, mtu, func() { l.has("cat /proc/sys/net/ipv6/conf/eth0/mtu", mtu) })
	if !c.noRapid {
		r.check(rapid, func() { l.sees("dhcp6_rapid_reply", 0) })
	} else {
		l.never("dhcp6_rapid_reply")
	}
	r.check(rebooted, func() {
		off(l)
		l.guest.must("ip address flush dev lan0 scope global")
		l.ready()
		l.responder.kill(syscall.SIGKILL)
		l.serve()
		p = c.start(l, hint)
		l.has(show6, "inet6 "+first6+"/128...")
		if again := l.prefix(pool, hint); again.Prefix != d.Prefix {
			t.Errorf("%s before, %s after", d.Prefix, again.Prefix)
		}
		c.follow(l, d)
	})
	if c.settled != nil {
		c.settled(p)
	}
	if c.keeps {
		c.release(l, p)
		l.never("dhcp6_release")
		return
	}
	r.check(release, func() {
		c.release(l, p)
		l.sees("dhcp6_release", 0)
		until(t, func() error {
			kept, err := l.kept()
			if err == nil && len(kept) > 0 {
				err = fmt.Errorf("the lease file still has %+v", kept)
			}
			return err
		})
	})
}

// keep renews, and is renumbered when it rebinds.
func (c client6pd) keep(t *testing.T) {
	if c.preferred == 0 {
		c.preferred = 12
	}
	l := newLab6(t, func(n *responder.NIC) { n.V6.Preferred, n.V6.Valid = c.preferred, 10*c.preferred })
	r := table6.row(t, c.row)
	p := c.start(l, noHint)
	var d lease.Prefix
	r.shows(iapd, "/64", func() { d = l.prefix(pool, 64) })
	c.follow(l, d)
	r.check(renew, func() {
		l.sees("dhcp6_renew", 0)
		until(t, func() error {
			if now := l.prefix(pool, 64); now.Prefix != d.Prefix || now.Expires <= d.Expires {
				return fmt.Errorf("the lease file has %+v, had %+v", now, d)
			}
			return nil
		})
	})
	l.deaf()
	l.change(renumber)
	r.check(rebind, func() { l.sees("dhcp6_rebind", 0) })
	r.check(renumbered, func() {
		l.addressIn("eth0", nextOnLink)
		l.ages("eth0", advertised)
		c.follow(l, l.prefix(nextPool, 64))
		if c.aged != nil {
			c.aged(l, p, d.Prefix)
		} else {
			l.ages("lan0", d.Prefix)
		}
		l.oneDefaultRoute()
		l.has(show6, "inet6 "+first6+"/128...")
	})
}
