package kernel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/wire"
)

// prefixed are three VMs of which the first has a prefix on its link, one behind
// it that is masqueraded, and a pool of which a part is delegated to it. Its
// network and the second's, which is the same, has its addresses proxied.
func prefixed() []intent.VM {
	list := vms(3)
	list[0].NICs[0].Network.ProxyNDP = true
	list[1].NICs[0].Network.ProxyNDP = true
	n := &list[0].NICs[0]
	n.Prefixes = []intent.Prefix{
		{Net: netip.MustParsePrefix("2001:db8:0:1::/64"), Mode: responder.ModeSLAAC},
		{Net: netip.MustParsePrefix("fd00:10::/61"), Mode: responder.ModeRoute},
		{Net: pool, Mode: responder.ModeDelegate, Length: 60},
	}
	n.Delegated = []intent.Delegation{{Prefix: netip.MustParsePrefix("2001:db8:0:100::/60"), Via: netip.MustParseAddr("fe80::77")}}
	return list
}

var pool = netip.MustParsePrefix("2001:db8:0:100::/56")

// pooled plans prefixed as the first VM's network has a pool that the pools of
// VMs are taken from.
func pooled(t *testing.T, k *kernel.Kernel, list []intent.VM) state.State {
	t.Helper()
	f, err := k.Facts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	f.Pools = map[string][]netip.Prefix{"default": {netip.MustParsePrefix("2001:db8::/48"), pool}}
	return plan.Build(list, hostConfig(), f).State
}

// fromOutside makes a frame of the neighbour's to wan0 for somebody behind.
func fromOutside(t *testing.T, dst, text string) []byte {
	t.Helper()
	l, err := netlink.LinkByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	f := udp(mac.MustParse("02:00:00:00:00:99"), away6, dst, 9, text)
	copy(f, l.Attrs().HardwareAddr)
	return f
}

func TestPrefixes(t *testing.T) {
	l := newLab(t)
	want := pooled(t, l.k, prefixed())
	converge(t, l.k, want)
	own := prefixed()[0].NICs[0].MAC
	for _, src := range []string{"2001:db8:0:2::1", "2001:db8:0:110::1", "2001:db8:0:ff:ffff::1", "fd00:10:0:8::1", "2001:db8:0:1::1:1"} {
		text := "bad source"
		if src == "2001:db8:0:1::1:1" {
			text = "good first"
		}
		l.guest[0].send(udp(own, src, away6, 9, text))
	}
	seen := l.wan.until("good first")
	for _, tt := range []struct{ src, text, want string }{
		{"2001:db8::", "good address", "2001:db8::"},
		{"2001:db8:0:1:ffff:ffff:ffff:ffff", "good privacy address", "2001:db8:0:1:ffff:ffff:ffff:ffff"},
		{"2001:db8:0:10f:8000::1", "good delegated", "2001:db8:0:10f:8000::1"},
		{"fd00:10::1", "good masqueraded", "2001:db8:ffff::10"},
		{"fd00:10:0:7::1", "good masqueraded, too", "2001:db8:ffff::10"},
	} {
		l.guest[0].send(udp(own, tt.src, away6, 9, tt.text))
		seen = append(seen, l.wan.until(tt.text)...)
		if got := source(seen[len(seen)-1]); got != netip.MustParseAddr(tt.want) {
			t.Errorf("%s: came from %s, want %s", tt.text, got, tt.want)
		}
	}
	for _, f := range seen {
		if bytes.Contains(f, []byte("bad")) {
			t.Errorf("left the bridge: % x", f)
		}
	}
	// Another guest's prefix is not one's own.
	l.guest[1].send(udp(prefixed()[1].NICs[0].MAC, "2001:db8:0:1::5", away6, 9, "bad"))
	l.guest[1].send(udp(prefixed()[1].NICs[0].MAC, "2001:db8::1", away6, 9, "good neighbour"))
	l.wan.until("good neighbour")
	counts, err := l.k.Spoofed(context.Background())
	if err != nil || counts["s32-vm0"].IPv6 != 4 || counts["s32-vm1"].IPv6 != 1 {
		t.Errorf("counted %+v and %+v, want 4 and 1; %v", counts["s32-vm0"], counts["s32-vm1"], err)
	}

	// To what is routed there is no need to ask for a neighbour; to what is on the
	// link there is; the rest of the pool is refused.
	for _, dst := range []string{"2001:db8:0:10a::9", "fd00:10:0:3::9"} {
		l.wan.send(fromOutside(t, dst, "to "+dst))
		for _, f := range l.guest[0].until("to " + dst) {
			if bytes.Contains(f, []byte("to "+dst)) && mac.Addr(f) != own {
				t.Errorf("to %s: sent to %s", dst, mac.Addr(f))
			}
		}
	}
	onLink := netip.MustParseAddr("2001:db8:0:1::9").As16()
	l.wan.send(fromOutside(t, "2001:db8:0:1::9", "on the link"))
	l.guest[0].until(string(onLink[:]))
	l.wan.send(fromOutside(t, "2001:db8:0:150::9", "to the rest"))
	seen = l.wan.until("to the rest")
	if f := seen[len(seen)-1]; f[20] != unix.IPPROTO_ICMPV6 || f[54] != 1 {
		t.Errorf("to the rest of the pool: % x", f)
	}

	// Connections of a prefix that goes are forgotten, others are not.
	tracked := func(a string) bool { return strings.Contains(run(t, "conntrack -L -f ipv6 -s "+a), a) }
	const delegated, stays = "2001:db8:0:10f:8000::1", "fd00:10:0:7::1"
	if !tracked(delegated) || !tracked(stays) {
		t.Fatal("no connections are tracked")
	}
	list := prefixed()
	list[0].NICs[0].Delegated = nil
	converge(t, l.k, pooled(t, l.k, list))
	if tracked(delegated) || !tracked(stays) {
		t.Errorf("connections: of the prefix that went %v, of another %v", tracked(delegated), tracked(stays))
	}
	l.guest[0].send(udp(own, delegated, away6, 9, "bad, no longer"))
	l.guest[0].send(udp(own, stays, away6, 9, "good last"))
	for _, f := range l.wan.until("good last") {
		if bytes.Contains(f, []byte("bad")) {
			t.Errorf("left the bridge: % x", f)
		}
	}
}

// TestPrefixCycle: parts of a pool come and go, all of it, and back.
func TestPrefixCycle(t *testing.T) {
	l := newLab(t)
	want := pooled(t, l.k, prefixed())
	converge(t, l.k, want)
	list := prefixed()
	n := &list[0].NICs[0]
	for _, d := range [][]intent.Delegation{
		{{Prefix: pool, Via: netip.MustParseAddr("fe80::77")}},
		{{Prefix: pool, Via: netip.MustParseAddr("fe80::78")}},
		nil,
		{{Prefix: netip.MustParsePrefix("2001:db8:0:180::/57"), Via: netip.MustParseAddr("fe80::78")}},
		prefixed()[0].NICs[0].Delegated,
	} {
		n.Delegated = d
		converge(t, l.k, pooled(t, l.k, list))
	}
	for _, tt := range []struct{ do, want string }{
		{"ip -6 route del 2001:db8:0:100::/60 proto 32", "add route 2001:db8:0:100::/60 via fe80::77 dev s32-vm0"},
		{"ip -6 route del unreachable 2001:db8:0:100::/56 proto 32 metric 3072", "add route unreachable 2001:db8:0:100::/56"},
		{"ip -6 route replace 2001:db8:0:100::/60 via fe80::78 dev s32-vm0 proto 32 metric 1024", "replace route 2001:db8:0:100::/60"},
		{"ip -6 neigh del fe80::77 dev s32-vm0", "add neighbour fe80::77"},
		{"nft flush set inet slash32 guard6_60", `add element guard6 { "s32-vm0" . 2001:db8:0:100::/60 }`},
		{"nft flush set inet slash32 masq6_64", `add element masq6 { "wan0" . fd00:10:0:5::/64 }`},
		{`nft add element inet slash32 guard6_56 { "s32-vm0" . 2001:db8:0:200:: }`, `delete element guard6 { "s32-vm0" . 2001:db8:0:200::/56 }`},
		{`nft add element inet slash32 guard6_48 { "s32-vm0" . 2001:db8::5 }`, `delete element guard6 { "s32-vm0" . 2001:db8::5/48 }`},
		{"nft delete chain inet slash32 postrouting", "(was: damaged)"},
		{"ip link set s32-vm0 down", "add route 2001:db8:0:100::/60"},
		{"ip -6 neigh del proxy 2001:db8:: dev wan0", "add proxy 2001:db8:: dev wan0"},
		{"sysctl -qw net.ipv6.neigh.wan0.proxy_delay=80", "proxy_delay = 0 (was: 80)"},
		{"sysctl -qw net.ipv6.conf.wan0.proxy_ndp=0", "proxy_ndp = 1 (was: 0)"},
		{"ip link set wan0 down", "add proxy 2001:db8::1 dev wan0"},
	} {
		drift(t, l.k, []string{tt.do})
		if tt.do == "ip link set wan0 down" { // what the host's table has over it is not wanted then
			maps.DeleteFunc(want.Routes, func(r state.Route, _ struct{}) bool { return r.Link == "wan0" })
		}
		changes := converge(t, l.k, want)
		var b strings.Builder
		for _, c := range changes {
			b.WriteString(c.String() + "\n")
		}
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s: no change with %q in\n%s", tt.do, tt.want, &b)
		}
	}

	// A read of one link has what is the link's.
	have, err := l.k.Read(context.Background(), state.Scope{Links: []string{"s32-vm0"}})
	if err != nil {
		t.Fatal(err)
	}
	one := state.Only(want, "s32-vm0")
	one.Skeleton, one.Sysctls, have.Sysctls = want.Skeleton, nil, nil
	if diff := cmp.Diff(one.String(), have.String()); diff != "" {
		t.Errorf("read of one (-want +got):\n%s", diff)
	}
	converge(t, l.k, state.New())
	for _, line := range []string{"nft list ruleset", "ip -6 route show table all proto 32", "ip -6 neigh show proxy"} {
		if out := run(t, line); out != "" {
			t.Errorf("%s: something is left: %s", line, out)
		}
	}
}

func TestProxy(t *testing.T) {
	l := newLab(t)
	converge(t, l.k, pooled(t, l.k, prefixed()))
	own := mac.MustParse("02:00:00:00:00:99")
	solicit := func(target string) {
		a := netip.MustParseAddr(target)
		message := append(wire.AppendNS(nil, a), 1, 1) // the source link-layer address
		message = append(message, own[:]...)
		f := ip(own, "2001:db8:ffff::1", wire.SolicitedNode(a).String(), unix.IPPROTO_ICMPV6, message)
		to := wire.MulticastMAC(wire.SolicitedNode(a))
		copy(f, to[:])
		l.wan.send(f)
	}
	// vm2's network has none, and nobody has the other.
	solicit("2001:db8::2")
	solicit("2001:db8::99")
	for _, target := range []string{"2001:db8::1", "2001:db8::"} {
		a := netip.MustParseAddr(target).As16()
		solicit(target)
		var answers int
		for _, f := range l.wan.until(string(append([]byte{0, 0, 0}, a[:]...))) {
			if binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IPV6 || f[20] != unix.IPPROTO_ICMPV6 || f[54] != wire.ICMP6NeighbourAdvert {
				continue
			}
			answers++
			if netip.AddrFrom16([16]byte(f[62:78])) != netip.MustParseAddr(target) {
				t.Errorf("an answer for another: % x", f)
			}
		}
		if answers != 1 {
			t.Errorf("%d answers for %s", answers, target)
		}
	}
}

// TestForeignProxy: the admin's proxies are neither taken over nor deleted.
func TestForeignProxy(t *testing.T) {
	l := newLab(t)
	for _, line := range []string{
		"ip -6 neigh add proxy 2001:db8:: dev wan0",
		"ip -6 neigh add proxy 2001:db8::1 dev wan2 protocol 33",
		"ip -6 neigh add proxy 2001:db8::99 dev wan0",
	} {
		run(t, line)
	}
	before := run(t, "ip -6 neigh show proxy")
	want := pooled(t, l.k, prefixed())
	_, err := l.k.Apply(context.Background(), state.Diff(read(t, l.k, want), want))
	if !errors.Is(err, kernel.ErrForeign) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "add proxy 2001:db8:: dev wan0") {
		t.Errorf("a foreign proxy is in the way of one of ours: %v", err)
	}
	delete(want.Proxies, state.NeighKey{Link: "wan0", IP: netip.MustParseAddr("2001:db8::")})
	if diff := cmp.Diff(want.String(), read(t, l.k, want).String()); diff != "" {
		t.Errorf("the rest was not made (-want +got):\n%s", diff)
	}
	for key := range map[state.NeighKey]bool{{Link: "wan0", IP: netip.MustParseAddr("2001:db8::")}: true, {Link: "none", IP: netip.MustParseAddr("2001:db8::")}: true} {
		if n, err := l.k.Apply(context.Background(), []state.Change{{Verb: state.Delete, Proxy: &key}}); n > 0 || err != nil {
			t.Errorf("delete of %v: %d writes, %v", key, n, err)
		}
	}
	converge(t, l.k, state.New())
	if diff := cmp.Diff(before, run(t, "ip -6 neigh show proxy")); diff != "" {
		t.Errorf("foreign proxies changed (-before +after):\n%s", diff)
	}
}
