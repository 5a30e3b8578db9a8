package reconcile

import (
	"net/netip"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
)

// holders finds who may be in conflict with a VM without comparing each with
// each.
type holders struct {
	byAddr   map[netip.Addr]intent.VM
	byBridge map[string]intent.VM
}

func newHolders() holders {
	return holders{byAddr: map[netip.Addr]intent.VM{}, byBridge: map[string]intent.VM{}}
}

func (h holders) add(v intent.VM) {
	bridges, addrs := claims(v)
	for _, b := range bridges {
		h.byBridge[b] = v
	}
	for _, a := range addrs {
		h.byAddr[a] = v
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
	bridges, addrs := claims(v)
	for _, b := range bridges {
		o, ok := h.byBridge[b]
		add(o, ok)
	}
	for _, a := range addrs {
		o, ok := h.byAddr[a]
		add(o, ok)
	}
	return intent.Conflicts(v, others)
}
