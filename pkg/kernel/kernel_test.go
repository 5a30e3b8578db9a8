package kernel_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

// inNamespace puts the test's goroutine and thread into a new network
// namespace. The thread is never unlocked, so it dies with the goroutine, and
// the namespace with it.
func inNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace (it takes root): %v", err)
	}
}

func open(t testing.TB) *kernel.Kernel {
	t.Helper()
	log := logrus.New()
	log.SetOutput(t.Output())
	k, err := kernel.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// run runs a command in the test's namespace: a child inherits its thread's.
func run(t testing.TB, line string) string {
	t.Helper()
	f := strings.Fields(line)
	cmd := exec.Command(f[0], f[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, errs.String())
	}
	return out.String()
}

func nft(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func network(name string, table config.Table) config.Network {
	return config.Network{
		Name: name, Uplink: "auto", Table: table, Gateway4: marks.DefaultGateway4, Gateway6: marks.DefaultGateway6,
		Lease: time.Hour, NAT: config.NATPrivate, Announce: true,
	}
}

func hostConfig() config.Config {
	return config.Config{
		Forwarding: "manage",
		Networks:   map[string]config.Network{"default": network("default", config.TableMain), "other": network("other", 100)},
	}
}

// vms makes n VMs; every third one is in the network with its own table.
func vms(n int) []intent.VM {
	c := hostConfig()
	out := make([]intent.VM, n)
	for i := range out {
		name := "default"
		if i%3 == 2 {
			name = "other"
		}
		out[i] = intent.VM{
			UUID: uuid.NewSHA1(uuid.Nil, []byte{byte(i >> 8), byte(i)}),
			Name: fmt.Sprintf("vm%d", i),
			NICs: []intent.NIC{{
				MAC:     mac.Addr{0x52, 0x54, 0, 0xab, byte(i >> 8), byte(i)},
				Bridge:  fmt.Sprintf("s32-vm%d", i),
				Network: c.Networks[name],
				Addrs4:  []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})},
				Addrs6:  []netip.Addr{netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})},
				NAT:     config.NATPrivate,
			}},
		}
	}
	return out
}

func uplink(t testing.TB) {
	t.Helper()
	for _, line := range []string{
		"ip link set lo up",
		"ip link add wan0 mtu 1400 type veth peer name wan1",
		"ip link set wan1 up",
		"ip link set wan0 up",
		"ip address add 192.0.2.10/24 dev wan0",
		"ip route add default via 192.0.2.1",
	} {
		run(t, line)
	}
}

// read reads all and leaves out the settings that nobody planned.
func read(t testing.TB, k *kernel.Kernel, want state.State) state.State {
	t.Helper()
	have, err := k.Read(context.Background(), state.Scope{Sysctls: want.HostSysctls(), Taps: want.TapNames()})
	if err != nil {
		t.Fatal(err)
	}
	for p := range have.Sysctls {
		if _, ok := want.Sysctls[p]; !ok {
			delete(have.Sysctls, p)
		}
	}
	return have
}

// converge applies what lacks and checks that then nothing does.
func converge(t testing.TB, k *kernel.Kernel, want state.State) []state.Change {
	t.Helper()
	changes := state.Diff(read(t, k, want), want)
	if _, err := k.Apply(context.Background(), changes); err != nil {
		t.Fatal(err)
	}
	have := read(t, k, want)
	if diff := cmp.Diff(want.String(), have.String()); diff != "" {
		t.Fatalf("the kernel is not as wanted (-want +got):\n%s", diff)
	}
	left := state.Diff(have, want)
	writes, err := k.Apply(context.Background(), left)
	if len(left) > 0 || writes > 0 || err != nil {
		t.Fatalf("second pass: changes %v, %d writes, %v", left, writes, err)
	}
	return changes
}

func build(t testing.TB, k *kernel.Kernel, vms []intent.VM) state.State {
	t.Helper()
	return buildOf(t, k, hostConfig(), vms)
}

func buildOf(t testing.TB, k *kernel.Kernel, c config.Config, vms []intent.VM) state.State {
	t.Helper()
	f, err := k.Facts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return plan.Build(vms, c, f).State
}

func TestCycle(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	before, err := k.Read(context.Background(), state.Scope{})
	if err != nil {
		t.Fatal(err)
	}
	if before.String() != "" {
		t.Fatalf("a new namespace is not empty:\n%s", before)
	}
	want := build(t, k, vms(4))
	changes := converge(t, k, want)
	t.Log(run(t, "nft list ruleset"))

	// Each change again by itself is no error.
	if _, err := k.Apply(context.Background(), changes); err != nil {
		t.Errorf("the same changes again: %v", err)
	}
	converge(t, k, want)

	// One VM less, then none.
	converge(t, k, build(t, k, vms(3)))
	gone := state.Diff(read(t, k, want), state.New())
	converge(t, k, state.New())
	if writes, err := k.Apply(context.Background(), gone); err != nil || writes > 0 {
		t.Errorf("the same removal again: %d writes, %v", writes, err)
	}
	for _, line := range []string{"nft list ruleset", "ip route show table all proto 32", "ip -6 route show table all proto 32", "ip link show type bridge"} {
		if out := run(t, line); out != "" {
			t.Errorf("%s: something is left: %s", line, out)
		}
	}
}
