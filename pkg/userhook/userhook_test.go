package userhook_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/userhook"
	"github.com/slash32/slash32/test/wait"
)

func prefix(n int) userhook.Prefix {
	return userhook.Prefix{
		VM: uuid.UUID{15: byte(n)}, Name: fmt.Sprintf("vm%d", n), Network: "default", MAC: mac.Addr{0x52, 0x54, 0, 0, 0, byte(n)},
		Bridge: fmt.Sprintf("s32-vm%d", n), Prefix: netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::/64", n)), Via: netip.MustParseAddr("fe80::7"),
	}
}

type bed struct {
	*testing.T
	dir, program string
	log          *logrus.Logger
	said         *logtest.Hook
}

// newBed makes a program that notes how it was called and then runs the script.
func newBed(t *testing.T, script string) *bed {
	b := &bed{T: t, dir: t.TempDir()}
	b.log, b.said = logtest.NewNullLogger()
	b.program = filepath.Join(b.dir, "program")
	text := "#!/bin/sh\necho $SLASH32_ACTION $SLASH32_PREFIX $SLASH32_NEXT_HOP $SLASH32_BRIDGE $SLASH32_MAC $SLASH32_NETWORK $SLASH32_VM $SLASH32_UUID >>" + b.dir + "/calls\n" + script
	if err := os.WriteFile(b.program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

// run gives a runner that ends with stop.
func (b *bed) run() (r *userhook.Runner, stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	r = &userhook.Runner{File: filepath.Join(b.dir, "told"), Log: b.log}
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

func call(action string, n int) string {
	return fmt.Sprintf("%s 2001:db8:%d::/64 fe80::7 s32-vm%d 52:54:00:00:00:%02x default vm%d 00000000-0000-0000-0000-%012x", action, n, n, n, n, n)
}

func (b *bed) calls() string {
	got, _ := os.ReadFile(filepath.Join(b.dir, "calls"))
	return string(got)
}

// patience is how long a step may take before the test gives up.
const patience = time.Minute

// wait waits until the program was called so, and not otherwise.
func (b *bed) wait(calls ...string) {
	b.Helper()
	want := strings.Join(calls, "\n") + "\n"
	got := ""
	defer func() {
		if d := cmp.Diff(want, got); d != "" {
			b.Error(d)
		}
	}()
	wait.For(b.T, patience, "the program is called", func() bool {
		got = b.calls()
		return len(got) >= len(want)
	})
}

// TestRunner: each change is told once, also across a restart of the agent.
func TestRunner(t *testing.T) {
	b := newBed(t, "echo thanks")
	r, stop := b.run()
	r.Set(b.program, []userhook.Prefix{prefix(1), prefix(2)})
	b.wait(call("add", 1), call("add", 2))
	r.Set(b.program, []userhook.Prefix{prefix(1), prefix(2)})
	r.Set(b.program, []userhook.Prefix{prefix(3), prefix(2)})
	b.wait(call("add", 1), call("add", 2), call("remove", 1), call("add", 3))
	stop()
	r, stop = b.run()
	r.Set(b.program, []userhook.Prefix{prefix(2), prefix(4)})
	b.wait(call("add", 1), call("add", 2), call("remove", 1), call("add", 3), call("remove", 3), call("add", 4))
	r.Set("", []userhook.Prefix{prefix(5)}) // no program any more
	r.Set(b.program, []userhook.Prefix{prefix(6)})
	wait.For(t, patience, "the new program is told", func() bool { return strings.HasSuffix(b.calls(), call("add", 6)+"\n") })
	if strings.Contains(b.calls(), "vm5") {
		t.Errorf("calls: %s", b.calls())
	}
	stop()
	if e := b.said.LastEntry(); e == nil || e.Level != logrus.InfoLevel || !strings.Contains(e.Message, "thanks") {
		t.Errorf("said: %v", e)
	}
}

// TestFailure: a program that fails is named with what it printed, cut, and the
// next change is told all the same.
func TestFailure(t *testing.T) {
	b := newBed(t, "head -c 100000 /dev/zero | tr '\\0' x; exit 3")
	r, stop := b.run()
	r.Set(b.program, []userhook.Prefix{prefix(1)})
	b.wait(call("add", 1))
	r.Set(b.program, nil)
	b.wait(call("add", 1), call("remove", 1))
	stop()
	for _, e := range b.said.AllEntries() {
		if e.Level != logrus.WarnLevel || !strings.Contains(e.Message, "exit status 3") || !strings.Contains(e.Message, "xxx") || len(e.Message) > 2000 {
			t.Errorf("said: %v %.200s (%d)", e.Level, e.Message, len(e.Message))
		}
	}
	r, stop = b.run()
	r.Set(filepath.Join(b.dir, "none"), []userhook.Prefix{prefix(2)})
	wait.For(t, patience, "a missing program is said", func() bool { return strings.Contains(b.said.LastEntry().Message, "no such file") })
	stop()
}

// TestBrokenFile: what was told is not known, so all is told.
func TestBrokenFile(t *testing.T) {
	b := newBed(t, "")
	if err := os.WriteFile(filepath.Join(b.dir, "told"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, stop := b.run()
	r.Set(b.program, []userhook.Prefix{prefix(1)})
	b.wait(call("add", 1))
	stop()
}

// TestUnwritable: what was told is written when it can be again, and a file that is
// there is never left half written.
func TestUnwritable(t *testing.T) {
	b := newBed(t, "")
	dir := filepath.Join(b.dir, "run")
	ctx, cancel := context.WithCancel(t.Context())
	r := &userhook.Runner{File: filepath.Join(dir, "told"), Log: b.log}
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	r.Set(b.program, []userhook.Prefix{prefix(1), prefix(2)})
	b.wait(call("add", 1), call("add", 2))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wait.For(t, patience, "the file is written", func() bool {
		text, err := os.ReadFile(r.File)
		return err == nil && strings.Contains(string(text), "vm1") && strings.Contains(string(text), "vm2")
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	warned := 0
	for _, e := range b.said.AllEntries() {
		if e.Level == logrus.WarnLevel {
			warned++
		}
	}
	if warned != 1 {
		t.Errorf("%d warnings, want one", warned)
	}
}
