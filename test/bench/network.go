package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

// Rows of the network's table.
const (
	rowForward4  = "forward a packet, IPv4"
	rowForward6  = "forward a packet, IPv6"
	rowNewFlow   = "forward a new flow's, masqueraded"
	rowGenerator = "(the generator itself, taken off)"
	rowIPRules   = "ip rules, both families"
	rowNFTRules  = "nft rules"
	rowChains    = "nft chains"
	rowBase      = "base chains of them"
	rowPerVM     = "elements per VM"
	rowCold      = "cold: read, compare, write"
	rowColdWrite = "cold: the writes alone"
	rowOneMore   = "one VM more, the writes"
	rowOneWrites = "one VM more, objects written"
	rowResync    = "resync, CPU"
	rowResyncN   = "resync, writes"
	rowRemove    = "100 VMs' objects removed, per VM"
	rowBridge    = "a bridge removed, by the kernel"
)

// Columns: ours by the number of VMs, the peer of each, and the bare kernel.
const (
	of1     = "1 VM"
	of1k    = "1,000 VMs"
	of10k   = "10,000 VMs"
	peer1   = "peer, 1"
	peer1k  = "peer, 1,000"
	peer10k = "peer, 10,000"
	bare    = "bare kernel"
)

const (
	fewBridges = 100 // at 10,000 VMs: a bridge takes the kernel ten times as long as the rest of a VM
	oneMore    = 40  // times per round
	removed    = 100
	delBridges = 20
)

// scale is ours with a number of VMs.
type scale struct {
	*host
	bridges   int
	passes    int // of a resync, per round
	who, peer string
}

// networkTables measures the host's network at three sizes.
func networkTables(ctx context.Context, o options, w io.Writer) error {
	k := newBook("The host's network (medians; a VM has one address of each family, in a network with a table of its own)")
	begin := time.Now()
	say := func(part string) {
		fmt.Fprintf(os.Stderr, "bench: network: %s (%.0f s)\n", part, time.Since(begin).Seconds())
	}
	var scales []scale
	defer func() {
		for _, s := range scales {
			s.close()
		}
	}()
	for _, s := range []scale{{nil, 1, 0, of1, peer1}, {nil, 1000, 5, of1k, peer1k}, {nil, fewBridges, 1, of10k, peer10k}} {
		n := map[string]int{of1: 1, of1k: 1000, of10k: 10_000}[s.who]
		say(s.who + ": bridges")
		var err error
		if s.host, err = newHost(ctx, n); err != nil {
			return err
		}
		scales = append(scales, s)
		if err := s.bridgesOnly(ctx, s.bridges); err != nil {
			return fmt.Errorf("%s: %w", s.who, err)
		}
	}
	for _, part := range []struct {
		name string
		run  func(context.Context, *book, int, []scale) error
	}{
		{"cold programming", cold},
		{"counts", counts},
		{"forwarding", forwardingAtScale},
		{"one VM more", oneVMMore},
		{"resync", resync},
		{"removal", removal},
	} {
		say(part.name)
		if err := part.run(ctx, k, o.rounds, scales); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	say("elements")
	sets, err := setTable(ctx, o.rounds)
	if err != nil {
		return fmt.Errorf("elements: %w", err)
	}
	say("done")
	k.notes = append(k.notes,
		fmt.Sprintf("bridges: all at 1 and 1,000 VMs, %d at 10,000, where the routes and neighbours of the others are on those and their elements stay", fewBridges),
		"peer of forwarding: one ip rule, one nft rule in each family and one masquerade rule per VM, packets of the VM in the middle",
		"peer of cold, one more and removal: the same objects by plain netlink in batches of 1 MiB and 8,000 elements, nothing read, compared or answered singly",
		"peer of resync: the dumps alone, by plain netlink, nothing parsed",
		"resync is plan, read, compare and apply; CPU is the process's, kernel and garbage collection included")
	k.printValues(w, []string{of1, of1k, of10k, peer1, peer1k, peer10k, bare})
	fmt.Fprintln(w)
	raw := func(peer string) func(float64, func(string) float64) bool {
		return func(v float64, p func(string) float64) bool { return v <= 1.6*p(peer) }
	}
	oneVM := func(v float64, p func(string) float64) bool { return v <= 1.25*p(of1) }
	flat := func(v float64, p func(string) float64) bool { return v == p(of1) && v == p(of1k) }
	for _, c := range []struct {
		who   string
		goals []goal
	}{
		{of10k, []goal{
			{rowForward4, "10,000 VMs ≤ 1.25 × 1 VM", oneVM},
			{rowForward6, "10,000 VMs ≤ 1.25 × 1 VM", oneVM},
			{rowNewFlow, "10,000 VMs ≤ 1.25 × 1 VM", oneVM},
			{rowIPRules, "the same at 1, 1,000 and 10,000 VMs", flat},
			{rowNFTRules, "the same at 1, 1,000 and 10,000 VMs", flat},
			{rowChains, "the same at 1, 1,000 and 10,000 VMs", flat},
			{rowBase, "the same at 1, 1,000 and 10,000 VMs", flat},
		}},
		{of1k, []goal{{rowCold, "1,000 VMs ≤ 1.6 × raw netlink", raw(peer1k)}, {rowColdWrite, "1,000 VMs ≤ 1.6 × raw netlink", raw(peer1k)}}},
		{of10k, []goal{
			{rowCold, "10,000 VMs ≤ 1.6 × raw netlink", raw(peer10k)},
			{rowColdWrite, "10,000 VMs ≤ 1.6 × raw netlink", raw(peer10k)},
			{rowOneMore, "at 10,000 VMs ≤ 150 µs", atMost(150)},
			{rowOneWrites, "the same at 1, 1,000 and 10,000 VMs", flat},
		}},
		{of1k, []goal{{rowResync, "1,000 VMs < 100 ms", atMost(100)}, {rowResyncN, "1,000 VMs: none", atMost(0)}}},
		{of10k, []goal{{rowResync, "10,000 VMs < 1,000 ms", atMost(1000)}, {rowResyncN, "10,000 VMs: none", atMost(0)}}},
		{of1k, []goal{{rowRemove, "≤ 10 % of what the kernel takes for a bridge", func(v float64, _ func(string) float64) bool {
			b, _ := k.get(rowBridge, bare)
			return v <= b/10
		}}}},
	} {
		k.printGoals(w, c.who, c.goals)
	}
	k.printNotes(w)
	sets.print(w, []string{ours.name, "raw netlink", "google/nftables"}, []goal{
		{rowElements, "≤ google/nftables", func(v float64, p func(string) float64) bool { return v <= p("google/nftables") }},
	})
	return writeJSON(filepath.Join(o.out, "network.json"), append(k.figures(), sets.figures()...))
}

// bridgesOnly makes the bridges, the tables without elements of VMs, and what is the
// host's.
func (s scale) bridgesOnly(ctx context.Context, bridges int) error {
	want := plan.Prepare(plan.Desired{State: desired(0, s.vms, bridges, s.facts)})
	if err := s.as(ctx, want); err != nil {
		return err
	}
	return s.openRaw()
}

// cold programs all VMs where the bridges and the tables are there, in turns with
// the peer. It leaves them programmed by us.
func cold(ctx context.Context, k *book, rounds int, scales []scale) error {
	for _, s := range scales[1:] {
		there := s.want
		all := desired(0, s.vms, s.bridges, s.facts)
		objects := objectsOf(minus(all, state.New()))
		objects.routes = slices.DeleteFunc(objects.routes, func(r state.Route) bool { return r.Link == wan })
		// The network's own routes and rules are no VM's.
		base := there.Clone()
		base.Rules = all.Rules
		for r := range all.Routes {
			if r.Link == wan {
				base.Routes[r] = struct{}{}
			}
		}
		if err := s.as(ctx, base); err != nil {
			return err
		}
		s.host.want = all
		for range rounds {
			runtime.GC()
			ms, err := timed(func() error { return s.raw.add(objects) })
			if err != nil {
				return err
			}
			k.add(rowCold, "ms", s.peer, ms)
			k.add(rowColdWrite, "ms", s.peer, ms)
			if err := s.check(ctx); err != nil {
				return fmt.Errorf("after the peer: %w", err)
			}
			if err := s.clear(objects); err != nil {
				return err
			}

			runtime.GC()
			begin := time.Now()
			have, err := s.read(ctx)
			if err != nil {
				return err
			}
			changes := state.Diff(have, all)
			if len(changes) != objects.count() {
				return fmt.Errorf("%d changes for %d objects", len(changes), objects.count())
			}
			var writes int
			ms, err = timed(func() error { writes, err = s.k.Apply(ctx, changes); return err })
			if err != nil {
				return err
			}
			k.add(rowCold, "ms", s.who, float64(time.Since(begin).Microseconds())/1e3)
			k.add(rowColdWrite, "ms", s.who, ms)
			if writes != objects.count() {
				return fmt.Errorf("%d writes of %d objects", writes, objects.count())
			}
			if err := s.check(ctx); err != nil {
				return err
			}
			if err := s.clear(objects); err != nil {
				return err
			}
		}
	}
	for _, s := range scales {
		if err := s.as(ctx, desired(0, s.vms, s.bridges, s.facts)); err != nil {
			return err
		}
	}
	return nil
}

func counts(ctx context.Context, k *book, _ int, scales []scale) error {
	add := func(h *host, who string) error {
		ip, rules, chains, base, err := objectCounts(h.space)
		if err != nil {
			return err
		}
		k.add(rowIPRules, "", who, float64(ip))
		k.add(rowNFTRules, "", who, float64(rules))
		k.add(rowChains, "", who, float64(chains))
		k.add(rowBase, "", who, float64(base))
		return nil
	}
	for _, s := range scales {
		if err := add(s.host, s.who); err != nil {
			return err
		}
		k.add(rowPerVM, "", s.who, float64(len(s.want.Elems))/float64(s.vms))
	}
	return nil
}

func forwardingAtScale(ctx context.Context, k *book, rounds int, scales []scale) error {
	var roads []road
	for _, s := range scales {
		if err := s.attach(ctx, nthBridge(0)); err != nil {
			return err
		}
		roads = append(roads, road{s.host, s.who, 0, true})
	}
	const classic = 1000
	plain, err := bareHost(ctx, 0)
	if err != nil {
		return err
	}
	defer plain.close()
	scripts, err := classicHost(ctx, classic)
	if err != nil {
		return err
	}
	defer scripts.close()
	roads = append(roads, road{scripts, peer1k, classic / 2, true}, road{plain, bare, 0, false})
	for _, r := range roads[len(scales):] {
		if err := r.attach(ctx, nthBridge(r.vm)); err != nil {
			return err
		}
	}
	ip, rules, chains, base, err := objectCounts(scripts.space)
	if err != nil {
		return err
	}
	for row, n := range map[string]int{rowIPRules: ip, rowNFTRules: rules, rowChains: chains, rowBase: base} {
		k.add(row, "", peer1k, float64(n))
	}
	return forwarding(k, 2*rounds, roads)
}

// oneVMMore writes the routes, neighbours and elements of one VM more.
func oneVMMore(ctx context.Context, k *book, rounds int, scales []scale) error {
	for range rounds {
		for _, s := range scales {
			more := minus(desired(s.vms, 1, s.bridges, s.facts), s.want)
			more.Links, more.Addrs, more.Sysctls = nil, nil, nil
			if s.vms < s.bridges+1 { // its bridge is another's
				more = moved(more, nthBridge(0))
			}
			changes := state.Diff(s.want, plus(s.want, more))
			objects := objectsOf(more)
			var spent, theirs []float64
			runtime.GC() // of what was computed just now
			for range oneMore {
				var writes int
				ms, err := timed(func() (err error) { writes, err = s.k.Apply(ctx, changes); return err })
				if err != nil {
					return err
				}
				spent = append(spent, 1000*ms)
				if writes != objects.count() {
					return fmt.Errorf("%d writes of %d objects", writes, objects.count())
				}
				if err := s.clear(objects); err != nil {
					return err
				}
				if ms, err = timed(func() error { return s.raw.add(objects) }); err != nil {
					return err
				}
				theirs = append(theirs, 1000*ms)
				if err := s.clear(objects); err != nil {
					return err
				}
			}
			k.add(rowOneMore, "µs", s.who, median(spent))
			k.add(rowOneMore, "µs", s.peer, median(theirs))
			k.add(rowOneWrites, "", s.who, float64(objects.count()))
		}
	}
	for _, s := range scales {
		if err := s.check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// moved has the routes and neighbours on another bridge.
func moved(s state.State, bridge string) state.State {
	out := state.New()
	out.Elems = s.Elems
	for r := range s.Routes {
		r.Link = bridge
		out.Routes[r] = struct{}{}
	}
	for key, m := range s.Neighs {
		key.Link = bridge
		out.Neighs[key] = m
	}
	return out
}

// resync is a whole pass over VMs that have not changed.
func resync(ctx context.Context, k *book, rounds int, scales []scale) error {
	var sets []string
	for e := range scales[0].want.Elems {
		if !slices.Contains(sets, e.Set) {
			sets = append(sets, e.Set)
		}
	}
	for range rounds {
		for _, s := range scales[1:] {
			runtime.GC()
			before, err := cpuTime()
			if err != nil {
				return err
			}
			for range s.passes {
				s.host.want = desired(0, s.vms, s.bridges, s.facts)
				have, err := s.read(ctx)
				if err != nil {
					return err
				}
				changes := state.Diff(have, s.want)
				writes, err := s.k.Apply(ctx, changes)
				if err != nil {
					return err
				}
				if len(changes) != 0 {
					return fmt.Errorf("%s: %d changes of what is unchanged: %s", s.who, len(changes), changes[0])
				}
				k.add(rowResyncN, "", s.who, float64(writes))
			}
			after, err := cpuTime()
			if err != nil {
				return err
			}
			k.add(rowResync, "ms", s.who, ms(after-before)/float64(s.passes))
			if before, err = cpuTime(); err != nil {
				return err
			}
			for range s.passes {
				if err := s.raw.dump(sets); err != nil {
					return err
				}
			}
			if after, err = cpuTime(); err != nil {
				return err
			}
			k.add(rowResync, "ms", s.peer, ms(after-before)/float64(s.passes))
		}
	}
	return nil
}

// cpuTime is what this process has used.
func cpuTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// removal takes the objects of the last hundred VMs away, in turns with the peer,
// and then some bridges.
func removal(ctx context.Context, k *book, rounds int, scales []scale) error {
	for _, s := range scales[1:] {
		left := desired(0, s.vms-removed, s.bridges, s.facts)
		less := s.want.Clone()
		gone := minus(s.want, left)
		for r := range gone.Routes {
			delete(less.Routes, r)
		}
		for key := range gone.Neighs {
			delete(less.Neighs, key)
		}
		for e := range gone.Elems {
			delete(less.Elems, e)
		}
		objects := objectsOf(gone)
		changes := state.Diff(s.want, less)
		for range rounds {
			var writes int
			ms, err := timed(func() (err error) { writes, err = s.k.Apply(ctx, changes); return err })
			if err != nil {
				return err
			}
			k.add(rowRemove, "ms", s.who, ms/removed)
			if writes != objects.count() {
				return fmt.Errorf("%d writes for %d objects", writes, objects.count())
			}
			if err := s.raw.add(objects); err != nil {
				return err
			}
			if ms, err = timed(func() error { return s.raw.remove(objects) }); err != nil {
				return err
			}
			k.add(rowRemove, "ms", s.peer, ms/removed)
			if err := s.raw.add(objects); err != nil {
				return err
			}
		}
		if err := s.check(ctx); err != nil {
			return err
		}
	}
	s := scales[1]
	less := s.want.Clone()
	for i := range delBridges {
		l := less.Links[nthBridge(s.vms-1-i)]
		if l.Name == "" {
			return errors.New("bridge " + strconv.Itoa(s.vms-1-i) + " is not there")
		}
		ms, err := timed(func() error { _, err := s.k.Apply(ctx, []state.Change{{Verb: state.Delete, Link: &l}}); return err })
		if err != nil {
			return err
		}
		k.add(rowBridge, "ms", bare, ms)
	}
	return nil
}
