package roles_test

import (
	"fmt"
	"strings"
	"testing"
)

const (
	world4, world6 = "203.0.113.99", "2001:db8:99::99"
	guest4, guest6 = "192.0.2.42", "2001:db8:1::42"
	other4, other6 = "192.0.2.43", "2001:db8:1::43"
)

// internet is a namespace with an address far away, and routes to the subnets by
// their router.
func internet(t *testing.T, router *space, wan string) *space {
	n := newSpace(t, "internet")
	cable(router, wan, n, "eth0")
	n.run(
		"ip address add 198.51.100.1/24 dev eth0", "ip -6 address add 2001:db8:ff::1/64 dev eth0 nodad",
		"ip address add "+world4+"/32 dev lo", "ip -6 address add "+world6+"/128 dev lo nodad",
		"ip route add 192.0.2.0/24 via 198.51.100.2", "ip -6 route add 2001:db8:1::/64 via 2001:db8:ff::2",
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
	)
	router.run(
		"ip address add 198.51.100.2/24 dev "+wan, "ip -6 address add 2001:db8:ff::2/64 dev "+wan+" nodad",
		"ip route add default via 198.51.100.1", "ip -6 route add default via 2001:db8:ff::1",
	)
	return n
}

// trap gives a host a default route in main that leads nowhere: what leaves by it is
// lost, and seen.
func trap(h *host) *space {
	m := newSpace(h.t, "mgmt-"+h.name)
	cable(h.space, "mgmt", m, "eth0")
	h.run(
		"ip address add 10.99.0.2/24 dev mgmt", "ip route add default via 10.99.0.1",
		"ip -6 address add 2001:db8:99ff::2/64 dev mgmt nodad", "ip -6 route add default via 2001:db8:99ff::1",
		"sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
	)
	m.run(
		"ip address add 10.99.0.1/24 dev eth0", "ip -6 address add 2001:db8:99ff::1/64 dev eth0 nodad",
		"nft add table inet seen", "nft add chain inet seen in { type filter hook prerouting priority -300 ; }",
		"nft add rule inet seen in ip daddr != 10.99.0.0/24 ip saddr != 10.99.0.2 counter",
		"nft add rule inet seen in ip6 daddr != 2001:db8:99ff::/64 ip6 daddr != fe80::/10 ip6 daddr != ff00::/8 counter",
	)
	return m
}

// caught checks that nothing left by main's default route.
func caught(m *space) {
	m.t.Helper()
	out := m.run("nft list table inet seen")
	if n := strings.Count(out, "counter packets 0 bytes 0"); n != 2 {
		m.t.Errorf("%s saw packets of guests:\n%s", m.name, out)
	}
}

// roleA is a host whose guests leave by a router on the VLAN.
func roleA(own int, router string, more string) string {
	return fmt.Sprintf(`
networks:
  public:
    uplink: vlan
    table: 222
    subnets: [192.0.2.0/24, 2001:db8:1::/64]
    router4: 192.0.2.1
    router6: %s
    addresses: [192.0.2.%d, 2001:db8:1::%d]
    proxy_arp: true
    proxy_ndp: true
    %s
`, router, own, own, more)
}

// roleBC is a host that is the router; with VMs or without.
const roleBC = `
networks:
  public:
    uplink: wan
    downlink: vlan
    table: %s
    subnets: [192.0.2.0/24, 2001:db8:1::/64]
    addresses: [192.0.2.1, 2001:db8:1::1]
    nat: all
    proxy_arp: true
    proxy_ndp: true
`

// everybody checks every way between two guests, their hosts, the router and the
// world, in both families. Within the network nobody is translated.
func everybody(h1, h2 *host, router *space, g1, g2, net *space) {
	h1.t.Helper()
	for _, a := range []struct{ world, own, other string }{{world4, guest4, other4}, {world6, guest6, other6}} {
		g1.reaches(a.world)
		g2.reaches(a.world)
		net.reaches(a.own) // from the world, and back by the way that it came
		net.reaches(a.other)
		g1.reaches(a.other) // the other host's
		g2.reaches(a.own)
		h1.reaches(a.own) // its own
		h1.reaches(a.other)
		h2.reaches(a.own)
		h2.reaches(a.other)
		router.reaches(a.own)
		router.reaches(a.other)
	}
	g1.reaches("169.254.0.1")
	g1.reaches("192.0.2.1")
	g2.reaches("2001:db8:1::1")
}

// sees checks the source that packets come from.
func sees(from, to *space, addr, source string) {
	to.t.Helper()
	kind, l4 := "ip", "icmp"
	if strings.Contains(addr, ":") {
		kind, l4 = "ip6", "ipv6-icmp"
	}
	to.run("nft add table inet saw", "nft add chain inet saw in { type filter hook input priority 0 ; }",
		"nft add rule inet saw in "+kind+" saddr "+source+" "+kind+" daddr "+addr+" meta l4proto "+l4+" counter")
	from.reaches(addr)
	if out := to.run("nft list table inet saw"); strings.Contains(out, "packets 0 ") {
		to.t.Errorf("%s did not see %s come from %s:\n%s", to.name, from.name, source, out)
	}
	to.run("nft delete table inet saw")
}

// TestRouterAndHosts: two hosts of role a, and a router of role b, which has no VM.
func TestRouterAndHosts(t *testing.T) {
	for _, table := range []string{"main", "91"} {
		t.Run(table, func(t *testing.T) {
			sw := lan(t)
			r := newHost(t, "router", fmt.Sprintf(roleBC, table))
			h1 := newHost(t, "host1", roleA(11, "2001:db8:1::1", ""))
			h2 := newHost(t, "host2", roleA(12, "2001:db8:1::1", ""))
			for _, h := range []*host{r, h1, h2} {
				sw.plug(h.space, "vlan")
			}
			var net, outside *space
			if table == "main" {
				net = internet(t, r.space, "wan")
			} else {
				// The way out is not the router's own, which leads nowhere.
				net = internet(t, r.space, "wan")
				r.run("ip route del default", "ip -6 route del default",
					"ip route add default via 198.51.100.1 dev wan metric 9000", "ip -6 route add default via 2001:db8:ff::1 dev wan metric 9000")
				outside = trap(r)
			}
			m1, m2 := trap(h1), trap(h2)
			r.pass()
			g1, g2 := h1.guest("g1", guest4, guest6), h2.guest("g2", other4, other6)

			everybody(h1, h2, r.space, g1, g2, net)
			sees(g1, net, world4, "198.51.100.2")
			sees(g1, g2, other4, guest4)
			sees(g1, g2, other6, guest6)
			if out := h2.run("ip neigh show 192.0.2.1 dev vlan"); !strings.Contains(out, "lladdr") {
				t.Errorf("host2 does not know its router: %q", out)
			}

			// Agents that start again find all as it should be, and so does the traffic.
			for _, h := range []*host{r, h1, h2} {
				h.settled()
			}
			everybody(h1, h2, r.space, g1, g2, net)

			// So does all of it that is made again, as after a reboot.
			for _, h := range []*host{r, h1, h2} {
				h.wiped()
			}
			everybody(h1, h2, r.space, g1, g2, net)
			caught(m1)
			caught(m2)
			if outside != nil {
				caught(outside)
			}

			// A VM that goes is answered for no longer; the router stays as it is.
			h2.vms = nil
			h2.pass()
			g1.misses(other4)
			g1.misses(other6)
			g1.reaches(world4)
			g1.reaches(world6)

			// Without its uplink the guest hears so. It never leaves by main.
			h1.run("ip link set vlan down")
			h1.pass()
			for _, addr := range []string{world4, world6} {
				if out, err := g1.try("ping " + family(addr) + " -n -c 1 -W 2 " + addr); err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
					t.Errorf("without an uplink, %s: %s", addr, out)
				}
			}
			caught(m1)
			h1.run("ip link set vlan up")
			h1.pass()
			g1.reaches(world4)
			g1.reaches(world6)
			caught(m1)
		})
	}
}

// TestRouterWithVMs: a host of role c, and one of role a behind it.
func TestRouterWithVMs(t *testing.T) {
	for _, table := range []string{"main", "91"} {
		t.Run(table, func(t *testing.T) {
			sw := lan(t)
			h1 := newHost(t, "host1", fmt.Sprintf(roleBC, table))
			h2 := newHost(t, "host2", roleA(12, "2001:db8:1::1", ""))
			sw.plug(h1.space, "vlan")
			sw.plug(h2.space, "vlan")
			net := internet(t, h1.space, "wan")
			m2 := trap(h2)
			g1, g2 := h1.guest("g1", guest4, guest6), h2.guest("g2", other4, other6)
			everybody(h1, h2, h1.space, g1, g2, net)
			sees(g1, net, world4, "198.51.100.2")
			sees(g2, net, world4, "198.51.100.2")
			sees(g1, g2, other4, guest4)
			h1.settled()
			h2.settled()
			everybody(h1, h2, h1.space, g1, g2, net)
			caught(m2)
		})
	}
}

// TestIsolated: guests of one network do not reach each other, on one host or over
// the link; they reach the world, and their hosts reach them.
func TestIsolated(t *testing.T) {
	sw := lan(t)
	r := newHost(t, "router", fmt.Sprintf(roleBC, "main"))
	h1 := newHost(t, "host1", roleA(11, "2001:db8:1::1", "isolate: true"))
	h2 := newHost(t, "host2", roleA(12, "2001:db8:1::1", ""))
	for _, h := range []*host{r, h1, h2} {
		sw.plug(h.space, "vlan")
	}
	net := internet(t, r.space, "wan")
	r.pass()
	g1, g2 := h1.guest("g1", guest4, guest6), h2.guest("g2", other4, other6)
	g3 := h1.guest("g3", "192.0.2.44", "2001:db8:1::44")
	for _, x := range []struct {
		from  *space
		addrs []string
	}{
		{g1, []string{world4, world6, guest4, guest6}}, {g2, []string{world4, world6}}, {g3, []string{world4, world6}},
		{net, []string{guest4, guest6, other4, other6}}, {h1.space, []string{guest4, guest6}},
	} {
		for _, a := range x.addrs {
			x.from.reaches(a)
		}
	}
	for _, x := range []struct {
		from  *space
		addrs []string
	}{
		{g1, []string{"192.0.2.44", "2001:db8:1::44", other4, other6}},
		{g3, []string{guest4, guest6}},
		{g2, []string{guest4, guest6}}, // its own host does not keep it from that
	} {
		for _, a := range x.addrs {
			x.from.misses(a)
		}
	}
}

// TestNeighbours: what a host says on its uplink. It asks with its own address there,
// and answers for its guests and for nothing else of its own.
func TestNeighbours(t *testing.T) {
	sw := lan(t)
	h := newHost(t, "host1", roleA(11, "2001:db8:1::1", ""))
	sw.plug(h.space, "vlan")
	trap(h)
	n := newSpace(t, "neighbour")
	sw.plug(n, "eth0")
	n.run("ip address add 192.0.2.1/24 dev eth0", "ip -6 address add 2001:db8:1::1/64 dev eth0 nodad",
		"ip route add 10.99.0.0/24 dev eth0", "ip route add 169.254.0.1 dev eth0")
	g := h.guest("g1", guest4, guest6)
	n.reaches(guest4)
	n.reaches(guest6)
	g.reaches("192.0.2.1")
	for addr, answers := range map[string]bool{guest4: true, "192.0.2.11": true, "10.99.0.2": false, "169.254.0.1": false, other4: false} {
		out, _ := n.try("arping -c 2 -w 2 -I eth0 " + addr)
		if got := !strings.Contains(out, "Received 0 response(s)"); got != answers {
			t.Errorf("the host answers ARP for %s: %v, want %v: %s", addr, got, answers, out)
		}
	}
	// The host's questions come from its address on the link, not from that of
	// another interface, though it forwards for a guest or sends by that itself.
	n.run("ip neigh flush dev eth0")
	h.run("ip neigh flush dev vlan")
	n.run("nft add table arp asked", "nft add chain arp asked in { type filter hook input priority 0 ; }",
		"nft add rule arp asked in arp operation request arp saddr ip 192.0.2.11 arp daddr ip 192.0.2.1 counter",
		"nft add rule arp asked in arp operation request arp saddr ip != 192.0.2.11 arp daddr ip 192.0.2.1 counter")
	g.reaches("192.0.2.1")
	h.run("ip neigh flush dev vlan")
	_, _ = h.try("ping -n -c 1 -W 1 -I 10.99.0.2 192.0.2.1") // the answer finds nobody, as is right
	out := n.run("nft list table arp asked")
	if strings.Count(out, "packets 0 bytes 0") != 1 || !strings.Contains(out, "arp saddr ip != 192.0.2.11 arp daddr ip 192.0.2.1 counter packets 0 ") {
		t.Errorf("the host asked with another address:\n%s", out)
	}
}

// TestTranslatedOutside: a host that translates what leaves by the uplink does not
// translate what stays in the network, though it leaves by the uplink as well. The
// router translates what another host's guest sends to the world to a given address.
func TestTranslatedOutside(t *testing.T) {
	sw := lan(t)
	r := newHost(t, "router", strings.Replace(fmt.Sprintf(roleBC, "main"), "nat: all", "nat: snat 198.51.100.99 2001:db8:ff::99", 1))
	h1 := newHost(t, "host1", roleA(11, "2001:db8:1::1", "nat: all"))
	h2 := newHost(t, "host2", roleA(12, "2001:db8:1::1", ""))
	for _, h := range []*host{r, h1, h2} {
		sw.plug(h.space, "vlan")
	}
	net := internet(t, r.space, "wan")
	r.run("ip address add 198.51.100.99/32 dev wan", "ip -6 address add 2001:db8:ff::99/128 dev wan nodad")
	r.pass()
	g1, g2 := h1.guest("g1", guest4, guest6), h2.guest("g2", other4, other6)
	sees(g1, g2, other4, guest4)
	sees(g1, g2, other6, guest6)
	sees(g2, net, world4, "198.51.100.99")
	sees(g2, net, world6, "2001:db8:ff::99")
	r.run("nft add table inet saw", "nft add chain inet saw in { type filter hook forward priority 0 ; }",
		"nft add rule inet saw in ip saddr 192.0.2.11 ip daddr "+world4+" counter",
		"nft add rule inet saw in ip6 saddr 2001:db8:1::11 ip6 daddr "+world6+" counter")
	g1.reaches(world4)
	g1.reaches(world6)
	if out := r.run("nft list table inet saw"); strings.Contains(out, "packets 0 ") {
		t.Errorf("the router did not see host1's own address:\n%s", out)
	}
}
