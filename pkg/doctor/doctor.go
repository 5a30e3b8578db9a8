// Package doctor finds what else on the host keeps guests offline, or is about to:
// other firewalls, network managers, kernel settings. Examine is pure; Reader reads
// what it judges, and Keeper does so again when something changes, and adds and
// removes the accept rules that the configuration's coexist asks for.
package doctor

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/problem"
)

// Impact is how bad a finding is.
type Impact string

// The impacts. Those but notes are warnings in the agent's status.
const (
	Offline Impact = "offline" // guests do not reach the network
	Partial Impact = "partial" // they are not reached from outside
	Risk    Impact = "risk"    // they will not, when something happens
	Note    Impact = "note"    // nothing of slash32's suffers
)

// Finding is one thing that was found.
type Finding struct {
	problem.Problem
	Impact Impact `json:"impact"`
}

// Guest is one NIC of a running VM.
type Guest struct {
	VM, Bridge, Tap string
	IPv4, IPv6      netip.Addr // the first of each; may lack
}

// Facts are what Examine judges.
type Facts struct {
	kernel.Surroundings
	Guests   []Guest
	Uplinks  []string // that networks name
	Auto     bool     // and whether any has that of the default route
	Forward  string   // the configuration's forwarding
	Coexist  config.Coexist
	Networkd Networkd
	Manager  []string // our links that NetworkManager manages
}

// Networkd is what systemd-networkd does.
type Networkd struct {
	Runs          bool
	ForeignRoutes bool     // ManageForeignRoutes: it removes routes that it did not make
	ForeignRules  bool     // ManageForeignRoutingPolicyRules
	Managed       []string // our links that it manages
}

// Examine judges the facts. The worst comes first, then by code.
func Examine(f Facts) []Finding {
	found := f.firewalls()
	for _, more := range []func() []Finding{f.legacy, f.bridged, f.networkd, f.manager, f.reversePath, f.advertised, f.defaults, f.forwarding} {
		found = append(found, more()...)
	}
	order := []Impact{Offline, Partial, Risk, Note}
	slices.SortStableFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Impact), slices.Index(order, b.Impact)), cmp.Compare(a.Code, b.Code))
	})
	return found
}

// IsOffline tells whether any finding keeps guests offline.
func IsOffline(found []Finding) bool {
	return slices.ContainsFunc(found, func(f Finding) bool { return f.Impact == Offline })
}

// guests are those whose packets are followed; without any, one that might be.
func (f Facts) guests() []Guest {
	const most = 16 // they differ in addresses only
	if len(f.Guests) == 0 {
		return []Guest{{Bridge: "s32-guest"}}
	}
	return f.Guests[:min(len(f.Guests), most)]
}

// uplinks of one family by name: those named and, for auto, that of the best default
// route.
func (f Facts) uplinks(six bool) []string {
	names := slices.Clone(f.Uplinks)
	if best := f.best(six); f.Auto && best != "" && !slices.Contains(names, best) {
		names = append(names, best)
	}
	return names
}

func (f Facts) best(six bool) string {
	for _, d := range f.Defaults {
		if d.IPv6 == six {
			return d.Link
		}
	}
	return ""
}

// ours tells whether a bridge has the beginning that all are proposed to have.
func ours(bridge string) bool {
	const prefix = "s32-"
	return len(bridge) > len(prefix) && bridge[:len(prefix)] == prefix
}
