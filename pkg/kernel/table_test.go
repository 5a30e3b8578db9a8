package kernel_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

// routed plans as the network with a table of its own has the second uplink.
func routed(t *testing.T, k *kernel.Kernel, list []intent.VM) state.State {
	t.Helper()
	c := hostConfig()
	n := c.Networks["other"]
	n.Uplink = "wan2"
	c.Networks["other"] = n
	for i := range list {
		list[i].NICs[0].Network = c.Networks[list[i].NICs[0].Network.Name]
	}
	f, err := k.Facts(context.Background(), plan.Interfaces(c)...)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Build(list, c, f).State
}

// TestTable: a table of its own has the way out over the network's uplink, and
// what is sent by it does not leave by main's while there is none. The host is not
// touched by that.
func TestTable(t *testing.T) {
	l := newLab(t)
	own := vms(3)[2].NICs[0].MAC
	send := func(text string) {
		l.guest[2].send(udp(own, "10.1.0.2", away4, 9, text))
		l.guest[2].send(udp(own, "2001:db8::2", away6, 9, text))
	}
	// What the lab has put there is the administrator's. Now main has it.
	for _, line := range []string{
		"ip route del default table 100 proto boot",
		"ip -6 route del default dev wan2 via fe80::99 table 100",
		"ip address add 198.51.100.2/24 dev wan2",
		"ip route add default via 198.51.100.1 dev wan2 metric 500",
		"ip -6 route add default via fe80::99 dev wan2 metric 5000",
		"sysctl -qw net.ipv4.conf.wan2.rp_filter=1",
	} {
		run(t, line)
	}
	want := routed(t, l.k, vms(3))
	converge(t, l.k, want)
	for _, line := range []string{"ip route show table 100", "ip -6 route show table 100"} {
		if out := run(t, line); !strings.Contains(out, "default via") || !strings.Contains(out, "dev wan2 proto 32") {
			t.Errorf("%s: no way out in\n%s", line, out)
		}
	}
	if want.Sysctls["net/ipv4/conf/wan2/rp_filter"] != "2" {
		t.Error("the uplink's reverse path filter stays strict")
	}
	send("by the second")
	l.wan2.until("by the second") // IPv4
	l.wan2.until("by the second") // IPv6

	// The uplink goes: the guest hears so, and nothing comes out on the other.
	run(t, "ip link set wan2 down")
	converge(t, l.k, routed(t, l.k, vms(3)))
	send("bad leak")
	seen := append(l.guest[2].until("bad leak"), l.guest[2].until("bad leak")...)
	for _, f := range seen {
		if bytes.Contains(f, []byte("bad leak")) && !unreachable(f) {
			t.Errorf("not an ICMP error: % x", f)
		}
	}
	l.guest[0].send(udp(vms(3)[0].NICs[0].MAC, "10.1.0.0", away4, 9, "good by main"))
	for _, f := range l.wan.until("good by main") {
		if bytes.Contains(f, []byte("bad leak")) {
			t.Errorf("left by main's uplink: % x", f)
		}
	}
	if out := run(t, "ip route get "+away4); !strings.Contains(out, "dev wan0") {
		t.Errorf("the host's own way: %s", out)
	}

	// And comes back.
	for _, line := range []string{
		"ip link set wan2 up",
		"ip route add default via 198.51.100.1 dev wan2 metric 500",
		"ip -6 route add default via fe80::99 dev wan2 metric 5000",
		"ip neigh replace 198.51.100.1 lladdr 02:00:00:00:00:98 dev wan2 nud permanent",
		"ip neigh replace fe80::99 lladdr 02:00:00:00:00:98 dev wan2 nud permanent",
	} {
		run(t, line)
	}
	waitUp(t, "wan2")
	converge(t, l.k, routed(t, l.k, vms(3)))
	send("by the second again")
	l.wan2.until("by the second again")
	l.wan2.until("by the second again")
}

// TestRules: how many policy rules there are does not depend on the number of VMs.
func TestRules(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	count := func() int {
		return strings.Count(run(t, "ip rule"), "\n") + strings.Count(run(t, "ip -6 rule"), "\n")
	}
	before := count()
	want := build(t, k, vms(3))
	converge(t, k, want)
	few := count()
	if few <= before {
		t.Fatalf("%d rules with a table of its own, %d before", few, before)
	}
	want = build(t, k, vms(150))
	converge(t, k, want)
	if many := count(); many != few {
		t.Errorf("%d rules with 150 VMs, %d with 3", many, few)
	}
	rules := len(want.Rules)
	if rules != 2*4 {
		t.Errorf("%d rules for one table, want 4 in each family", rules)
	}
}

// TestHostsFirst: a VM in one table is reached though its address is of the network
// of the uplink of another.
func TestHostsFirst(t *testing.T) {
	l := newLab(t)
	run(t, "ip address add 198.51.100.2/24 dev wan2")
	run(t, "ip -6 address add 2001:db8:77::2/64 dev wan2 nodad")
	c := hostConfig()
	second := c.Networks["other"]
	second.Uplink = "wan2"
	c.Networks["other"] = second
	c.Networks["third"] = network("third", 101)
	planned := func(tables ...string) {
		t.Helper()
		list := vms(3)
		for i, name := range tables {
			list[i].NICs[0].Network = c.Networks[name]
		}
		n := &list[1].NICs[0]
		n.Addrs4, n.Addrs6 = []netip.Addr{netip.MustParseAddr("198.51.100.77")}, []netip.Addr{netip.MustParseAddr("2001:db8:77::77")}
		f, err := l.k.Facts(context.Background(), plan.Interfaces(c)...)
		if err != nil {
			t.Fatal(err)
		}
		converge(t, l.k, plan.Build(list, c, f).State)
	}
	reached := func(text string) {
		t.Helper()
		for _, dst := range []string{"198.51.100.77", "2001:db8:77::77"} {
			if out := run(t, "ip route get "+dst); !strings.Contains(out, "dev s32-vm1") {
				t.Errorf("%s: the host's way to %s: %s", text, dst, out)
			}
			for i, src := range map[int]string{0: "10.1.0.0", 2: "10.1.0.2"} {
				if strings.Contains(dst, ":") {
					src = map[int]string{0: "2001:db8::", 2: "2001:db8::2"}[i]
				}
				l.guest[i].send(udp(vms(3)[i].NICs[0].MAC, src, dst, 9, text))
				l.guest[1].until(text)
			}
		}
	}
	planned("default", "third", "other")
	reached("in two tables")
	planned("other", "default", "other")
	reached("in main")
	if n := strings.Count(run(t, "ip rule"), "suppress_prefixlength 31"); n != 1 {
		t.Errorf("%d rules for host routes with one table, want one", n)
	}
}

// unreachable tells whether a frame is ICMP's destination unreachable.
func unreachable(f []byte) bool {
	if f[12] == 8 {
		return f[23] == unix.IPPROTO_ICMP && f[34] == 3
	}
	return f[20] == unix.IPPROTO_ICMPV6 && f[54] == 1
}

// member plans a host that is a network's router, with VMs that it keeps apart.
func member(t *testing.T, k *kernel.Kernel) state.State {
	t.Helper()
	c := hostConfig()
	n := c.Networks["other"]
	n.Uplink, n.Downlink, n.NAT, n.Isolate, n.ProxyARP, n.ProxyNDP = "wan0", "wan2", config.NATAll, true, true, true
	n.Router4, n.Router6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::77")
	n.Subnets = netips("10.1.0.0/24 192.0.2.0/25 2001:db8::/64")
	n.Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.254"), netip.MustParseAddr("2001:db8::fe")}
	n.NAT, n.SNAT = config.NATSource, []netip.Addr{netip.MustParseAddr("2001:db8:9::9")}
	c.Networks["other"] = n
	list := vms(3)
	for i := range list {
		list[i].NICs[0].Network = c.Networks["other"]
	}
	f, err := k.Facts(context.Background(), plan.Interfaces(c)...)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Build(list, c, f).State
}

// TestNetworkDrift has somebody undo each kind of thing that is a network's.
func TestNetworkDrift(t *testing.T) {
	l := newLab(t)
	run(t, "ip address add 10.1.0.253/32 dev wan2") // somebody else's
	want := member(t, l.k)
	converge(t, l.k, want)
	for _, tt := range []struct{ do, want string }{
		{"ip address del 10.1.0.254/32 dev wan2", "add address 10.1.0.254/32 dev wan2"},
		{"ip address del 2001:db8::fe/128 dev wan2", "add address 2001:db8::fe/128 dev wan2"},
		{"ip route del default table 100 proto 32", "add route 0.0.0.0/0 via 192.0.2.1 dev wan0 table 100"},
		{"ip route replace default via 192.0.2.9 dev wan0 table 100 proto 32 metric 2048", "replace route 0.0.0.0/0 via 192.0.2.1 dev wan0 table 100"},
		{"ip -6 route del default table 100 proto 32", "add route ::/0 via fe80::77 dev wan0 table 100"},
		{"ip route del 10.1.0.0/24 table 100", "add route 10.1.0.0/24 dev wan2 table 100"},
		{"ip rule del pref 32600", "add rule -4 32600: from all fwmark 0x200000/0x3fe00000 unreachable"},
		{"ip -6 rule add pref 32601 fwmark 0x400000/0x3fe00000 unreachable proto 32", "delete rule -6 32601: from all fwmark 0x400000/0x3fe00000 unreachable"},
		{"ip neigh del proxy 10.1.0.1 dev wan2", "add proxy 10.1.0.1 dev wan2"},
		{"ip neigh add proxy 10.1.0.77 dev wan2 proto 32", "delete proxy 10.1.0.77 dev wan2"},
		{"nft delete element inet slash32 inside4 { 10.1.0.0/24 . 192.0.2.0/25 }", "add element inside4 { 10.1.0.0/24 . 192.0.2.0/25 }"},
		{"nft add element inet slash32 inside6 { fd00::-fd00::5 . fd01::/64 }", "delete element inside6 { fd00:: . fd01::/64 }"},
		{"nft flush set inet slash32 masq_net4", `add element masq_net4 { "wan0" . 10.1.0.0/24 }`},
		{`nft add element inet slash32 masq_net6 { "wan0" . fd00:5::/49 }`, `delete element masq_net6 { "wan0" . fd00:5::/49 }`},
		{"nft flush map inet slash32 snat_net6", `add element snat_net6 { "wan0" . 2001:db8::/64 : 2001:db8:9::9 }`},
		{"nft flush set inet slash32 isolated", `add element isolated { "s32-vm0" }`},
		{"nft flush set inet slash32 itself", `add element itself { "s32-vm0" . "s32-vm0" }`},
		{"nft delete element inet slash32 marks { wan2 }", `add element marks { "wan2" : 0x00200000 }`},
		{"sysctl -qw net.ipv4.conf.wan2.arp_ignore=0", "arp_ignore = 1 (was: 0)"},
		{"sysctl -qw net.ipv4.neigh.wan2.proxy_delay=80", "proxy_delay = 0 (was: 80)"},
	} {
		drift(t, l.k, []string{tt.do})
		changes := converge(t, l.k, want)
		if s := fmt.Sprint(changes); !strings.Contains(s, tt.want) {
			t.Errorf("%s: no change with %q in %s", tt.do, tt.want, s)
		}
	}

	// Nothing stays but what is somebody else's.
	converge(t, l.k, state.New())
	if out := run(t, "ip address show dev wan2"); !strings.Contains(out, "10.1.0.253/32") || strings.Contains(out, "10.1.0.254") {
		t.Errorf("addresses of the interface afterwards:\n%s", out)
	}
	for _, line := range []string{"nft list ruleset", "ip neigh show proxy", "ip -6 neigh show proxy", "ip route show table all proto 32", "ip -6 route show table all proto 32"} {
		if out := run(t, line); out != "" {
			t.Errorf("%s: something is left: %s", line, out)
		}
	}
}
