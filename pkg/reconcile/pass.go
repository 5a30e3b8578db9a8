package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/source"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/virt"
)

// pass looks once and brings the kernel, the bindings and the responders to
// what they should be.
func (l *Loop) pass(ctx context.Context, watchers *sync.WaitGroup) error {
	l.mu.Lock()
	c, stale, reasons := l.config, l.stale, slices.Sorted(maps.Keys(l.reasons))
	l.stale = false
	l.reasons = map[string]struct{}{}
	l.begun = l.Now()
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.begun = time.Time{}
		l.mu.Unlock()
	}()

	// libvirt is asked before the lock is taken: its list waits for hooks, and
	// hooks wait for the lock. It is asked before the declarations are read, so
	// that whatever a hook has done since is seen.
	l.list(ctx, stale)
	l.sweepLeases(ctx)

	lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
	unlock, err := l.Spool.Lock(lockCtx)
	cancel()
	if err != nil {
		return err
	}
	p := &pass{Loop: l, config: c}
	err = p.locked(ctx)
	unlock()
	l.announce(ctx, p.changes, watchers)

	err = errors.Join(err, l.supervise(ctx, c, p.vms, watchers))
	l.note(p, reasons, err)
	return err
}

// list refreshes the listing when it may be out of date.
func (l *Loop) list(ctx context.Context, stale bool) {
	now := l.Now()
	switch {
	case stale:
	case l.listed.err != nil && now.Sub(l.listed.triedAt) < relistAfter:
		return // a libvirtd that hangs must not slow down each repair
	case l.listed.err == nil && !l.listed.at.IsZero() && now.Sub(l.listed.at) < Period:
		return
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	domains, err := l.Virt.Snapshot(ctx)
	if err != nil {
		if l.listed.err == nil {
			l.listed.errAt, l.listed.said = now, false
		}
		// A reconnect takes a moment, and so does the first connection.
		if !l.listed.said && now.Sub(l.listed.errAt) > sayAfter {
			l.Log.Warnf("libvirt's list is not known: %v; nothing is removed until it is", err)
			l.listed.said = true
		}
		l.listed.err, l.listed.triedAt = err, l.Now()
		return
	}
	if l.listed.said {
		l.Log.Infof("libvirt's list is known again after %v", now.Sub(l.listed.errAt).Round(time.Millisecond))
	}
	l.listed = listing{at: now, domains: make(map[uuid.UUID]virt.Domain, len(domains))}
	for _, d := range domains {
		l.listed.domains[d.UUID] = d
	}
}

// pass is the state of one pass.
type pass struct {
	*Loop
	config   config.Config
	facts    plan.Facts
	pools    *spool.PoolSet
	vms      map[uuid.UUID]*vm
	gone     []spool.Declaration // declarations of VMs that do not run
	bad      []error
	desired  plan.Desired
	changes  []state.Change
	writes   int
	repair   bool // the changes are to what nobody asked to be changed
	warnings problem.List
}

// locked is the part under the lock: read all, plan, apply, write bindings.
func (p *pass) locked(ctx context.Context) error {
	declarations, bad, err := p.Spool.Declarations()
	if err != nil {
		return err
	}
	p.bad = bad
	if p.facts, err = p.Kernel.Facts(ctx, plan.Interfaces(p.config)...); err != nil {
		return fmt.Errorf("read the host's network: %w", err)
	}
	p.openPools()
	p.collect(declarations)
	if err := p.pools.Save(); err != nil {
		p.bad = append(p.bad, err)
	}
	have, err := p.settle(ctx)
	if err != nil {
		return err
	}
	p.warn(have)
	p.warnings = append(p.warnings, p.facts.Lacking(p.planned(), p.config)...)
	p.warnTaps(have)
	p.warnShadowed(ctx)
	p.warnClosed()
	want := p.keep(have)
	p.changes = state.Diff(have, want)
	p.repair = len(p.changes) > 0 && len(state.Diff(p.wanted, want)) == 0
	p.wanted = want
	var errs []error
	apply := func() {
		if len(p.changes) == 0 {
			return
		}
		if p.writes, err = p.Kernel.Apply(ctx, p.changes); err != nil {
			errs = append(errs, fmt.Errorf("apply: %w", err))
		}
	}
	if p.Traffic != nil {
		p.Traffic.During(ctx, p.changes, p.owners(), apply)
	} else {
		apply()
	}
	errs = append(errs, p.write(ctx), p.sweep(ctx))
	if p.Relay != nil {
		p.Relay(p.relayed())
	}
	if p.Prefixes != nil {
		p.Prefixes(p.config.Hooks.Prefix, p.routed())
	}
	return errors.Join(errs...)
}

// live tells whether a declaration is of a VM that runs or is about to.
func (p *pass) live(d spool.Declaration) bool {
	_, listed := p.listed.domains[d.UUID]
	unknown := p.listed.err != nil
	newer := d.At.After(p.listed.at) // than the list
	switch d.Phase {
	case spool.Preparing:
		return d.Live(p.Now(), listed || unknown)
	case spool.Started:
		return listed || unknown || newer
	case spool.Released:
		// A tombstone hides a list from before the release. When libvirt goes on
		// listing the VM it was started again without our hook being called.
		return listed && !unknown && p.listed.at.Sub(d.At) > revivedAfter
	}
	return false
}

// collect finds the VMs that run and are annotated, with their intents.
func (p *pass) collect(declarations []spool.Declaration) {
	p.vms = map[uuid.UUID]*vm{}
	hidden := map[uuid.UUID]bool{}
	for _, d := range declarations {
		if !p.live(d) {
			hidden[d.UUID] = true
			p.gone = append(p.gone, d)
			continue
		}
		p.vms[d.UUID] = &vm{decl: d, declared: true}
	}
	for id, dom := range p.listed.domains {
		if hidden[id] {
			continue
		}
		if v := p.vms[id]; v != nil {
			// A declaration that is newer than the list holds the newer XML.
			v.listed = true
			if !v.decl.At.After(p.listed.at) {
				v.domain = dom
			}
			continue
		}
		if p.listed.err != nil {
			// The list is an old one: the VM may have gone since, and nothing but
			// the list speaks for it. What it has in the kernel is kept.
			if _, known := p.good[id]; !known {
				continue
			}
		}
		p.vms[id] = &vm{domain: dom, listed: true}
	}
	for id, v := range p.vms {
		if !p.derive(id, v) {
			delete(p.vms, id)
			continue
		}
		p.lease(v)
	}
}

// derive fills in the VM's intent: from the newest XML, else, when that is not
// valid, the last valid one. It reports whether the VM is ours.
func (p *pass) derive(id uuid.UUID, v *vm) bool {
	xml := v.domain.XML
	if xml == "" {
		xml = v.decl.XML
	}
	r := source.Load([]byte(xml), p.config, p.Spool.Config)
	if !r.Annotated {
		if !v.declared {
			return false
		}
		r.Problems = problem.List{{
			Code: problem.ENamespace, VM: v.decl.Name,
			What: "the annotation was removed while the VM runs; the VM keeps its network until it stops",
			Fix:  "put the annotation back with virsh metadata --live, or stop the VM",
		}}
	}
	v.problems = r.Problems
	v.taps = map[mac.Addr]string{}
	for _, n := range r.Domain.NICs {
		v.taps[n.MAC] = n.Tap
	}
	if len(r.Problems.Fatal()) == 0 && p.number(v, r.VM) {
		v.xml = xml
		return true
	}
	if good, ok := p.good[id]; ok && p.number(v, good) {
		return true
	}
	if v.declared && v.domain.XML != "" { // what the hook checked
		if r := source.Load([]byte(v.decl.XML), p.config, p.Spool.Config); r.Annotated && len(r.Problems.Fatal()) == 0 && p.number(v, r.VM) {
			return true
		}
	}
	v.intent = intent.VM{UUID: id, Name: cmp.Or(r.Domain.Name, v.decl.Name, v.domain.Name)}
	return true
}

// settle plans, drops from the plan what is in conflict, and reads the kernel.
func (p *pass) settle(ctx context.Context) (state.State, error) {
	p.settleConflicts()
	for {
		p.desired = plan.Build(p.planned(), p.config, p.facts)
		paths := append(p.desired.State.HostSysctls(), forwardingPaths[:]...)
		have, err := p.Kernel.Read(ctx, state.Scope{Sysctls: paths, Taps: p.desired.State.TapNames()})
		if err != nil {
			return have, fmt.Errorf("read the kernel's state: %w", err)
		}
		foreign, err := p.dropForeign(ctx, have)
		if err != nil {
			return have, err
		}
		if !foreign {
			return have, nil
		}
	}
}

func (p *pass) planned() []intent.VM {
	var vms []intent.VM
	for _, v := range p.vms {
		if v.planned {
			vms = append(vms, v.intent)
		}
	}
	slices.SortFunc(vms, func(a, b intent.VM) int { return cmp.Compare(a.UUID.String(), b.UUID.String()) })
	return vms
}

// settleConflicts lets the VM that has been there longest keep what two claim.
// The other keeps its last valid intent if that is free of conflict, else it is
// not in the plan.
func (p *pass) settleConflicts() {
	order := slices.Collect(maps.Values(p.vms))
	seniority := func(v *vm) time.Time {
		if t, ok := p.since[v.intent.UUID]; ok {
			return t
		}
		if v.declared {
			return v.decl.At
		}
		return p.Now()
	}
	slices.SortFunc(order, func(a, b *vm) int {
		return cmp.Or(seniority(a).Compare(seniority(b)), cmp.Compare(a.intent.UUID.String(), b.intent.UUID.String()))
	})
	held := newHolders(p.lengths())
	for _, v := range order {
		if v.planned {
			p.holdLeases(v, held)
		}
	}
	for _, v := range order {
		if !v.planned {
			continue
		}
		ps := held.conflicts(v.intent)
		if len(ps.Fatal()) > 0 {
			v.problems = append(v.problems, ps.WithVM(v.intent.Name)...)
			good, ok := p.good[v.intent.UUID]
			if !ok || !p.number(v, good) || len(held.conflicts(v.intent).Fatal()) > 0 {
				v.planned, v.conflict = false, true
				continue
			}
		}
		held.add(v.intent)
	}
	for _, v := range order {
		if v.planned {
			p.settleLeases(v, held)
		}
	}
}

// dropForeign drops VMs whose bridge is there and is not ours: a bridge that
// somebody else made is never touched.
func (p *pass) dropForeign(ctx context.Context, have state.State) (dropped bool, err error) {
	for _, v := range p.vms {
		if !v.planned {
			continue
		}
		for _, n := range v.intent.NICs {
			if l, ours := have.Links[n.Bridge]; ours {
				if l.UUID != "" && l.UUID != v.intent.UUID.String() && l.Ports != "" {
					v.problems = append(v.problems, problem.Problem{
						Code: problem.EBridgeShared, VM: v.intent.Name,
						What: fmt.Sprintf("bridge %s is in use by VM %s", n.Bridge, l.UUID), Fix: "give each NIC a bridge of its own",
					})
					v.planned, dropped = false, true
				}
				continue
			}
			info, err := p.Kernel.Bridge(ctx, n.Bridge)
			if err != nil {
				return false, fmt.Errorf("look at bridge %s: %w", n.Bridge, err)
			}
			if info.Exists {
				v.problems = append(v.problems, problem.Problem{
					Code: problem.EBridgeInUse, VM: v.intent.Name,
					What: fmt.Sprintf("%s is there and is not a bridge that slash32 made (ports: %s)", n.Bridge, cmp.Or(strings.Join(info.Ports, ", "), "none")),
					Fix:  "stop the VM, give its NIC a bridge name that does not exist yet, and start it",
				})
				v.planned, dropped = false, true
			}
		}
	}
	return dropped, nil
}

// keep is the desired state with everything that must not be removed yet.
func (p *pass) keep(have state.State) state.State {
	want := p.desired.State
	stopping := map[string]bool{}
	for _, d := range p.gone {
		if _, listed := p.listed.domains[d.UUID]; d.Phase == spool.Stopped && listed {
			stopping[d.UUID.String()] = true
		}
	}
	for name, l := range have.Links {
		if _, wanted := want.Links[name]; wanted {
			continue
		}
		id, _ := uuid.Parse(l.UUID)
		_, listed := p.listed.domains[id]
		v := p.vms[id]
		switch {
		case v != nil && v.conflict:
			// No route of it may stay that another VM has, but its bridge must.
			keepBridge(&want, have, name)
		case stopping[l.UUID]:
			keepBridge(&want, have, name) // release removes it
		case p.listed.err != nil && !p.isGone(id), l.Ports != "", v != nil:
			state.Keep(&want, have, name)
		case listed && !p.isGone(id):
			state.Keep(&want, have, name)
		}
	}
	return want
}

// isGone tells whether a hook has said that the VM stopped.
func (p *pass) isGone(id uuid.UUID) bool {
	return slices.ContainsFunc(p.gone, func(d spool.Declaration) bool { return d.UUID == id })
}

func keepBridge(want *state.State, have state.State, name string) {
	only := state.Only(have, name)
	only.Neighs, only.Proxies, only.Routes, only.Elems = nil, nil, nil, nil
	state.Keep(want, only, name)
}

// write brings declarations and bindings up to date.
func (p *pass) write(ctx context.Context) error {
	var errs []error
	for id, v := range p.vms {
		if !v.planned {
			continue
		}
		p.good[id] = v.asked
		if _, ok := p.since[id]; !ok {
			p.since[id] = p.Now()
			if v.declared {
				p.since[id] = v.decl.At
			}
		}
		own := spool.ClaimsOf(v.intent)
		d := v.decl
		if !v.declared {
			d = spool.Declaration{UUID: id, Generation: 1, Phase: spool.Started, At: p.Now()}
		}
		d.Name = v.intent.Name
		d.Bridges, d.Addrs, d.Prefixes, d.Forwards = own.Bridges, own.Addrs, own.Prefixes, own.Forwards
		if v.xml != "" { // not one that is invalid: the declaration is what an agent without memory falls back to
			d.XML = v.xml
		}
		if d.Phase == spool.Released { // see live
			d.Phase, d.At, d.Generation = spool.Started, p.Now(), d.Generation+1
		}
		if !v.declared || !same(d, v.decl) {
			if err := p.Spool.WriteDeclaration(d); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if err := p.Spool.EnsureLease(id, p.desired.Bindings[id]); err != nil {
			v.problems = append(v.problems, problem.Problem{
				Code: problem.WLease, VM: v.intent.Name, What: err.Error(),
				Fix: "see to the disk of " + p.Spool.State + "; until then, what other DHCP servers lease to the VM is not routed",
			})
		}
		written, changed, err := p.Spool.ReplaceBinding(id, p.desired.Bindings[id], p.Now())
		p.retired(written)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if changed && v.declared {
			rctx, cancel := context.WithTimeout(ctx, time.Second)
			if err := p.Reload(rctx, p.Spool.ResponderSocket(id)); err != nil {
				p.Log.Debugf("%s: reload the responder: %v", v.intent.Name, err) // supervise starts it anew
			}
			cancel()
		}
	}
	return errors.Join(errs...)
}

func same(a, b spool.Declaration) bool {
	return a.Name == b.Name && a.Phase == b.Phase && a.XML == b.XML && a.Generation == b.Generation &&
		slices.Equal(a.Bridges, b.Bridges) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.Forwards, b.Forwards)
}

// sweep removes the files and responders of VMs that are gone: what libvirt no
// longer lists in a list that is newer than the VM's end.
func (p *pass) sweep(ctx context.Context) error {
	if p.listed.err != nil {
		return nil
	}
	ids, err := p.Spool.VMs()
	if err != nil {
		return err
	}
	p.waiting = false
	var errs []error
	for _, id := range ids {
		if _, runs := p.vms[id]; runs {
			continue
		}
		i := slices.IndexFunc(p.gone, func(d spool.Declaration) bool { return d.UUID == id })
		if _, listed := p.listed.domains[id]; i >= 0 && (listed || !p.listed.at.After(p.gone[i].At)) {
			p.waiting = true
			continue
		}
		stop, cancel := context.WithTimeout(ctx, respTimeout)
		err := p.Launcher(p.config.Launch).Stop(stop, p.Spool.VMDir(id))
		cancel()
		errs = append(errs, err, p.Spool.Remove(id))
	}
	for id := range p.good {
		if _, runs := p.vms[id]; !runs {
			delete(p.good, id)
			delete(p.since, id)
		}
	}
	return errors.Join(errs...)
}
