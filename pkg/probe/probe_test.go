package probe

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// network is this thread in a namespace of its own with up0, whose other end is
// in a second namespace: a neighbour that has 192.0.2.7 and 2001:db8::7.
func network(t *testing.T) (neighbour netns.NsHandle) {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test, and the namespaces with it
	other, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	t.Cleanup(func() { _ = other.Close() })
	run(t, "ip link set lo up", "sysctl -qw net.ipv6.conf.default.accept_dad=0")
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	run(t, "ip link set lo up", "sysctl -qw net.ipv6.conf.default.accept_dad=0", "ip link add up0 type veth peer name nb0", "ip link set up0 up",
		"ip address add 192.0.2.1/24 dev up0", "ip -6 address add 2001:db8::1/64 dev up0 nodad")
	move(t, other)
	if err := netns.Set(other); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link set nb0 address 52:54:00:00:00:99 up", "ip address add 192.0.2.7/24 dev nb0", "ip -6 address add 2001:db8::7/64 dev nb0 nodad")
	if err := netns.Set(here); err != nil {
		t.Fatal(err)
	}
	// A veth carries frames once both ends are up.
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(output(t, "ip link show up0"), "LOWER_UP"); {
		if time.Now().After(deadline) {
			t.Fatal("up0 has no carrier")
		}
	}
	return other
}

func move(t *testing.T, to netns.NsHandle) {
	t.Helper()
	l, err := netlink.LinkByName("nb0")
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(to))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		output(t, line)
	}
}

func output(t *testing.T, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

func TestRun(t *testing.T) {
	network(t)
	a := netip.MustParseAddr
	const arp, nd = "answers ARP at 52:54:00:00:00:99 on up0", "answers Neighbour Discovery at 52:54:00:00:00:99 on up0"
	for _, c := range []struct {
		name    string
		targets []Target
		want    []Hit
	}{
		{"arp", []Target{{a("192.0.2.7"), "up0", true, false}, {a("192.0.2.8"), "up0", true, false}}, []Hit{{a("192.0.2.7"), arp}}},
		{"nd", []Target{{a("2001:db8::7"), "up0", true, false}, {a("2001:db8::8"), "up0", true, false}}, []Hit{{a("2001:db8::7"), nd}}},
		{"echo", []Target{{a("192.0.2.7"), "up0", false, true}, {a("2001:db8::7"), "up0", false, true}, {a("192.0.2.9"), "up0", false, true}},
			[]Hit{{a("192.0.2.7"), "answers a ping on up0"}, {a("2001:db8::7"), "answers a ping on up0"}}},
		{"nobody", []Target{{a("192.0.2.8"), "up0", true, true}, {a("2001:db8::8"), "up0", true, true}}, nil},
	} {
		// On this thread: it alone is in the namespace. Who answers ends the wait.
		hits, errs := Run(t.Context(), c.targets, 4*time.Second)
		slices.SortFunc(hits, func(x, y Hit) int { return x.Addr.Compare(y.Addr) })
		if d := cmp.Diff(c.want, hits, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); d != "" || len(errs) > 0 {
			t.Errorf("%s: errors %v, hits (-want +got):\n%s", c.name, errs, d)
		}
	}
	run(t, "ip link add dark0 type veth peer name dark1", "ip link set dark0 up", "ip link add down0 type veth peer name down1")
	for link, why := range map[string]string{"none0": "none0", "lo": "not an Ethernet interface", "down0": "down", "dark0": "no carrier"} {
		if hits, errs := Run(t.Context(), []Target{{a("192.0.2.7"), link, true, false}}, time.Minute); len(hits) > 0 || len(errs) != 1 || !strings.Contains(errs[0].Error(), link) || !strings.Contains(errs[0].Error(), why) {
			t.Errorf("%s: hits %v, errors %v", link, hits, errs)
		}
	}
	many := make([]Target, maxTargets+1)
	if _, errs := Run(t.Context(), many, time.Millisecond); len(errs) == 0 || !strings.Contains(errs[0].Error(), "only 256") {
		t.Errorf("%v", errs)
	}
}

func TestOwner(t *testing.T) {
	other, own := mac.MustParse("52:54:00:00:00:99"), mac.MustParse("52:54:00:00:00:01")
	target := netip.MustParseAddr("2001:db8::7")
	na := wire.AppendNA(nil, wire.NAOverride, target, other)
	frame := func(hops uint8, message []byte) []byte {
		b := wire.AppendEther(nil, wire.Ether{Dst: own, Src: other, Type: wire.EtherTypeIPv6})
		return append(wire.AppendIPv6(b, wire.IPv6{Proto: wire.ProtoICMPv6, HopLimit: hops}, len(message)), message...)
	}
	for name, c := range map[string]struct {
		frame []byte
		want  netip.Addr
	}{
		"advertisement":        {frame(255, na), target},
		"through a router":     {frame(64, na), netip.Addr{}},
		"short":                {frame(255, na[:23]), netip.Addr{}},
		"solicitation":         {dadSolicit(other, target), netip.Addr{}},
		"ARP probe":            {arpProbe(other, netip.MustParseAddr("192.0.2.7")), netip.MustParseAddr("192.0.2.7")},
		"ARP probe, no answer": {arpNothing(other), netip.Addr{}},
		"empty":                {nil, netip.Addr{}},
		"not even an address":  {[]byte{0: 1, 40: 1}, netip.Addr{}},
	} {
		if got, _, _ := owner(c.frame); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// arpNothing is a reply that nobody sent.
func arpNothing(by mac.Addr) []byte {
	b := wire.AppendEther(nil, wire.Ether{Src: by, Type: wire.EtherTypeARP})
	return wire.AppendARP(b, wire.ARP{Op: wire.ARPReply, SenderMAC: by, Target: netip.MustParseAddr("192.0.2.7")})
}

func FuzzOwner(f *testing.F) {
	f.Add(arpProbe(mac.Addr{2}, netip.MustParseAddr("192.0.2.7")))
	f.Add(dadSolicit(mac.Addr{2}, netip.MustParseAddr("2001:db8::7")))
	f.Fuzz(func(_ *testing.T, b []byte) { owner(b) })
}

// TestAnnounce: the neighbour, who has learnt the addresses elsewhere, sends here.
func TestAnnounce(t *testing.T) {
	other := network(t)
	run(t, "ip link set up0 address 52:54:00:00:00:01")
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	addrs := []netip.Addr{netip.MustParseAddr("2001:db8::77"), netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::78")}
	neighbour := func(f func()) {
		t.Helper()
		if err := netns.Set(other); err != nil {
			t.Fatal(err)
		}
		f()
		if err := netns.Set(here); err != nil {
			t.Fatal(err)
		}
	}
	var heard *packet.Conn
	neighbour(func() {
		for _, a := range addrs {
			run(t, "ip neigh replace "+a.String()+" lladdr 52:54:00:00:00:98 dev nb0 nud stale")
		}
		run(t, "sysctl -qw net.ipv4.conf.nb0.arp_accept=0")
		ifi, err := net.InterfaceByName("nb0")
		if err == nil {
			heard, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	defer heard.Close()
	if err := announce(t.Context(), "up0", addrs, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	neighbour(func() {
		for _, a := range addrs {
			if got := output(t, "ip neigh show "+a.String()+" dev nb0"); !strings.Contains(got, "52:54:00:00:00:01") {
				t.Errorf("%s: the neighbour has %q", a, got)
			}
		}
	})
	if err := heard.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	count := map[netip.Addr]int{}
	for b := make([]byte, 2048); len(count) < len(addrs) || count[addrs[0]] < announceTimes || count[addrs[1]] < announceTimes || count[addrs[2]] < announceTimes; {
		n, _, err := heard.ReadFrom(b)
		if err != nil {
			t.Fatalf("heard only %v: %v", count, err)
		}
		a, by, _ := owner(b[:n])
		if by != mac.MustParse("52:54:00:00:00:01") {
			continue
		}
		count[a]++
		if eth, ip6, _ := wire.ParseEther(b[:n]); eth.Type == wire.EtherTypeIPv6 {
			ip, na, _ := wire.ParseIPv6(ip6)
			if !ip.Src.IsLinkLocalUnicast() || ip.Dst != netip.IPv6LinkLocalAllNodes() || na[4] != wire.NAOverride || !bytes.Equal(na[24:], []byte{2, 1, 0x52, 0x54, 0, 0, 0, 1}) {
				t.Errorf("from %s to %s: % x", ip.Src, ip.Dst, na)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := announce(ctx, "up0", addrs, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not end with its context: %v", err)
	}
	if err := Announce(t.Context(), "lo", addrs); err == nil || !strings.Contains(err.Error(), "announce on lo: it is not an Ethernet interface") {
		t.Errorf("on lo: %v", err)
	}
}
