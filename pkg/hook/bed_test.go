package hook_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/hook"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// bed is a hook on a real kernel in a network namespace of its own.
type bed struct {
	*testing.T
	hook   *hook.Hook
	kernel *kernel.Kernel
	spool  *spool.Spool
	resp   map[string]bool
	poked  int
	agent  bool // one listens
	opened int  // how often the kernel was opened

	probed []probe.Target
	hits   []probe.Hit
	misses []error

	log strings.Builder

	failApply error
	failReady error
	now       time.Time
}

// handle is what the hook opens: the bed's kernel, kept open.
type handle struct {
	*kernel.Kernel
	b *bed
}

func (h handle) Close() {}

func (h handle) Apply(ctx context.Context, cs []state.Change) (int, error) {
	if h.b.failApply != nil && slices.ContainsFunc(cs, func(c state.Change) bool { return c.Verb == state.Add }) {
		// Half of it is done, then the kernel refuses.
		n, err := h.Kernel.Apply(ctx, cs[:len(cs)/2])
		return n, errors.Join(h.b.failApply, err)
	}
	return h.Kernel.Apply(ctx, cs)
}

func (b *bed) Start(_ context.Context, dir string) error { b.resp[dir] = true; return nil }
func (b *bed) Stop(_ context.Context, dir string) error  { delete(b.resp, dir); return nil }
func (b *bed) WaitReady(context.Context, string) error   { return b.failReady }

func newBed(t *testing.T) *bed {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	k, err := kernel.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	dirs := spool.Dirs{Run: filepath.Join(t.TempDir(), "run"), Config: t.TempDir(), State: t.TempDir()}
	b := &bed{T: t, kernel: k, spool: &spool.Spool{Dirs: dirs}, resp: map[string]bool{}, now: time.Now()}
	b.hook = &hook.Hook{
		Dirs:     dirs,
		Kernel:   func() (hook.Kernel, error) { b.opened++; return handle{k, b}, nil },
		Launcher: func(string) hook.Launcher { return b },
		Poke:     func(string) bool { b.poked++; return b.agent },
		Probe: func(_ context.Context, ts []probe.Target, wait time.Duration) ([]probe.Hit, []error) {
			if wait != 250*time.Millisecond {
				t.Errorf("probed for %v", wait)
			}
			b.probed = append(b.probed, ts...)
			return b.hits, b.misses
		},
		Now: func() time.Time { return b.now },
		Log: log,
	}
	log.SetOutput(io.MultiWriter(t.Output(), &b.log))
	return b
}

func id(n int) uuid.UUID { return uuid.UUID{15: byte(n)} }

// dom is a domain's XML; zero fields have defaults.
type dom struct {
	n          int
	annotation string // attributes; "-": none
	children   string
	bridge     string
	nic        string // type
}

func (d dom) xml() string {
	if d.bridge == "" {
		d.bridge = fmt.Sprintf("s32-vm%d", d.n)
	}
	if d.nic == "" {
		d.nic = "bridge"
	}
	metadata := "<slash32:network xmlns:slash32='urn:slash32:domain:1' " + d.annotation + "/>"
	if d.children != "" {
		metadata = strings.TrimSuffix(metadata, "/>") + ">" + d.children + "</slash32:network>"
	}
	if d.annotation == "-" {
		metadata = ""
	}
	return fmt.Sprintf(`<domain type='qemu'><name>vm%[1]d</name><uuid>%[2]s</uuid>
<metadata>
%[3]s
</metadata>
<devices><interface type='%[4]s'><mac address='52:54:00:00:00:%02[1]x'/><source %[4]s='%[5]s'/></interface></devices></domain>`,
		d.n, id(d.n), metadata, d.nic, d.bridge)
}

func (b *bed) call(op string, d dom) error {
	return b.hook.Run(context.Background(), []string{fmt.Sprintf("vm%d", d.n), op, "begin", "-"}, strings.NewReader(d.xml()))
}

func (b *bed) must(op string, d dom) {
	b.Helper()
	if err := b.call(op, d); err != nil {
		b.Fatalf("%s: %v", op, err)
	}
}

func (b *bed) sh(line string) string {
	b.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// all is everything that a start could leave: kernel objects, files, responders.
func (b *bed) all() string {
	b.Helper()
	s, err := b.kernel.Read(context.Background(), state.Scope{})
	if err != nil {
		b.Fatal(err)
	}
	out := s.String() + b.sh("ip -br link") + b.sh("nft list tables")
	err = filepath.WalkDir(b.spool.Run, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" {
			out += path + "\n"
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.Fatal(err)
	}
	for dir := range b.resp {
		out += "responder " + dir + "\n"
	}
	return out
}

func (b *bed) wantEmpty(what string) {
	b.Helper()
	if d := cmp.Diff(newBedState, b.all()); d != "" {
		b.Errorf("%s leaves something: %s", what, d)
	}
}

// newBedState is what all gives before anything.
const newBedState = "lo               DOWN           00:00:00:00:00:00 <LOOPBACK> \n"

var web = dom{n: 1, annotation: `ipv4="203.0.113.42" ipv6="2001:db8::42"`}
