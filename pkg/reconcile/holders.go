package reconcile

import (
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
)

// holders finds who may be in conflict with a VM without comparing each with
// each.
type holders struct {
	byAddr   map[netip.Addr]intent.VM
	byBridge map[string]intent.VM
	lengths  []int                      // of the prefixes that VMs have
	nets     map[netip.Prefix]intent.VM // by prefix
	within   map[netip.Prefix]intent.VM // one that has something in a prefix of these lengths
	byPort   map[uint16][]intent.VM     // by the host's ports that are forwarded
}

// newHolders is for VMs whose prefixes have the given lengths.
func newHolders(lengths []int) holders {
	return holders{
		byAddr: map[netip.Addr]intent.VM{}, byBridge: map[string]intent.VM{}, lengths: lengths,
		nets: map[netip.Prefix]intent.VM{}, within: map[netip.Prefix]intent.VM{},
		byPort: map[uint16][]intent.VM{},
	}
}

// around are the prefixes that hold an IPv6 address and that a VM could have, no
// longer than bits.
func (h holders) around(a netip.Addr, bits int, f func(netip.Prefix)) {
	for _, l := range h.lengths {
		if p, err := a.Prefix(l); err == nil && a.Is6() && l <= bits {
			f(p)
		}
	}
}

func (h holders) add(v intent.VM) {
	c := spool.ClaimsOf(v)
	for _, b := range c.Bridges {
		h.byBridge[b] = v
	}
	for _, port := range v.Ports() {
		h.byPort[port] = append(h.byPort[port], v)
	}
	note := func(p netip.Prefix) {
		if _, ok := h.within[p]; !ok {
			h.within[p] = v
		}
	}
	for _, a := range c.Addrs {
		h.byAddr[a] = v
		h.around(a, a.BitLen(), note)
	}
	for _, p := range c.Prefixes {
		h.nets[p] = v
		h.around(p.Addr(), p.Bits(), note)
	}
}

func (h holders) conflicts(v intent.VM) problem.List {
	var others []intent.VM
	add := func(o intent.VM, ok bool) {
		if !ok || o.UUID == v.UUID {
			return
		}
		for _, have := range others {
			if have.UUID == o.UUID {
				return
			}
		}
		others = append(others, o)
	}
	around := func(p netip.Prefix) {
		o, ok := h.nets[p]
		add(o, ok)
	}
	c := spool.ClaimsOf(v)
	for _, b := range c.Bridges {
		o, ok := h.byBridge[b]
		add(o, ok)
	}
	for _, a := range c.Addrs {
		o, ok := h.byAddr[a]
		add(o, ok)
		h.around(a, a.BitLen(), around)
	}
	for _, p := range c.Prefixes {
		h.around(p.Addr(), p.Bits(), around)
		o, ok := h.within[p]
		add(o, ok)
	}
	for _, port := range v.Ports() {
		for _, o := range h.byPort[port] {
			add(o, true)
		}
	}
	return intent.Conflicts(v, others)
}

// lengths are those of all prefixes that the VMs have or had when they were last
// programmed.
func (p *pass) lengths() []int {
	var ls []int
	note := func(v intent.VM) {
		for _, n := range v.NICs {
			for _, net := range n.Nets() {
				if !slices.Contains(ls, net.Bits()) {
					ls = append(ls, net.Bits())
				}
			}
			for _, x := range n.Prefixes {
				if x.Auto != 0 {
					ls = append(ls, int(x.Auto)) // not taken from the pool yet
				}
			}
		}
	}
	for id, v := range p.vms {
		for _, ds := range v.delegated {
			for _, d := range ds {
				ls = append(ls, d.Prefix.Bits())
			}
		}
		note(v.intent)
		note(p.good[id])
	}
	slices.Sort(ls)
	return slices.Compact(ls)
}
