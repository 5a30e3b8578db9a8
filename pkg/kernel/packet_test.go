package kernel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// elsewhere runs f on a thread of its own that may change its namespace; the
// thread dies with it.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// port is one end of a pair of interfaces, in a namespace of its own, with a
// packet socket on it.
type port struct {
	t  testing.TB
	fd int
}

// attach makes a pair: near stays here, far is alone in a new namespace.
func attach(t testing.TB, near string) *port {
	t.Helper()
	run(t, "ip link add "+near+" type veth peer name "+near+"p")
	run(t, "ip link set "+near+" up")
	far, err := netlink.LinkByName(near + "p")
	if err != nil {
		t.Fatal(err)
	}
	space := netns.None()
	if err := elsewhere(func() (err error) {
		space, err = netns.New()
		return err
	}); err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() { _ = space.Close() })
	if err := netlink.LinkSetNsFd(far, int(space)); err != nil {
		t.Fatal(err)
	}
	p := &port{t: t}
	if err := elsewhere(func() (err error) {
		if err := netns.Set(space); err != nil {
			return err
		}
		// Only our frames: no address, no router solicitation.
		if out, err := exec.Command("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/"+near+"p/disable_ipv6; ip link set "+near+"p up").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		p.fd, err = packetSocket(near + "p")
		return err
	}); err != nil {
		t.Fatalf("open %s: %v", near, err)
	}
	t.Cleanup(func() { _ = unix.Close(p.fd) })
	return p
}

// packetSocket sees every frame that comes in on the interface.
func packetSocket(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}))
}

func (p *port) send(frame []byte) {
	p.t.Helper()
	if _, err := unix.Write(p.fd, frame); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// until reads frames up to the first that has mark in it, and returns all.
func (p *port) until(mark string) [][]byte {
	p.t.Helper()
	var seen [][]byte
	for {
		b := make([]byte, 2048)
		n, err := unix.Read(p.fd, b)
		if err != nil {
			p.t.Fatalf("no frame with %q came: %v; seen %d others", mark, err, len(seen))
		}
		seen = append(seen, b[:n])
		if bytes.Contains(b[:n], []byte(mark)) {
			return seen
		}
	}
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// ip makes a frame from a guest to its gateway.
func ip(from mac.Addr, src, dst string, proto byte, payload []byte) []byte {
	gw := mac.MustParse(marks.GatewayMAC)
	f := append(append([]byte{}, gw[:]...), from[:]...)
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], s.AsSlice())
		copy(h[16:], d.AsSlice())
		binary.BigEndian.PutUint16(h[10:], sum(h))
		return append(append(append(f, 8, 0), h...), payload...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], s.AsSlice())
	copy(h[24:], d.AsSlice())
	if proto == unix.IPPROTO_ICMPV6 || proto == unix.IPPROTO_UDP {
		at := map[byte]int{unix.IPPROTO_ICMPV6: 2, unix.IPPROTO_UDP: 6}[proto]
		pseudo := append(append([]byte{}, h[8:40]...), 0, 0, h[4], h[5], 0, 0, 0, proto)
		binary.BigEndian.PutUint16(payload[at:], 0)
		binary.BigEndian.PutUint16(payload[at:], sum(append(pseudo, payload...)))
	}
	return append(append(append(f, 0x86, 0xdd), h...), payload...)
}

func udp(from mac.Addr, src, dst string, dport uint16, text string) []byte {
	p := binary.BigEndian.AppendUint16(nil, 5000)
	p = binary.BigEndian.AppendUint16(p, dport)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(text)))
	p = append(append(p, 0, 0), text...)
	return ip(from, src, dst, unix.IPPROTO_UDP, p)
}

// source is the IP source of a frame.
func source(frame []byte) netip.Addr {
	if frame[12] == 8 {
		a, _ := netip.AddrFromSlice(frame[26:30])
		return a
	}
	a, _ := netip.AddrFromSlice(frame[22:38])
	return a
}

// lab is the host under test with three VMs and two uplinks.
type lab struct {
	k     *kernel.Kernel
	want  state.State
	guest [3]*port
	wan   *port // main's uplink
	wan2  *port // table 100's
}

func newLab(t testing.TB) *lab {
	inNamespace(t)
	l := &lab{k: open(t)}
	l.wan, l.wan2 = attach(t, "wan0"), attach(t, "wan2")
	for _, line := range []string{
		"ip link set lo up",
		"ip address add 192.0.2.10/24 dev wan0",
		"ip -6 address add 2001:db8:ffff::10/64 dev wan0 nodad",
		"ip route add default via 192.0.2.1",
		"ip route add 198.18.0.0/15 via 192.0.2.1",
		"ip -6 route add default via 2001:db8:ffff::1",
		"ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:99 dev wan0 nud permanent",
		"ip neigh add 2001:db8:ffff::1 lladdr 02:00:00:00:00:99 dev wan0 nud permanent",
		"ip route add default dev wan2 via 198.51.100.1 onlink table 100",
		"ip -6 route add default dev wan2 via fe80::99 table 100",
		"ip neigh add 198.51.100.1 lladdr 02:00:00:00:00:98 dev wan2 nud permanent",
		"ip neigh add fe80::99 lladdr 02:00:00:00:00:98 dev wan2 nud permanent",
	} {
		run(t, line)
	}
	l.want = build(t, l.k, vms(3))
	converge(t, l.k, l.want)
	for i := range l.guest {
		l.guest[i] = attach(t, fmt.Sprintf("tap%d", i))
		run(t, fmt.Sprintf("ip link set tap%d master s32-vm%d", i, i))
	}
	// A bridge sends nothing until the kernel has dealt with its carrier.
	for _, name := range []string{"s32-vm0", "s32-vm1", "s32-vm2", "wan0", "wan2"} {
		waitUp(t, name)
	}
	return l
}

func waitUp(t testing.TB, name string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s does not come up: %v", name, l.Attrs().OperState)
		}
	}
}

const (
	away4 = "203.0.113.9"
	away6 = "2001:db8:9::9"
)

func TestGuard(t *testing.T) {
	l := newLab(t)
	own := vms(3)[0].NICs[0].MAC
	other := vms(3)[1].NICs[0].MAC
	for _, f := range [][]byte{
		udp(other, "10.1.0.0", away4, 9, "bad MAC"),
		udp(other, "2001:db8::", away6, 9, "bad MAC"),
		udp(own, "10.1.0.1", away4, 9, "bad source"),
		udp(own, "192.0.2.10", away4, 9, "bad source"),
		udp(own, "169.254.0.1", away4, 9, "bad source"),
		udp(own, "2001:db8::1", away6, 9, "bad source"),
		udp(own, "0.0.0.0", away4, 9, "bad source"),
		udp(own, "fe80::2", away6, 9, "bad source"),
		udp(own, "::", away6, 9, "bad source"),
	} {
		l.guest[0].send(f)
	}
	l.guest[0].send(udp(own, "10.1.0.0", away4, 9, "good one"))
	seen := l.wan.until("good one")
	l.guest[0].send(udp(own, "2001:db8::", away6, 9, "good two"))
	seen = append(seen, l.wan.until("good two")...)
	for _, f := range seen {
		if bytes.Contains(f, []byte("bad")) {
			t.Errorf("left the bridge: % x", f)
		}
	}
	counts, err := l.k.Spoofed(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := counts["s32-vm0"], (kernel.SpoofCount{IPv4: 3, IPv6: 1, MAC: 2}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if got := counts["s32-vm1"]; got != (kernel.SpoofCount{}) {
		t.Errorf("counted on another bridge: %+v", got)
	}
	l.rogue(t)
	if counts, err = l.k.Spoofed(context.Background()); err != nil {
		t.Fatal(err)
	}
	// A pass, with something to repair, leaves the counters.
	drift(t, l.k, []string{"nft flush set inet slash32 guard4"})
	converge(t, l.k, l.want)
	if again, err := l.k.Spoofed(context.Background()); err != nil || again["s32-vm0"] != counts["s32-vm0"] {
		t.Errorf("counters after a pass: %+v, %v", again, err)
	}
	// Without elements nothing passes.
	drift(t, l.k, []string{"nft flush set inet slash32 guard4"})
	l.guest[0].send(udp(own, "10.1.0.0", away4, 9, "too soon"))
	converge(t, l.k, l.want)
	l.guest[0].send(udp(own, "10.1.0.0", away4, 9, "good again"))
	for _, f := range l.wan.until("good again") {
		if bytes.Contains(f, []byte("too soon")) {
			t.Error("a packet passed before the guard knew its source")
		}
	}
}

// rogue has a guest play DHCP server for another guest, the host and the world.
func (l *lab) rogue(t *testing.T) {
	t.Helper()
	own := vms(3)[0].NICs[0].MAC
	server := func(src, dst string, sport, dport uint16) {
		f := udp(own, src, dst, dport, "bad offer")
		at := 34
		if f[12] == 0x86 {
			at = 54
		}
		binary.BigEndian.PutUint16(f[at:], sport)
		if f[12] == 0x86 { // its checksum covers the port
			f = ip(own, src, dst, unix.IPPROTO_UDP, bytes.Clone(f[at:]))
		}
		l.guest[0].send(f)
	}
	server("10.1.0.0", "10.1.0.1", 67, 68)
	server("10.1.0.0", away4, 67, 68)
	server("10.1.0.0", "192.0.2.10", 67, 68)
	server("2001:db8::", "2001:db8::1", 547, 546)
	server("2001:db8::", "2001:db8:ffff::10", 547, 546)
	l.guest[0].send(udp(own, "10.1.0.0", away4, 68, "good relay")) // not a server's port
	l.guest[0].send(udp(own, "10.1.0.0", "10.1.0.1", 9, "good three"))
	for _, f := range append(l.wan.until("good relay"), l.guest[1].until("good three")...) {
		if bytes.Contains(f, []byte("bad offer")) {
			t.Errorf("a rogue server's message left the bridge: % x", f)
		}
	}
	counts, err := l.k.Spoofed(context.Background())
	if err != nil || counts["s32-vm0"].Rogue != 5 {
		t.Errorf("counted %+v, want 5 rogue; %v", counts["s32-vm0"], err)
	}
}

func TestMasqueradeAndPolicy(t *testing.T) {
	l := newLab(t)
	nics := vms(3)
	send := func(i int, src, dst, text string) { l.guest[i].send(udp(nics[i].NICs[0].MAC, src, dst, 9, text)) }
	for _, tt := range []struct {
		vm             int
		src, dst, text string
		port           *port
		want           string
	}{
		{0, "10.1.0.0", away4, "private by main", l.wan, "192.0.2.10"},
		{1, "10.1.0.1", away4, "another by main", l.wan, "192.0.2.10"},
		{0, "2001:db8::", away6, "public by main", l.wan, "2001:db8::"},
		{2, "10.1.0.2", away4, "by table 100", l.wan2, "10.1.0.2"},
		{2, "2001:db8::2", away6, "by table 100, IPv6", l.wan2, "2001:db8::2"},
		{0, "10.1.0.0", "10.1.0.1", "to another VM", l.guest[1], "10.1.0.0"},
		{0, "10.1.0.0", "10.1.0.2", "to one in table 100", l.guest[2], "10.1.0.0"},
		{0, "2001:db8::", "2001:db8::2", "to one in table 100, IPv6", l.guest[2], "2001:db8::"},
		{2, "10.1.0.2", "10.1.0.0", "from table 100 to one in main", l.guest[0], "10.1.0.2"},
		{2, "2001:db8::2", "2001:db8::", "from table 100 to one in main, IPv6", l.guest[0], "2001:db8::2"},
		{2, "10.1.0.2", "198.18.0.77", "from table 100 to a network of main's", l.wan2, "10.1.0.2"},
	} {
		send(tt.vm, tt.src, tt.dst, tt.text)
		seen := tt.port.until(tt.text)
		if got := source(seen[len(seen)-1]); got != netip.MustParseAddr(tt.want) {
			t.Errorf("%s: came from %s, want %s", tt.text, got, tt.want)
		}
	}

	// Connections of an address that goes are forgotten, others are not.
	tracked := func(a string) bool { return strings.Contains(run(t, "conntrack -L -s "+a), a) }
	if !tracked("10.1.0.0") || !tracked("10.1.0.1") {
		t.Fatal("no connections are tracked")
	}
	left := l.want.Clone()
	for r := range left.Routes {
		if r.Link == "s32-vm0" && r.Dst.Addr().Is4() {
			delete(left.Routes, r)
		}
	}
	converge(t, l.k, left)
	if tracked("10.1.0.0") || !tracked("10.1.0.1") {
		t.Errorf("connections: of the address that went %v, of another %v", tracked("10.1.0.0"), tracked("10.1.0.1"))
	}
}

// TestSilence: what the responder answers, the kernel does not.
func TestSilence(t *testing.T) {
	l := newLab(t)
	own := vms(3)[0].NICs[0].MAC
	g := l.guest[0]
	arp := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, own[:]...)
	arp = append(arp, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	arp = append(append(arp, own[:]...), 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 0, 1)
	gateway := netip.MustParseAddr("fe80::1")
	solicit := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, gateway.AsSlice()...)
	for _, f := range [][]byte{
		arp,
		udp(own, "0.0.0.0", "255.255.255.255", 67, "discover"),
		udp(own, "10.1.0.0", "169.254.0.1", 67, "renew"),
		udp(own, "fe80::2", "fe80::1", 547, "solicit"),
		ip(own, "fe80::2", "fe80::1", unix.IPPROTO_ICMPV6, bytes.Clone(solicit)),
		ip(own, "2001:db8::", "fe80::1", unix.IPPROTO_ICMPV6, bytes.Clone(solicit)),
		ip(own, "fe80::2", "ff02::2", unix.IPPROTO_ICMPV6, make1(133, 8)),
	} {
		g.send(f)
	}
	echo := append(make1(8, 8), "are you there"...)
	binary.BigEndian.PutUint16(echo[2:], sum(echo))
	g.send(ip(own, "10.1.0.0", "169.254.0.1", unix.IPPROTO_ICMP, echo))
	for _, f := range g.until("are you there") {
		kind := binary.BigEndian.Uint16(f[12:])
		switch {
		case mac.Addr(f[6:12]) != mac.MustParse(marks.GatewayMAC): // the port of the bridge for itself
		case kind == unix.ETH_P_IP && f[23] == unix.IPPROTO_ICMP && f[34] == 0: // the echo reply
		case kind == unix.ETH_P_IPV6 && f[20] == 0: // its multicast memberships (MLD)
		default:
			t.Errorf("the kernel sent % x", f)
		}
	}
	counts, err := l.k.Spoofed(context.Background())
	if err != nil || counts["s32-vm0"] != (kernel.SpoofCount{}) {
		t.Errorf("counted as spoofed: %+v, %v", counts["s32-vm0"], err)
	}
}

// What is for the responder reaches a packet socket on the bridge, also where
// br_netfilter has bridged frames meet the table before that (it does so in
// every namespace once it is loaded, as Docker loads it).
func TestResponderHears(t *testing.T) {
	l := newLab(t)
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		run(t, "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 net.bridge.bridge-nf-call-arptables=1")
	}
	fd, err := packetSocket("s32-vm0")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	bridge := &port{t: t, fd: fd}
	own := vms(3)[0].NICs[0].MAC
	for _, f := range []struct{ src, dst, mark string }{
		{"0.0.0.0", "255.255.255.255", "discover"},
		{"10.1.0.0", "169.254.0.1", "renew"},
		{"10.1.0.0", "255.255.255.255", "rebind"},
		{"10.9.9.9", "255.255.255.255", "rebind of an address that it no longer has"},
	} {
		l.guest[0].send(udp(own, f.src, f.dst, 67, f.mark))
		bridge.until(f.mark)
	}
	l.guest[0].send(udp(own, "fe80::2", "ff02::1:2", 547, "solicit"))
	bridge.until("solicit")
	counts, err := l.k.Spoofed(context.Background())
	if err != nil || counts["s32-vm0"] != (kernel.SpoofCount{}) {
		t.Errorf("counted as spoofed: %+v, %v", counts["s32-vm0"], err)
	}
}

func make1(first byte, n int) []byte {
	b := make([]byte, n)
	b[0] = first
	return b
}
