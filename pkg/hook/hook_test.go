package hook_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/spool"
)

func TestLife(t *testing.T) {
	for _, agent := range []bool{false, true} {
		t.Run(fmt.Sprintf("agent %v", agent), func(t *testing.T) {
			b := newBed(t)
			b.agent = agent
			b.must("prepare", web)
			out := b.sh("ip -d link show s32-vm1")
			for _, want := range []string{"02:73:6c:33:32:01", "group 32", "alias slash32:" + id(1).String() + ":52:54:00:00:00:01", "state", "mcast_router 2", "mcast_snooping 0"} {
				if !strings.Contains(out, want) {
					t.Errorf("the bridge lacks %q:\n%s", want, out)
				}
			}
			if out := b.sh("ip addr show s32-vm1"); !strings.Contains(out, "169.254.0.1/32") || !strings.Contains(out, "fe80::1/64") {
				t.Errorf("addresses:\n%s", out)
			}
			d, err := b.spool.Declaration(id(1))
			if err != nil || d.Phase != spool.Preparing || d.Generation != 1 || !slices.Equal(d.Bridges, []string{"s32-vm1"}) || len(d.Addrs) != 2 || d.XML != web.xml() {
				t.Errorf("declaration %+v, %v", d, err)
			}
			if !b.resp[b.spool.VMDir(id(1))] || b.poked != 1 {
				t.Errorf("responders %v, poked %d", b.resp, b.poked)
			}
			b.must("start", web)
			b.must("started", web)
			if d, _ := b.spool.Declaration(id(1)); d.Phase != spool.Started {
				t.Errorf("phase %s", d.Phase)
			}
			b.must("reconnect", web)
			// What the agent adds, the hook takes away again, with or without it.
			b.sh("ip route add 203.0.113.42 dev s32-vm1 proto 32 metric 1024")
			b.sh("ip neigh add 203.0.113.42 lladdr 52:54:00:00:00:01 dev s32-vm1 nud permanent")
			b.must("stopped", web)
			if out := b.sh("ip route show proto 32"); out != "" {
				t.Errorf("the route stays: %s", out)
			}
			b.must("stopped", web)
			b.must("release", web)
			if agent {
				if d, err := b.spool.Declaration(id(1)); err != nil || d.Phase != spool.Released {
					t.Errorf("no tombstone: %+v, %v", d, err)
				}
				if err := b.spool.Remove(id(1)); err != nil {
					t.Fatal(err)
				}
			}
			b.wantEmpty("release")
			b.must("release", web)
			b.must("stopped", web)
			b.wantEmpty("a second release")

			b.must("prepare", web)
			b.must("stopped", web) // the start failed
			b.must("release", web)
			_ = b.spool.Remove(id(1))
			b.wantEmpty("a start that failed")
		})
	}
}

// A domain that is not ours costs nothing: the kernel is not even opened.
func TestNotOurs(t *testing.T) {
	b := newBed(t)
	for _, op := range []string{"prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect", "attach", "something-new"} {
		b.must(op, dom{n: 1, annotation: "-"})
		b.must(op, dom{n: 1, annotation: "-", nic: "network", bridge: "default"})
	}
	for _, op := range []string{"restore", "something-new"} {
		b.must(op, web)
	}
	if b.opened != 0 || b.poked != 0 {
		t.Errorf("the kernel was opened %d times, the agent poked %d times", b.opened, b.poked)
	}
	if _, err := os.Stat(b.spool.Run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory was made: %v", err)
	}
}

// forwarding is a VM with an address and a forward.
func forwarding(n int, addr, forward string) dom {
	return dom{n: n, annotation: `><interface><address ip="` + addr + `"/><forward ` + forward + `/></interface></slash32:network><other`}
}

// Different ports of the host's, or the same of other protocols, are no conflict.
func TestForwards(t *testing.T) {
	b := newBed(t)
	b.must("prepare", forwarding(1, "203.0.113.42", `port="8022" to="22"`))
	b.must("prepare", forwarding(2, "203.0.113.43", `port="8023" to="22"`))
	b.must("prepare", forwarding(3, "203.0.113.44", `port="8022" to="22" proto="udp"`))
	d, err := b.spool.Declaration(id(3))
	if err != nil || len(d.Forwards) != 1 || d.Forwards[0] != "ipv4 udp/8022 to 22" {
		t.Errorf("declared %v, %v", d.Forwards, err)
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("<!-- padding -->", 70_000)
	for _, c := range []struct {
		name  string
		setup func(*bed)
		vm    dom
		want  []string // in the message
	}{
		{"address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "line 3", "203.0.113.42", "vm1"}},
		{"second address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.43" ipv6="2001:db8:0::42"`}, []string{"vm2: E101", "2001:db8::42", "vm1"}},
		{"bridge in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="203.0.113.43"`, bridge: "s32-vm1"}, []string{"vm2: E104", "s32-vm1", "vm1"}},
		{"port in use", func(b *bed) { b.must("prepare", forwarding(1, "203.0.113.42", `port="8000-8030" to="22"`)) },
			forwarding(2, "203.0.113.43", `port="8022" to="22"`), []string{"vm2: E115 line 3: port tcp/8022", "forwarded to running VM vm1", "tcp/8000-8030"}},
		{"public address in use", func(b *bed) { b.must("prepare", web) },
			dom{n: 2, annotation: `ipv4="10.0.0.43" nat="one-to-one 203.0.113.42"`}, []string{"vm2: E101", "203.0.113.42", "vm1"}},
		{"public address is the host's", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="10.0.0.43" nat="one-to-one 192.0.2.1"`}, []string{"vm2: E101", "192.0.2.1 is an address of this host itself"}},
		{"route without declaration", func(b *bed) {
			b.must("prepare", web)
			b.must("started", web)
			b.sh("ip route add 203.0.113.42 dev s32-vm1 proto 32 metric 1024")
			b.sh("ip link add tap1 type veth peer name tap1p")
			b.sh("ip link set tap1 master s32-vm1")
			if err := b.spool.Remove(id(1)); err != nil {
				b.Fatal(err)
			}
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "s32-vm1", id(1).String()}},
		{"unknown attribute", nil, dom{n: 2, annotation: `ip4="203.0.113.42"`}, []string{"vm2: E103 line 3", `"ip4"`, `"ipv4"`}},
		{"malformed address", nil, dom{n: 2, annotation: `ipv4="203.0.113.420"`}, []string{"vm2: E102 line 3", "203.0.113.420"}},
		{"announced by another host", func(b *bed) {
			b.uplink()
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "line 3", "203.0.113.42", "announced by another host", "E101 line 3: address 203.0.113.42 is announced by another host: route via 192.0.2.3 dev up0 proto bird (12). Fix: "}},
		{"announced by another host, IPv6", func(b *bed) {
			b.uplink()
			b.sh("ip -6 route add 2001:db8::42 via fe80::3 dev up0 proto zebra")
		}, dom{n: 2, annotation: `ipv6="2001:db8::42"`}, []string{"vm2: E101", "2001:db8::42", "via fe80::3 dev up0 proto zebra (11). Fix: "}},
		{"announced by two hosts", func(b *bed) {
			b.uplink()
			b.sh("ip route add 203.0.113.42 proto 77 nexthop via 192.0.2.3 nexthop via 192.0.2.4")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "route dev up0 (and other next hops) proto 77. Fix: "}},
		{"announced in the network's table, which nobody uses yet", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {policy: {table: 100}}\n")
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bgp table 100")
		}, dom{n: 2, annotation: `network="policy" ipv4="203.0.113.42"`}, []string{"vm2: E101", "via 192.0.2.3 dev up0 proto bgp (186)"}},
		{"announced in the network's table, which a VM uses", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {policy: {table: 100}}\n")
			b.must("prepare", dom{n: 1, annotation: `network="policy" ipv4="203.0.113.43"`})
			b.sh("ip rule add pref 32000 lookup 100 suppress_prefixlength 0 protocol 32") // as the agent does
			b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto ospf table 100")
		}, dom{n: 2, annotation: `network="policy" ipv4="203.0.113.42"`}, []string{"vm2: E101", "via 192.0.2.3 dev up0 proto ospf (188)"}},
		{"a network's broadcast address", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="192.0.2.255"`}, []string{"vm2: E101", "192.0.2.255", "broadcast", "up0"}},
		{"address of a local VM, with warn", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {default: {conflict: warn, probe: [arp], probe_wait: 250ms}}\n")
			b.must("prepare", dom{n: 1, annotation: `ipv4="203.0.113.42"`})
			b.Cleanup(func() {
				if len(b.probed) != 1 { // vm1's
					b.Errorf("the network was asked for what a local VM has: %v", b.probed)
				}
			})
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "belongs to running VM vm1"}},
		{"the host's own address", func(b *bed) { b.uplink() },
			dom{n: 2, annotation: `ipv4="192.0.2.1"`}, []string{"vm2: E101", "192.0.2.1", "this host itself"}},
		{"answered on the uplink", func(b *bed) {
			b.uplink()
			b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
			b.hits = []probe.Hit{{Addr: netip.MustParseAddr("203.0.113.42"), By: "answers ARP at 52:54:00:00:00:99 on up0"}}
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E101", "somebody answers ARP at 52:54:00:00:00:99 on up0"}},
		{"bridge with a physical port", func(b *bed) {
			b.sh("ip link add br0 type bridge")
			b.sh("ip link add enp4s0 type veth peer name cable")
			b.sh("ip link set enp4s0 master br0")
		}, dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "enp4s0", "s32-vm2"}},
		{"bridge that is not ours", func(b *bed) { b.sh("ip link add br0 type bridge") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "not one that slash32 made"}},
		{"not a bridge", func(b *bed) { b.sh("ip link add br0 type veth peer name br0p") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "br0"}, []string{"vm2: E106", "br0", "veth"}},
		{"long bridge name", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "a-much-too-long-name"}, []string{"vm2: E107", "a-much-too-long-name", "15"}},
		{"type network", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"`, nic: "network", bridge: "default"}, []string{"vm2: E108", "network"}},
		{"configuration", func(b *bed) { b.write("slash32.yaml", "networks:\n  default:\n    upling: eth0\n") },
			dom{n: 2, annotation: `ipv4="203.0.113.42"`}, []string{"vm2: E112", "slash32.yaml:3", "upling", "uplink"}},
		{"unknown network", nil, dom{n: 2, annotation: `ipv4="203.0.113.42" network="pubic"`}, []string{"vm2: E111", "pubic"}},
		{"XML too long", nil, dom{n: 2, annotation: `ipv4="203.0.113.42"/>` + long + `<x`}, []string{"vm2: E100", "1048576"}},
		{"the kernel refuses", func(b *bed) { b.failApply = errors.New("no buffer space available") }, web, []string{"vm1: E130", "no buffer space"}},
		{"the responder does not start", func(b *bed) { b.failReady = errors.New("cannot open a packet socket") }, web, []string{"vm1: E130", "cannot open a packet socket"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if c.setup != nil {
				c.setup(b)
			}
			before := b.all()
			err := b.call("prepare", c.vm)
			if err == nil {
				t.Fatal("it was let start")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the message lacks %q: %v", w, err)
				}
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("more than one line: %q", err)
			}
			if d := cmp.Diff(before, b.all()); d != "" {
				t.Errorf("something is left, or the other VM was disturbed: %s", d)
			}
			// libvirt calls these after a start that was refused.
			b.must("stopped", c.vm)
			b.must("release", c.vm)
			if d := cmp.Diff(before, b.all()); d != "" {
				t.Errorf("stopped or release of what never started changed something: %s", d)
			}
		})
	}
}

func (b *bed) write(name, text string) {
	b.Helper()
	path := filepath.Join(b.hook.Dirs.Config, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// A file below domains.d stands in for the metadata.
func TestDomainFile(t *testing.T) {
	b := newBed(t)
	b.write("domains.d/vm1.yaml", "ipv4: 203.0.113.42\n")
	plain := dom{n: 1, annotation: "-"}
	b.must("prepare", plain)
	if _, err := b.spool.Declaration(id(1)); err != nil {
		t.Fatal(err)
	}
	// Removed while the VM runs: the teardown still happens.
	if err := os.Remove(filepath.Join(b.hook.Dirs.Config, "domains.d/vm1.yaml")); err != nil {
		t.Fatal(err)
	}
	b.must("stopped", plain)
	b.must("release", plain)
	b.wantEmpty("release")
}

// A stopped or release that comes after the next start tears nothing down.
func TestLateRelease(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	b.must("started", web)
	b.sh("ip link add tap1 type veth peer name tap1p")
	b.sh("ip link set tap1 master s32-vm1")
	before := b.all()
	b.must("stopped", web)
	b.must("release", web)
	if d := cmp.Diff(before, b.all()); d != "" {
		t.Error(d)
	}
	if d, err := b.spool.Declaration(id(1)); err != nil || d.Phase != spool.Started {
		t.Errorf("%+v, %v", d, err)
	}
}

// What a hook that died left behind is taken over, and a wiped run directory
// does not keep a teardown from happening.
func TestLeftovers(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	b.must("prepare", web)
	if d, _ := b.spool.Declaration(id(1)); d.Generation != 2 {
		t.Errorf("generation %d", d.Generation)
	}
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	other := dom{n: 2, annotation: `ipv4="203.0.113.42"`, bridge: "s32-vm1"}
	b.must("prepare", other)
	if out := b.sh("ip link show s32-vm1"); !strings.Contains(out, id(2).String()) {
		t.Errorf("the left-over was not taken over:\n%s", out)
	}
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	b.must("stopped", other)
	b.must("release", other)
	b.wantEmpty("release without a declaration")
}

// A preparation that never got further counts for five minutes.
func TestStalePreparation(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	second := dom{n: 2, annotation: `ipv4="203.0.113.42"`}
	if err := b.call("prepare", second); err == nil {
		t.Fatal("two VMs with one address")
	}
	b.now = b.now.Add(spool.PrepareDeadline + time.Second)
	b.must("prepare", second)
}

// Only prepare and start may refuse: a reconnect that fails would have libvirt
// kill the VM.
func TestNeverFails(t *testing.T) {
	b := newBed(t)
	bad := dom{n: 1, annotation: `nonsense="1"`}
	for _, op := range []string{"started", "stopped", "release", "migrate", "restore", "reconnect", "attach"} {
		b.must(op, bad)
	}
	b.failReady = errors.New("no")
	b.must("reconnect", web)
	if err := b.hook.Run(context.Background(), []string{"vm1", "reconnect", "begin", "-"}, strings.NewReader("<slash32:network urn:slash32:domain:1")); err != nil {
		t.Error(err)
	}
	if err := b.hook.Run(context.Background(), nil, strings.NewReader("")); err == nil {
		t.Error("no arguments were taken")
	}
}

// Reconnect makes declaration, binding and responder anew where they lack.
func TestReconnect(t *testing.T) {
	b := newBed(t)
	b.must("prepare", web)
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	clear(b.resp)
	b.must("reconnect", web)
	d, err := b.spool.Declaration(id(1))
	if err != nil || d.Phase != spool.Started {
		t.Errorf("%+v, %v", d, err)
	}
	bind, err := b.spool.Binding(id(1))
	if err != nil || bind.NICs[0].V4.Addr != netip.MustParseAddr("203.0.113.42") {
		t.Errorf("%+v, %v", bind, err)
	}
	if !b.resp[b.spool.VMDir(id(1))] {
		t.Error("no responder")
	}
}

// The last VM that goes takes the table and the rules along, others do not. What
// covers a network's pool is nobody's and stays.
func TestLastOneSwitchesOff(t *testing.T) {
	b := newBed(t)
	b.write("slash32.yaml", "networks:\n  policy:\n    table: 100\n")
	second := dom{n: 2, annotation: `ipv4="203.0.113.43" network="policy"`}
	b.must("prepare", web)
	b.must("prepare", second)
	b.sh("ip rule add pref 32000 lookup 100 suppress_prefixlength 0 protocol 32") // as the agent does
	b.must("stopped", web)
	b.must("release", web)
	if out := b.sh("nft list tables"); !strings.Contains(out, "slash32") {
		t.Error("the table went with the first of two")
	}
	b.sh("ip -6 route add unreachable 2001:db8:ffff::/48 metric 4096 protocol 32") // the same: a pool's
	b.must("stopped", second)
	b.must("release", second)
	b.sh("ip -6 route del unreachable 2001:db8:ffff::/48 metric 4096 protocol 32")
	if out := b.sh("ip rule"); strings.Contains(out, "lookup 100") {
		t.Errorf("the rule stays:\n%s", out)
	}
	b.wantEmpty("the last release")
}

// TestTablesCannotBeKept: only a VM whose network waits for a table is refused.
func TestTablesCannotBeKept(t *testing.T) {
	b := newBed(t)
	b.write("slash32.yaml", "networks: {own: {table: auto}, plain: {nat: none}}\n")
	if err := os.WriteFile(b.spool.TablesFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := b.call("prepare", dom{n: 1, annotation: `network="own" ipv4="203.0.113.41"`})
	if err == nil || !strings.Contains(err.Error(), "vm1: E130") || !strings.Contains(err.Error(), "tables.json") {
		t.Errorf("in the network with a table: %v", err)
	}
	b.must("prepare", dom{n: 2, annotation: `network="plain" ipv4="203.0.113.42"`})
	if !strings.Contains(b.log.String(), "tables.json") {
		t.Errorf("nothing is said of it:\n%s", b.log.String())
	}
}
