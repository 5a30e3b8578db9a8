package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/userhook"
)

// delegated is a prefix that a guest was given and that has not expired.
type delegated struct {
	intent.Delegation
	expires time.Time
}

func (d delegated) control() control.Delegation {
	return control.Delegation{Prefix: d.Prefix.String(), Via: d.Via.String(), Expires: d.expires}
}

// delegations reads from the lease file what the guest of a NIC was given: by its
// responder from the NIC's own pools, or by the servers that it is relayed to.
func (p *pass) delegations(v *vm, n intent.NIC, kept lease.NIC) {
	for _, k := range kept.Prefixes[:min(len(kept.Prefixes), lease.MaxPrefixes)] {
		expires := time.Unix(k.Expires, 0)
		for _, own := range n.Prefixes {
			if own.Net.IsValid() && own.Mode == "delegate" && own.Until != 0 && own.Net.Overlaps(k.Prefix) && own.Until < k.Expires {
				expires = time.Unix(own.Until, 0)
			}
		}
		if !k.Prefix.IsValid() || !expires.After(p.Now()) {
			continue
		}
		if !n.Relays6() && !n.HasPool(k.Prefix) {
			continue // of a pool that is the guest's no more
		}
		if what := unfit(k); what != "" {
			v.problems = append(v.problems, problem.Problem{
				Code: problem.WLease, VM: v.intent.Name, What: fmt.Sprintf("the delegated prefix %s %s", k.Prefix, what), Fix: "look into the pools of the DHCPv6 server that the VM is relayed to",
			})
			continue
		}
		v.delegated[n.MAC] = append(v.delegated[n.MAC], delegated{intent.Delegation{Prefix: k.Prefix, Via: k.Via}, expires})
		p.ends(expires)
	}
}

// unfit says why a prefix cannot be routed to a guest; "" when it can.
func unfit(k lease.Prefix) string {
	switch net := k.Prefix; {
	case !k.Via.Is6() || !k.Via.IsLinkLocalUnicast():
		return "was asked for from " + k.Via.String() + ", which is not a link-local address"
	case !net.Addr().Is6() || net != net.Masked():
		return "is not an IPv6 prefix"
	case annotation.Unfit(net.Addr()) != "":
		return annotation.Unfit(net.Addr())
	case net.Bits() < annotation.MinPrefix || net.Bits() > annotation.MaxPrefix:
		return fmt.Sprintf("has a length that is not from %d to %d", annotation.MinPrefix, annotation.MaxPrefix)
	}
	return ""
}

// ends notes when something runs out, for the next pass.
func (p *pass) ends(t time.Time) {
	if t.After(p.Now()) && (p.expiry.IsZero() || t.Before(p.expiry)) {
		p.expiry = t
	}
}

// holdPrefixes gives a VM the prefixes of other servers that it had already in the
// last pass.
func (p *pass) holdPrefixes(v *vm, held holders) {
	for _, n := range v.intent.NICs {
		for _, d := range v.delegated[n.MAC] {
			if !n.HasPool(d.Prefix) && slices.Contains(v.decl.Prefixes, d.Prefix) {
				held.add(only(v.intent, n.MAC, n.Bridge, d.Delegation))
			}
		}
	}
}

// only is a VM that has nothing but one delegated prefix.
func only(v intent.VM, m mac.Addr, bridge string, d intent.Delegation) intent.VM {
	return intent.VM{UUID: v.UUID, Name: v.Name, NICs: []intent.NIC{{MAC: m, Bridge: bridge, Delegated: []intent.Delegation{d}}}}
}

// settlePrefixes gives a VM what was delegated to it, unless a server delegated
// what another VM has.
func (p *pass) settlePrefixes(v *vm, held holders) {
	for i := range v.intent.NICs {
		n := &v.intent.NICs[i]
		v.delegated[n.MAC] = slices.DeleteFunc(v.delegated[n.MAC], func(d delegated) bool {
			if !n.HasPool(d.Prefix) {
				alone := only(v.intent, n.MAC, "", d.Delegation)
				ps := held.conflicts(alone)
				if len(ps) == 0 {
					ps = intent.Conflicts(alone, others(v.intent, n.MAC))
				}
				if len(ps) > 0 {
					ps[0].Fix = "look into the pools of the DHCPv6 server that the VM is relayed to"
					v.problems = append(v.problems, ps[:1].WithVM(v.intent.Name)...)
					return true
				}
			}
			n.Delegated = append(n.Delegated, d.Delegation)
			return false
		})
	}
}

// others are a VM's NICs but one, as another VM's.
func others(v intent.VM, but mac.Addr) []intent.VM {
	o := intent.VM{Name: v.Name}
	o.UUID[0] = ^v.UUID[0]
	for _, n := range v.NICs {
		if n.MAC != but {
			o.NICs = append(o.NICs, n)
		}
	}
	return []intent.VM{o}
}

// routed lists the delegated prefixes of all planned VMs.
func (p *pass) routed() []userhook.Prefix {
	var all []userhook.Prefix
	for _, v := range p.planned() {
		for _, n := range v.NICs {
			for _, d := range n.Delegated {
				all = append(all, userhook.Prefix{
					VM: v.UUID, Name: v.Name, Network: n.Network.Name, MAC: n.MAC, Bridge: n.Bridge, Prefix: d.Prefix, Via: d.Via,
				})
			}
		}
	}
	return all
}
