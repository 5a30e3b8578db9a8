// Package kerneltest has a kernel in memory that stands in for package kernel
// in tests.
package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// Fake has the methods of *kernel.Kernel and keeps what is ours in a State. The
// zero value is an empty host. Set the fields before use, or inside Change.
type Fake struct {
	// Host is what Facts returns.
	Host plan.Facts
	// Foreign are interfaces that are not ours, by name.
	Foreign map[string]kernel.BridgeInfo
	// Counted is what the traffic counters say of bridges that have them.
	Counted map[string]traffic.Traffic
	// Counts is what Spoofed returns.
	Counts map[string]kernel.SpoofCount
	// FailNext is asked before each change; its error is that change's. Also
	// for a crash at a certain write: panic in it.
	FailNext func(state.Change) error
	// FailRead is the error of every reading method, when set.
	FailRead error
	// Writes counts the changes that were made, Reads the calls of Read.
	Writes, Reads int
	// Applied has the changes that were made, as text, in order.
	Applied []string
	// Flushed are the addresses and prefixes whose connections were flushed.
	Flushed []netip.Prefix

	mu    sync.Mutex
	state state.State
	wakes map[*func(string)]bool
}

// Close does nothing.
func (f *Fake) Close() {}

// State returns a copy of what is in the kernel.
func (f *Fake) State() state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Clone()
}

// Change lets edit do to the kernel whatever somebody else might, and then
// wakes those who watch. edit may set the fields of Fake, too.
func (f *Fake) Change(edit func(s *state.State)) {
	f.mu.Lock()
	f.state = f.state.Clone()
	edit(&f.state)
	f.mu.Unlock()
	f.Wake("change")
}

// Wake wakes those who watch.
func (f *Fake) Wake(reason string) {
	f.mu.Lock()
	var wakes []func(string)
	for w := range f.wakes {
		wakes = append(wakes, *w)
	}
	f.mu.Unlock()
	for _, w := range wakes {
		w(reason)
	}
}

// Watching is how many watch.
func (f *Fake) Watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.wakes)
}

// Watch calls wake at once and at each Change, Wake and Apply that writes, until ctx ends.
func (f *Fake) Watch(ctx context.Context, wake func(reason string)) error {
	f.mu.Lock()
	if f.wakes == nil {
		f.wakes = map[*func(string)]bool{}
	}
	f.wakes[&wake] = true
	f.mu.Unlock()
	wake("watching")
	<-ctx.Done()
	f.mu.Lock()
	delete(f.wakes, &wake)
	f.mu.Unlock()
	return nil
}

// Read returns what is ours, or of it what the scope names.
func (f *Fake) Read(ctx context.Context, scope state.Scope) (state.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Reads++
	if err := errors.Join(ctx.Err(), f.FailRead); err != nil {
		return state.State{}, err
	}
	s := f.state.Clone()
	if len(scope.Links) > 0 {
		s = state.Only(f.state, scope.Links...)
		s.Skeleton = f.state.Skeleton
		for p, v := range f.state.Sysctls {
			s.Sysctls[p] = v
		}
	}
	maps.DeleteFunc(s.Sysctls, func(p, _ string) bool {
		_, there := s.Links[state.SysctlLink(p)]
		return !there && !slices.Contains(scope.Sysctls, p)
	})
	maps.DeleteFunc(s.Taps, func(name, _ string) bool { return !slices.Contains(scope.Taps, name) })
	maps.DeleteFunc(s.Hairpins, func(name string, _ struct{}) bool { return s.Taps[name] == "" })
	if scope.Prepared {
		clear(s.Neighs)
		clear(s.Proxies)
		clear(s.Taps)
		clear(s.Hairpins)
		clear(s.Routes)
		clear(s.Rules)
		clear(s.Elems)
	}
	return s, nil
}

// Apply makes the changes as the kernel would: it refuses what it would refuse,
// and a bridge takes with it what is on it.
func (f *Fake) Apply(ctx context.Context, changes []state.Change) (writes int, err error) {
	writes, err = f.applyAll(ctx, changes)
	if writes > 0 {
		f.Wake("apply")
	}
	return writes, err
}

func (f *Fake) applyAll(ctx context.Context, changes []state.Change) (writes int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state.Links == nil {
		f.state = state.New()
	}
	var errs []error
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		if err := f.apply(c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c, err))
			continue
		}
		writes++
		f.Writes++
		f.Applied = append(f.Applied, c.String())
	}
	return writes, errors.Join(errs...)
}

func (f *Fake) apply(c state.Change) error {
	if f.FailNext != nil {
		if err := f.FailNext(c); err != nil {
			return err
		}
	}
	s := &f.state
	remove := c.Verb == state.Delete
	switch {
	case c.Link != nil:
		return f.link(c.Verb, *c.Link)
	case c.Sysctl != nil:
		if l := state.SysctlLink(c.Sysctl.Path); l != "" && !f.exists(l) {
			return fs.ErrNotExist
		}
		s.Sysctls[c.Sysctl.Path] = c.Sysctl.Value
	case c.Addr != nil:
		return set(s.Addrs, *c.Addr, remove, f.exists(c.Addr.Link))
	case c.Neigh != nil:
		if remove {
			delete(s.Neighs, c.Neigh.NeighKey)
			return nil
		}
		if !f.exists(c.Neigh.Link) {
			return unix.ENODEV
		}
		s.Neighs[c.Neigh.NeighKey] = c.Neigh.MAC
	case c.Tap != nil:
		if bridge, there := s.Taps[c.Tap.Name]; there && bridge == "" {
			s.Taps[c.Tap.Name] = c.Tap.Bridge
		}
	case c.Hairpin != nil:
		if remove {
			delete(s.Hairpins, c.Hairpin.Name)
		} else if s.Taps[c.Hairpin.Name] == c.Hairpin.Bridge {
			s.Hairpins[c.Hairpin.Name] = struct{}{}
		}
	case c.Proxy != nil:
		return set(s.Proxies, *c.Proxy, remove, f.exists(c.Proxy.Link))
	case c.Route != nil:
		if c.Verb == state.Replace {
			maps.DeleteFunc(s.Routes, func(r state.Route, _ struct{}) bool {
				return r.Dst == c.Route.Dst && r.Table == c.Route.Table && r.Metric == c.Route.Metric
			})
		}
		l, ours := s.Links[c.Route.Link]
		return set(s.Routes, *c.Route, remove, c.Route.Kind != "" || ours && l.Up || !ours && f.exists(c.Route.Link))
	case c.Rule != nil:
		return set(s.Rules, *c.Rule, remove, true)
	case c.Skeleton != nil:
		s.Skeleton = *c.Skeleton
		if remove {
			s.Skeleton = ""
		}
		clear(s.Elems)
	case c.Elem != nil:
		maps.DeleteFunc(s.Elems, func(e state.Elem, _ struct{}) bool {
			e.Mark = c.Elem.Mark
			return e == *c.Elem
		})
		return set(s.Elems, *c.Elem, remove, s.Skeleton != "")
	case c.Flow != nil:
		f.Flushed = append(f.Flushed, *c.Flow)
	}
	return nil
}

func set[K comparable](m map[K]struct{}, k K, remove, possible bool) error {
	switch {
	case remove:
		delete(m, k)
	case !possible:
		return unix.ENODEV
	default:
		m[k] = struct{}{}
	}
	return nil
}

func (f *Fake) exists(name string) bool {
	_, ours := f.state.Links[name]
	_, foreign := f.Foreign[name]
	return ours || foreign
}

func (f *Fake) link(verb state.Verb, l state.Link) error {
	s := &f.state
	old, there := s.Links[l.Name]
	if _, foreign := f.Foreign[l.Name]; foreign && !there {
		if verb == state.Delete {
			return nil
		}
		return kernel.ErrForeign
	}
	switch verb {
	case state.Delete:
		delete(s.Links, l.Name)
		for name, bridge := range s.Taps {
			if bridge == l.Name {
				s.Taps[name] = ""
				delete(s.Hairpins, name)
			}
		}
		maps.DeleteFunc(s.Addrs, func(a state.Addr, _ struct{}) bool { return a.Link == l.Name })
		maps.DeleteFunc(s.Routes, func(r state.Route, _ struct{}) bool { return r.Link == l.Name })
		for k := range s.Neighs {
			if k.Link == l.Name {
				delete(s.Neighs, k)
			}
		}
		maps.DeleteFunc(s.Sysctls, func(p, _ string) bool { return state.SysctlLink(p) == l.Name })
		return nil
	case state.Replace:
		if !there {
			return unix.ENODEV
		}
	}
	l.Ports, l.Index = old.Ports, old.Index
	if !there {
		l.Index = len(s.Links) + 2
	}
	s.Links[l.Name] = l
	return nil
}

// Facts returns Host.
func (f *Fake) Facts(ctx context.Context, _ ...string) (plan.Facts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Host, errors.Join(ctx.Err(), f.FailRead)
}

// Spoofed returns Counts.
func (f *Fake) Spoofed(ctx context.Context) (map[string]kernel.SpoofCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.Counts), errors.Join(ctx.Err(), f.FailRead)
}

// Traffic returns Counted, as far as the bridges have counters.
func (f *Fake) Traffic(ctx context.Context) (map[string]traffic.Traffic, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]traffic.Traffic{}
	for e := range f.state.Elems {
		if slices.Contains(state.TrafficCounters[:], e.Set) {
			out[e.Link] = f.Counted[e.Link]
		}
	}
	return out, errors.Join(ctx.Err(), f.FailRead)
}

// TrafficOf returns what Traffic does of some bridges.
func (f *Fake) TrafficOf(ctx context.Context, links []string) (map[string]traffic.Traffic, error) {
	all, err := f.Traffic(ctx)
	maps.DeleteFunc(all, func(l string, _ traffic.Traffic) bool { return !slices.Contains(links, l) })
	return all, err
}

// Bridge returns a bridge of ours or one of Foreign.
func (f *Fake) Bridge(ctx context.Context, name string) (kernel.BridgeInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.FailRead); err != nil {
		return kernel.BridgeInfo{}, err
	}
	l, ok := f.state.Links[name]
	if !ok {
		info, ok := f.Foreign[name]
		info.Exists = ok
		return info, nil
	}
	info := kernel.BridgeInfo{
		Exists: true, Kind: "bridge", Alias: l.Alias(), Group: marks.LinkGroup, Index: l.Index, MTU: l.MTU,
	}
	if l.Ports != "" {
		info.Ports = strings.Split(l.Ports, ",")
	}
	return info, nil
}

// Listeners lists none.
func (f *Fake) Listeners(ctx context.Context) ([]intent.Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, errors.Join(ctx.Err(), f.FailRead)
}

// RouteOwner names the link of a route to exactly that prefix.
func (f *Fake) RouteOwner(ctx context.Context, p netip.Prefix) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(ctx.Err(), f.FailRead); err != nil {
		return "", err
	}
	for r := range f.state.Routes {
		if r.Dst == p && r.Link != "" {
			return r.Link, nil
		}
	}
	return "", nil
}
