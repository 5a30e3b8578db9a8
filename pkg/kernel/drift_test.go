package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

// TestDrift does to our objects what people and programs do, and wants them
// back. vm0 and vm1 are in main, vm2 is in table 100.
func TestDrift(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	want := build(t, k, vms(3))
	converge(t, k, want)
	for _, tt := range []struct {
		name string
		do   []string
		want string // part of a change that the repair must have
	}{
		{"bridge deleted", []string{"ip link del s32-vm0"}, "add link s32-vm0"},
		{"bridge down", []string{"ip link set s32-vm0 down"}, "replace link s32-vm0"},
		{"bridge down and up", []string{"ip link set s32-vm0 down", "ip link set s32-vm0 up"}, "add route 10.1.0.0"},
		{"MTU", []string{"ip link set s32-vm0 mtu 1300"}, "mtu 1300"},
		{"MAC", []string{"ip link set s32-vm0 address 02:00:00:00:00:77"}, "02:00:00:00:00:77"},
		{"alias", []string{"ip link set s32-vm0 alias mine"}, "replace link s32-vm0"},
		{"group", []string{"ip link set s32-vm0 group 0"}, "group"},
		{"snooping", []string{"ip link set s32-vm0 type bridge mcast_snooping 1 stp_state 1"}, "mcast_snooping,stp"},
		{"multicast router", []string{"ip link set s32-vm0 type bridge mcast_router 1"}, "mcast_router"},
		{"sysctl", []string{"sysctl -qw net.ipv4.conf.s32-vm0.arp_ignore=0 net.ipv6.conf.s32-vm0.accept_ra=1"}, "arp_ignore = 8 (was: 0)"},
		{"IPv6 off", []string{"sysctl -qw net.ipv6.conf.s32-vm0.disable_ipv6=1"}, "disable_ipv6 = 0"},
		{"forwarding", []string{"sysctl -qw net.ipv4.ip_forward=0"}, "ip_forward = 1"},
		{"gateway address", []string{"ip addr del 169.254.0.1/32 dev s32-vm0"}, "add address 169.254.0.1/32 dev s32-vm0"},
		{"IPv6 gateway address", []string{"ip addr del fe80::1/64 dev s32-vm0"}, "add address fe80::1/64 dev s32-vm0"},
		{"address too many", []string{"ip addr add 10.9.9.9/24 dev s32-vm0"}, "delete address 10.9.9.9/24"},
		{"neighbour deleted", []string{"ip neigh del 10.1.0.0 dev s32-vm0"}, "add neighbour 10.1.0.0"},
		{"neighbour changed", []string{"ip neigh replace 2001:db8:: lladdr 02:00:00:00:00:66 dev s32-vm0 nud permanent"}, "replace neighbour 2001:db8::"},
		{"neighbour learned", []string{"ip neigh replace 10.1.0.0 lladdr 02:00:00:00:00:66 dev s32-vm0 nud reachable"}, "neighbour 10.1.0.0"},
		{"route deleted", []string{"ip route del 10.1.0.0 proto 32"}, "add route 10.1.0.0"},
		{"routes flushed", []string{"ip route flush table all proto 32", "ip -6 route flush table all proto 32"}, "add route 2001:db8::2 dev s32-vm2 table 100"},
		{"route by another link", []string{"ip route replace 10.1.0.0/32 dev wan0 proto 32 metric 1024"}, "dev wan0"},
		{"IPv6 route by another link", []string{"ip -6 route replace 2001:db8::/128 dev wan0 proto 32 metric 1024"}, "dev wan0"},
		{"route by several hops", []string{"ip route replace 10.1.0.0/32 proto 32 metric 1024 nexthop dev wan0 nexthop dev s32-vm1"}, "replace route 10.1.0.0"},
		{"route blackholed", []string{"ip route add blackhole 10.1.0.0/32 proto 32 metric 5"}, "delete route blackhole 10.1.0.0"},
		{"rules flushed", []string{"ip rule flush", "ip -6 rule flush"}, "add rule -6 32400"},
		{"rule deleted", []string{"ip rule del pref 32400"}, "add rule -4 32400"},
		{"rule too many", []string{"ip rule add pref 32001 lookup 77 proto 32"}, "delete rule -4 32001"},
		{"ruleset flushed", []string{"nft flush ruleset"}, "add table inet slash32"},
		{"table deleted", []string{"nft delete table inet slash32"}, "add table inet slash32"},
		{"chain flushed", []string{"nft flush chain inet slash32 guard_ip"}, "(was: damaged)"},
		{"rule added", []string{"nft insert rule inet slash32 guard accept"}, "(was: damaged)"},
		{"rule replaced", []string{"nft flush chain inet slash32 input", "nft add rule inet slash32 input iifgroup 33 jump from_guest"}, "(was: damaged)"},
		{"chain added", []string{"nft add chain inet slash32 mine"}, "(was: damaged)"},
		{"policy", []string{"nft chain inet slash32 input { policy drop ; }"}, "(was: damaged)"},
		{"table dormant", []string{"nft add table inet slash32 { flags dormant ; }"}, "(was: damaged)"},
		{"set flushed", []string{"nft flush set inet slash32 guard4"}, `add element guard4 { "s32-vm0" . 10.1.0.0 }`},
		{"element deleted", []string{`nft delete element inet slash32 spoof4 { "s32-vm0" }`}, `add element spoof4 { "s32-vm0" }`},
		{"element too many", []string{`nft add element inet slash32 guard4 { "s32-vm0" . 192.0.2.99 }`}, `delete element guard4 { "s32-vm0" . 192.0.2.99 }`},
		{"mark changed", []string{"nft delete element inet slash32 marks { s32-vm2 }", "nft add element inet slash32 marks { s32-vm2 : 0x00400000 }"}, `replace element marks { "s32-vm2" : 0x00200000 }`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Its own goroutine, so its own thread: enter the namespace through k.
			drift(t, k, tt.do)
			changes := converge(t, k, want)
			for _, c := range changes {
				if strings.Contains(c.String(), tt.want) {
					return
				}
			}
			t.Errorf("no change with %q in %v", tt.want, changes)
		})
	}
}

// drift runs commands in k's namespace, from whatever thread.
func drift(t *testing.T, k *kernel.Kernel, lines []string) {
	t.Helper()
	err := k.Inside(func() error {
		for _, line := range lines {
			f := strings.Fields(line)
			if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
				return errors.New(line + ": " + err.Error() + ": " + string(out))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForeign has everything that is nearly ours; none of it may change.
func TestForeign(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	for _, line := range []string{
		"ip link add br0 type bridge",
		"ip link set br0 addrgenmode none",
		"ip link set br0 up",
		"ip addr add 192.168.7.1/24 dev br0",
		"ip neigh add 192.168.7.2 lladdr 02:00:00:00:00:01 dev br0 nud permanent",
		"ip link add g32 group 32 type veth peer name g32b",
		"ip route add 10.1.0.0/32 dev wan0 proto static metric 1024",
		"ip route add 10.77.0.0/16 dev wan0 proto 33",
		"ip -6 route add 2001:db8:77::/48 dev wan0 proto static",
		"ip rule add pref 32000 fwmark 1 lookup 100 proto 33",
		"ip rule add pref 32402 iif br0 lookup 100 proto 32",
	} {
		run(t, line)
	}
	nft(t, `table inet mine { set guard4 { type ifname . ipv4_addr; elements = { "x" . 1.2.3.4 }
}
 chain prerouting { type filter hook prerouting priority raw; iifgroup 32 counter
}
}
table ip slash32 { chain a { counter
}
}
`)
	foreign := func() string {
		var b strings.Builder
		for _, line := range []string{
			"ip -o link show dev br0", "ip -o link show dev g32", "ip -o addr show dev br0",
			"ip neigh show dev br0 nud permanent",
			"ip route show proto static", "ip route show proto 33", "ip -6 route show proto static",
			"ip rule show pref 32000", "ip rule show pref 32402",
			"nft list table inet mine", "nft list table ip slash32",
		} {
			for l := range strings.Lines(run(t, line)) {
				if !strings.Contains(l, "lookup 100 suppress_prefixlength 0") { // ours at the same priority
					b.WriteString(l)
				}
			}
		}
		return b.String()
	}
	before := foreign()
	want := build(t, k, vms(3))
	_, err := k.Apply(context.Background(), state.Diff(read(t, k, want), want))
	if !errors.Is(err, kernel.ErrForeign) || strings.Contains(err.Error(), "\n") {
		t.Errorf("a foreign route is in the way of one of ours: %v", err)
	}
	want2 := want.Clone()
	delete(want2.Routes, state.Route{Dst: netip.MustParsePrefix("10.1.0.0/32"), Table: 254, Metric: 1024, Link: "s32-vm0"})
	if diff := cmp.Diff(want2.String(), read(t, k, want).String()); diff != "" {
		t.Errorf("the rest was not made (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, foreign()); diff != "" {
		t.Errorf("foreign objects changed (-before +after):\n%s", diff)
	}
	converge(t, k, state.New())
	if diff := cmp.Diff(before, foreign()); diff != "" {
		t.Errorf("foreign objects changed (-before +after):\n%s", diff)
	}

	// A bridge of that name that is not ours is neither taken nor deleted.
	run(t, "ip link add s32-vm0 type bridge")
	l := want.Links["s32-vm0"]
	if _, err := k.Apply(context.Background(), []state.Change{{Verb: state.Add, Link: &l}}); !errors.Is(err, kernel.ErrForeign) {
		t.Errorf("add over a foreign bridge: %v", err)
	}
	if n, err := k.Apply(context.Background(), []state.Change{{Verb: state.Delete, Link: &l}}); n > 0 || err != nil {
		t.Errorf("delete of a foreign bridge: %d writes, %v", n, err)
	}
	run(t, "ip link show dev s32-vm0")
	info, err := k.Bridge(context.Background(), "s32-vm0")
	if err != nil || !info.Exists || info.Kind != "bridge" || info.Group != 0 {
		t.Errorf("Bridge: %+v, %v", info, err)
	}

	// One in our group without an alias is ours: a hook died half-way.
	run(t, "ip link set s32-vm0 group 32")
	have, err := k.Read(context.Background(), state.Scope{})
	if err != nil || have.Links["s32-vm0"].Name == "" || have.Links["s32-vm0"].UUID != "" {
		t.Errorf("left over bridge: %+v, %v", have.Links, err)
	}
	converge(t, k, state.New())
}

func TestScopedRead(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	ctx := context.Background()
	want := build(t, k, vms(3))
	converge(t, k, want)
	run(t, "ip link add tap0 type veth peer name tap0b")
	run(t, "ip link set tap0 master s32-vm2")
	for _, scope := range []state.Scope{
		{Links: []string{"s32-vm2", "missing"}},
		{Links: []string{"s32-vm2"}, Prepared: true},
	} {
		have, err := k.Read(ctx, scope)
		if err != nil {
			t.Fatal(err)
		}
		if got := have.Links["s32-vm2"]; got.Ports != "tap0" || got.Index == 0 {
			t.Errorf("link %+v", got)
		}
		one := state.Only(want, "s32-vm2")
		one.Skeleton = want.Skeleton
		if scope.Prepared {
			clear(one.Neighs)
			clear(one.Routes)
			clear(one.Elems)
		}
		for p := range have.Sysctls {
			if _, ok := one.Sysctls[p]; !ok {
				delete(have.Sysctls, p)
			}
		}
		if diff := cmp.Diff(one.String(), have.String()); diff != "" {
			t.Errorf("read of %+v (-want +got):\n%s", scope, diff)
		}
	}
	info, err := k.Bridge(ctx, "s32-vm2")
	if err != nil || !info.Exists || len(info.Ports) != 1 || info.Ports[0] != "tap0" || info.MTU != 1400 || !strings.HasPrefix(info.Alias, "slash32:") {
		t.Errorf("Bridge: %+v, %v", info, err)
	}
	if info, err := k.Bridge(ctx, "missing"); err != nil || info.Exists {
		t.Errorf("Bridge(missing): %+v, %v", info, err)
	}
	if l, err := k.RouteOwner(ctx, netip.MustParsePrefix("2001:db8::2/128")); l != "s32-vm2" || err != nil {
		t.Errorf("RouteOwner: %q, %v", l, err)
	}
	if l, err := k.RouteOwner(ctx, netip.MustParsePrefix("10.1.0.77/32")); l != "" || err != nil {
		t.Errorf("RouteOwner of nobody's: %q, %v", l, err)
	}
	// The MTU stays when a port with another one joins.
	if have := read(t, k, want); have.Links["s32-vm2"].MTU != 1400 {
		t.Errorf("MTU is %d", have.Links["s32-vm2"].MTU)
	}

	// Removing one VM by a scoped read leaves the others and the host as they are.
	have, err := k.Read(ctx, state.Scope{Links: []string{"s32-vm2"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Apply(ctx, state.Diff(state.Only(have, "s32-vm2"), state.New())); err != nil {
		t.Fatal(err)
	}
	left := build(t, k, vms(2))
	left.Rules = want.Rules // for the agent to sweep
	for r := range want.Routes {
		if want.Links[r.Link].Name == "" {
			left.Routes[r] = struct{}{}
		}
	}
	if diff := cmp.Diff(left.String(), read(t, k, want).String()); diff != "" {
		t.Errorf("after the removal of one (-want +got):\n%s", diff)
	}
}

// TestNamespace reads and writes from threads in another namespace.
func TestNamespace(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	want := build(t, k, vms(2))
	done := make(chan struct{})
	go func() {
		defer close(done)
		converge(t, k, want)
	}()
	<-done
	if !t.Failed() && run(t, "sysctl -n net.ipv4.ip_forward") != "1\n" {
		t.Error("the setting was made in another namespace")
	}
}

func TestWatch(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	want := build(t, k, vms(1))
	converge(t, k, want)
	ctx, cancel := context.WithCancel(context.Background())
	reasons := make(chan string, 64)
	done := make(chan error, 1)
	go func() { done <- k.Watch(ctx, func(r string) { reasons <- r }) }()
	deadline := time.After(20 * time.Second)
	if r := <-reasons; r != "watching" {
		t.Fatalf("first reason %q", r)
	}
	for _, tt := range []struct{ do, want string }{
		{"ip route del 10.1.0.0 proto 32", "route"},
		{"ip -6 route del 2001:db8:: proto 32", "route"},
		{"ip neigh del 10.1.0.0 dev s32-vm0", "neighbour"},
		{"nft flush set inet slash32 guard4", "table"},
		{"nft flush ruleset", "table"},
		{"ip addr del 169.254.0.1/32 dev s32-vm0", "address"},
		{"ip route del default", "route"},
		{"ip link set wan0 down", "interface"}, // which takes its proxies
		{"ip link set s32-vm0 mtu 1300", "link"},
		{"ip link set s32-vm0 down", "link"},
		{"ip link del s32-vm0", "link"},
	} {
		run(t, tt.do)
		for seen := false; !seen; {
			select {
			case r := <-reasons:
				seen = strings.Contains(r, tt.want)
			case <-deadline:
				t.Fatalf("%s did not wake for %q", tt.do, tt.want)
			}
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Watch: %v", err)
		}
	case <-deadline:
		t.Error("Watch does not end with its context")
	}
}

func TestFacts(t *testing.T) {
	inNamespace(t)
	k := open(t)
	ctx := context.Background()
	f, err := k.Facts(ctx)
	if err != nil || f.Uplink4 != "" || f.Uplink6 != "" || f.NoIPv6 {
		t.Errorf("facts of an empty namespace: %+v, %v", f, err)
	}
	uplink(t)
	for _, line := range []string{
		"ip link add lan0 type veth peer name lan1",
		"ip link set lan0 up",
		"ip -6 route add default via fe80::99 dev lan0 proto ra metric 1024",
		"ip -6 route add default via fe80::98 dev wan0 metric 2048",
		"ip route add 192.0.0.0/22 dev lan0", // in the way of the lookup: main is listed
	} {
		run(t, line)
	}
	if f, err = k.Facts(ctx); err != nil {
		t.Fatal(err)
	}
	if f.Uplink4 != "wan0" || f.Uplink6 != "lan0" || f.MTU["wan0"] != 1400 || f.MTU["lan0"] != 1500 || strings.Join(f.AcceptRA, ",") != "lan0" {
		t.Errorf("facts %+v", f)
	}
	run(t, "ip address add 198.51.100.1/24 dev lan0")
	run(t, "ip -6 address add 2001:db8:5::1/64 dev wan0 nodad")
	run(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.lan0.rp_filter=2")
	run(t, "ip link add down0 type veth peer name down1")
	if f, err = k.Facts(ctx, "down0", "missing", "lan0", "wan0"); err != nil {
		t.Fatal(err)
	}
	links := map[string]plan.Link{
		"down0": {RPFilter: 1},
		"lan0":  {Up: true, RPFilter: 2, Addrs: netips("198.51.100.1/24"), Router6: plan.Router{Found: true, Via: netip.MustParseAddr("fe80::99")}},
		"wan0": {
			Up: true, RPFilter: 1, Addrs: netips("192.0.2.10/24 2001:db8:5::1/64"),
			Router4: plan.Router{Found: true, Via: netip.MustParseAddr("192.0.2.1")}, Router6: plan.Router{Found: true, Via: netip.MustParseAddr("fe80::98")},
		},
	}
	for name, l := range f.Links {
		l.Addrs = slices.DeleteFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
		f.Links[name] = l
	}
	if d := cmp.Diff(links, f.Links, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("links (-want +got):\n%s", d)
	}
	want := build(t, k, vms(1))
	converge(t, k, want)
	if got := want.Sysctls["net/ipv6/conf/lan0/accept_ra"]; got != "2" {
		t.Errorf("accept_ra of the uplink is planned as %q", got)
	}
	if f, err = k.Facts(ctx); err != nil || f.MTU["s32-vm0"] != 0 {
		t.Errorf("facts %+v, %v", f, err)
	}
}

// TestErrors: a change that cannot be made says so once, and those after it are
// made.
func TestErrors(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	ctx := context.Background()
	want := build(t, k, vms(40))
	var changes []state.Change
	for e := range want.Elems {
		changes = append(changes, state.Change{Verb: state.Add, Elem: &e})
	}
	n := len(changes)
	for a := range want.Addrs {
		changes = append(changes, state.Change{Verb: state.Add, Addr: &a})
	}
	changes = append(changes,
		state.Change{Verb: state.Add, Sysctl: &state.Sysctl{Path: "net/ipv4/conf/../../../kernel/hostname", Value: "x"}},
		state.Change{Verb: state.Add, Sysctl: &state.Sysctl{Path: "kernel/hostname", Value: "x"}},
		state.Change{Verb: state.Add, Sysctl: &state.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"}},
	)
	writes, err := k.Apply(ctx, changes)
	if writes != 1 || err == nil {
		t.Fatalf("%d writes, %v", writes, err)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) > 25 || !strings.Contains(lines[0], "element") || !strings.Contains(lines[len(lines)-1], "more changes failed") {
		t.Errorf("%d changes of the table and others: %d lines of errors:\n%v", n, len(lines), err)
	}
	if run(t, "sysctl -n net.ipv4.ip_forward") != "1\n" {
		t.Error("the last change was not made")
	}
	converge(t, k, want)

	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := k.Read(ended, state.Scope{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Read after the end: %v", err)
	}
	if n, err := k.Apply(ended, state.Diff(want, state.New())); n > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("Apply after the end: %d writes, %v", n, err)
	}
}

func netips(list string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range strings.Fields(list) {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
