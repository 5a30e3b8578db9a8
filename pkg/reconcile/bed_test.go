package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/reconcile"
	"github.com/slash32/slash32/pkg/relay"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/userhook"
	"github.com/slash32/slash32/pkg/virt"
)

// bed is a loop on a real kernel in a network namespace of its own, with a
// libvirt and responders that the test plays.
type bed struct {
	*testing.T
	config    config.Config // of the next agent
	announced chan string   // links and addresses
	kernel    *faulty
	virt      *fakeVirt
	resp      *fakeLauncher
	spool     *spool.Spool
	loop      *reconcile.Loop
	stop      func()
	log       *logBuffer

	prefixes []userhook.Prefix // that the user's program was told of last
	relayed  []relay.VM        // that the sockets of relays and responders were asked for last

	mu         sync.Mutex
	now        time.Duration // what the test's clock is ahead
	upstream   spool.Given   // what the router on up0 gives
	neighbours problem.List  // what is wrong with the host otherwise
	settled    bool
}

// faulty is the real kernel whose writes can be made to fail.
type faulty struct {
	*kernel.Kernel
	mu   sync.Mutex
	fail func(state.Change) error
	seen []state.Change
}

func (k *faulty) Apply(ctx context.Context, cs []state.Change) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, cs...)
	for i, c := range cs {
		if k.fail == nil {
			break
		}
		if err := k.fail(c); err != nil {
			n, aerr := k.Kernel.Apply(ctx, cs[:i])
			return n, errors.Join(err, aerr)
		}
	}
	return k.Kernel.Apply(ctx, cs)
}

type fakeVirt struct {
	mu      sync.Mutex
	domains map[uuid.UUID]virt.Domain
	err     error
	hang    bool
	asked   int
	defined []uuid.UUID // what Defined says
	unknown bool        // it says nothing
}

func (v *fakeVirt) Defined(context.Context) ([]uuid.UUID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unknown {
		return nil, errors.New("connection refused")
	}
	return v.defined, nil
}

func (v *fakeVirt) Snapshot(ctx context.Context) ([]virt.Domain, error) {
	v.mu.Lock()
	v.asked++
	hang := v.hang
	v.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return nil, v.err
	}
	var ds []virt.Domain
	for _, d := range v.domains {
		ds = append(ds, d)
	}
	return ds, nil
}

// fakeLauncher plays the responders: a channel each, closed when it ends.
type fakeLauncher struct {
	mu     sync.Mutex
	up     map[string]chan struct{}
	starts int
	fail   error
}

func (l *fakeLauncher) Start(_ context.Context, dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	if _, err := os.Stat(filepath.Join(dir, "binding.json")); err != nil {
		return err
	}
	if l.up[dir] == nil {
		l.up[dir] = make(chan struct{})
		l.starts++
	}
	return nil
}

func (l *fakeLauncher) Stop(_ context.Context, dir string) error {
	l.kill(dir)
	return nil
}

func (l *fakeLauncher) kill(dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.up[dir]; c != nil {
		close(c)
		delete(l.up, dir)
	}
}

func (l *fakeLauncher) Watch(_ context.Context, dir string) (<-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.up[dir]; c != nil {
		return c, nil
	}
	return nil, fs.ErrNotExist
}

func (l *fakeLauncher) EndStrays(context.Context, string) error { return nil }

func (l *fakeLauncher) running() (n, starts int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.up), l.starts
}

// logBuffer is the log, for the test to read and to show when it fails.
type logBuffer struct {
	t     *testing.T
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines.Write(p)
	return l.t.Output().Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

func newBed(t *testing.T) *bed {
	t.Helper()
	runtime.LockOSThread() // the thread dies with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
	lines := &logBuffer{t: t}
	log := logrus.New()
	log.SetOutput(lines)
	k, err := kernel.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	s, err := spool.Open(spool.Dirs{Run: filepath.Join(t.TempDir(), "run"), Config: t.TempDir(), State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{
		T: t, log: lines, config: config.Default(), announced: make(chan string, 16), kernel: &faulty{Kernel: k}, spool: s,
		virt: &fakeVirt{domains: map[uuid.UUID]virt.Domain{}},
		resp: &fakeLauncher{up: map[string]chan struct{}{}},
	}
	b.sh("ip link set lo up")
	b.sh("ip link add up0 type veth peer name up0p")
	b.sh("ip link set up0 up")
	b.sh("ip addr add 192.0.2.2/24 dev up0")
	b.sh("ip route add default via 192.0.2.1")
	b.agent(log)
	return b
}

// agent starts a loop without memory, as a new process would be.
func (b *bed) agent(log logrus.FieldLogger) {
	clock := func() time.Time {
		b.mu.Lock()
		defer b.mu.Unlock()
		return time.Now().Add(b.now)
	}
	b.loop = &reconcile.Loop{
		Writers: b.kernel.Writers, Neighbours: func() problem.List {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.neighbours
		},
		Traffic: reconcile.NewMeter(b.kernel.Traffic, b.spool, clock, log),
		Kernel:  b.kernel, Virt: b.virt, Spool: b.spool, Config: b.config, Log: log,
		Launcher: func(string) reconcile.Launcher { return b.resp },
		Reload:   func(context.Context, string) error { return nil },
		Prefixes: func(_ string, now []userhook.Prefix) { b.prefixes = now }, // read after a pass
		Relay:    func(now []relay.VM) { b.relayed = now },                   // the same
		Upstream: func(string) (spool.Given, bool) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.upstream, b.settled
		},
		Announce: func(_ context.Context, link string, addrs []netip.Addr) error {
			b.announced <- fmt.Sprint(link, " ", addrs)
			return nil
		},
		Now: clock,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.loop.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(b.stop)
}

// restart replaces the agent.
func (b *bed) restart() {
	b.stop()
	log := logrus.New()
	log.SetOutput(b.log)
	b.agent(log)
}

func (b *bed) later(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now += d
}

func (b *bed) sh(line string) string {
	b.Helper()
	out, err := b.try(line)
	if err != nil {
		b.Fatalf("%s: %v: %s", line, err, out)
	}
	return out
}

func (b *bed) try(line string) (string, error) {
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	return string(out), err
}

// pass has the loop look now and fails the test if that fails.
// network sets a network of the configuration of the next agent.
func (b *bed) network(name string, n config.Network) {
	b.config.Networks = maps.Clone(b.config.Networks) // the loop that runs reads the old ones
	b.config.Networks[name] = n
}

func (b *bed) pass() {
	b.Helper()
	if err := b.sync(); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) sync() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return b.loop.Sync(ctx)
}

// writes is the number of kernel writes of the next pass.
func (b *bed) writes() uint64 {
	b.Helper()
	before := b.loop.Status().Writes
	b.pass()
	return b.loop.Status().Writes - before
}

func id(n int) uuid.UUID { return uuid.UUID{15: byte(n)} }

func xml(n int, annotation string) string {
	return fmt.Sprintf(`<domain type='qemu' id='%[1]d'><name>vm%[1]d</name><uuid>%[2]s</uuid><metadata>%[3]s</metadata>
<devices><interface type='bridge'><mac address='52:54:00:00:00:%02[1]x'/><source bridge='s32-vm%[1]d'/><target dev='tap%[1]d'/></interface></devices></domain>`,
		n, id(n), annotation)
}

func annotated(attributes string) string {
	return `<slash32:network xmlns:slash32='urn:slash32:domain:1' ` + attributes + `/>`
}

// run has libvirt list VM n.
func (b *bed) run(n int, annotation string) {
	b.virt.mu.Lock()
	defer b.virt.mu.Unlock()
	b.virt.domains[id(n)] = virt.Domain{UUID: id(n), Name: fmt.Sprintf("vm%d", n), ID: n, XML: xml(n, annotation), State: "running"}
}

// plug puts a port into the bridge of VM n, as libvirt does with the tap.
func (b *bed) plug(n int) {
	b.Helper()
	b.sh(fmt.Sprintf("ip link add tap%[1]d type veth peer name tap%[1]dp", n))
	b.sh(fmt.Sprintf("ip link set tap%[1]d master s32-vm%[1]d up", n))
}

func (b *bed) unplug(n int) { b.Helper(); b.sh(fmt.Sprintf("ip link del tap%d", n)) }

// end has libvirt list VM n no longer.
func (b *bed) end(n int) {
	b.virt.mu.Lock()
	defer b.virt.mu.Unlock()
	delete(b.virt.domains, id(n))
}

// ours is the kernel's state of ours as text.
func (b *bed) ours() string {
	b.Helper()
	s, err := b.kernel.Read(context.Background(), state.Scope{})
	if err != nil {
		b.Fatal(err)
	}
	return s.String()
}

func (b *bed) wantRoute(addr string, want bool) {
	b.Helper()
	if out := b.sh("ip route show table all proto 32"); strings.Contains(out, addr+" ") != want {
		b.Fatalf("route to %s there: %v, want %v; the routes are:\n%s", addr, !want, want, out)
	}
}
