package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/state"
)

// TestThousand has more elements than one message, one transaction and one
// batch hold.
func TestThousand(t *testing.T) {
	inNamespace(t)
	uplink(t)
	k := open(t)
	list := vms(1000)
	for i := range list {
		n := &list[i].NICs[0]
		n.Network.ProxyNDP, n.Network.Uplink = true, "wan0"
		n.Network.MaxConns = 20000
		n.Forwards = []annotation.Forward{{Proto: "both", Port: uint16(10000 + 2*i), Last: uint16(10001 + 2*i), To: 22, Family: "both"}}
		n.Prefixes = []intent.Prefix{{Net: netip.MustParsePrefix(fmt.Sprintf("fd00:1:%x::/64", i)), Mode: responder.ModeSLAAC}}
		n.Delegated = []intent.Delegation{{Prefix: netip.MustParsePrefix(fmt.Sprintf("fd00:2:%x::/59", i)), Via: n.MAC.LinkLocal()}}
	}
	want := build(t, k, list)
	changes := converge(t, k, want)
	t.Logf("%d changes", len(changes))
}

// BenchmarkThousand measures passes over 1,000 unchanged VMs. CPU is the whole
// process's, kernel and garbage collection included, per operation.
func BenchmarkThousand(b *testing.B) {
	inNamespace(b)
	uplink(b)
	k := open(b)
	ctx := context.Background()
	want := build(b, k, vms(1000))
	have := read(b, k, want)
	if _, err := k.Apply(ctx, state.Diff(have, want)); err != nil {
		b.Fatal(err)
	}
	scope := state.Scope{Sysctls: want.HostSysctls()}
	have = read(b, k, want)
	bench := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
	bench("read", func() error { _, err := k.Read(ctx, scope); return err })
	bench("read-one", func() error { _, err := k.Read(ctx, state.Scope{Links: []string{"s32-vm500"}}); return err })
	bench("read-prepared", func() error {
		_, err := k.Read(ctx, state.Scope{Links: []string{"s32-vm500"}, Prepared: true})
		return err
	})
	bench("facts", func() error { _, err := k.Facts(ctx); return err })
	bench("owner", func() error { _, err := k.RouteOwner(ctx, netip.MustParsePrefix("192.0.2.77/32")); return err })
	bench("build", func() error { build(b, k, vms(1000)); return nil })
	bench("diff", func() error {
		if c := state.Diff(have, want); len(c) > 0 {
			return fmt.Errorf("%d differences", len(c))
		}
		return nil
	})
}

func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
