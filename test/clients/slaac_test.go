package clients

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
)

// onlyAdvertised is a guest without an address of its own and without a pool.
func onlyAdvertised(n *responder.NIC) {
	n.V6.Addrs = nil
	n.V6.Prefixes = responder.Prefixes{{Net: advertised, Mode: responder.ModeSLAAC}}
}

// follows is the prefix that comes after the advertised one.
func follows(n *responder.NIC) {
	renumber(n)
	n.V6.Prefixes = responder.Prefixes{n.V6.Prefixes[0], n.V6.Prefixes[2]}
}

// routeAdvertised routes the prefix to the guest, and what is in it to its MAC.
func (l *lab) routeAdvertised(p netip.Prefix, addrs ...netip.Addr) {
	l.t.Helper()
	l.host.must(fmt.Sprintf("ip -6 route replace %s dev br0 proto 32", p))
	for _, a := range addrs {
		l.host.must(fmt.Sprintf("ip neigh replace %s lladdr %s dev br0 nud permanent", a, guestMAC))
	}
}

// The kernel makes itself a stable and a private address in the prefix that is
// advertised, and those of the next prefix when it is renumbered.
func TestKernel(t *testing.T) {
	t.Parallel()
	l, r := newLab6(t, onlyAdvertised), table6.row(t, "Linux SLAAC")
	l.guest.must(`
		ip link set eth0 down
		echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr
		ip link set eth0 up
	`)
	l.ready()
	var stable, private netip.Addr
	own := func(p netip.Prefix) {
		until(t, func() error {
			addrs, lines, err := l.addresses6("eth0", p)
			stable, private = netip.Addr{}, netip.Addr{}
			for i, line := range lines {
				switch {
				case strings.Contains(line, "tentative") || strings.Contains(line, "deprecated"):
				case strings.Contains(line, "temporary"):
					private = addrs[i]
				case strings.Contains(line, "mngtmpaddr"):
					stable = addrs[i]
				}
			}
			if err == nil && (!stable.IsValid() || !private.IsValid()) {
				err = fmt.Errorf("not both a stable and a private address of %s: %q", p, lines)
			}
			return err
		})
		l.routeAdvertised(p, stable, private)
		for _, from := range []netip.Addr{stable, private} {
			l.guest.must(fmt.Sprintf("busybox ping -6 -c 1 -W 5 -I %s %s", from, outside6))
		}
	}
	r.shows(slaac, "/64, private", func() {
		own(advertised)
		// Not on the link (L=0): the only way is by the gateway.
		l.lacks("ip -6 route show", advertised.String())
	})
	r.check(oneDefault, func() { l.oneDefaultRoute() })
	r.shows(linkMTU, mtu, func() { l.has("cat /proc/sys/net/ipv6/conf/eth0/mtu", mtu) })
	r.check(renumbered, func() {
		l.change(follows)
		own(nextOnLink)
		l.ages("eth0", advertised)
		l.oneDefaultRoute()
	})
}

// What is advertised, byte for byte, and who answers for which address.
func TestNDisc6(t *testing.T) {
	t.Parallel()
	need(t, "rdisc6", "ndisc6")
	l, r := newLab6(t, nil), table6.row(t, "rdisc6, ndisc6")
	shown := func(lines ...string) {
		l.has(`rdisc6 -1 eth0 | tr -s ' '`, lines...)
	}
	r.shows(slaac, "A, not L", func() {
		shown("Prefix : "+advertised.String(), "On-link : No", "Autonomous address conf.: Yes",
			"Valid time : 14400 (0x00003840) seconds", "Pref. time : 7200 (0x00001c20) seconds")
	})
	r.check(oneDefault, func() {
		shown("Hop limit : 64 ( 0x40)", "Stateful address conf. : Yes", "Stateful other conf. : Yes",
			"Router lifetime : 1800 (0x00000708) seconds", "from fe80::1", "Source link-layer address: "+strings.ToUpper(marks.GatewayMAC))
		// The gateway answers for itself.
		l.has("ndisc6 -q -1 fe80::1 eth0", strings.ToUpper(marks.GatewayMAC))
		// Nobody is there for what is the guest's own, or for no one's.
		for _, a := range []string{first6, advertised.Addr().Next().String(), "fe80::2"} {
			if out, err := l.guest.sh("ndisc6 -q -r 1 -w 300 " + a + " eth0"); err == nil {
				t.Errorf("somebody answers for %s: %s", a, out)
			}
		}
		// The guest can't take the gateway's address.
		l.guest.must("ip address add fe80::1/64 dev eth0")
		l.has("ip -6 -o address show dev eth0 dadfailed | grep -o 'inet6 fe80::1/'", "inet6 fe80::1/")
		l.guest.must("ip address del fe80::1/64 dev eth0")
	})
	r.check(resolvers, func() {
		shown("Recursive DNS server : 2620:fe::fe", "DNS search list : example.org eng.example.org")
	})
	r.shows(linkMTU, mtu, func() { shown("MTU : " + mtu + " bytes (valid)") })
	r.check(renumbered, func() {
		l.change(renumber)
		shown("Prefix : "+nextOnLink.String(), "Prefix : "+advertised.String(), "Pref. time : 0 (0x00000000) seconds")
	})
}
