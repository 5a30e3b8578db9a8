package hook_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/traffic"
)

// uplink is a default route and a network to the outside.
func (b *bed) uplink() {
	b.Helper()
	for _, line := range []string{
		"ip link set lo up",
		"ip link add up0 type veth peer name up0p",
		"ip link set up0p up",
		"ip link set up0 up",
		"ip address add 192.0.2.1/24 dev up0",
		"ip route add default via 192.0.2.254",
	} {
		b.sh(line)
	}
}

// TestTakenElsewhere: what does not refuse the start is a warning that stays with
// the VM.
// A forward that takes the place of a program of the host is said, and does not keep
// the VM from starting.
func TestPortOfTheHost(t *testing.T) {
	b := newBed(t)
	b.sh("ip link set lo up")
	l, err := net.Listen("tcp4", "0.0.0.0:22")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const code = "W115"
	b.must("prepare", dom{n: 1, children: `<interface><address ip="10.0.0.1"/><forward port="2222" to="22"/></interface>`})
	if got := b.log.String(); strings.Contains(got, code) {
		t.Errorf("another port: %s", got)
	}
	b.must("prepare", dom{n: 2, children: `<interface><address ip="10.0.0.2"/><forward port="22"/></interface>`})
	if got := b.log.String(); !strings.Contains(got, "vm2: W115 line 3: port tcp/22 is forwarded") {
		t.Errorf("log: %s", got)
	}
	if _, err := b.spool.Declaration(id(2)); err != nil {
		t.Error(err)
	}
}

func TestTakenElsewhere(t *testing.T) {
	const quick = "networks: {default: {conflict: warn, probe: [arp, icmp], probe_wait: 250ms}}\n"
	vm := dom{n: 2, annotation: `ipv4="203.0.113.42" ipv6="2001:db8::42"`}
	warnings := func(b *bed) string {
		d, err := b.spool.Declaration(id(2))
		if err != nil {
			b.Fatal(err)
		}
		return strings.Join(d.Warnings, "\n")
	}
	t.Run("warn", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		b.write("slash32.yaml", quick)
		b.must("prepare", vm)
		if got := warnings(b); !strings.Contains(got, "vm2: W101 line 3: address 203.0.113.42 is announced by another host") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("probe", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.write("slash32.yaml", "networks: {default: {uplink: up0, conflict: warn, probe: [arp, icmp], probe_wait: 250ms}}\n")
		b.misses = []error{errors.New("no carrier")}
		b.must("prepare", vm)
		want := []probe.Target{
			{Addr: netip.MustParseAddr("203.0.113.42"), Link: "up0", ARP: true, ICMP: true},
			{Addr: netip.MustParseAddr("2001:db8::42"), Link: "up0", ARP: true, ICMP: true},
		}
		if !slices.Equal(b.probed, want) {
			t.Errorf("probed %v", b.probed)
		}
		if got := warnings(b); !strings.Contains(got, "W102") || !strings.Contains(got, "no carrier") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("no uplink", func(t *testing.T) {
		b := newBed(t)
		b.write("slash32.yaml", quick)
		b.must("prepare", vm)
		if got := warnings(b); len(b.probed) > 0 || !strings.Contains(got, "W102") {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
	})
	// The uplink of one family does not keep the other's from being asked.
	t.Run("no IPv6 uplink", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
		b.hits = []probe.Hit{{Addr: netip.MustParseAddr("203.0.113.42"), By: "answers ARP at 52:54:00:00:00:99 on up0"}}
		err := b.call("prepare", vm)
		want := []probe.Target{{Addr: netip.MustParseAddr("203.0.113.42"), Link: "up0", ARP: true}}
		if err == nil || !strings.Contains(err.Error(), "vm2: E101 line 3: address 203.0.113.42 is in use: somebody answers ARP at 52:54:00:00:00:99 on up0. Fix: ") || !slices.Equal(b.probed, want) {
			t.Errorf("%v, probed %v", err, b.probed)
		}
		b.hits = nil
		b.must("prepare", vm)
		if got := warnings(b); !strings.Contains(got, "W102") || !strings.Contains(got, "2001:db8::42") {
			t.Errorf("warnings: %s", got)
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add blackhole 203.0.113.0/24")
		b.sh("ip route add 203.0.112.0/20 via 192.0.2.3 proto bird")
		b.must("prepare", vm)
		if got := warnings(b); got != "" || len(b.probed) > 0 {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
	})
	// While a VM migrates here, its old host still announces it.
	t.Run("migration", func(t *testing.T) {
		b := newBed(t)
		b.uplink()
		b.sh("ip route add 203.0.113.42 via 192.0.2.3 dev up0 proto bird")
		b.write("slash32.yaml", "networks: {default: {probe: [arp], probe_wait: 250ms}}\n")
		b.must("migrate", vm)
		b.must("prepare", vm)
		if got := warnings(b); got != "" || len(b.probed) > 0 {
			t.Errorf("probed %v, warnings: %s", b.probed, got)
		}
		b.must("stopped", vm)
		b.must("release", vm)
		if err := b.call("prepare", vm); err == nil {
			t.Error("the next start counts as a migration, too")
		}
		b.must("restore", vm)
		if err := b.call("prepare", vm); err == nil {
			t.Error("a restore counts as a migration")
		}
		b.must("migrate", vm)
		b.now = b.now.Add(time.Hour)
		if err := b.call("prepare", vm); err == nil {
			t.Error("a migration that came to nothing is remembered for an hour")
		}
		b.now = time.Now()
		b.sh("ip address add 203.0.113.42/32 dev lo")
		b.must("migrate", vm)
		if err := b.call("prepare", vm); err == nil || !strings.Contains(err.Error(), "this host itself, on lo") {
			t.Errorf("a VM migrates to the host that has its address: %v", err)
		}
	})
}

// TestRelayed: a relayed VM needs no address, and gets a lease file. What the agent
// says that it was leased is nobody else's to have.
func TestRelayed(t *testing.T) {
	b := newBed(t)
	b.write("slash32.yaml", "networks: {ext: {relay: [192.0.2.11]}}\n")
	relayed := dom{n: 1, annotation: `network="ext"`}
	b.must("prepare", relayed)
	b.must("started", relayed)
	if info, err := os.Stat(b.spool.LeaseFile(id(1))); err != nil || info.Mode() != 0o600 {
		t.Errorf("the lease file: %v, %v", info, err)
	}
	d, err := b.spool.Declaration(id(1))
	if err != nil {
		t.Fatal(err)
	}
	d.Addrs = append(d.Addrs, netip.MustParseAddr("203.0.113.42"))
	if err := b.spool.WriteDeclaration(d); err != nil {
		t.Fatal(err)
	}
	if err := b.call("prepare", dom{n: 2, annotation: `ipv4="203.0.113.42"`}); err == nil || !strings.Contains(err.Error(), "E101") || !strings.Contains(err.Error(), "vm1") {
		t.Errorf("the leased address of another VM: %v", err)
	}

	// A state directory that cannot be written is no reason not to start.
	b.hook.Dirs.State = "/dev/null/x"
	b.must("prepare", dom{n: 3, annotation: `network="ext"`})
	if !b.resp[b.spool.VMDir(id(3))] {
		t.Error("no responder was started")
	}
}

// TestCountersAreLeft: what a VM's traffic counters said last is left for the
// agent, once.
func TestCountersAreLeft(t *testing.T) {
	b := newBed(t)
	b.agent = true
	b.must("prepare", web)
	b.must("started", web)
	b.sh(`nft add element inet slash32 in_internet { "s32-vm1" counter packets 3 bytes 300 }`)
	b.sh(`nft add element inet slash32 out_local { "s32-vm1" counter packets 1 bytes 50 }`)
	b.must("stopped", web)
	b.must("stopped", web)
	b.must("release", web)
	boot, err := spool.BootID()
	if err != nil {
		t.Fatal(err)
	}
	left, err := b.spool.LeftCounters()
	if err != nil || len(left) != 1 {
		t.Fatalf("left: %v, %v", left, err)
	}
	want := traffic.Final{Boot: boot, Bridges: map[string]traffic.Traffic{"s32-vm1": {
		In: traffic.Classes{Internet: traffic.Count{Packets: 3, Bytes: 300}}, Out: traffic.Classes{Local: traffic.Count{Packets: 1, Bytes: 50}},
	}}}
	for name, f := range left {
		if d := cmp.Diff(want, f); d != "" || !strings.HasPrefix(name, id(1).String()) {
			t.Errorf("%s: %s", name, d)
		}
	}
}
