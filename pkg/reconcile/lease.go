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
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/relay"
	"github.com/slash32/slash32/pkg/responder"
)

// leased is an address that another server leased to a guest and that has not
// expired.
type leased struct {
	addr    netip.Addr
	server  netip.Addr // DHCPv4: its server identifier
	expires time.Time
}

func (l leased) control() control.Lease {
	c := control.Lease{Addr: l.addr.String(), Expires: l.expires}
	if l.server.IsValid() {
		c.Server = l.server.String()
	}
	return c
}

// lease reads what other servers have leased to a relayed VM, and what was
// delegated. A responder's file
// is input like any other: what is no address for a VM is named and left out.
func (p *pass) lease(v *vm) {
	v.leases, v.delegated = map[mac.Addr][]leased{}, map[mac.Addr][]delegated{}
	if !v.planned || !slices.ContainsFunc(v.intent.NICs, func(n intent.NIC) bool { return len(n.Relay.Servers) > 0 || n.Delegates() }) {
		return
	}
	kept, err := p.Spool.Lease(v.intent.UUID)
	if err != nil {
		v.problems = append(v.problems, problem.Problem{
			Code: problem.WLease, VM: v.intent.Name, What: err.Error(), Fix: "the guest's lease is known again when it renews it; to have that at once, restart its DHCP client",
		})
	}
	for _, n := range v.intent.NICs {
		for _, k := range kept.NICs {
			if k.MAC != n.MAC {
				continue
			}
			if n.Delegates() {
				p.delegations(v, n, k)
			}
			if n.Relays4() && k.V4.Addr.Is4() {
				server := k.V4.Server
				if server == n.Network.Gateway4 { // it goes by the name that we gave it
					server = k.V4.From
				}
				p.unexpired(v, n, leased{k.V4.Addr, server, time.Unix(k.V4.Expires, 0)})
			}
			for _, a := range k.V6[:min(len(k.V6), lease.MaxAddrs6)] {
				if n.Relays6() && a.Addr.Is6() {
					p.unexpired(v, n, leased{addr: a.Addr, expires: time.Unix(a.Expires, 0)})
				}
			}
		}
	}
}

// unexpired takes a lease that is a VM's to have.
func (p *pass) unexpired(v *vm, n intent.NIC, l leased) {
	if !l.expires.After(p.Now()) {
		return
	}
	what := annotation.Unfit(l.addr)
	for _, net := range p.config.Networks {
		if l.addr == net.Gateway4 || l.addr == net.Gateway6 {
			what = "is the gateway of network " + net.Name
		}
	}
	if slices.Contains(n.Relay.Servers, l.addr) || l.addr == n.Relay.Source4 {
		what = "is a DHCP server's or this relay's own"
	}
	if what != "" {
		v.problems = append(v.problems, problem.Problem{
			Code: problem.WLease, VM: v.intent.Name, What: fmt.Sprintf("the leased address %s %s", l.addr, what), Fix: "look into the pool of the DHCP server that the VM is relayed to",
		})
		return
	}
	v.leases[n.MAC] = append(v.leases[n.MAC], l)
	p.ends(l.expires)
}

// bare is an intent without what is leased and delegated, which is looked up in
// each pass.
func bare(v intent.VM) intent.VM {
	v.NICs = slices.Clone(v.NICs)
	for i := range v.NICs {
		v.NICs[i].Leased, v.NICs[i].Delegated = nil, nil
	}
	return v
}

// holdLeases gives a VM the leased addresses that it had already in the last pass,
// this agent's or its predecessor's: whatever another VM claims since, it keeps
// them.
func (p *pass) holdLeases(v *vm, held holders) {
	p.holdPrefixes(v, held)
	for _, n := range v.intent.NICs {
		for _, l := range v.leases[n.MAC] {
			if slices.Contains(v.decl.Addrs, l.addr) {
				held.byAddr[l.addr] = intent.VM{UUID: v.intent.UUID, Name: v.intent.Name, NICs: []intent.NIC{
					{MAC: n.MAC, Bridge: n.Bridge, Leased: []netip.Addr{l.addr}},
				}}
			}
		}
	}
}

// settleLeases gives a VM what is leased to it and no other VM has: a server may
// be wrong, and a guest may have lied to it.
func (p *pass) settleLeases(v *vm, held holders) {
	v.intent = bare(v.intent)
	for i := range v.intent.NICs {
		n := &v.intent.NICs[i]
		v.leases[n.MAC] = slices.DeleteFunc(v.leases[n.MAC], func(l leased) bool {
			other, taken := held.byAddr[l.addr]
			switch {
			case slices.Contains(n.Addrs(), l.addr): // given in the annotation as well
				return false
			case taken && other.UUID != v.intent.UUID, slices.ContainsFunc(v.intent.NICs, func(n intent.NIC) bool { return slices.Contains(n.Addrs(), l.addr) }):
				if !taken {
					other = v.intent
				}
				v.problems = append(v.problems, problem.Problem{
					Code: problem.EAddressInUse, VM: v.intent.Name,
					What: fmt.Sprintf("address %s was leased to the NIC %s and belongs to running VM %s", l.addr, n.MAC, other.Name),
					Fix:  "look into the pool of the DHCP server that the VM is relayed to, and for guests that send it the same client identifier",
				})
				return true
			}
			n.Leased = append(n.Leased, l.addr)
			return false
		})
	}
	p.settlePrefixes(v, held)
	held.add(v.intent)
}

// relayed lists the planned VMs whose responders have something to say: messages of
// a relayed NIC to be carried, or the news that a prefix was delegated.
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
			some = some || slices.ContainsFunc(n.Prefixes, func(x intent.Prefix) bool { return x.Mode == responder.ModeDelegate })
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

// sweepLeases removes the lease files of domains that are no more, and looks up
// for the pools which are.
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
	pools, err := l.Spool.Pools()
	if err != nil {
		l.Log.Warn(err)
	}
	if len(ids) == 0 && len(pools) == 0 && l.Traffic == nil {
		return
	}
	defined, err := l.Virt.Defined(ctx)
	if err != nil {
		l.Log.Debugf("lease files are not looked through: %v", err)
		return
	}
	l.defined = defined
	for id := range l.listed.domains {
		l.defined = append(l.defined, id)
	}
	if l.Traffic != nil {
		l.Traffic.Forget(l.defined)
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
