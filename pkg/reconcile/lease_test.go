package reconcile_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/test/wait"
)

// lease writes what a responder keeps of VM n's NIC.
func (b *bed) lease(n int, nic lease.NIC) {
	b.Helper()
	if nic.MAC.IsZero() {
		nic.MAC = mac.Addr{0x52, 0x54, 0, 0, 0, byte(n)}
	}
	old, err := b.spool.Lease(id(n))
	if err != nil {
		b.Fatal(err)
	}
	seq := old.Seq + 1
	slot, err := lease.AppendSlot(nil, lease.State{Seq: seq, NICs: []lease.NIC{nic}})
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(b.spool.LeaseFile(id(n)), os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err) // the agent has not made it
	}
	defer f.Close()
	if _, err := f.WriteAt(slot, int64(seq%2)*lease.SlotSize); err != nil {
		b.Fatal(err)
	}
}

const relayedVM = "<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><relay server='10.9.0.11'/><relay server='fd09::11'/></interface></slash32:network>"

// TestLease: what another server has leased is programmed like the VM's own
// addresses, until it ends.
func TestLease(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.pass()
	b.wantRoute("10.20.0.7", false)
	a := netip.MustParseAddr
	soon := time.Now().Add(time.Hour).Unix()
	four := lease.V4{Addr: a("10.20.0.7"), Bits: 24, Server: a("10.9.0.11"), From: a("10.9.0.11"), Expires: soon}
	b.lease(1, lease.NIC{V4: four, V6: []lease.V6{{Addr: a("2001:db8:20::7"), Expires: soon + 3600}}})
	b.pass()
	b.wantRoute("10.20.0.7", true)
	if out := b.ours(); !strings.Contains(out, "2001:db8:20::7") || !strings.Contains(out, `guard4 { "s32-vm1" . 10.20.0.7 }`) {
		t.Errorf("ours:\n%s", out)
	}
	vm := b.loop.Status().VMs[0]
	if n := vm.NICs[0]; len(n.Leases) != 2 || n.Leases[0].Server != "10.9.0.11" || len(n.Relay) != 2 || len(vm.Problems) != 0 {
		t.Errorf("status %+v", vm)
	}
	b.restart()
	b.pass()
	b.wantRoute("10.20.0.7", true)
	if n := b.writes(); n != 0 {
		t.Errorf("the next agent wrote %d times", n)
	}

	b.later(90 * time.Minute)
	b.pass()
	b.wantRoute("10.20.0.7", false)
	if out := b.ours(); !strings.Contains(out, "2001:db8:20::7") {
		t.Errorf("the other lease ended, too:\n%s", out)
	}

	// An address that no VM can have, and a file that is torn, are named.
	four.Expires += 7200
	four.Addr = a("169.254.0.1")
	b.lease(1, lease.NIC{V4: four})
	b.pass()
	if vm := b.loop.Status().VMs[0]; len(vm.Problems) != 1 || !strings.Contains(vm.Problems[0], "W209") || !strings.Contains(vm.Problems[0], "169.254.0.1") {
		t.Errorf("problems %v", vm.Problems)
	}
	if err := os.WriteFile(b.spool.LeaseFile(id(1)), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.pass()
	if vm := b.loop.Status().VMs[0]; len(vm.Problems) != 1 || !strings.Contains(vm.Problems[0], "W209") || vm.State != "online" {
		t.Errorf("%s, problems %v", vm.State, vm.Problems)
	}
}

// TestLeaseFilesGo with their domains, a week after they were last written.
func TestLeaseFilesGo(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.run(2, relayedVM)
	b.run(3, relayedVM)
	b.pass()
	b.virt.mu.Lock()
	b.virt.defined = []uuid.UUID{id(1), id(2)}
	b.virt.mu.Unlock()
	b.end(2)
	b.end(3)
	b.pass()
	there := func() (s string) {
		for n := 1; n <= 3; n++ {
			if _, err := os.Stat(b.spool.LeaseFile(id(n))); err == nil {
				s += string(rune('0' + n))
			}
		}
		return s
	}
	b.later(2 * time.Hour)
	b.pass()
	if s := there(); s != "123" {
		t.Errorf("after two hours there are the files of %s", s)
	}
	b.virt.mu.Lock()
	b.virt.unknown = true
	b.virt.mu.Unlock()
	b.later(8 * 24 * time.Hour)
	b.pass()
	if s := there(); s != "123" {
		t.Errorf("while libvirt does not answer there are the files of %s", s)
	}
	b.virt.mu.Lock()
	b.virt.unknown = false
	b.virt.mu.Unlock()
	b.later(2 * time.Hour)
	b.pass()
	if s := there(); s != "12" {
		t.Errorf("after a week there are the files of %s", s)
	}
}

// v4 is a NIC with an address leased for so long.
func v4(b *bed, addr string, left time.Duration) lease.NIC {
	b.mu.Lock()
	defer b.mu.Unlock()
	server := netip.MustParseAddr("10.9.0.11")
	return lease.NIC{V4: lease.V4{
		Addr: netip.MustParseAddr(addr), Bits: 24, Server: server, From: server, Expires: time.Now().Add(b.now + left).Unix(),
	}}
}

func (b *bed) problems(vm int) string {
	return strings.Join(b.loop.Status().VMs[vm].Problems, "\n")
}

// The loop looks by itself when a lease ends, whether or not anybody tells it.
func TestLeaseEnds(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.pass()
	end := time.Now().Add(2 * time.Second)
	b.lease(1, lease.NIC{V6: []lease.V6{{Addr: netip.MustParseAddr("2001:db8:20::7"), Expires: end.Unix()}}})
	b.pass()
	has := func() bool { return strings.Contains(b.sh("ip -6 route show proto 32"), "2001:db8:20::7") }
	if !has() {
		t.Fatal("no route")
	}
	passes := b.loop.Status().Passes
	wait.For(t, 20*time.Second, "the end of the lease", func() bool { return !has() })
	if n := b.loop.Status().Passes - passes; n > 3 {
		t.Errorf("%d passes until then", n)
	}
}

// What a responder's file says is believed as far as it can be true.
func TestLeaseRefused(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.pass()
	for addr, want := range map[string]string{
		"127.0.0.1":   "W209",
		"224.0.0.1":   "W209",
		"0.0.0.0":     "W209",
		"169.254.0.1": "is the gateway of network default",
		"10.9.0.11":   "is a DHCP server's",
	} {
		b.lease(1, v4(b, addr, time.Hour))
		b.pass()
		if s := b.sh("ip route show proto 32"); s != "" {
			t.Errorf("%s: routes:\n%s", addr, s)
		}
		if s := b.problems(0); !strings.Contains(s, want) {
			t.Errorf("%s: problems: %s", addr, s)
		}
	}
	for name, nic := range map[string]lease.NIC{
		"another NIC's":    {MAC: mac.Addr{2}, V4: v4(b, "10.20.0.7", time.Hour).V4},
		"another family's": {V4: lease.V4{Addr: netip.MustParseAddr("2001:db8:20::7"), Expires: 1 << 40}, V6: []lease.V6{{Addr: netip.MustParseAddr("10.20.0.7"), Expires: 1 << 40}}},
		"expired":          v4(b, "10.20.0.7", -time.Second),
	} {
		b.lease(1, nic)
		b.pass()
		if s := b.sh("ip route show proto 32") + b.sh("ip -6 route show proto 32"); s != "" || b.problems(0) != "" {
			t.Errorf("%s: routes:\n%s%s", name, s, b.problems(0))
		}
	}
	// A VM that is not relayed (any more) has no leases.
	b.lease(1, v4(b, "10.20.0.7", time.Hour))
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.wantRoute("10.20.0.7", false)
	b.wantRoute("10.42.0.7", true)

	b.run(1, relayedVM)
	if err := os.WriteFile(b.spool.LeaseFile(id(1)), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.pass()
	if s := b.problems(0); !strings.Contains(s, "W209") || !strings.Contains(s, id(1).String()+".bad") {
		t.Errorf("problems: %s", s)
	}
}

// Who had an address first keeps it, even when the other VM is the older one or
// has it in its annotation: a guest may have lied to the server.
func TestLeaseConflict(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.pass()
	b.run(2, relayedVM)
	b.pass()
	routes := func(want string) {
		t.Helper()
		var got []string
		for line := range strings.Lines(b.sh("ip route show proto 32")) {
			got = append(got, strings.Join(strings.Fields(line)[:3], " "))
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("routes %q, want %q", s, want)
		}
	}
	const second = "10.20.0.7 dev s32-vm2"
	b.lease(2, v4(b, "10.20.0.7", time.Hour))
	b.pass()
	routes(second)
	b.lease(1, v4(b, "10.20.0.7", time.Hour))
	b.pass()
	routes(second)
	if s := b.problems(0); !strings.Contains(s, "E101") || !strings.Contains(s, "vm2") {
		t.Errorf("problems: %s", s)
	}
	if n := b.loop.Status().VMs[0].NICs[0].Leases; len(n) != 0 {
		t.Errorf("the loser shows the lease: %+v", n)
	}
	b.restart()
	b.pass()
	routes(second)
	if s := b.loop.Status(); s.FirstPassWrites != 0 {
		t.Errorf("the next agent's first pass wrote %d times", s.FirstPassWrites)
	}
	// By live change, a third one wants it.
	b.run(3, annotated(`ipv4="10.42.0.9"`))
	b.pass()
	b.run(3, annotated(`ipv4="10.20.0.7"`))
	b.pass()
	routes("10.20.0.7 dev s32-vm2, 10.42.0.9 dev s32-vm3")
	if s := b.problems(2); !strings.Contains(s, "E101") {
		t.Errorf("problems: %s", s)
	}
	b.end(3)
	b.end(2)
	b.pass()
	routes("10.20.0.7 dev s32-vm1")

	// An address from the annotation is not another VM's to be leased.
	b.run(4, annotated(`ipv4="10.20.0.8"`))
	b.pass()
	b.lease(1, v4(b, "10.20.0.8", time.Hour))
	b.pass()
	routes("10.20.0.8 dev s32-vm4")
}

// A state directory that cannot be written is a warning, once, and the VM runs.
func TestLeaseFileRefused(t *testing.T) {
	b := newBed(t)
	broken := *b.spool
	broken.State = "/proc/none"
	b.spool = &broken
	b.restart()
	b.run(1, relayedVM)
	b.pass()
	b.pass()
	vm := b.loop.Status().VMs[0]
	if vm.State != "online" || len(vm.Problems) != 1 || !strings.Contains(vm.Problems[0], "W209") || !strings.Contains(vm.Problems[0], "not routed") {
		t.Errorf("%s: %v", vm.State, vm.Problems)
	}
	if n, _ := b.resp.running(); n != 1 {
		t.Errorf("%d responders run", n)
	}
	if n := strings.Count(b.log.String(), "not routed"); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}

// TestSpeaks: the sockets by which responders speak to the agent are asked for where
// there is something to be said, with servers or without.
func TestSpeaks(t *testing.T) {
	b := newBed(t)
	b.run(1, relayedVM)
	b.run(2, `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><prefix net="2001:db8:7::/60" mode="delegate"/></interface></slash32:network>`)
	b.run(3, `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><prefix net="2001:db8:8::/64" mode="slaac"/></interface></slash32:network>`)
	b.pass()
	servers := map[uuid.UUID]int{}
	for _, v := range b.relayed {
		servers[v.UUID] = len(v.NICs[0].Servers4) + len(v.NICs[0].Servers6)
	}
	if diff := cmp.Diff(map[uuid.UUID]int{id(1): 2, id(2): 0}, servers); diff != "" {
		t.Errorf("servers by VM (-want +got):\n%s", diff)
	}
}
