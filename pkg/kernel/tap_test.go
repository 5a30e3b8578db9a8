package kernel_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/state"
)

// watching starts a watch. tells waits until it gives a reason, after something was
// done; stop ends it.
func watching(t *testing.T, k *kernel.Kernel) (tells func(reason, do string), stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	reasons, done := make(chan string, 64), make(chan error, 1)
	go func() { done <- k.Watch(ctx, func(r string) { reasons <- r }) }()
	if r := <-reasons; r != "watching" {
		t.Fatalf("first reason %q", r)
	}
	tells = func(reason, do string) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case r := <-reasons:
				if strings.Contains(r, reason) {
					return
				}
			case <-deadline:
				t.Fatalf("%s did not wake", do)
			}
		}
	}
	return tells, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestTap: a tap that is in no bridge is put into its own, and nothing else is.
func TestTap(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	ctx := context.Background()
	all := vms(6)
	names := []string{"tap0", "tap1", "tap2", "tap3", "tap4", "tap5"} // there is no tap5
	for i := range all {
		all[i].NICs[0].Tap = names[i]
	}
	want := build(t, k, all)
	for _, line := range []string{
		"ip tuntap add tap0 mode tap",
		"ip tuntap add tap1 mode tap",
		"ip link add br0 type bridge",
		"ip link set tap1 master br0",
		"ip link add tap2 type veth peer name tap2p", // not a tap
		"ip tuntap add tap3 mode tap",
		"ip link set tap3 master br0",
		"ip tuntap add tap4 mode tap",
	} {
		run(t, line)
	}
	scope := state.Scope{Sysctls: want.HostSysctls(), Taps: want.TapNames()}
	taps := func() map[string]string {
		t.Helper()
		have, err := k.Read(ctx, scope)
		if err != nil {
			t.Fatal(err)
		}
		return have.Taps
	}
	pass := func(changes ...string) {
		t.Helper()
		have, err := k.Read(ctx, scope)
		if err != nil {
			t.Fatal(err)
		}
		diff := state.Diff(have, want)
		var got []string
		for _, c := range diff {
			if c.Tap != nil {
				got = append(got, c.String())
			}
		}
		if !slices.Equal(got, changes) {
			t.Errorf("changes %q, want %q", got, changes)
		}
		if _, err := k.Apply(ctx, diff); err != nil {
			t.Fatal(err)
		}
		if have, err = k.Read(ctx, scope); err != nil {
			t.Fatal(err)
		}
		if left := state.Diff(have, want); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	elsewhere := map[string]string{"tap1": "br0", "tap3": "br0"}
	check := func(own map[string]string) {
		t.Helper()
		got := taps()
		for name, bridge := range elsewhere {
			if got[name] != bridge {
				t.Errorf("%s is in %q, want %q", name, got[name], bridge)
			}
			delete(got, name)
		}
		for name, bridge := range own {
			if got[name] != bridge {
				t.Errorf("%s is in %q, want %q", name, got[name], bridge)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("read, too: %v", got)
		}
	}
	check(map[string]string{"tap0": "", "tap4": ""})
	own := map[string]string{"tap0": "s32-vm0", "tap4": "s32-vm4"}
	pass("add tap tap0 master s32-vm0", "add tap tap4 master s32-vm4")
	check(own)
	pass()
	if got := run(t, "ip -o link show master s32-vm0"); !strings.Contains(got, "tap0") {
		t.Errorf("ports of s32-vm0: %s", got)
	}

	// The watch tells of each way in which it gets out.
	tells, stop := watching(t, k)
	for _, do := range []string{"ip link set tap0 nomaster", "ip link del s32-vm0"} {
		run(t, do)
		tells("port", do)
		check(map[string]string{"tap0": "", "tap4": "s32-vm4"})
		pass("add tap tap0 master s32-vm0")
		check(own)
	}
	stop()

	// What has changed since it was looked at.
	for _, tt := range []struct {
		tap  state.Tap
		want error
	}{
		{tap: state.Tap{Name: "tap5", Bridge: "s32-vm5"}}, // has gone
		{tap: state.Tap{Name: "tap1", Bridge: "s32-vm1"}}, // is elsewhere
		{tap: state.Tap{Name: "tap2", Bridge: "s32-vm2"}}, // is something else
		{tap: state.Tap{Name: "tap9", Bridge: "br0"}, want: kernel.ErrForeign},
	} {
		if tt.tap.Name == "tap9" {
			run(t, "ip tuntap add tap9 mode tap")
		}
		n, err := k.Apply(ctx, []state.Change{{Verb: state.Add, Tap: &tt.tap}})
		if n != 0 || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d writes, %v", tt.tap, n, err)
		}
	}
	check(own)
}
