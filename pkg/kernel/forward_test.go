package kernel_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/slash32/slash32/pkg/state"
)

// BenchmarkForward is the cost of one packet from a guest to the uplink, in and out
// of the host's stack, with the elements of so many VMs in the sets: a write to a
// packet socket returns when the packet has been forwarded.
func BenchmarkForward(b *testing.B) {
	for _, n := range []int{3, 10_000} {
		for _, family := range []struct{ name, src, dst string }{{"IPv4", "10.1.0.0", away4}, {"IPv6", "2001:db8::", away6}} {
			b.Run(fmt.Sprintf("%d/%s", n, family.name), func(b *testing.B) {
				l := newLab(b)
				all := build(b, l.k, vms(n))
				want := l.want.Clone()
				want.Elems = all.Elems
				if _, err := l.k.Apply(context.Background(), state.Diff(l.want, want)); err != nil {
					b.Fatal(err)
				}
				frame := udp(vms(1)[0].NICs[0].MAC, family.src, family.dst, 9, "benchmark")
				for range 1000 {
					l.guest[0].send(frame)
				}
				for b.Loop() {
					l.guest[0].send(frame)
				}
			})
		}
	}
}
