package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/slash32/slash32/test/lab"
)

// TestResponderKilled kills a guest's responder under traffic: it comes back
// and answers, and established traffic does not notice.
func TestResponderKilled(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	traffic := ping(ctx, t, mail4)
	vm, err := world.Show(ctx, "mail")
	must(t, err)
	hv(ctx, t, "kill", "-9", strconv.Itoa(vm.Responder.PID))
	eventually(ctx, t, "a new responder is up", func() error {
		now, err := world.Show(ctx, "mail")
		if err == nil && (!now.Responder.Up || now.Responder.PID == vm.Responder.PID) {
			err = fmt.Errorf("responder: %+v", now.Responder)
		}
		return err
	})
	_, err = world.Console("mail").Run(ctx, "kill -USR1 $(cat /run/udhcpc.pid)")
	must(t, err)
	eventually(ctx, t, "the new responder renews the lease", func() error {
		now, err := world.Show(ctx, "mail")
		if err == nil && now.Responder.NICs[0].Verdicts["dhcp4_ack_renew"] == 0 {
			err = fmt.Errorf("verdicts: %v", now.Responder.NICs)
		}
		return err
	})
	traffic.more(ctx, t)
	if answered, lost := traffic.count(); lost != 0 {
		t.Errorf("%d packets lost, %d answered", lost, answered)
	}
	back(ctx, t, "all is as before", before)
}

// TestAgentKilled kills the agent under traffic and starts it again: no packet
// is lost and the first pass writes nothing.
func TestAgentKilled(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	traffic := ping(ctx, t, mail4)
	must(t, world.KillAgent())
	traffic.more(ctx, t)
	must(t, world.StartAgent(ctx))
	for _, vm := range []string{"web", "mail", "seed"} {
		must(t, world.WaitOnline(ctx, vm))
	}
	traffic.more(ctx, t)
	if answered, lost := traffic.count(); lost != 0 {
		t.Errorf("%d packets lost, %d answered", lost, answered)
	}
	s, err := world.Status(ctx)
	must(t, err)
	if s.Passes == 0 || s.FirstPassWrites != 0 || s.Writes != 0 {
		t.Errorf("%d passes, the first with %d writes, %d writes in all; want no writes", s.Passes, s.FirstPassWrites, s.Writes)
	}
	back(ctx, t, "all is as before", before)
}

// TestLibvirtdKilled kills libvirtd under traffic: the guests stay and so does
// their network; the agent says that it lost libvirt, and finds it again.
func TestLibvirtdKilled(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	traffic := ping(ctx, t, mail4)
	must(t, world.KillLibvirtd(ctx))
	for _, vm := range []string{"web", "mail", "seed"} {
		eventually(ctx, t, vm+" runs on", func() error {
			out, err := world.Virsh(ctx, "domstate", vm)
			if err == nil && out != "running" {
				err = fmt.Errorf("%s is %s", vm, out)
			}
			return err
		})
	}
	eventually(ctx, t, "the agent has found libvirt again", func() error {
		s, err := world.Status(ctx)
		if err == nil && (s.Degraded != "" || len(s.VMs) != 3) {
			err = fmt.Errorf("degraded: %q, %d VMs", s.Degraded, len(s.VMs))
		}
		return err
	})
	traffic.more(ctx, t)
	if answered, lost := traffic.count(); lost != 0 {
		t.Errorf("%d packets lost, %d answered", lost, answered)
	}
	back(ctx, t, "all is as before", before)
}

// TestLibvirtdStopped stops libvirtd for good while a VM dies: the agent
// deletes nothing while libvirt's list is unknown, and cleans up later.
func TestLibvirtdStopped(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	start(ctx, t, lab.Domain{Name: "orphan", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.40"`)})
	must(t, world.WaitOnline(ctx, "orphan"))
	pid, err := world.HV.ReadFile("/run/libvirtd.pid")
	must(t, err)
	pid = strings.TrimSpace(pid)
	hv(ctx, t, "kill", "-STOP", pid)
	cleanup(t, func(ctx context.Context) { hv(ctx, t, "kill", "-CONT", pid) })
	must(t, world.KillQEMU(ctx, "orphan"))
	hv(ctx, t, "ip", "route", "del", mail4, "proto", "32")
	eventually(ctx, t, "a route of a running VM is repaired meanwhile", func() error {
		out, err := world.HV.Exec(ctx, "ip", "route", "show", mail4)
		if err == nil && !strings.Contains(out, "proto 32") && !strings.Contains(out, "proto slash32") {
			err = fmt.Errorf("no route to %s: %q", mail4, out)
		}
		return err
	})
	if out := hv(ctx, t, "ip", "route", "show", "198.51.100.40"); out == "" {
		t.Error("the agent removed a VM's route without knowing libvirt's list")
	}
	hv(ctx, t, "kill", "-CONT", pid)
	back(ctx, t, "the dead VM is gone", before)
}

// TestQEMUKilled kills a VM's QEMU: all of the VM goes.
func TestQEMUKilled(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	start(ctx, t, lab.Domain{Name: "crash", Cheap: true, Metadata: lab.Annotation(`ipv4="198.51.100.41" ipv6="2001:db8:100::41"`)})
	must(t, world.WaitOnline(ctx, "crash"))
	must(t, world.KillQEMU(ctx, "crash"))
	back(ctx, t, "all of the VM is gone", before)
}
