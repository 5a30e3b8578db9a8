package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/traffic"
)

// What one feature does to another. Guests reach nothing of the host itself here,
// as is the default.

const (
	own4, own6   = "10.1.0.", "2001:db8::" // of a guest, by its number
	gateway4     = "169.254.0.1"
	fragmented   = 3000 // bytes of a datagram that is sent in fragments
	inboxPort    = 7000
	servicePort  = 22
	forwardPort  = 8022 // to servicePort
	forwardInbox = 9000 // to inboxPort
)

func ports() []annotation.Forward { return translated()[0].NICs[0].Forwards[:2] }

// combine plans the VMs, with the networks as they are edited, and makes it so.
func (l natLab) combine(edit func(*config.Config), vms ...func(*intent.NIC)) {
	l.host.t.Helper()
	c := hostConfig()
	edit(&c)
	list := vmsOf(c)
	for i, f := range vms {
		if f != nil {
			f(&list[i].NICs[0])
		}
	}
	f, err := l.k.Facts(context.Background(), plan.Interfaces(c)...)
	if err != nil {
		l.host.t.Fatal(err)
	}
	converge(l.host.t, l.k, plan.Build(list, c, f).State)
}

func vmsOf(c config.Config) []intent.VM {
	list := withTaps(vms(3))
	for i := range list {
		n := &list[i].NICs[0]
		n.Network = c.Networks[n.Network.Name]
		n.NAT, n.SNAT = n.Network.NAT, n.Network.SNAT
	}
	return list
}

// main edits the network whose VMs are in main.
func main(edit func(*config.Network)) func(*config.Config) {
	return func(c *config.Config) {
		n := c.Networks["default"]
		edit(&n)
		c.Networks["default"] = n
	}
}

// networks edits both networks.
func networks(edit func(*config.Network)) func(*config.Config) {
	return func(c *config.Config) {
		for name, n := range c.Networks {
			edit(&n)
			c.Networks[name] = n
		}
	}
}

// gets checks what the machine gets as answer by TCP, by UDP, and by UDP in
// fragments.
func (m machine) gets(to, want string) {
	m.t.Helper()
	m.asks("tcp", "", to, want)
	m.asks("udp", "", to, want)
	c, err := m.dial("udp", "", to)
	if err != nil {
		m.t.Errorf("%s in fragments to %s: %v", m.name, to, err)
		return
	}
	b := make([]byte, 2*fragmented)
	n, err := c.Write(b[:fragmented])
	if err == nil {
		n, err = c.Read(b)
	}
	if got := strings.TrimRight(string(b[:n]), " "); err != nil || got != want || n != fragmented {
		m.t.Errorf("%s in fragments to %s: %q, %d bytes, %v; want %q", m.name, to, got, n, err, want)
	}
}

// inbox is what comes by UDP on a port: "text from address".
func (m machine) inbox(port int) <-chan string {
	m.t.Helper()
	var p net.PacketConn
	if err := m.inside(func() (err error) {
		p, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		m.t.Fatalf("%s: %v", m.name, err)
	}
	m.t.Cleanup(func() { _ = p.Close() })
	out := make(chan string, 100)
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			text, _, _ := strings.Cut(string(b[:n]), " ")
			select {
			case out <- text + " from " + netip.MustParseAddrPort(from.String()).Addr().Unmap().String():
			default:
			}
		}
	}()
	return out
}

// says sends a datagram, and one in fragments.
func (m machine) says(from, to, text string) {
	m.t.Helper()
	for _, size := range []int{0, fragmented} {
		c, err := m.dial("udp", from, to)
		if err == nil {
			_, err = fmt.Fprintf(c, "%-*s", size, text+" ")
		}
		if err != nil {
			m.t.Fatalf("%s to %s: %v", m.name, to, err)
		}
	}
}

// silence checks that nothing of what one machine sends to some addresses comes to an
// inbox, where good, from and to which something comes, follows it. by is the next
// hop of the first, whose echo says that it has dealt with what was sent.
func silence(t *testing.T, from machine, src, by string, box <-chan string, good machine, goodTo string, to ...string) {
	t.Helper()
	for _, a := range to {
		from.says(src, a, "bad")
	}
	from.run("ping -c 1 -W 20 " + by)
	good.says("", goodTo, "good")
	for range 2 {
		select {
		case got := <-box:
			if !strings.HasPrefix(got, "good ") {
				t.Errorf("%s to %v: %q came through", from.name, to, got)
			}
		case <-time.After(patience):
			t.Fatalf("%s to %s: nothing comes through", good.name, goodTo)
		}
	}
}

// TestIsolatedAndTranslated: isolation is stronger than ports that are forwarded and
// addresses that stand for a guest's: other guests do not get in by them. All
// others do.
func TestIsolatedAndTranslated(t *testing.T) {
	l := newNATLab(t)
	l.inet.serve(9)
	bridgeNF(t, 1)
	l.combine(main(func(n *config.Network) { n.Isolate = true }),
		func(n *intent.NIC) { n.Forwards = ports() },
		func(n *intent.NIC) {
			n.Public = []netip.Addr{netip.MustParseAddr(public4), netip.MustParseAddr(public6)}
		},
	)
	for _, g := range l.guest {
		g.serve(servicePort)
	}
	for _, x := range []struct {
		from         machine
		to4, to6     string
		name         string
		want4, want6 string
		port         int
	}{
		{from: l.inet, to4: host4, to6: host6, port: forwardPort, name: "vm0", want4: inet4, want6: inet6},
		{from: l.host, to4: host4, to6: host6, port: forwardPort, name: "vm0", want4: host4, want6: host6},
		{from: l.guest[0], to4: host4, to6: host6, port: forwardPort, name: "vm0", want4: gateway4, want6: host6},
		{from: l.inet, to4: public4, to6: public6, port: servicePort, name: "vm1", want4: inet4, want6: inet6},
		{from: l.guest[1], to4: public4, to6: public6, port: servicePort, name: "vm1", want4: gateway4, want6: host6},
		{from: l.host, to4: own4 + "0", to6: own6, port: servicePort, name: "vm0", want4: gateway4, want6: host6},
	} {
		x.from.gets(at(x.to4, x.port), fmt.Sprintf("%s:%d from %s", x.name, servicePort, x.want4))
		x.from.gets(at(x.to6, x.port), fmt.Sprintf("%s:%d from %s", x.name, servicePort, x.want6))
	}
	l.guest[1].gets(at(inet4, 9), "inet:9 from "+public4)
	l.guest[1].gets(at(inet6, 9), "inet:9 from "+public6)
	l.guest[2].gets(at(inet4, 9), "inet:9 from "+host4)
	box := []<-chan string{l.guest[0].inbox(inboxPort), l.guest[1].inbox(inboxPort), l.guest[2].inbox(inboxPort)}
	forwarded := []string{at(host4, forwardInbox), at(host6, forwardInbox), at(own4+"0", inboxPort), at(own6, inboxPort)}
	public := []string{at(public4, inboxPort), at(public6, inboxPort), at(own4+"1", inboxPort), at(own6+"1", inboxPort)}
	good := func(i int) string { return at(own4+fmt.Sprint(i), inboxPort) }
	silence(t, l.guest[1], "", gateway4, box[0], l.host, good(0), forwarded...)
	silence(t, l.guest[2], "", gateway4, box[0], l.host, good(0), forwarded...)
	silence(t, l.guest[0], "", gateway4, box[1], l.host, good(1), public...)
	silence(t, l.guest[2], "", gateway4, box[1], l.host, good(1), public...)
	silence(t, l.guest[0], "", gateway4, box[2], l.host, good(2), at(own4+"2", inboxPort), at(own6+"2", inboxPort))
	for link, want := range map[string]uint64{"s32-vm0": 20, "s32-vm1": 16, "s32-vm2": 0} { // the third is not isolated itself
		if got := spoofed(t, l.k, link).Apart; got != want {
			t.Errorf("%d packets of %s counted as kept apart, want %d", got, link, want)
		}
	}
}

// TestUntrackedAndTheHost: guests that are not tracked, one of them in a table of its
// own, and one that ports are forwarded to. The host's own connections to all of them
// are answered, though none reaches a service of the host's; and each works beside
// isolation.
func TestUntrackedAndTheHost(t *testing.T) {
	l := newNATLab(t)
	l.reachable()
	plan := func(isolate bool) {
		t.Helper()
		l.combine(networks(func(n *config.Network) {
			n.NAT, n.NoTrack, n.Uplink, n.Isolate = config.NATNone, true, "wan0", isolate
		}), func(n *intent.NIC) { n.Forwards = ports() })
	}
	l.inet.serve(9)
	l.host.serve(9)
	for _, g := range l.guest {
		g.serve(servicePort)
	}
	box := l.guest[2].inbox(inboxPort)
	plan(false)
	run(t, "conntrack -F")
	for i, n := range []string{"0", "1", "2"} {
		six := own6 + strings.TrimPrefix(n, "0")
		name := fmt.Sprintf("vm%s:%d from ", n, servicePort)
		l.inet.gets(at(own4+n, servicePort), name+inet4)
		l.inet.gets(at(six, servicePort), name+inet6)
		l.guest[i].gets(at(inet4, 9), "inet:9 from "+own4+n)
		l.guest[i].gets(at(inet6, 9), "inet:9 from "+six)
	}
	for _, words := range []string{"-L -s 10.1.0.1", "-L -s 10.1.0.2", "-L -d 10.1.0.1", "-L -d 10.1.0.2", "-L -f ipv6 -s 2001:db8::1", "-L -f ipv6 -d 2001:db8::2"} {
		if out := run(t, "conntrack "+words); out != "" {
			t.Errorf("tracked:\n%s", out)
		}
	}
	for _, isolate := range []bool{false, true} {
		plan(isolate)
		for _, n := range []string{"0", "1", "2"} {
			name := fmt.Sprintf("vm%s:%d from ", n, servicePort)
			l.host.gets(at(own4+n, servicePort), name+gateway4)
			l.host.gets(at(own6+strings.TrimPrefix(n, "0"), servicePort), name+host6)
		}
		l.inet.gets(at(host4, forwardPort), "vm0:22 from "+inet4)
		l.inet.gets(at(host6, forwardPort), "vm0:22 from "+inet6)
		l.inet.gets(at(own4+"2", servicePort), "vm2:22 from "+inet4)
		l.guest[1].gets(at(inet6, 9), "inet:9 from "+own6+"1")
		if !isolate {
			l.guest[1].gets(at(host4, forwardPort), "vm0:22 from "+own4+"1")
			l.guest[2].gets(at(host6, forwardPort), "vm0:22 from "+own6+"2")
			l.guest[1].gets(at(own4+"2", servicePort), "vm2:22 from "+own4+"1")
		} else {
			silence(t, l.guest[1], "", gateway4, box, l.host, at(own4+"2", inboxPort), at(own4+"2", inboxPort), at(own6+"2", inboxPort))
		}
	}
	before := spoofed(t, l.k, "s32-vm1").Closed
	l.guest[1].says("", at(host4, 9), "bad")
	l.guest[1].says("", at(host6, 9), "bad")
	l.guest[1].run("ping -c 1 -W 20 " + gateway4)
	if got := spoofed(t, l.k, "s32-vm1").Closed - before; got != 4 {
		t.Errorf("%d packets for services of the host counted as closed, want 4", got)
	}
}

// TestErrorsForIsolated: a guest that is kept from the router's own addresses hears
// from it what its connections to others come to, tracked or not: the MTU of the path
// goes by that.
func TestErrorsForIsolated(t *testing.T) {
	l := newNATLab(t)
	l.reachable()
	for _, line := range []string{
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0",
		"ip route add 198.18.0.0/15 dev eth0",
		"ip -6 route add 2001:db8:cafe::/48 dev eth0",
		"nft add table inet far",
		"nft add chain inet far forward { type filter hook forward priority 0 ; }",
		"nft add rule inet far forward meta nfproto ipv4 reject with icmp type admin-prohibited",
		"nft add rule inet far forward meta nfproto ipv6 reject with icmpv6 type admin-prohibited",
	} {
		l.inet.run(line)
	}
	box := l.guest[1].inbox(inboxPort)
	for _, notrack := range []bool{false, true} {
		l.combine(main(func(n *config.Network) {
			n.NAT, n.NoTrack, n.Uplink, n.Isolate = config.NATNone, notrack, "wan0", true
			n.Subnets = netips("10.1.0.0/24 192.0.2.0/24 2001:db8::/64 2001:db8:ffff::/64")
		}))
		l.guest[1].refused("udp", at("198.18.0.1", 9))
		l.guest[1].refused("udp", at("2001:db8:cafe::1", 9))
		silence(t, l.inet, "", host4, box, l.host, at(own4+"1", inboxPort), at(own4+"1", inboxPort), at(own6+"1", inboxPort))
	}
}

// TestIsolatedBySubnets: what an isolated guest has beyond its network's subnets, a
// second address or a prefix behind it, is kept from their members, too.
func TestIsolatedBySubnets(t *testing.T) {
	l := newNATLab(t)
	for _, line := range []string{"ip route add 10.99.0.0/24 via 192.0.2.10", "ip -6 route add 2001:db8:a0::/60 via 2001:db8:ffff::10", "ip address add 198.18.0.1/32 dev lo"} {
		l.inet.run(line)
	}
	l.reachable()
	l.inet.serve(9)
	l.combine(main(func(n *config.Network) {
		n.Uplink, n.Isolate = "wan0", true
		n.Subnets = netips("10.1.0.0/24 192.0.2.0/24 2001:db8::/64 2001:db8:ffff::/64")
	}), func(n *intent.NIC) {
		n.NAT = config.NATNone
		n.Addrs4 = append(n.Addrs4, netip.MustParseAddr("10.99.0.7"))
		n.Delegated = []intent.Delegation{{Prefix: netip.MustParsePrefix("2001:db8:a0::/60"), Via: n.MAC.LinkLocal()}}
	})
	l.guest[0].run("ip address add 10.99.0.7/32 dev eth0")
	l.guest[0].run("ip -6 address add 2001:db8:a0:5::7/128 dev eth0 nodad")
	l.guest[0].asks("tcp", "10.99.0.7", at("198.18.0.1", 9), "inet:9 from 10.99.0.7") // no member
	box := l.inet.inbox(inboxPort)
	for _, x := range []struct{ src, to string }{{own4 + "0", inet4}, {"10.99.0.7", inet4}, {own6, inet6}, {"2001:db8:a0:5::7", inet6}} {
		silence(t, l.guest[0], x.src, gateway4, box, l.host, at(inet4, inboxPort), at(x.to, inboxPort))
	}
	// One plain and one that came in fragments each.
	if got := spoofed(t, l.k, "s32-vm0").Apart; got != 8 {
		t.Errorf("%d packets of the guest counted as kept apart, want 8", got)
	}
	own := l.guest[0].inbox(inboxPort)
	silence(t, l.inet, "", host4, own, l.host, at(own4+"0", inboxPort), at("10.99.0.7", inboxPort), at("2001:db8:a0:5::7", inboxPort), at(own4+"0", inboxPort), at(own6, inboxPort))
	if got := spoofed(t, l.k, "s32-vm0").Apart; got != 16 {
		t.Errorf("with those to the guest %d packets counted as kept apart, want 16", got)
	}
}

// TestLimitAndForward: connections by a forwarded port count as those to the guest.
func TestLimitAndForward(t *testing.T) {
	l := newNATLab(t)
	l.combine(networks(func(n *config.Network) { n.MaxConns = 3 }), func(n *intent.NIC) { n.Forwards = ports() })
	l.guest[0].serve(servicePort)
	const answer = "vm0:22 from " + inet4
	var open []net.Conn
	for range 3 {
		open = append(open, l.inet.asks("udp", "", at(host4, forwardPort), answer))
	}
	if t.Failed() {
		return
	}
	fourth, err := l.inet.dial("udp", "", at(host4, forwardPort))
	if err == nil {
		_, err = fourth.Write([]byte("?"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range open {
		if got, err := exchange(c); err != nil || got != answer {
			t.Errorf("one that was open: %q, %v", got, err)
		}
	}
	if out := run(t, "nft list set inet slash32 limit_to"); !strings.Contains(out, `"s32-vm0" ct count over 3 counter packets 1 `) {
		t.Errorf("the fourth was not refused: %s", out)
	}
	l.host.gets(at(host4, forwardPort), "vm0:22 from "+host4) // is not forwarded
	run(t, fmt.Sprintf("conntrack -D -p udp --sport %d --dport %d", open[0].LocalAddr().(*net.UDPAddr).Port, forwardPort))
	l.inet.asks("udp", "", at(host4, forwardPort), answer)
}

// TestSubnetsAndForward: guests of other hosts behind a downlink are translated to the
// network's address, and reach a forwarded port as who they are.
func TestSubnetsAndForward(t *testing.T) {
	l := newNATLab(t)
	run(t, "sysctl -qw net.ipv6.conf.default.accept_dad=0")
	far := newMachine(t, "far", "wan2")
	bridgeNF(t, 1)
	for _, line := range []string{
		"ip link set eth0 up", "ip address add 10.1.0.77/24 dev eth0", "ip -6 address add 2001:db8::77/64 dev eth0 nodad",
	} {
		far.run(line)
	}
	l.combine(main(func(n *config.Network) {
		n.Uplink, n.Downlink, n.Subnets, n.ProxyARP, n.ProxyNDP = "wan0", "wan2", netips("10.1.0.0/24 2001:db8::/64"), true, true
		n.Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.254"), netip.MustParseAddr("2001:db8::fe")}
		n.NAT, n.SNAT = config.NATSource, []netip.Addr{netip.MustParseAddr(snat4), netip.MustParseAddr(snat6)}
	}), func(n *intent.NIC) { n.Forwards = ports() })
	far.run("ip route add default via 10.1.0.254")
	far.run("ip -6 route add default via 2001:db8::fe")
	waitUp(t, "wan2")
	l.inet.serve(9)
	l.guest[0].serve(servicePort)
	l.guest[1].serve(servicePort)
	for _, x := range []struct {
		from         machine
		to4, to6     string
		port         int
		want4, want6 string
	}{
		{far, inet4, inet6, 9, "inet:9 from " + snat4, "inet:9 from " + snat6},
		{far, host4, host6, forwardPort, "vm0:22 from 10.1.0.77", "vm0:22 from 2001:db8::77"},
		{far, own4 + "1", own6 + "1", servicePort, "vm1:22 from 10.1.0.77", "vm1:22 from 2001:db8::77"},
		{l.inet, host4, host6, forwardPort, "vm0:22 from " + inet4, "vm0:22 from " + inet6},
		{l.guest[0], inet4, inet6, 9, "inet:9 from " + snat4, "inet:9 from " + snat6},
		{l.guest[0], host4, host6, forwardPort, "vm0:22 from " + gateway4, "vm0:22 from 2001:db8::fe"}, // the host's nearest
		{l.guest[1], host4, host6, forwardPort, "vm0:22 from " + own4 + "1", "vm0:22 from " + own6 + "1"},
		{l.guest[2], host4, host6, forwardPort, "vm0:22 from " + own4 + "2", "vm0:22 from " + own6 + "2"},
		{l.host, host4, host6, forwardPort, "vm0:22 from " + host4, "vm0:22 from " + host6},
	} {
		x.from.gets(at(x.to4, x.port), x.want4)
		x.from.gets(at(x.to6, x.port), x.want6)
	}
}

// TestTableAndForward: a guest in a table of its own answers by that table, to
// whichever of the host's addresses a connection came; the host and other guests reach
// it by all of them.
func TestTableAndForward(t *testing.T) {
	l := newNATLab(t)
	run(t, "sysctl -qw net.ipv6.conf.default.accept_dad=0")
	inet2 := newMachine(t, "inet2", "wan2")
	bridgeNF(t, 1)
	for _, line := range []string{"ip link set eth0 up", "ip address add 198.51.100.1/24 dev eth0", "ip -6 address add 2001:db8:2::1/64 dev eth0 nodad"} {
		inet2.run(line)
	}
	for _, line := range []string{
		"ip route del default table 100", "ip -6 route del default table 100",
		"ip address add 198.51.100.2/24 dev wan2", "ip -6 address add 2001:db8:2::2/64 dev wan2 nodad",
	} {
		run(t, line)
	}
	waitUp(t, "wan2")
	l.combine(func(c *config.Config) {
		n := c.Networks["other"]
		n.Uplink, n.Router4, n.Router6 = "wan2", netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:2::1")
		c.Networks["other"] = n
	}, func(n *intent.NIC) {
		// Of the network on the other one's uplink, and yet a guest of this host's.
		n.Addrs4 = append(n.Addrs4, netip.MustParseAddr("198.51.100.77"))
		n.Addrs6 = append(n.Addrs6, netip.MustParseAddr("2001:db8:2::77"))
	}, nil, func(n *intent.NIC) { n.Forwards = ports() })
	l.guest[0].run("ip address add 198.51.100.77/32 dev eth0")
	l.guest[0].run("ip -6 address add 2001:db8:2::77/128 dev eth0 nodad preferred_lft 0")
	l.guest[0].serve(servicePort)
	l.guest[2].asks("tcp", "", at("198.51.100.77", servicePort), "vm0:22 from "+own4+"2")
	l.guest[1].asks("tcp", "", at("198.51.100.77", servicePort), "vm0:22 from "+own4+"1")
	l.guest[1].asks("tcp", "", at("2001:db8:2::77", servicePort), "vm0:22 from "+own6+"1")
	l.guest[2].serve(servicePort)
	const second4, second6 = "198.51.100.2", "2001:db8:2::2"
	inet2.gets(at(second4, forwardPort), "vm2:22 from 198.51.100.1")
	inet2.gets(at(second6, forwardPort), "vm2:22 from 2001:db8:2::1")
	for _, a := range []string{host4, second4} {
		l.host.gets(at(a, forwardPort), "vm2:22 from "+a)
		l.guest[0].gets(at(a, forwardPort), "vm2:22 from "+own4+"0")
		l.guest[2].gets(at(a, forwardPort), "vm2:22 from "+gateway4)
	}
	l.guest[0].gets(at(host6, forwardPort), "vm2:22 from "+own6)
	l.guest[0].gets(at(second6, forwardPort), "vm2:22 from "+own6)
	// By main's uplink it gets in, and the answer takes the other way: the address to
	// give out is the one of the table's uplink.
	box := l.guest[2].inbox(inboxPort)
	l.inet.says("", at(host4, forwardInbox), "good")
	select {
	case got := <-box:
		if got != "good from "+inet4 {
			t.Errorf("by main's uplink: %q", got)
		}
	case <-time.After(patience):
		t.Error("nothing comes in by main's uplink")
	}
}

// TestTrafficOfTranslated: the other end's own address says in which class a packet
// is counted, whatever the guest sees of it, and so it is the same both ways.
func TestTrafficOfTranslated(t *testing.T) {
	l := newNATLab(t)
	bridgeNF(t, 1)
	l.inet.serve(9)
	l.combine(func(c *config.Config) { c.LocalPrefixes = netips("10.0.0.0/8 2001:db8::/64") },
		func(n *intent.NIC) { n.Forwards = ports() },
		func(n *intent.NIC) {
			n.Public = []netip.Addr{netip.MustParseAddr(public4), netip.MustParseAddr(public6)}
		},
		func(n *intent.NIC) {
			n.NAT, n.SNAT = config.NATSource, []netip.Addr{netip.MustParseAddr(snat4), netip.MustParseAddr(snat6)}
			n.Network.Uplink = "wan0"
		})
	l.guest[0].serve(servicePort)
	l.guest[1].serve(servicePort)
	packets := func() (n [3][4]int) {
		t.Helper()
		all, err := l.k.Traffic(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			x := all[fmt.Sprintf("s32-vm%d", i)]
			for c := range n[i] {
				n[i][c] = int(x.Count(traffic.Counter(c)).Packets)
			}
		}
		return n
	}
	type counts = [3][4]int // by guest: from internet, from local, to internet, to local
	for _, x := range []struct {
		name     string
		from     machine
		to, want string
		counted  counts
	}{
		{"from the internet by a port", l.inet, at(host4, forwardPort), "vm0:22 from " + inet4, counts{0: {1, 0, 1, 0}}},
		{"the same, IPv6", l.inet, at(host6, forwardPort), "vm0:22 from " + inet6, counts{0: {1, 0, 1, 0}}},
		{"from another guest by a port", l.guest[1], at(host4, forwardPort), "vm0:22 from " + own4 + "1", counts{{0, 1, 0, 1}, {0, 1, 0, 1}}},
		{"the same, IPv6", l.guest[1], at(host6, forwardPort), "vm0:22 from " + own6 + "1", counts{{0, 1, 0, 1}, {0, 1, 0, 1}}},
		{"from itself by a port", l.guest[0], at(host4, forwardPort), "vm0:22 from " + gateway4, counts{{0, 2, 0, 2}}},
		{"from the internet to a public address", l.inet, at(public4, servicePort), "vm1:22 from " + inet4, counts{1: {1, 0, 1, 0}}},
		{"from another guest to one", l.guest[0], at(public4, servicePort), "vm1:22 from " + own4 + "0", counts{{0, 1, 0, 1}, {0, 1, 0, 1}}},
		{"to the internet from one", l.guest[1], at(inet4, 9), "inet:9 from " + public4, counts{1: {1, 0, 1, 0}}},
		{"to the internet, masqueraded", l.guest[0], at(inet4, 9), "inet:9 from " + host4, counts{0: {1, 0, 1, 0}}},
		{"to the internet from a given address", l.guest[2], at(inet4, 9), "inet:9 from " + snat4, counts{2: {1, 0, 1, 0}}},
		{"from the host by a port", l.host, at(host4, forwardPort), "vm0:22 from " + host4, counts{}},
	} {
		before := packets()
		x.from.asks("udp", "", x.to, x.want)
		after := packets()
		for i := range after {
			for c := range after[i] {
				after[i][c] -= before[i][c]
			}
		}
		if after != x.counted {
			t.Errorf("%s: counted %v, want %v", x.name, after, x.counted)
		}
	}
}

// TestGuardOfPublicAddress: an address that stands for a guest's is nobody's to send
// from, not even that guest's.
func TestGuardOfPublicAddress(t *testing.T) {
	l := newNATLab(t)
	box := l.inet.inbox(inboxPort)
	for i := range 2 {
		l.guest[i].run("ip address add " + public4 + "/32 dev eth0")
		l.guest[i].run("ip -6 address add " + public6 + "/128 dev eth0 nodad")
		before := spoofed(t, l.k, fmt.Sprintf("s32-vm%d", i))
		silence(t, l.guest[i], public4, gateway4, box, l.host, at(inet4, inboxPort), at(inet4, inboxPort))
		silence(t, l.guest[i], public6, gateway4, box, l.host, at(inet4, inboxPort), at(inet6, inboxPort))
		// A datagram, and the three fragments of another.
		after := spoofed(t, l.k, fmt.Sprintf("s32-vm%d", i))
		if after.IPv4-before.IPv4 != 4 || after.IPv6-before.IPv6 != 4 {
			t.Errorf("vm%d: counted %+v, before %+v", i, after, before)
		}
	}
}
