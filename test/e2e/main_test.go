// Package e2e tests the programs as a whole: real libvirtd, hook, agent,
// responders and guests in one lab (see test/lab), which needs root, the
// packages that lab.Missing names, and the binaries in bin/.
package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/test/lab"
)

const hostConfig = `
networks:
  seed:
    gateway4: 172.16.0.1
  policy:
    table: 100
    uplink: up1
  probed:
    probe: [arp]
    probe_wait: 3s
  pinged:
    probe: [icmp]
    probe_wait: 3s
  warned:
    probe: [arp]
    probe_wait: 3s
    conflict: warn
  onlink:
    uplink: l2
    proxy_ndp: true
    mtu: 1400
    dns: ["2001:db8:9::53"]
    search: [example.org]
`

// The guests that run all the time. A test that disturbs one puts it back.
var (
	web = lab.Domain{ // private, masqueraded
		Name:     "web",
		Metadata: lab.Annotation(`ipv4="10.42.0.7"`),
	}
	mail = lab.Domain{ // routed
		Name:     "mail",
		Metadata: lab.Annotation(`ipv4="198.51.100.7" ipv6="2001:db8:100::7"`),
		DHCPv6:   true,
	}
	seed = lab.Domain{ // the gateway is not link-local and not in the guest's subnet
		Name:     "seed",
		Metadata: lab.Annotation(`ipv4="192.168.1.26" network="seed"`),
	}
)

// Addresses of the guests above.
const (
	web4  = "10.42.0.7"
	mail4 = "198.51.100.7"
	mail6 = "2001:db8:100::7"
	seed4 = "192.168.1.26"
)

// world is the lab that all tests share, one after the other.
var world *lab.Lab

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	world, err = makeWorld(ctx)
	if world != nil {
		defer func() {
			if err := world.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: no lab to test in: %v\n", err)
		if world != nil {
			fmt.Fprintln(os.Stderr, world.Tails(30))
		}
		return 1
	}
	return m.Run()
}

func makeWorld(ctx context.Context) (*lab.Lab, error) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		return nil, fmt.Errorf("find the binaries: %w", err)
	}
	for _, name := range []string{"slash32-hook", "slash32-responder", "slash32d", "slash32"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return nil, fmt.Errorf("find what is to be tested: %w. Fix: make build", err)
		}
	}
	l, err := lab.Up(ctx, lab.Options{BinDir: bin, Config: hostConfig})
	if err != nil {
		return nil, err
	}
	if err := makeL2(ctx, l); err != nil {
		return l, err
	}
	if err := l.StartAgent(ctx); err != nil {
		return l, err
	}
	var guests errgroup.Group
	for _, d := range []lab.Domain{web, mail, seed} {
		guests.Go(func() error {
			if err := l.Run(ctx, d); err != nil {
				return err
			}
			return l.Console(d.Name).WaitFor(ctx, "GUEST bound")
		})
	}
	return l, guests.Wait()
}

// scenario is one test with its deadline; when it fails, it shows the logs.
func scenario(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(world.Tails(25))
		}
	})
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check returns nil.
func eventually(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	start := time.Now()
	if err := lab.Wait(ctx, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s: after %d ms", what, time.Since(start).Milliseconds())
}

// virsh runs virsh, which must succeed.
func virsh(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := world.Virsh(ctx, args...)
	must(t, err)
	return out
}

// hv runs a command on the hypervisor, which must succeed.
func hv(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := world.HV.Exec(ctx, args...)
	must(t, err)
	return out
}

// start runs a domain and removes it at the test's end.
func start(ctx context.Context, t *testing.T, d lab.Domain) {
	t.Helper()
	removeAfter(t, d.Name)
	must(t, world.Run(ctx, d))
}

// cleanup calls undo at the test's end, when the test's own context is over.
func cleanup(t *testing.T, undo func(ctx context.Context)) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		undo(ctx)
	})
}

// removeAfter removes a domain, if it is still defined, at the test's end.
func removeAfter(t *testing.T, name string) {
	t.Helper()
	cleanup(t, func(ctx context.Context) {
		if _, err := world.Virsh(ctx, "domid", name); err != nil {
			return // the test has removed it
		}
		if err := world.Remove(ctx, name); err != nil {
			t.Error(err)
		}
	})
}

// state is the hypervisor's kernel state.
func state(ctx context.Context, t *testing.T) string {
	t.Helper()
	s, err := world.HV.KernelState(ctx)
	must(t, err)
	return s
}

// everything is the hypervisor's kernel state with slash32's files and processes.
func everything(ctx context.Context) (string, error) {
	s, err := world.HV.KernelState(ctx)
	if err != nil {
		return "", err
	}
	traces, err := world.Traces(ctx)
	return s + "# traces\n" + traces, err
}

func mustEverything(ctx context.Context, t *testing.T) string {
	t.Helper()
	s, err := everything(ctx)
	must(t, err)
	return s
}

// back waits until everything is as it was.
func back(ctx context.Context, t *testing.T, what, before string) {
	t.Helper()
	eventually(ctx, t, what, func() error {
		now, err := everything(ctx)
		if err == nil && now != before {
			err = errDiff(before, now)
		}
		return err
	})
}

func errDiff(before, now string) error {
	return fmt.Errorf("not as before (-before +now):\n%s", cmp.Diff(strings.Split(before, "\n"), strings.Split(now, "\n")))
}
