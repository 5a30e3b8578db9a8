package reconcile_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
)

// lease writes what a responder keeps of VM n's NIC.
func (b *bed) lease(n int, seq uint64, nic lease.NIC) {
	b.Helper()
	nic.MAC = mac.Addr{0x52, 0x54, 0, 0, 0, byte(n)}
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
	b.lease(1, 1, lease.NIC{V4: four, V6: []lease.V6{{Addr: a("2001:db8:20::7"), Expires: soon + 3600}}})
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
	b.lease(1, 2, lease.NIC{V4: four})
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

// TestLeaseConflict: a server that leases what another VM has leases it in vain.
func TestLeaseConflict(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.20.0.7"`))
	b.pass()
	b.run(2, relayedVM)
	b.pass()
	a := netip.MustParseAddr
	b.lease(2, 1, lease.NIC{V4: lease.V4{Addr: a("10.20.0.7"), Expires: time.Now().Add(time.Hour).Unix()}})
	b.pass()
	if out := b.sh("ip route show proto 32"); !strings.Contains(out, "10.20.0.7 dev s32-vm1") || strings.Contains(out, "s32-vm2") {
		t.Errorf("routes:\n%s", out)
	}
	for _, vm := range b.loop.Status().VMs {
		if named := strings.Contains(strings.Join(vm.Problems, ""), "E101"); named != (vm.Name == "vm2") {
			t.Errorf("%s: %v", vm.Name, vm.Problems)
		}
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
	b.later(8 * 24 * time.Hour)
	b.pass()
	if s := there(); s != "12" {
		t.Errorf("after a week there are the files of %s", s)
	}
}
