package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/test/wait"
)

// patience is how long one exchange may take.
const patience = 20 * time.Second

// machine is a network namespace with a stack of its own: a guest, the internet, or
// the host under test.
type machine struct {
	t     *testing.T
	name  string
	space netns.NsHandle
}

// newMachine makes one that has one end of a pair of interfaces as eth0; the other
// end, near, is in the caller's namespace.
func newMachine(t *testing.T, name, near string) machine {
	t.Helper()
	m := machine{t: t, name: name, space: netns.None()}
	if err := elsewhere(func() (err error) {
		m.space, err = netns.New()
		return err
	}); err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() { _ = m.space.Close() })
	run(t, "ip link add "+near+" type veth peer name "+near+"p")
	far, err := netlink.LinkByName(near + "p")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(far, int(m.space)); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link set "+near+" up")
	m.run("ip link set " + near + "p name eth0")
	m.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.eth0.accept_ra=0")
	m.run("ip link set lo up")
	return m
}

// inside runs f in the machine.
func (m machine) inside(f func() error) error {
	return elsewhere(func() error {
		if err := netns.Set(m.space); err != nil {
			return err
		}
		return f()
	})
}

func (m machine) run(line string) (out string) {
	m.t.Helper()
	if err := m.inside(func() error {
		f := strings.Fields(line)
		b, err := exec.Command(f[0], f[1:]...).CombinedOutput()
		if out = string(b); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, b)
		}
		return nil
	}); err != nil {
		m.t.Fatalf("%s: %v", m.name, err)
	}
	return out
}

// serve answers on a port, by TCP and UDP of both families, with the machine's name,
// the port, and the address that the client has there.
func (m machine) serve(port int) {
	m.t.Helper()
	at := fmt.Sprintf(":%d", port)
	if err := m.inside(func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		m.t.Cleanup(func() { _, _ = l.Close(), p.Close() })
		go m.stream(l, port)
		go m.datagrams(p, port)
		return nil
	}); err != nil {
		m.t.Fatalf("%s: serve: %v", m.name, err)
	}
}

func (m machine) answer(port int, from net.Addr) string {
	a := netip.MustParseAddrPort(from.String()).Addr().Unmap()
	return fmt.Sprintf("%s:%d from %s", m.name, port, a)
}

// stream answers on each connection when it begins and to each line after that.
func (m machine) stream(l net.Listener, port int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 64)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := io.WriteString(c, m.answer(port, c.RemoteAddr())); err != nil {
					return
				}
			}
		}()
	}
}

// datagrams answers with as many bytes as it is asked with, at least.
func (m machine) datagrams(p net.PacketConn, port int) {
	b := make([]byte, 4096)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		if _, err := p.WriteTo(fmt.Appendf(nil, "%-*s", n, m.answer(port, from)), from); err != nil {
			return
		}
	}
}

// dial connects from the machine; from may be empty.
func (m machine) dial(proto, from, to string) (net.Conn, error) {
	d := net.Dialer{Timeout: patience}
	if from != "" {
		a := netip.AddrPortFrom(netip.MustParseAddr(from), 0)
		d.LocalAddr = net.TCPAddrFromAddrPort(a)
		if proto == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(a)
		}
	}
	var c net.Conn
	err := m.inside(func() (err error) {
		c, err = d.DialContext(context.Background(), proto, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { _ = c.Close() })
	return c, c.SetDeadline(time.Now().Add(patience))
}

// exchange says something on a connection and returns the answer.
func exchange(c net.Conn) (string, error) {
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// asks checks what the machine gets as answer from an address and port.
func (m machine) asks(proto, from, to, want string) net.Conn {
	m.t.Helper()
	c, err := m.dial(proto, from, to)
	if err != nil {
		m.t.Errorf("%s by %s to %s: %v", m.name, proto, to, err)
		return nil
	}
	got, err := exchange(c)
	if err != nil || got != want {
		m.t.Errorf("%s by %s to %s: %q, %v; want %q", m.name, proto, to, got, err, want)
	}
	return c
}

// refused checks that nobody answers.
func (m machine) refused(proto, to string) {
	m.t.Helper()
	c, err := m.dial(proto, "", to)
	if err == nil {
		_, err = exchange(c)
	}
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		m.t.Errorf("%s by %s to %s: %v, want it refused", m.name, proto, to, err)
	}
}

const (
	host4, host6     = "192.0.2.10", "2001:db8:ffff::10"
	host4b           = "192.0.2.11"
	inet4, inet6     = "192.0.2.1", "2001:db8:ffff::1"
	public4, public6 = "203.0.113.50", "2001:db8:50::50"
	snat4, snat6     = "203.0.113.9", "2001:db8:50::9"
)

// translated are three VMs: ports are forwarded to the first, the second has public
// addresses that stand for its own, and the third, which is in a table of its own,
// is translated to given ones. Its uplink is the others'. They reach the host's own
// ports, to see those that are not forwarded.
func translated() []intent.VM {
	list := vms(3)
	for i := range list {
		list[i].NICs[0].Network.Open = true
	}
	n := &list[0].NICs[0]
	n.NAT = config.NATNone
	n.Forwards = []annotation.Forward{
		{Proto: "both", Port: 8022, Last: 8022, To: 22, Family: "both"},
		{Proto: "both", Port: 9000, Last: 9002, To: 7000, Family: "both"},
		{Proto: "tcp", Port: 25, Last: 25, To: 22, Family: "ipv4", Addr: netip.MustParseAddr(host4b)},
		{Proto: "udp", Port: 26, Last: 26, To: 22, Family: "ipv6"},
	}
	n = &list[1].NICs[0]
	n.Public = []netip.Addr{netip.MustParseAddr(public4), netip.MustParseAddr(public6)}
	n = &list[2].NICs[0]
	n.Network.Uplink = "wan0"
	n.NAT, n.SNAT = config.NATSource, []netip.Addr{netip.MustParseAddr(snat4), netip.MustParseAddr(snat6)}
	n.Prefixes = []intent.Prefix{{Net: netip.MustParsePrefix("2001:db8:3::/64"), Mode: "slaac"}}
	return list
}

// natLab is the host under test, the internet, and a guest for each VM.
type natLab struct {
	k     *kernel.Kernel
	want  state.State
	host  machine
	inet  machine
	guest []machine
}

func newNATLab(t *testing.T) natLab {
	t.Helper()
	inNamespace(t)
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	l := natLab{k: open(t), host: machine{t, "host", here}}
	l.inet = newMachine(t, "inet", "wan0")
	for _, line := range []string{
		"ip link set lo up",
		"ip address add 192.0.2.10/24 dev wan0",
		"ip address add 192.0.2.11/24 dev wan0",
		"ip -6 address add 2001:db8:ffff::10/64 dev wan0 nodad",
		"ip route add default via 192.0.2.1",
		"ip -6 route add default via 2001:db8:ffff::1",
		"ip route add default via 192.0.2.1 table 100",
		"ip -6 route add default via 2001:db8:ffff::1 table 100",
	} {
		run(t, line)
	}
	for _, line := range []string{
		"ip link set eth0 up",
		"ip address add 192.0.2.1/24 dev eth0",
		"ip -6 address add 2001:db8:ffff::1/64 dev eth0 nodad",
		"ip route add 203.0.113.0/24 via 192.0.2.10",
		"ip -6 route add 2001:db8:50::/48 via 2001:db8:ffff::10",
		"ip -6 route add 2001:db8::/64 via 2001:db8:ffff::10",
	} {
		l.inet.run(line)
	}
	list := translated()
	l.want = build(t, l.k, list)
	converge(t, l.k, l.want)
	waits := []string{"wan0"}
	for i, vm := range list {
		n := vm.NICs[0]
		g := newMachine(t, vm.Name, fmt.Sprintf("tap%d", i))
		run(t, fmt.Sprintf("ip link set tap%d master %s", i, n.Bridge))
		for _, line := range []string{
			"ip link set eth0 address " + n.MAC.String() + " up",
			"ip address add " + n.Addrs4[0].String() + "/32 dev eth0",
			"ip -6 address add " + n.Addrs6[0].String() + "/128 dev eth0 nodad",
			"ip neigh add 169.254.0.1 lladdr " + marks.GatewayMAC + " dev eth0 nud permanent",
			"ip neigh add fe80::1 lladdr " + marks.GatewayMAC + " dev eth0 nud permanent",
			"ip route add default via 169.254.0.1 dev eth0 onlink",
			"ip -6 route add default via fe80::1 dev eth0",
		} {
			g.run(line)
		}
		l.guest = append(l.guest, g)
		waits = append(waits, n.Bridge)
	}
	for _, name := range waits {
		waitUp(t, name)
	}
	return l
}

// bridgeNF says whether br_netfilter, where it is loaded, has the table see frames
// before the bridge does: then what a guest sends to itself goes back to the port that
// it came from, where the bridge drops it unless the port is in hairpin mode.
func bridgeNF(t *testing.T, on int) {
	t.Helper()
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		run(t, fmt.Sprintf("sysctl -qw net.bridge.bridge-nf-call-iptables=%d net.bridge.bridge-nf-call-ip6tables=%[1]d", on))
	}
}

// withTaps is the VMs with the interfaces that a lab has for them.
func withTaps(list []intent.VM) []intent.VM {
	for i := range list {
		list[i].NICs[0].Tap = fmt.Sprintf("tap%d", i)
	}
	return list
}

// at joins an address and a port.
func at(a string, port int) string { return net.JoinHostPort(a, fmt.Sprint(port)) }

// TestForward reaches a guest by ports of the host's: from the internet, the host,
// another guest and the guest itself, which must not see its own address there.
func TestForward(t *testing.T) {
	l := newNATLab(t)
	for _, port := range []int{22, 7000, 7002} {
		l.guest[0].serve(port)
	}
	l.host.serve(80)
	self := 1
	for _, x := range []struct {
		from       machine
		src4, src6 string
	}{
		{l.inet, inet4, inet6},
		{l.host, host4, host6},
		{l.guest[1], "10.1.0.1", "2001:db8::1"},
		{l.guest[2], "10.1.0.2", "2001:db8::2"},
		{l.guest[0], "169.254.0.1", host6}, // with br_netfilter
		{l.guest[0], "169.254.0.1", host6}, // and without
	} {
		if x.from.name == "vm0" {
			bridgeNF(t, self)
			converge(t, l.k, build(t, l.k, withTaps(translated())))
			self--
		}
		for _, proto := range []string{"tcp", "udp"} {
			x.from.asks(proto, "", at(host4, 8022), "vm0:22 from "+x.src4)
			x.from.asks(proto, "", at(host6, 8022), "vm0:22 from "+x.src6)
			x.from.asks(proto, "", at(host4, 9000), "vm0:7000 from "+x.src4)
			x.from.asks(proto, "", at(host6, 9002), "vm0:7002 from "+x.src6)
		}
		if x.from.name != "vm0" {
			x.from.asks("tcp", "", at(host4, 80), "host:80 from "+x.src4)
		}
		x.from.asks("tcp", "", at(host4b, 25), "vm0:22 from "+x.src4)
		x.from.asks("udp", "", at(host6, 26), "vm0:22 from "+x.src6)
		x.from.refused("tcp", at(host4, 25))
		x.from.refused("tcp", at(host6, 26))
		x.from.refused("tcp", at(host4, 9003))
	}
	// What is for somebody else passes, whatever its port.
	l.inet.serve(8022)
	l.guest[1].asks("tcp", "", at(inet4, 8022), "inet:8022 from "+public4)
	l.guest[1].asks("udp", "", at(inet6, 8022), "inet:8022 from "+public6)
	// The host's loopback addresses are the host's.
	l.host.serve(8022)
	l.host.asks("tcp", "", at("127.0.0.1", 8022), "host:8022 from 127.0.0.1")
	l.host.asks("udp", "", at("::1", 8022), "host:8022 from ::1")
}

// TestOneToOne: an address stands for a guest's own, both ways.
func TestOneToOne(t *testing.T) {
	l := newNATLab(t)
	l.guest[1].serve(22)
	l.inet.serve(9)
	for i, proto := range []string{"tcp", "udp", "udp", "tcp"} {
		bridgeNF(t, i%2)
		converge(t, l.k, build(t, l.k, withTaps(translated())))
		for _, x := range []struct {
			from       machine
			src4, src6 string
		}{
			{l.inet, inet4, inet6},
			{l.guest[0], "10.1.0.0", "2001:db8::"},
			{l.guest[1], "169.254.0.1", host6},
		} {
			x.from.asks(proto, "", at(public4, 22), "vm1:22 from "+x.src4)
			x.from.asks(proto, "", at(public6, 22), "vm1:22 from "+x.src6)
		}
		l.guest[1].asks(proto, "", at(inet4, 9), "inet:9 from "+public4)
		l.guest[1].asks(proto, "", at(inet6, 9), "inet:9 from "+public6)
		// The kernel chooses the host's address before it translates.
		l.host.asks(proto, host4, at(public4, 22), "vm1:22 from "+host4)
		l.host.asks(proto, host6, at(public6, 22), "vm1:22 from "+host6)
	}
	l.inet.run("ping -c 1 -W 20 " + public4)
	l.inet.run("ping -c 1 -W 20 " + public6)
}

// TestSNAT: a network's sources become one address.
func TestSNAT(t *testing.T) {
	l := newNATLab(t)
	l.inet.serve(9)
	l.guest[0].serve(22)
	l.guest[2].run("ip -6 address add 2001:db8:3::77/64 dev eth0 nodad noprefixroute")
	for _, proto := range []string{"tcp", "udp"} {
		l.guest[2].asks(proto, "", at(inet4, 9), "inet:9 from "+snat4)
		l.guest[2].asks(proto, "2001:db8::2", at(inet6, 9), "inet:9 from "+snat6)
		l.guest[2].asks(proto, "2001:db8:3::77", at(inet6, 9), "inet:9 from "+snat6)
		l.guest[2].asks(proto, "", at("10.1.0.0", 22), "vm0:22 from 10.1.0.2")
	}
}

// TestTranslationGoes: connections do not outlive the element that made them, those
// of others do.
func TestTranslationGoes(t *testing.T) {
	l := newNATLab(t)
	l.guest[0].serve(22)
	l.guest[1].serve(22)
	l.guest[2].serve(22)
	l.inet.serve(9)
	stays := l.inet.asks("udp", "", at(public4, 22), "vm1:22 from "+inet4)
	goes := l.inet.asks("udp", "", at(host4, 8022), "vm0:22 from "+inet4)
	goes6 := l.inet.asks("udp", "", at(host6, 8022), "vm0:22 from "+inet6)
	out := l.guest[2].asks("udp", "", at(inet4, 9), "inet:9 from "+snat4)

	// The port moves to another VM: the same client, on the same socket, is the new
	// owner's.
	list := translated()
	list[2].NICs[0].Forwards = list[0].NICs[0].Forwards
	list[0].NICs[0].Forwards = nil
	list[2].NICs[0].SNAT = []netip.Addr{netip.MustParseAddr("203.0.113.10")}
	converge(t, l.k, build(t, l.k, list))
	for _, x := range []struct {
		c    net.Conn
		want string
	}{
		{stays, "vm1:22 from " + inet4},
		{goes, "vm2:22 from " + inet4},
		{goes6, "vm2:22 from " + inet6},
		{out, "inet:9 from 203.0.113.10"},
	} {
		if got, err := exchange(x.c); err != nil || got != x.want {
			t.Errorf("%q, %v; want %q", got, err, x.want)
		}
	}
	tracked := func(words ...string) bool {
		out := run(t, "conntrack -L -p udp")
		for line := range strings.Lines(out) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return true
			}
		}
		return false
	}
	if !tracked("dst="+public4, "src=10.1.0.1") || !tracked("src=10.1.0.2", "dst=203.0.113.10") {
		t.Fatal("connections are not tracked")
	}
	// The VMs go: nothing of theirs is left.
	list = list[:1]
	converge(t, l.k, build(t, l.k, list))
	for _, words := range [][]string{{"10.1.0.1"}, {"10.1.0.2"}, {"203.0.113."}} {
		if tracked(words...) {
			t.Errorf("connections of %v are left: %s", words, run(t, "conntrack -L -p udp"))
		}
	}
}

// TestTranslationDrift does to the maps what people do.
func TestTranslationDrift(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	want := build(t, k, translated())
	converge(t, k, want)
	for _, tt := range []struct{ do, want string }{
		{"nft flush map inet slash32 forward4", `add element forward4 { 0.0.0.0 . tcp . 9001 : 10.1.0.0 . 7001 }`},
		{"nft flush map inet slash32 forward6", `add element forward6 { :: . udp . 26 : 2001:db8:: . 22 }`},
		{"nft flush map inet slash32 public4", `add element public4 { 203.0.113.50 : 10.1.0.1 }`},
		{"nft flush map inet slash32 public6", `add element public6 { 2001:db8:50::50 : 2001:db8::1 }`},
		{"nft flush map inet slash32 snat4", `add element snat4 { "wan0" . 10.1.0.2 : 203.0.113.9 }`},
		{"nft flush map inet slash32 snat6", `add element snat6 { "wan0" . 2001:db8::2 : 2001:db8:50::9 }`},
		{"nft flush map inet slash32 snat6_64", `add element snat6 { "wan0" . 2001:db8:3::/64 : 2001:db8:50::9 }`},
		{"nft add element inet slash32 forward4 { 192.0.2.99 . tcp . 80 : 10.1.0.0 . 80 }", `delete element forward4 { 192.0.2.99 . tcp . 80 : 10.1.0.0 . 80 }`},
		{"nft add element inet slash32 public4 { 203.0.113.51 : 10.1.0.0 }", `delete element public4 { 203.0.113.51 : 10.1.0.0 }`},
		{"nft delete element inet slash32 forward4 { 0.0.0.0 . tcp . 8022 } ; add element inet slash32 forward4 { 0.0.0.0 . tcp . 8022 : 10.1.0.1 . 22 }", `replace element forward4 { 0.0.0.0 . tcp . 8022 : 10.1.0.0 . 22 } (was: forward4 { 0.0.0.0 . tcp . 8022 : 10.1.0.1 . 22 })`},
		{"nft delete element inet slash32 snat4 { wan0 . 10.1.0.2 } ; add element inet slash32 snat4 { wan0 . 10.1.0.2 : 203.0.113.11 }", `replace element snat4 { "wan0" . 10.1.0.2 : 203.0.113.9 }`},
		{"nft flush chain inet slash32 to_guest", "(was: damaged)"},
		{"nft flush chain inet slash32 translate_local", "(was: damaged)"},
		{"ip route del 203.0.113.50 proto 32", "add route 203.0.113.50 dev s32-vm1"},
	} {
		drift(t, k, []string{tt.do})
		var b strings.Builder
		for _, c := range converge(t, k, want) {
			b.WriteString(c.String() + "\n")
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s: no change with %q in\n%s", tt.do, tt.want, &b)
		}
	}
	// A read of one link has what is the link's.
	for _, link := range []string{"s32-vm0", "s32-vm1", "s32-vm2"} {
		have, err := k.Read(context.Background(), state.Scope{Links: []string{link}})
		if err != nil {
			t.Fatal(err)
		}
		one := state.Only(want, link)
		if len(one.Elems) == 0 || len(one.Elems) != len(have.Elems) {
			t.Errorf("read of %s alone has %d elements, want %d", link, len(have.Elems), len(one.Elems))
		}
	}
	converge(t, k, state.New())
}

// TestHairpin: a port sends what is for the guest itself back to it only where
// br_netfilter translates frames, and never the guest's own multicasts, as duplicate
// address detection would take them for another's. The host's come all the same.
func TestHairpin(t *testing.T) {
	l := newNATLab(t)
	options := func() string { return run(t, "bridge -d link show dev tap0") }
	check := func(changes []state.Change, want ...string) {
		t.Helper()
		var got []string
		for _, c := range changes {
			if c.Hairpin != nil {
				got = append(got, c.String())
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	}
	plan := func() []state.Change { return converge(t, l.k, build(t, l.k, withTaps(translated()))) }
	bridgeNF(t, 1)
	check(plan(), "add hairpin tap0 master s32-vm0", "add hairpin tap1 master s32-vm1")
	if out := options(); !strings.Contains(out, "hairpin on") || !strings.Contains(out, "mcast_flood off") || !strings.Contains(out, "bcast_flood off") {
		t.Errorf("tap0: %s", out)
	}
	tells, stop := watching(t, l.k)
	for _, do := range []string{"ip link set tap0 type bridge_slave hairpin off", "bridge link set dev tap0 mcast_flood on"} {
		run(t, do)
		tells("port", do)
		check(plan(), "add hairpin tap0 master s32-vm0")
	}
	stop()

	l.guest[0].run("sysctl -qw net.ipv6.conf.eth0.enhanced_dad=0 net.ipv6.conf.eth0.accept_dad=1")
	l.guest[0].run("ip -6 address add 2001:db8::99/128 dev eth0")
	wait.For(t, patience, "the end of duplicate address detection", func() bool {
		out := l.guest[0].run("ip -6 address show dev eth0 to 2001:db8::99")
		if strings.Contains(out, "dadfailed") {
			t.Fatalf("the guest hears itself: %s", out)
		}
		return !strings.Contains(out, "tentative")
	})
	run(t, "ping -c 1 -W 20 ff02::1%s32-vm0")

	bridgeNF(t, 0)
	check(plan(), "delete hairpin tap0 master s32-vm0", "delete hairpin tap1 master s32-vm1")
	if out := options(); !strings.Contains(out, "hairpin off") || !strings.Contains(out, "mcast_flood on") || !strings.Contains(out, "bcast_flood on") {
		t.Errorf("tap0 without: %s", out)
	}
}
