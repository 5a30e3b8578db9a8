package kerneltest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/kernel/kerneltest"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

// kernelMethods is what users of package kernel may ask for.
type kernelMethods interface {
	Close()
	Read(context.Context, state.Scope) (state.State, error)
	Apply(context.Context, []state.Change) (int, error)
	Watch(context.Context, func(string)) error
	Facts(context.Context, ...string) (plan.Facts, error)
	Spoofed(context.Context) (map[string]kernel.SpoofCount, error)
	Bridge(context.Context, string) (kernel.BridgeInfo, error)
	Listeners(context.Context) ([]intent.Listener, error)
	RouteOwner(context.Context, netip.Prefix) (string, error)
}

var (
	_ kernelMethods = (*kernel.Kernel)(nil)
	_ kernelMethods = (*kerneltest.Fake)(nil)
)

// random makes a state that a kernel could be in: few names and addresses, so
// that two of them overlap in every way.
func random(r *rand.Rand) state.State {
	s := state.New()
	if r.IntN(8) == 0 {
		return s
	}
	s.Skeleton = fmt.Sprintf("v%d", r.IntN(2))
	for i := range 4 {
		name := fmt.Sprintf("br%d", i)
		if r.IntN(3) == 0 {
			continue
		}
		s.Links[name] = state.Link{Name: name, UUID: fmt.Sprint(r.IntN(2)), MTU: uint16(1400 + r.IntN(2)), Up: true}
		s.Sysctls["net/ipv4/conf/"+name+"/arp_ignore"] = fmt.Sprint(r.IntN(3))
		s.Addrs[state.Addr{Link: name, Prefix: netip.PrefixFrom(addr(r), 32)}] = struct{}{}
		for range r.IntN(4) {
			a := addr(r)
			p := netip.PrefixFrom(a, 32)
			s.Neighs[state.NeighKey{Link: name, IP: a}] = mac.Addr{5: byte(r.IntN(2))}
			s.Elems[state.Elem{Set: state.SetGuard4, Link: name, Addr: p}] = struct{}{}
			route := state.Route{Dst: p, Table: uint32(254 - r.IntN(2)), Metric: 1024, Link: name}
			if !taken(s, route) {
				s.Routes[route] = struct{}{}
			}
			if r.IntN(2) == 0 {
				s.Proxies[state.NeighKey{Link: "up0", IP: a}] = struct{}{}
			}
		}
		if m := uint32(r.IntN(3)); m > 0 {
			s.Elems[state.Elem{Set: state.SetMark, Link: name, Mark: m}] = struct{}{}
			s.Rules[state.Rule{Family: 2, Priority: 32400, Mark: m, Table: uint32(r.IntN(2))}] = struct{}{}
		}
	}
	s.Sysctls["net/ipv4/ip_forward"] = "1"
	return s
}

func taken(s state.State, r state.Route) bool {
	for x := range s.Routes {
		if x.Dst == r.Dst && x.Table == r.Table {
			return true
		}
	}
	return false
}

func addr(r *rand.Rand) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(6))}) }

// TestDiffIsEnough: whatever is there and whatever is wanted, one pass makes
// the one into the other, a second has nothing to do, and what only is read is
// left alone.
func TestDiffIsEnough(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 32))
		have, want := random(r), random(r)
		f := kerneltest.Fake{Foreign: map[string]kernel.BridgeInfo{"up0": {}}}
		f.Change(func(s *state.State) { *s = have })
		changes := state.Diff(have, want)
		writes, err := f.Apply(ctx, changes)
		if err != nil {
			t.Fatalf("seed %d: %v\nhave:\n%swant:\n%s", seed, err, have, want)
		}
		if writes != len(changes) || f.Writes != writes {
			t.Fatalf("seed %d: %d changes, %d writes, %d counted", seed, len(changes), writes, f.Writes)
		}
		got := f.State()
		for p, v := range got.Sysctls { // never deleted but with their link
			if _, ok := want.Sysctls[p]; !ok && have.Sysctls[p] == v && state.SysctlLink(p) == "" {
				delete(got.Sysctls, p)
			}
		}
		if want.Skeleton == "" && len(want.Links) > 0 {
			continue // the table stays as it is
		}
		if diff := cmp.Diff(want.String(), got.String()); diff != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
		}
		if again := state.Diff(f.State(), want); len(again) > 0 {
			t.Fatalf("seed %d: a second pass has to do: %v", seed, again)
		}
		if same := state.Diff(want, want.Clone()); len(same) > 0 {
			t.Fatalf("seed %d: %v", seed, same)
		}
	}
}

// TestCrash stops after each write of a start and of a removal; the next pass
// has the rest to do and nothing more.
func TestCrash(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		have, want := random(r), random(r)
		for stop := range state.Diff(have, want) {
			f := kerneltest.Fake{Foreign: map[string]kernel.BridgeInfo{"up0": {}}}
			f.Change(func(s *state.State) { *s = have })
			f.FailNext = func(state.Change) error {
				if f.Writes >= stop {
					return errors.New("stopped")
				}
				return nil
			}
			_, _ = f.Apply(ctx, state.Diff(have, want))
			f.FailNext = nil
			if _, err := f.Apply(ctx, state.Diff(f.State(), want)); err != nil {
				t.Fatalf("seed %d, stopped after %d: %v", seed, stop, err)
			}
			if left := state.Diff(f.State(), want); len(left) > 0 {
				t.Fatalf("seed %d, stopped after %d: left %v", seed, stop, left)
			}
		}
	}
}

func TestScope(t *testing.T) {
	ctx := context.Background()
	f := kerneltest.Fake{Foreign: map[string]kernel.BridgeInfo{"up0": {}}}
	full := random(rand.New(rand.NewPCG(3, 3)))
	f.Change(func(s *state.State) { *s = full })
	all, err := f.Read(ctx, state.Scope{})
	if err != nil || len(all.Links) < 2 || all.Sysctls["net/ipv4/ip_forward"] != "" {
		t.Fatalf("read of all: %v\n%s", err, all)
	}
	for name := range all.Links {
		s, err := f.Read(ctx, state.Scope{Links: []string{name}, Sysctls: []string{"net/ipv4/ip_forward"}})
		if err != nil {
			t.Fatal(err)
		}
		want := state.Only(full, name)
		want.Skeleton, want.Sysctls["net/ipv4/ip_forward"] = full.Skeleton, "1"
		if diff := cmp.Diff(want.String(), s.String()); diff != "" {
			t.Errorf("read of %s (-want +got):\n%s", name, diff)
		}
	}
	f.FailRead = errors.New("no")
	if _, err := f.Read(ctx, state.Scope{}); !errors.Is(err, f.FailRead) {
		t.Errorf("Read: %v", err)
	}
}
