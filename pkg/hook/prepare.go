package hook

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/source"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// prepare refuses what can't work, makes the bridges and starts the responder:
// when it returns, the guest's first frame finds an answer. What fails half-way
// is undone.
func (o *operation) prepare(ctx context.Context) error {
	r, c, err := o.load(ctx)
	if err != nil {
		return err
	}
	if !r.Annotated {
		return nil
	}
	if err := o.openKernel(); err != nil {
		return o.failed("cannot set up the network", err)
	}
	dir := o.spool.VMDir(r.VM.UUID)
	l := o.Launcher(c.Launch)
	if _, err := o.spool.Declaration(r.VM.UUID); err == nil {
		// The last run was not released. Its responder would go on with the old
		// binding.
		if err := l.Stop(ctx, dir); err != nil {
			return o.failed("cannot stop the last run's responder", err)
		}
	}
	o.warnShadowed(ctx, r.VM)
	// This may wait for the network, so it is done without the lock.
	elsewhere := o.elsewhere(ctx, r.VM, c)
	if fatal := elsewhere.Fatal(); len(fatal) > 0 {
		return fatal
	}
	if err := o.declare(ctx, r.VM, c, elsewhere); err != nil {
		return err
	}
	err = l.Start(ctx, dir)
	if err == nil {
		ready, cancel := context.WithTimeout(ctx, readyTimeout)
		err = l.WaitReady(ready, dir)
		cancel()
	}
	if err != nil {
		return slices.Concat(o.failed("the responder did not start", err), o.undo(ctx, r.VM, l))
	}
	o.Poke(r.VM.UUID.String())
	return nil
}

// warnShadowed says which programs of the host the VM's forwards take the place of.
// The agent finds them itself, for as long as it is so.
func (o *operation) warnShadowed(ctx context.Context, vm intent.VM) {
	if len(vm.Ports()) == 0 {
		return
	}
	listeners, err := o.kernel.Listeners(ctx)
	if err != nil {
		o.Log.Warn(err)
	}
	o.warn(intent.Shadowed(vm, listeners))
}

// declare is the part of prepare that needs the lock: conflicts, declaration,
// binding and kernel objects.
func (o *operation) declare(ctx context.Context, vm intent.VM, c config.Config, warnings problem.List) error {
	unlock, err := o.lock(ctx)
	if err != nil {
		return o.failed("cannot set up the network", err)
	}
	defer unlock()
	vm, ps := o.numbered(vm, c)
	if len(ps.Fatal()) > 0 {
		return ps.Fatal()
	}
	warnings = append(warnings, ps...)
	if ps := o.conflicts(ctx, vm, c); len(ps) > 0 {
		return ps
	}
	facts, err := o.kernel.Facts(ctx, plan.Interfaces(c)...)
	if err != nil {
		return o.failed("cannot read the host's network", err)
	}
	warnings = append(warnings, facts.Closed(vm)...)
	desired := plan.Build([]intent.VM{vm}, c, facts)
	var generation uint64
	if old, err := o.spool.Declaration(vm.UUID); err == nil {
		generation = old.Generation
	}
	own := spool.ClaimsOf(vm)
	if err := o.spool.WriteDeclaration(spool.Declaration{
		UUID: vm.UUID, Name: vm.Name, Generation: generation + 1, Phase: spool.Preparing, At: o.Now(),
		Bridges: own.Bridges, Addrs: own.Addrs, Prefixes: own.Prefixes, Forwards: own.Forwards, XML: string(o.xml), Warnings: o.warn(warnings),
	}); err != nil {
		return slices.Concat(o.failed("cannot write below "+o.Dirs.Run, err), o.undoLocked(ctx, vm))
	}
	if err := o.writeBinding(vm.UUID, desired.Bindings[vm.UUID]); err != nil {
		return slices.Concat(o.failed("cannot write below "+o.Dirs.Run, err), o.undoLocked(ctx, vm))
	}
	if err := o.makeLinks(ctx, vm, plan.Prepare(desired)); err != nil {
		return slices.Concat(o.failed("cannot make the bridge", err), o.undoLocked(ctx, vm))
	}
	return nil
}

// numbered is the VM with what it gets from its networks' pools. A pool that cannot
// be read or written is said and does not keep the VM from starting.
func (o *operation) numbered(vm intent.VM, c config.Config) (intent.VM, problem.List) {
	pools, errs := o.spool.OpenPools(c, o.Now())
	given, ps := pools.Resolve(vm)
	if len(ps.Fatal()) > 0 {
		return vm, ps
	}
	if err := pools.Save(); err != nil {
		errs = append(errs, err)
		given = vm // or two VMs would get the same
	}
	for _, err := range errs {
		o.Log.Warn(err)
	}
	return given, ps
}

// writeBinding writes what the responder is started with. Without a lease file it
// serves the VM all the same.
func (o *operation) writeBinding(id uuid.UUID, b responder.Binding) error {
	if err := o.spool.EnsureLease(id, b); err != nil {
		o.Log.Warn(err)
	}
	_, err := o.spool.WriteBinding(id, b)
	return err
}

// warn logs what does not refuse the start and returns it as lines.
func (o *operation) warn(ps problem.List) []string {
	var lines []string
	for _, p := range ps {
		o.Log.Warn(p.String())
		lines = append(lines, p.String())
	}
	return lines
}

// makeLinks brings bridges, their sysctls and addresses, and the nftables
// skeleton in place. A skeleton of another build that stands is left alone: the
// agent, which knows all elements, replaces it.
func (o *operation) makeLinks(ctx context.Context, vm intent.VM, want state.State) error {
	have, err := o.kernel.Read(ctx, state.Scope{Links: spool.ClaimsOf(vm).Bridges, Sysctls: want.HostSysctls(), Prepared: true})
	if err != nil {
		return err
	}
	if have.Skeleton != "" {
		want.Skeleton = have.Skeleton
	}
	_, err = o.kernel.Apply(ctx, state.Diff(have, want))
	return err
}

// conflicts names what is another's: addresses and bridges that other VMs
// claim, routes of ours that lead elsewhere, bridges with somebody in them.
func (o *operation) conflicts(ctx context.Context, vm intent.VM, c config.Config) problem.List {
	own := spool.ClaimsOf(vm)
	claims, err := o.spool.Claimants(vm.UUID, own)
	if err != nil {
		return o.failed("cannot compare with the other VMs", err)
	}
	var ps problem.List
	owners := map[string]bool{} // bridges of VMs that run
	for _, d := range claims {
		if !d.Live(o.Now(), false) {
			continue
		}
		for _, b := range d.Bridges {
			owners[b] = true
		}
		if found := intent.Conflicts(vm, o.others(d, c)); len(found.Fatal()) > 0 {
			ps = append(ps, found.Fatal()...)
			continue
		}
		// Its XML has changed since it was declared; what it declared holds.
		for _, a := range own.Addrs {
			if d.Claims().HasAddr(a) {
				ps = append(ps, inUse(vm, a, "belongs to running VM "+d.Name))
			}
		}
		for _, net := range own.Prefixes {
			if d.Claims().Overlaps(net) {
				ps = append(ps, problem.Problem{
					Code: problem.EAddressInUse, What: fmt.Sprintf("prefix %s overlaps what running VM %s has", net, d.Name),
					Fix: "give " + vm.Name + " another prefix, or stop the other VM",
				})
			}
		}
		for _, b := range own.Bridges {
			if slices.Contains(d.Bridges, b) {
				ps = append(ps, problem.Problem{Code: problem.EBridgeShared, What: fmt.Sprintf("bridge %s is the bridge of running VM %s", b, d.Name), Fix: "give each NIC a bridge of its own"})
			}
		}
	}
	if len(ps) > 0 {
		return ps.WithVM(vm.Name)
	}
	for _, a := range own.Addrs {
		link, err := o.kernel.RouteOwner(ctx, netip.PrefixFrom(a, a.BitLen()))
		if err != nil {
			return o.failed("cannot look for a route to "+a.String(), err)
		}
		if link == "" || slices.Contains(own.Bridges, link) {
			continue
		}
		info, err := o.kernel.Bridge(ctx, link)
		if err != nil {
			return o.failed("cannot look at bridge "+link, err)
		}
		// Without a port, nobody is behind it: a left-over that the agent clears.
		if owner, ours := strings.CutPrefix(info.Alias, marks.LinkAliasPrefix); ours && len(info.Ports) > 0 && !strings.HasPrefix(owner, vm.UUID.String()) {
			ps = append(ps, inUse(vm, a, fmt.Sprintf("is routed to bridge %s of VM %s", link, owner[:min(len(owner), 36)])))
		}
	}
	for _, n := range vm.NICs {
		ps = append(ps, o.checkBridge(ctx, vm, n, owners)...)
	}
	return ps.WithVM(vm.Name)
}

func inUse(vm intent.VM, a netip.Addr, why string) problem.Problem {
	return problem.Problem{
		Code: problem.EAddressInUse, VM: vm.Name, What: fmt.Sprintf("address %s %s", a, why),
		Fix: "give " + vm.Name + " another address, or stop the other VM",
	}
}

// others is the intent of another VM's declaration; none when its XML no longer
// gives one.
func (o *operation) others(d spool.Declaration, c config.Config) []intent.VM {
	r := source.Load([]byte(d.XML), c, o.Dirs.Config)
	if !r.Annotated || len(r.Problems.Fatal()) > 0 {
		return nil
	}
	return []intent.VM{r.VM}
}

// checkBridge refuses a bridge that is not ours to manage. One of ours without
// a port whose VM does not run is a left-over and taken over.
func (o *operation) checkBridge(ctx context.Context, vm intent.VM, n intent.NIC, live map[string]bool) problem.List {
	info, err := o.kernel.Bridge(ctx, n.Bridge)
	if err != nil {
		return o.failed("cannot look at bridge "+n.Bridge, err)
	}
	if !info.Exists {
		return nil
	}
	own := "name a bridge that does not exist yet, such as " + suggestBridge(vm, n.Bridge) + ": slash32 makes it"
	alias, ours := strings.CutPrefix(info.Alias, marks.LinkAliasPrefix)
	ours = ours && info.Group == marks.LinkGroup
	var what string
	switch {
	case info.Kind != "bridge":
		what = fmt.Sprintf("%s is there already and is not a bridge (%s)", n.Bridge, info.Kind)
	case len(info.Ports) > 0:
		what = fmt.Sprintf("bridge %s has a port already (%s), and a VM's NIC must be alone on its bridge", n.Bridge, strings.Join(info.Ports, ", "))
	case !ours && info.Group != marks.LinkGroup:
		what = fmt.Sprintf("bridge %s is there already and is not one that slash32 made", n.Bridge)
	case ours && live[n.Bridge] && alias != vm.UUID.String()+":"+n.MAC.String():
		what = fmt.Sprintf("bridge %s belongs to VM %s", n.Bridge, alias)
	default:
		return nil
	}
	return problem.List{{Code: problem.EBridgeInUse, VM: vm.Name, What: what, Fix: own}}
}

func suggestBridge(vm intent.VM, taken string) string {
	const limit = 15
	name := "s32-" + strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return r
		}
		return -1
	}, vm.Name)
	name = name[:min(len(name), limit)]
	if name == taken {
		name = "s32-" + strings.ReplaceAll(vm.UUID.String(), "-", "")[:limit-4]
	}
	return name
}

func (o *operation) undo(ctx context.Context, vm intent.VM, l Launcher) problem.List {
	ctx = context.WithoutCancel(ctx)
	var ps problem.List
	if err := l.Stop(ctx, o.spool.VMDir(vm.UUID)); err != nil {
		ps = o.failed("cannot stop the responder again", err)
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return slices.Concat(ps, o.failed("cannot undo", err))
	}
	defer unlock()
	return slices.Concat(ps, o.undoLocked(ctx, vm))
}

// undoLocked takes back what declare made. Its own failures are part of the
// message: then something is left for the agent.
func (o *operation) undoLocked(ctx context.Context, vm intent.VM) problem.List {
	ctx = context.WithoutCancel(ctx)
	var ps problem.List
	if err := o.clear(ctx, vm.UUID, spool.ClaimsOf(vm).Bridges, true); err != nil {
		ps = o.failed("cannot undo", err)
	}
	if err := o.spool.Remove(vm.UUID); err != nil {
		ps = append(ps, o.failed("cannot undo", err)...)
	}
	return ps
}

// ensure is for a VM that runs (reconnect, attach): its declaration, binding and
// responder are there afterwards.
func (o *operation) ensure(ctx context.Context) error {
	r, c, err := o.load(ctx)
	if err != nil || !r.Annotated {
		return err
	}
	if err := o.redeclare(ctx, r.VM, c); err != nil {
		return err
	}
	dir := o.spool.VMDir(r.VM.UUID)
	l := o.Launcher(c.Launch)
	if err := l.Start(ctx, dir); err != nil {
		return o.failed("the responder did not start", err)
	}
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := l.WaitReady(ready, dir); err != nil {
		return o.failed("the responder did not start", err)
	}
	o.Poke(r.VM.UUID.String())
	return nil
}

// redeclare writes declaration and binding of a running VM where they lack.
func (o *operation) redeclare(ctx context.Context, vm intent.VM, c config.Config) error {
	unlock, err := o.lock(ctx)
	if err != nil {
		return o.failed("cannot look after the running VM", err)
	}
	defer unlock()
	vm, ps := o.numbered(vm, c)
	o.warn(ps)
	if d, err := o.spool.Declaration(vm.UUID); err != nil || !d.Live(o.Now(), true) {
		own := spool.ClaimsOf(vm)
		if err := o.spool.WriteDeclaration(spool.Declaration{
			UUID: vm.UUID, Name: vm.Name, Generation: d.Generation + 1, Phase: spool.Started, At: o.Now(),
			Bridges: own.Bridges, Addrs: own.Addrs, Prefixes: own.Prefixes, Forwards: own.Forwards, XML: string(o.xml),
		}); err != nil {
			return o.failed("cannot write below "+o.Dirs.Run, err)
		}
	}
	var b responder.Binding
	if b, err = o.spool.Binding(vm.UUID); err == nil && len(b.NICs) > 0 {
		return nil
	}
	if err := o.openKernel(); err != nil {
		return o.failed("cannot look after the running VM", err)
	}
	facts, err := o.kernel.Facts(ctx, plan.Interfaces(c)...)
	if err != nil {
		return o.failed("cannot read the host's network", err)
	}
	if err := o.writeBinding(vm.UUID, plan.Build([]intent.VM{vm}, c, facts).Bindings[vm.UUID]); err != nil {
		return o.failed("cannot write below "+o.Dirs.Run, err)
	}
	return nil
}

// started notes that the guest runs. The agent does the rest.
func (o *operation) started(id uuid.UUID) error {
	d, err := o.spool.Declaration(id)
	if err != nil {
		return err
	}
	d.Phase, d.At, d.XML = spool.Started, o.Now(), string(o.xml)
	if err := o.spool.WriteDeclaration(d); err != nil {
		return err
	}
	o.Poke(id.String())
	return nil
}
