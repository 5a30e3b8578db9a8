package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// TestPaused starts a VM paused and destroys it: nothing is left.
func TestPaused(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	start(ctx, t, lab.Domain{Name: "paused", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.50"`)})
	must(t, world.WaitOnline(ctx, "paused"))
	must(t, world.Remove(ctx, "paused"))
	back(ctx, t, "nothing is left", before)
}

// TestFailedStart lets a hook after ours refuse the start at each stage:
// libvirt sends no event, and nothing is left.
func TestFailedStart(t *testing.T) {
	for _, stage := range []string{"prepare", "start", "started"} {
		t.Run(stage, func(t *testing.T) {
			ctx := scenario(t)
			const hook = "/etc/libvirt/hooks/qemu.d/zz-fail"
			must(t, world.HV.WriteFile(hook, "#!/bin/sh\n[ $2 != "+stage+" ]\n", 0o755))
			cleanup(t, func(ctx context.Context) { hv(ctx, t, "rm", hook) })
			kernel, before := state(ctx, t), mustEverything(ctx, t)
			d := lab.Domain{Name: "failing", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.51"`)}
			removeAfter(t, d.Name)
			if err := world.Run(ctx, d); err == nil {
				t.Fatal("it started")
			}
			if now := state(ctx, t); now != kernel {
				t.Error(errDiff(kernel, now))
			}
			// What hides the start from an old list of the agent's goes with its next
			// look, and without an event that is some time away.
			reply, err := control.Call(ctx, world.HV.Path("/run/slash32/slash32d.sock"), control.Request{Op: "sync"})
			must(t, err)
			if reply.Error != "" {
				t.Error(reply.Error)
			}
			back(ctx, t, "nothing is left", before)
		})
	}
}

// TestNotAnnotated starts a VM without our annotation: nothing of ours is made
// or changed, on its bridge or elsewhere.
func TestNotAnnotated(t *testing.T) {
	ctx := scenario(t)
	hv(ctx, t, "ip", "link", "add", "lan1", "type", "bridge")
	hv(ctx, t, "ip", "link", "set", "lan1", "up")
	cleanup(t, func(ctx context.Context) { hv(ctx, t, "ip", "link", "delete", "lan1") })
	ours := func() string {
		return hv(ctx, t, "sh", "-c", "find /run/slash32 | sort; nft list ruleset | grep -v counter; ip -d link show lan1 | grep -oE 'alias.*|group [a-z0-9]*|mtu [0-9]*'; sysctl -a -r lan1; ip route show table all proto 32; ip rule")
	}
	before := ours()
	start(ctx, t, lab.Domain{Name: "plain", Cheap: true, NICs: []lab.NIC{{Source: "lan1"}}})
	// The agent has seen it once it has seen a later VM.
	start(ctx, t, lab.Domain{Name: "later", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.52"`)})
	must(t, world.WaitOnline(ctx, "later"))
	must(t, world.Remove(ctx, "later"))
	eventually(ctx, t, "nothing changed", func() error {
		if now := ours(); now != before {
			return errDiff(before, now)
		}
		return nil
	})
	s, err := world.Status(ctx)
	must(t, err)
	for _, vm := range s.VMs {
		if vm.Name == "plain" {
			t.Error("status shows a VM that is not annotated")
		}
	}
}

// TestWithoutAgent starts and destroys a VM while no agent runs: the start
// works, and the teardown leaves nothing in the kernel.
func TestWithoutAgent(t *testing.T) {
	ctx := scenario(t)
	before := state(ctx, t)
	must(t, world.StopAgent())
	cleanup(t, func(ctx context.Context) { must(t, world.StartAgent(ctx)) })
	start(ctx, t, lab.Domain{Name: "alone", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.53"`)})
	if traces, err := world.Traces(ctx); err != nil || strings.Count(traces, "\nslash32-respond") != 4 {
		t.Errorf("want 4 responders: %v\n%s", err, traces)
	}
	must(t, world.Remove(ctx, "alone"))
	if now := state(ctx, t); now != before {
		t.Error(errDiff(before, now))
	}
}

// TestRestart destroys a VM and starts it again at once, some times: a late
// teardown of the one must not hit the other.
func TestRestart(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	d := lab.Domain{Name: "again", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.54"`)}
	start(ctx, t, d)
	for range 5 {
		virsh(ctx, t, "destroy", d.Name)
		virsh(ctx, t, "start", d.Name, "--paused")
	}
	eventually(ctx, t, "its route is there", func() error {
		out, err := world.HV.Exec(ctx, "ip", "route", "show", "198.51.100.54")
		if err == nil && !strings.Contains(out, "dev "+lab.DefaultBridge(d.Name)) {
			err = fmt.Errorf("no route: %q", out)
		}
		return err
	})
	must(t, world.WaitOnline(ctx, d.Name))
	must(t, world.Remove(ctx, d.Name))
	back(ctx, t, "nothing is left", before)
}
