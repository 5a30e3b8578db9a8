package reconcile_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/spool"
)

// tap makes what libvirt makes for VM n, in no bridge.
func (b *bed) tap(n int) { b.Helper(); b.sh(fmt.Sprintf("ip tuntap add tap%d mode tap", n)) }

// master is the bridge that the tap of VM n is in.
func (b *bed) master(n int) string {
	b.Helper()
	_, rest, _ := strings.Cut(b.sh(fmt.Sprintf("ip -o link show dev tap%d", n)), " master ")
	bridge, _, _ := strings.Cut(rest, " ")
	return bridge
}

// The tap of a running VM comes back into its bridge; in a bridge of somebody's it
// stays, and that is said once.
func TestTap(t *testing.T) {
	b := newBed(t)
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	b.tap(1)
	for _, do := range []string{"ip link set tap1 nomaster", "ip link del s32-vm1"} {
		b.sh(do)
		b.pass()
		if got := b.master(1); got != "s32-vm1" {
			t.Errorf("%s: the tap is in %q", do, got)
		}
		if n := b.writes(); n != 0 {
			t.Errorf("%s: %d writes in the next pass", do, n)
		}
	}

	b.sh("ip link add br0 type bridge")
	b.sh("ip link set tap1 master br0")
	const line = "vm1: W221 its tap tap1 is in br0 and not in its bridge s32-vm1, so it is offline. Fix: ip link set tap1 master s32-vm1"
	for range 3 {
		b.pass()
	}
	if got := b.master(1); got != "br0" {
		t.Errorf("the tap was taken to %q", got)
	}
	if got := b.loop.Status().VMs[0].Problems; len(got) != 1 || got[0] != line {
		t.Errorf("problems in status: %q", got)
	}
	if n := strings.Count(b.log.String(), "W221"); n != 1 {
		t.Errorf("said %d times", n)
	}
	b.sh("ip link del br0")
	b.pass()
	if got := b.master(1); got != "s32-vm1" {
		t.Errorf("without that bridge the tap is in %q", got)
	}
	if got := b.loop.Status().VMs[0].Problems; len(got) != 0 {
		t.Errorf("problems in status: %q", got)
	}
}

// While libvirt starts a VM its tap is libvirt's, and once it has gone nobody's.
func TestTapOfStartingVM(t *testing.T) {
	b := newBed(t)
	declare := func(phase spool.Phase) {
		t.Helper()
		d := spool.Declaration{UUID: id(1), Name: "vm1", Generation: 1, Phase: phase, At: time.Now(), XML: xml(1, annotated(`ipv4="10.42.0.7"`))}
		if err := b.spool.WriteDeclaration(d); err != nil {
			t.Fatal(err)
		}
	}
	b.pass()
	declare(spool.Preparing) // before libvirt lists it and makes the tap
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.tap(1)
	b.pass()
	if got := b.master(1); got != "" {
		t.Errorf("prepared: the tap is in %q", got)
	}
	declare(spool.Started)
	b.pass()
	if got := b.master(1); got != "s32-vm1" {
		t.Errorf("started: the tap is in %q", got)
	}
	b.sh("ip link set tap1 nomaster")
	declare(spool.Stopped)
	b.pass()
	if got := b.master(1); got != "" {
		t.Errorf("stopped: the tap is in %q", got)
	}
}

// A program of the host whose port is forwarded is said for as long as it listens.
func TestPortOfTheHost(t *testing.T) {
	b := newBed(t)
	b.run(1, `<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><address ip='10.42.0.7'/><forward port='22'/></interface></slash32:network>`)
	b.pass()
	if got := b.loop.Status().VMs[0].Problems; len(got) > 0 {
		t.Errorf("nobody listens: %q", got)
	}
	l, err := net.Listen("tcp4", "0.0.0.0:22")
	if err != nil {
		t.Fatal(err)
	}
	b.pass()
	b.pass()
	if got := b.loop.Status().VMs[0]; len(got.Problems) != 1 || !strings.Contains(got.Problems[0], "vm1: W115 line 1: port tcp/22 is forwarded") || got.State != "online" {
		t.Errorf("status: %+v", got)
	}
	if n := strings.Count(b.log.String(), "W115"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b.pass()
	if got := b.loop.Status().VMs[0].Problems; len(got) > 0 {
		t.Errorf("nobody listens any more: %q", got)
	}
}
