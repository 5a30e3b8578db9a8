package reconcile_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/config"
)

func (b *bed) lan() {
	b.sh("ip link add lan0 type veth peer name lan0p")
	b.sh("ip link set lan0 up")
}

// A router is one without a VM, over restarts of the agent, and no longer than the
// configuration says so.
func TestRouterWithoutVMs(t *testing.T) {
	b := newBed(t)
	b.lan()
	n := b.config.Networks["default"]
	n.Name, n.Uplink, n.Downlink, n.Table, n.NAT = "lan", "up0", "lan0", 91, config.NATAll
	n.Subnets = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}
	n.Addrs = []netip.Addr{netip.MustParseAddr("10.42.0.1")}
	b.network("lan", n)
	b.restart()
	b.pass()
	stands := func() {
		t.Helper()
		ours := b.ours()
		for _, want := range []string{
			"address 10.42.0.1/32 dev lan0\n", "route 0.0.0.0/0 via 192.0.2.1 dev up0 table 91 ", "route 10.42.0.0/24 dev lan0 table 91 ",
			`element marks { "lan0" : `, `element masq_net4 { "up0" . 10.42.0.0/24 }`, "unreachable proto 32\n",
		} {
			if !strings.Contains(ours, want) {
				t.Errorf("%q lacks in\n%s", want, ours)
			}
		}
		if got := strings.TrimSpace(b.sh("sysctl -n net.ipv4.ip_forward")); got != "1" {
			t.Errorf("ip_forward is %s", got)
		}
	}
	stands()
	b.restart()
	if n := b.writes(); n != 0 {
		t.Errorf("%d writes after a restart", n)
	}
	// VMs come and go, here and with libvirt away.
	b.run(1, annotated(`ipv4="10.42.0.7" network="lan"`))
	b.pass()
	stands()
	b.end(1)
	b.later(time.Hour)
	b.pass()
	stands()
	b.wantRoute("10.42.0.7", false)

	b.config.Networks = map[string]config.Network{"default": b.config.Networks["default"]}
	b.restart()
	b.pass()
	if ours := b.ours(); ours != "" {
		t.Errorf("left of the router:\n%s", ours)
	}
	if out := b.sh("ip route show default"); !strings.Contains(out, "via 192.0.2.1 dev up0") {
		t.Errorf("the host's own default route: %s", out)
	}
}

// The host answers ARP for guests where their network is, and announces them.
func TestProxyARP(t *testing.T) {
	b := newBed(t)
	b.lan()
	n := b.config.Networks["default"]
	n.Uplink, n.Downlink, n.ProxyARP, n.Subnets = "up0", "lan0", true, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}
	b.network("default", n)
	b.restart()
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	if got := <-b.announced; got != "lan0 [10.42.0.7]" {
		t.Errorf("announced %s", got)
	}
	proxies := func() string { return strings.ReplaceAll(b.sh("ip neigh show proxy"), " \n", "\n") }
	if got := proxies(); got != "10.42.0.7 dev lan0 proxy proto 32\n" {
		t.Errorf("proxies: %s", got)
	}
	if !strings.Contains(strings.Join(b.loop.Status().Warnings, "\n"), "W220 network default: the host has no IPv4 address on lan0") {
		t.Errorf("warnings: %v", b.loop.Status().Warnings)
	}
	b.restart()
	if n := b.writes(); n != 0 {
		t.Errorf("%d writes after a restart", n)
	}
	b.end(1)
	b.later(time.Hour)
	b.pass()
	if got := proxies(); got != "" {
		t.Errorf("proxies of nobody: %s", got)
	}
}

// What a network's interfaces lack is said, for as long as it is so.
func TestLinkWarnings(t *testing.T) {
	b := newBed(t)
	b.lan()
	n := b.config.Networks["default"]
	n.Uplink, n.Table = "lan0", 91
	b.network("default", n)
	b.restart()
	b.run(1, annotated(`ipv4="10.42.0.7" ipv6="2001:db8::7"`))
	for _, step := range []struct{ do, want string }{
		{"ip link set lan0 up", "W220 network default: main has no default route over lan0, so its table has none either and what its VMs send is cut off"},
		{"ip route add default via 198.51.100.1 dev lan0 onlink metric 9000", "W220 network default: main has no IPv6 default route over lan0, so its table has none either and IPv6 of its VMs is cut off from the world. Fix: name its router (router6), or none"},
		{"ip -6 route add default via fe80::99 dev lan0 metric 9000", ""},
		{"ip route del default via 198.51.100.1 dev lan0", "W220 network default: main has no IPv4 default route over lan0"},
		{"ip route add default via 198.51.100.1 dev lan0 onlink metric 9000", ""},
		{"ip link set lan0 down", "W220 network default: lan0, its uplink, is down. Fix: ip link set lan0 up"},
		{"ip link del lan0", "W220 network default: there is no interface lan0, its uplink"},
	} {
		b.sh(step.do)
		b.pass()
		got := strings.Join(b.loop.Status().Warnings, "\n")
		if step.want == "" && strings.Contains(got, "W220") || !strings.Contains(got, step.want) {
			t.Errorf("%s: warnings %q, want %q", step.do, got, step.want)
		}
	}
}

// A guest whose intent is no longer valid keeps the way out of its table.
func TestTableIsKept(t *testing.T) {
	b := newBed(t)
	n := b.config.Networks["default"]
	n.Table = 91
	b.network("default", n)
	b.restart()
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.plug(1)
	b.pass()
	before := b.ours()
	b.run(1, annotated(`ipv4="nonsense"`))
	b.restart()
	b.pass()
	for line := range strings.Lines(before) {
		if (strings.HasPrefix(line, "route") || strings.HasPrefix(line, "rule")) && !strings.Contains(b.ours(), line) {
			t.Errorf("went: %s", line)
		}
	}
	if !strings.Contains(before, "route 0.0.0.0/0 via 192.0.2.1 dev up0 table 91") {
		t.Errorf("no way out:\n%s", before)
	}
}
