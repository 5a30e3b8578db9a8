package hook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// stopped withdraws everything but the bridge, routes first, so that BGP
// withdraws them before the link goes. libvirt calls it after a start that
// failed, too, and then sends no event.
func (o *operation) stopped(ctx context.Context, id uuid.UUID) error {
	d, bridges, err := o.remains(ctx, id)
	if err != nil || len(bridges) == 0 {
		return err
	}
	if d.Phase != "" {
		d.Phase, d.At = spool.Stopped, o.Now()
		err = o.spool.WriteDeclaration(d)
	}
	return errors.Join(err, o.clear(ctx, id, bridges, false))
}

// release removes the rest: responder, bridge and files.
func (o *operation) release(ctx context.Context, id uuid.UUID) error {
	d, bridges, err := o.remains(ctx, id)
	if err != nil {
		return err
	}
	if len(bridges) == 0 && d.Phase == "" {
		return nil
	}
	c, _ := config.Load(o.Dirs.Config) // a broken file must not keep a teardown from happening
	var errs []error
	if err := o.Launcher(c.Launch).Stop(ctx, o.spool.VMDir(id)); err != nil {
		errs = append(errs, fmt.Errorf("stop the responder: %w", err))
	}
	errs = append(errs, o.clear(ctx, id, bridges, true))
	if d.Phase == "" {
		return errors.Join(append(errs, o.spool.Remove(id))...)
	}
	// The tombstone keeps a listing that the agent read before now from bringing
	// the VM back. Without an agent there is nobody to fool, nor to remove it.
	d.Phase, d.At, d.XML, d.Addrs = spool.Released, o.Now(), "", nil
	errs = append(errs, o.spool.WriteDeclaration(d), o.spool.RemoveBinding(id))
	if !o.Poke(id.String()) {
		errs = append(errs, o.spool.Remove(id))
	}
	return errors.Join(errs...)
}

// remains is the VM's declaration (zero when there is none) and those of its
// bridges that may be torn down. None may when one of them has a port: the tap
// is gone by now, so it is that of a newer incarnation.
func (o *operation) remains(ctx context.Context, id uuid.UUID) (spool.Declaration, []string, error) {
	d, err := o.spool.Declaration(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.Log.Warnf("%s: %v; going by the kernel alone", o.name, err)
	}
	if err := o.openKernel(); err != nil {
		return d, nil, err
	}
	have, err := o.kernel.Read(ctx, state.Scope{Links: d.Bridges, Prepared: true})
	if err != nil {
		return d, nil, fmt.Errorf("read the kernel's state: %w", err)
	}
	var bridges []string
	for name, l := range have.Links {
		if l.UUID != id.String() {
			continue
		}
		if l.Ports != "" {
			o.Log.Warnf("%s: bridge %s has a port (%s) of a newer start; nothing is torn down", o.name, name, l.Ports)
			return spool.Declaration{}, nil, nil
		}
		bridges = append(bridges, name)
	}
	slices.Sort(bridges)
	return d, bridges, nil
}

// clear removes the bridges' objects, and with links the bridges themselves.
// With the last of our bridges go the policy rules and the nftables tables. What
// the bridges' counters said last is left for the agent, once they are gone.
func (o *operation) clear(ctx context.Context, id uuid.UUID, bridges []string, links bool) error {
	if len(bridges) == 0 {
		return nil
	}
	counted, err := o.kernel.TrafficOf(ctx, bridges)
	if err != nil {
		o.Log.Warnf("%s: %v; what was forwarded since the agent's last look is not counted", o.name, err)
	}
	have, err := o.kernel.Read(ctx, state.Scope{Links: bridges})
	if err != nil {
		return fmt.Errorf("read the kernel's state: %w", err)
	}
	want := state.New()
	want.Skeleton, want.Sysctls = have.Skeleton, have.Sysctls
	if !links {
		want.Links, want.Addrs = have.Links, have.Addrs
	} else if all, alone, err := o.alone(ctx, bridges); err != nil {
		return err
	} else if alone {
		have, want = all, state.New()
		for r := range all.Routes {
			if r.Metric == plan.MetricPool { // the agent's: no VM has it
				want.Routes[r] = struct{}{}
			}
		}
	}
	if _, err := o.kernel.Apply(ctx, state.Diff(have, want)); err != nil {
		return fmt.Errorf("tear down %v: %w", bridges, err)
	}
	maps.DeleteFunc(counted, func(_ string, t traffic.Traffic) bool { return t == traffic.Traffic{} })
	if len(counted) == 0 {
		return nil
	}
	boot, err := spool.BootID()
	if err != nil {
		return err
	}
	return o.spool.LeaveCounters(id, traffic.Final{Boot: boot, Bridges: counted}, o.Now())
}

// alone tells whether no bridge of ours but these is there, and if so returns
// all that is ours.
func (o *operation) alone(ctx context.Context, bridges []string) (state.State, bool, error) {
	ids, err := o.spool.VMs()
	if err != nil || len(ids) > 1 { // cheap, and enough on a host with many VMs
		return state.State{}, false, err
	}
	all, err := o.kernel.Read(ctx, state.Scope{})
	if err != nil {
		return all, false, fmt.Errorf("read the kernel's state: %w", err)
	}
	for name := range all.Links {
		if !slices.Contains(bridges, name) {
			return all, false, nil
		}
	}
	return all, true, nil
}
