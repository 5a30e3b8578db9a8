package responder

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// retired is how long a prefix is deprecated that has left the binding: hosts
	// do not believe less (RFC 4862 §5.5.3 e).
	retired = 2 * time.Hour

	// maxRetired is how many prefixes of a NIC are deprecated at once.
	maxRetired = 8
)

// Retire returns the binding that is to follow old, as new has it and with the
// prefixes that were advertised and are not any more: those stay for two hours as
// Deprecated, so that guests stop using their addresses in them (RFC 9096 §3.5).
// What old has deprecated stays until its time. Where there are more than eight,
// those that end first are dropped. NICs are the same when their guest's MAC is.
// Neither argument is changed.
func Retire(old, new Binding, now time.Time) Binding {
	new.NICs = slices.Clone(new.NICs)
	for i := range new.NICs {
		n := &new.NICs[i]
		at := slices.IndexFunc(old.NICs, func(o NIC) bool { return o.GuestMAC == n.GuestMAC })
		if at < 0 {
			continue
		}
		if gone := vanished(old.NICs[at].V6, n.V6, now.Unix()); len(gone) > 0 {
			n.V6.Prefixes = append(slices.Clone(n.V6.Prefixes), gone...)
		}
	}
	return new
}

// vanished is what was advertised and is in new no more, in order of its end.
func vanished(old, new V6, now int64) []Prefix {
	has := advertisedNets(new)
	var gone []Prefix
	for _, p := range old.Prefixes {
		net, ok := p.advertised()
		if !ok || slices.Contains(has, net) {
			continue
		}
		until := now + int64(retired/time.Second)
		if p.Until != 0 {
			until = min(until, p.Until)
		}
		if until <= now {
			continue
		}
		has = append(has, net)
		gone = append(gone, Prefix{Net: net, Mode: ModeSLAAC, OnLink: p.OnLink, Deprecated: true, Until: until})
	}
	slices.SortStableFunc(gone, func(a, b Prefix) int { return int(min(max(a.Until-b.Until, -1), 1)) })
	return gone[max(0, len(gone)-maxRetired):]
}

// advertised is the prefix that is in router advertisements, if any.
func (p Prefix) advertised() (netip.Prefix, bool) {
	switch {
	case p.Mode == ModeSLAAC:
		return p.Net, true
	case p.Mode == ModeDelegate && p.Exclude.IsValid() && p.Exclude.Bits() == slaacBits:
		return p.Exclude, true
	}
	return netip.Prefix{}, false
}

func advertisedNets(v V6) (nets []netip.Prefix) {
	for _, p := range v.Prefixes {
		if net, ok := p.advertised(); ok {
			nets = append(nets, net)
		}
	}
	return nets
}
