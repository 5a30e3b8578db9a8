package reconcile_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/test/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A VM that libvirt lists and that no hook has declared: everything is made, and
// a second look writes nothing, neither by this agent nor by the next one.
func TestVMFoundRunning(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.run(2, "") // not annotated
	b.pass()
	b.wantRoute("10.42.0.7", true)
	b.plug(1)
	if n := b.writes(); n != 0 {
		t.Errorf("the second pass wrote %d times", n)
	}
	d, err := b.spool.Declaration(id(1))
	if err != nil || d.Phase != spool.Started || d.Generation != 1 {
		t.Errorf("declaration %+v, %v", d, err)
	}
	if _, err := b.spool.Declaration(id(2)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a VM without annotation was declared: %v", err)
	}
	if n, _ := b.resp.running(); n != 1 {
		t.Errorf("%d responders run", n)
	}
	before := b.ours()
	b.restart()
	b.pass()
	if s := b.loop.Status(); s.FirstPassWrites != 0 {
		t.Errorf("the next agent's first pass wrote %d times", s.FirstPassWrites)
	}
	if d := cmp.Diff(before, b.ours()); d != "" {
		t.Error(d)
	}
	vms := b.loop.Status().VMs
	if len(vms) != 1 || vms[0].State != "online" || vms[0].NICs[0].Tap != "tap1" || vms[0].NICs[0].Uplink != "up0" {
		t.Errorf("status %+v", vms)
	}

	// It ends without any hook: all goes, with the bridge's last port.
	b.unplug(1)
	b.end(1)
	b.pass()
	if s := b.ours(); s != state.New().String() {
		t.Errorf("left over:\n%s", s)
	}
	if _, err := os.Stat(b.spool.VMDir(id(1))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are left: %v", err)
	}
	if n, _ := b.resp.running(); n != 0 {
		t.Errorf("%d responders are left", n)
	}
}

// While the list is unknown nothing is removed, and repair goes on.
func TestListUnknown(t *testing.T) {
	for name, cut := range map[string]func(*fakeVirt){
		"refused": func(v *fakeVirt) { v.err = errors.New("connection refused") },
		"hangs":   func(v *fakeVirt) { v.hang = true },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.run(1, annotated(`ipv4="10.42.0.7"`))
			b.run(2, annotated(`ipv4="10.42.0.8"`))
			b.pass()
			before := b.ours()
			b.virt.mu.Lock()
			cut(b.virt)
			clear(b.virt.domains)
			b.virt.mu.Unlock()
			b.later(time.Hour) // no matter for how long
			b.sh("ip route del 10.42.0.7")
			b.sh("nft flush set inet slash32 guard4")
			b.pass()
			if d := cmp.Diff(before, b.ours()); d != "" {
				t.Error(d)
			}
			if s := b.loop.Status(); s.Degraded == "" || s.DegradedSince == nil || len(s.VMs) != 2 {
				t.Errorf("status %+v", s)
			}
			// An agent without memory has the declarations.
			b.restart()
			b.pass()
			if d := cmp.Diff(before, b.ours()); d != "" {
				t.Error(d)
			}
			// The list is back and one VM is gone: it goes.
			b.virt.mu.Lock()
			b.virt.err, b.virt.hang = nil, false
			b.virt.mu.Unlock()
			b.run(2, annotated(`ipv4="10.42.0.8"`))
			b.pass()
			b.wantRoute("10.42.0.7", false)
			b.wantRoute("10.42.0.8", true)
			if s := b.loop.Status(); s.Degraded != "" {
				t.Errorf("still degraded: %s", s.Degraded)
			}
		})
	}
}

// An agent that starts with neither list nor declarations keeps what it finds.
func TestNothingKnown(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	before := b.ours()
	b.stop()
	if err := os.RemoveAll(b.spool.Run); err != nil {
		t.Fatal(err)
	}
	b.virt.err = errors.New("connection refused")
	b.restart()
	b.pass()
	if d := cmp.Diff(before, b.ours()); d != "" {
		t.Error(d)
	}
	if s := b.loop.Status(); s.Writes != 0 {
		t.Errorf("%d writes", s.Writes)
	}
}

func TestPhases(t *testing.T) {
	b := newBed(t)
	declare := func(phase spool.Phase, ago time.Duration) {
		t.Helper()
		unlock, err := b.spool.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = b.spool.WriteDeclaration(spool.Declaration{
			UUID: id(1), Name: "vm1", Generation: 1, Phase: phase, At: b.loop.Now().Add(-ago),
			Bridges: []string{"s32-vm1"}, XML: xml(1, annotated(`ipv4="10.42.0.7"`)),
		})
		unlock()
		if err != nil {
			t.Fatal(err)
		}
		b.pass()
	}
	declare(spool.Preparing, 0) // libvirt does not list it yet
	b.wantRoute("10.42.0.7", true)
	if n, _ := b.resp.running(); n != 0 {
		t.Error("the hook is about to start the responder, and so did the agent")
	}
	declare(spool.Preparing, spool.PrepareDeadline+time.Second) // the hook died
	b.wantRoute("10.42.0.7", false)
	if s := b.ours(); s != state.New().String() {
		t.Errorf("left over:\n%s", s)
	}

	b.run(1, annotated(`ipv4="10.42.0.7"`))
	declare(spool.Started, time.Second)
	b.wantRoute("10.42.0.7", true)
	declare(spool.Stopped, time.Second) // listed until the release hook is done
	b.wantRoute("10.42.0.7", false)
	if out := b.sh("ip -br link show group 32"); !strings.Contains(out, "s32-vm1") {
		t.Error("the bridge went before the release")
	}
	if s := b.loop.Status().VMs; len(s) != 1 || s[0].State != "stopping" {
		t.Errorf("status %+v", s)
	}
	b.sh("ip link del s32-vm1")
	declare(spool.Released, time.Second) // libvirt's list is older than the release
	b.wantRoute("10.42.0.7", false)
	if out := b.sh("ip -br link show group 32"); out != "" {
		t.Errorf("a listing brought the VM back: %s", out)
	}
	b.end(1)
	b.pass()
	if _, err := os.Stat(b.spool.VMDir(id(1))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tombstone stays: %v", err)
	}

	// Started again with our hook switched off: the tombstone is wrong.
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	declare(spool.Released, 2*time.Minute)
	b.wantRoute("10.42.0.7", true)
}

// A bridge with a port is somebody's, whatever libvirt's list says.
func TestPortKeepsBridge(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.plug(1)
	before := b.ours()
	b.end(1)
	b.pass()
	b.pass()
	if d := cmp.Diff(before, b.ours()); d != "" {
		t.Error(d)
	}
	b.unplug(1)
	b.pass()
	if s := b.ours(); s != state.New().String() {
		t.Errorf("left over:\n%s", s)
	}
}

// A live change that is wrong, or a removal, leaves the VM what it has.
func TestLiveChange(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.run(1, annotated(`ipv4="10.42.0.9"`))
	b.pass()
	b.wantRoute("10.42.0.7", false)
	b.wantRoute("10.42.0.9", true)
	bind, err := b.spool.Binding(id(1))
	if err != nil || bind.NICs[0].V4.Addr.String() != "10.42.0.9" {
		t.Fatalf("binding %+v, %v", bind, err)
	}
	for _, bad := range []string{annotated(`ipv4="10.42.0.999"`), annotated(`ip4="10.42.0.7"`), ""} {
		b.run(1, bad)
		b.pass()
		b.wantRoute("10.42.0.9", true)
		vms := b.loop.Status().VMs
		if len(vms) != 1 || len(vms[0].Problems) == 0 {
			t.Errorf("%q: status %+v", bad, vms)
		}
		b.restart() // the declaration still holds the last valid one
		b.pass()
		b.wantRoute("10.42.0.9", true)
	}
	b.run(1, annotated(`ipv4="10.42.0.10"`))
	b.pass()
	b.wantRoute("10.42.0.10", true)
	if p := b.loop.Status().VMs[0].Problems; len(p) != 0 {
		t.Errorf("problems stay: %v", p)
	}
}

// Two want one address by live change: who has it keeps it.
func TestConflict(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.run(2, annotated(`ipv4="10.42.0.8"`))
	b.pass()
	b.run(2, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	out := b.sh("ip route show proto 32")
	if !strings.Contains(out, "10.42.0.7 dev s32-vm1") || !strings.Contains(out, "10.42.0.8 dev s32-vm2") {
		t.Errorf("routes:\n%s", out)
	}
	vms := b.loop.Status().VMs
	if len(vms) != 2 || len(vms[0].Problems) != 0 || len(vms[1].Problems) != 1 || !strings.Contains(vms[1].Problems[0], "E101") || !strings.Contains(vms[1].Problems[0], "vm1") {
		t.Errorf("status %+v", vms)
	}
	if n := b.writes(); n != 0 {
		t.Errorf("the two fight: %d writes", n)
	}
	b.end(1)
	b.pass()
	if out := b.sh("ip route show proto 32"); !strings.Contains(out, "10.42.0.7 dev s32-vm2") || strings.Contains(out, "s32-vm1") {
		t.Errorf("the other did not get it:\n%s", out)
	}
}

// A bridge that somebody else made is never touched.
// TestPortConflict: who has forwarded a port first keeps it, and the other gets it
// when that one ends.
func TestPortConflict(t *testing.T) {
	b := newBed(t)
	forwarding := func(addr string, port string) string {
		return annotated(`><interface><address ip="` + addr + `"/><forward port="` + port + `" to="22"/></interface></slash32:network><other`)
	}
	forwards := func() string { return b.sh("nft list map inet slash32 forward4") }
	b.run(1, forwarding("10.42.0.7", "8022"))
	b.pass()
	b.run(2, forwarding("10.42.0.8", "8000-8002"))
	b.pass()
	b.run(2, forwarding("10.42.0.8", "8020-8023"))
	b.pass()
	if out := forwards(); !strings.Contains(out, "8022 : 10.42.0.7 . 22") || !strings.Contains(out, "8002 : 10.42.0.8 . 24") || strings.Contains(out, "8023") {
		t.Errorf("forwards:\n%s", out)
	}
	vms := b.loop.Status().VMs
	if len(vms) != 2 || len(vms[0].Problems) != 0 || len(vms[1].Problems) != 1 || !strings.Contains(vms[1].Problems[0], "E115") || !strings.Contains(vms[1].Problems[0], "vm1") {
		t.Errorf("status %+v", vms)
	}
	if n := b.writes(); n != 0 {
		t.Errorf("the two fight: %d writes", n)
	}
	b.end(1)
	b.pass()
	if out := forwards(); !strings.Contains(out, "8022 : 10.42.0.8 . 24") || strings.Contains(out, "10.42.0.7") || strings.Contains(out, "8002") {
		t.Errorf("the other did not get it:\n%s", out)
	}
	if f := b.loop.Status().VMs[0].NICs[0].Forwards; len(f) != 1 || f[0] != "ipv4 tcp/8020-8023 to 22" {
		t.Errorf("status says %v", f)
	}
}

func TestForeignBridge(t *testing.T) {
	b := newBed(t)
	b.sh("ip link add s32-vm1 type bridge")
	before := b.sh("ip -d link show s32-vm1")
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.run(2, annotated(`ipv4="10.42.0.8"`))
	b.pass()
	if d := cmp.Diff(before, b.sh("ip -d link show s32-vm1")); d != "" {
		t.Error(d)
	}
	b.wantRoute("10.42.0.7", false)
	b.wantRoute("10.42.0.8", true)
	vms := b.loop.Status().VMs
	if vms[0].State != "error" || !strings.Contains(vms[0].Text, "E106") {
		t.Errorf("status %+v", vms[0])
	}
}

// Whatever is taken away or changed is put back by one pass.
func TestRepair(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7" ipv6="2001:db8:100::7"`))
	b.pass()
	b.plug(1)
	b.pass()
	want := b.ours()
	for _, damage := range []string{
		"ip route flush proto 32", "ip -6 route flush proto 32", "nft flush ruleset", "nft delete table inet slash32",
		"nft flush set inet slash32 guard_mac", "ip neigh flush all nud permanent", "ip link set s32-vm1 down",
		"ip link set s32-vm1 mtu 1400", "ip addr flush dev s32-vm1", "ip route replace 10.42.0.7 dev up0 proto 32 metric 1024",
	} {
		b.sh(damage)
		if b.ours() == want {
			t.Errorf("%s: no damage", damage)
		}
		b.pass()
		if d := cmp.Diff(want, b.ours()); d != "" {
			t.Errorf("%s: %s", damage, d)
		}
	}
}

// A failed write is an error of the pass; the next pass does it.
func TestApplyFails(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.kernel.mu.Lock()
	b.kernel.fail = func(c state.Change) error {
		if c.Route != nil {
			return errors.New("no buffer space available")
		}
		return nil
	}
	b.kernel.mu.Unlock()
	if err := b.sync(); err == nil || !strings.Contains(err.Error(), "no buffer space") {
		t.Fatalf("pass: %v", err)
	}
	if s := b.loop.Status(); !strings.Contains(s.LastError, "no buffer space") {
		t.Errorf("status %+v", s)
	}
	b.kernel.mu.Lock()
	b.kernel.fail = nil
	b.kernel.mu.Unlock()
	b.pass()
	b.wantRoute("10.42.0.7", true)
}

// A responder that ends is started again.
func TestResponderEnds(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.resp.kill(b.spool.VMDir(id(1)))
	wait.For(t, 10*time.Second, "the responder to be started again", func() bool {
		n, starts := b.resp.running()
		return n == 1 && starts == 2
	})
	// One that can't start is an error that is tried again.
	b.resp.mu.Lock()
	b.resp.fail = errors.New("exec: no such file")
	b.resp.mu.Unlock()
	b.resp.kill(b.spool.VMDir(id(1)))
	wait.For(t, 10*time.Second, "the error", func() bool {
		return strings.Contains(b.loop.Status().LastError, "responder of vm1: exec: no such file")
	})
	b.resp.mu.Lock()
	b.resp.fail = nil
	b.resp.mu.Unlock()
	wait.For(t, 10*time.Second, "the responder", func() bool { n, _ := b.resp.running(); return n == 1 })
}

// Poke never blocks, and a loop that is held up is told to be unhealthy.
func TestHealthy(t *testing.T) {
	b := newBed(t)
	b.pass()
	unlock, err := b.spool.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		b.loop.Poke("test", false)
	}
	wait.For(t, 10*time.Second, "the pass to hang on the lock", func() bool {
		b.later(2 * time.Minute)
		return !b.loop.Healthy()
	})
	unlock()
	wait.For(t, 10*time.Second, "the pass to end", b.loop.Healthy)
}

// Repairs that nobody but the kernel's events asked for, five in a minute, are
// one line in the log.
func TestFight(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	for range 8 {
		b.sh("ip route flush proto 32")
		b.loop.Poke("kernel: route", false)
		wait.For(t, 10*time.Second, "the route", func() bool {
			out, err := b.try("ip route show proto 32")
			return err == nil && strings.Contains(out, "10.42.0.7")
		})
	}
	b.pass()
	if n := strings.Count(b.log.String(), "another program keeps changing"); n != 1 {
		t.Errorf("the line is there %d times:\n%s", n, b.log.String())
	}
}

// What the hook has warned of at the start is in status and, once, in the log:
// libvirt shows nobody what a hook that succeeds has printed.
func TestWarningsOfTheStart(t *testing.T) {
	b := newBed(t)
	const warning = "vm1: W101 line 1: address 203.0.113.1 is announced by another host: route via 192.0.2.3 dev up0 proto bird (12)"
	b.run(1, annotated(`ipv4="203.0.113.1"`))
	b.pass()
	b.plug(1)
	d, err := b.spool.Declaration(id(1))
	if err != nil {
		t.Fatal(err)
	}
	d.Warnings = []string{warning}
	if err := b.spool.WriteDeclaration(d); err != nil {
		t.Fatal(err)
	}
	b.pass()
	b.pass()
	vms := b.loop.Status().VMs
	if len(vms) != 1 || vms[0].State != "online" || !slices.Contains(vms[0].Problems, warning) {
		t.Errorf("status %+v", vms)
	}
	if n := strings.Count(b.log.String(), warning); n != 1 {
		t.Errorf("the warning is in the log %d times:\n%s", n, b.log.String())
	}
	if d, err := b.spool.Declaration(id(1)); err != nil || !slices.Contains(d.Warnings, warning) {
		t.Errorf("the agent's declaration has lost it: %+v, %v", d, err)
	}
}
