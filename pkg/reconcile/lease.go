package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/relay"
)

// lease adds to a relayed VM's intent what other servers have leased to it and
// has not expired. A responder's file is input like any other: what is no address
// for a VM is named and left out.
func (p *pass) lease(v *vm) {
	v.leases = map[mac.Addr][]control.Lease{}
	relayed := false
	for _, n := range v.intent.NICs {
		relayed = relayed || len(n.Relay.Servers) > 0
	}
	if !v.planned || !relayed {
		return
	}
	kept, err := p.Spool.Lease(v.intent.UUID)
	if err != nil {
		v.problems = append(v.problems, problem.Problem{
			Code: problem.WLease, VM: v.intent.Name, What: err.Error(), Fix: "the guest's lease is known again when it renews it; to have that at once, restart its DHCP client",
		})
	}
	now := p.Now()
	v.intent.NICs = slices.Clone(v.intent.NICs) // p.good may share them
	for i := range v.intent.NICs {
		n := &v.intent.NICs[i]
		n.Leased = nil
		for _, k := range kept.NICs {
			if k.MAC != n.MAC {
				continue
			}
			if n.Relays4() && k.V4.Addr.Is4() {
				p.leased(v, &n.Leased, n.MAC, k.V4.Addr, k.V4.Server, k.V4.Expires, now)
			}
			for _, a := range k.V6[:min(len(k.V6), lease.MaxAddrs6)] {
				if n.Relays6() && a.Addr.Is6() {
					p.leased(v, &n.Leased, n.MAC, a.Addr, netip.Addr{}, a.Expires, now)
				}
			}
		}
	}
}

func (p *pass) leased(v *vm, to *[]netip.Addr, guest mac.Addr, a, server netip.Addr, expires int64, now time.Time) {
	end := time.Unix(expires, 0)
	if !end.After(now) {
		return
	}
	what := annotation.Unfit(a)
	for _, n := range p.config.Networks {
		if a == n.Gateway4 || a == n.Gateway6 {
			what = "is the gateway of network " + n.Name
		}
	}
	if what != "" {
		v.problems = append(v.problems, problem.Problem{
			Code: problem.WLease, VM: v.intent.Name, What: fmt.Sprintf("the leased address %s %s", a, what), Fix: "look into the pool of the DHCP server that the VM is relayed to",
		})
		return
	}
	*to = append(*to, a)
	l := control.Lease{Addr: a.String(), Expires: end}
	if server.IsValid() {
		l.Server = server.String()
	}
	v.leases[guest] = append(v.leases[guest], l)
	if p.expiry.IsZero() || end.Before(p.expiry) {
		p.expiry = end
	}
}

// relayed lists the planned VMs that have a relayed NIC, for those who carry their
// messages.
func (p *pass) relayed() []relay.VM {
	var vms []relay.VM
	for _, v := range p.planned() {
		r := relay.VM{UUID: v.UUID, Dir: p.Spool.VMDir(v.UUID)}
		some := false
		for _, n := range v.NICs {
			nic := relay.NIC{MAC: n.MAC, Source4: n.Relay.Source4}
			for _, s := range n.Relay.Servers {
				if s.Is4() {
					nic.Servers4 = append(nic.Servers4, s)
				} else {
					nic.Servers6 = append(nic.Servers6, s)
				}
				some = true
			}
			r.NICs = append(r.NICs, nic)
		}
		if some {
			vms = append(vms, r)
		}
	}
	slices.SortFunc(vms, func(a, b relay.VM) int { return cmp.Compare(a.UUID.String(), b.UUID.String()) })
	return vms
}

// How long lease files are kept of domains that libvirt does not know, and how
// often that is looked at. A transient domain is unknown whenever it does not run.
const (
	orphanAge  = 7 * 24 * time.Hour
	sweepEvery = time.Hour
)

// sweepLeases removes the lease files of domains that are no more.
func (l *Loop) sweepLeases(ctx context.Context) {
	now := l.Now()
	if l.listed.err != nil || !l.swept.IsZero() && now.Sub(l.swept) < sweepEvery {
		return
	}
	l.swept = now
	ids, err := l.Spool.Leases()
	if err != nil {
		l.Log.Warn(err)
		return
	}
	ids = slices.DeleteFunc(ids, func(id uuid.UUID) bool {
		_, runs := l.listed.domains[id]
		info, err := os.Stat(l.Spool.LeaseFile(id))
		return runs || err != nil || now.Sub(info.ModTime()) < orphanAge
	})
	if len(ids) == 0 {
		return
	}
	defined, err := l.Virt.Defined(ctx)
	if err != nil {
		l.Log.Debugf("lease files are not looked through: %v", err)
		return
	}
	for _, id := range ids {
		if slices.Contains(defined, id) {
			continue
		}
		if err := l.Spool.RemoveLease(id); err != nil {
			l.Log.Warn(err)
		}
	}
}
