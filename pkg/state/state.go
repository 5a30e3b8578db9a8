package state

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
)

// New makes an empty State to fill.
func New() State {
	return State{
		Links:   map[string]Link{},
		Sysctls: map[string]string{},
		Addrs:   map[Addr]struct{}{},
		Neighs:  map[NeighKey]mac.Addr{},
		Taps:    map[string]string{},
		Proxies: map[NeighKey]struct{}{},

		Hairpins: map[string]struct{}{},
		Routes:   map[Route]struct{}{},
		Rules:    map[Rule]struct{}{},
		Elems:    map[Elem]struct{}{},
	}
}

// Clone returns a copy that shares nothing with s.
func (s State) Clone() State {
	c := New()
	maps.Copy(c.Links, s.Links)
	maps.Copy(c.Sysctls, s.Sysctls)
	maps.Copy(c.Addrs, s.Addrs)
	maps.Copy(c.Neighs, s.Neighs)
	maps.Copy(c.Taps, s.Taps)
	maps.Copy(c.Hairpins, s.Hairpins)
	maps.Copy(c.Proxies, s.Proxies)
	maps.Copy(c.Routes, s.Routes)
	maps.Copy(c.Rules, s.Rules)
	maps.Copy(c.Elems, s.Elems)
	c.Skeleton = s.Skeleton
	return c
}

// Alias is the alias of the bridge: whose it is.
func (l Link) Alias() string {
	return marks.LinkAliasPrefix + l.UUID + ":" + l.Guest.String()
}

// ParseAlias reads what Alias wrote. ok is false for an alias that is not
// ours.
func ParseAlias(s string) (uuid string, guest mac.Addr, ok bool) {
	s, ok = strings.CutPrefix(s, marks.LinkAliasPrefix)
	if !ok {
		return "", mac.Addr{}, false
	}
	uuid, addr, ok := strings.Cut(s, ":")
	if !ok {
		return "", mac.Addr{}, false
	}
	guest, err := mac.Parse(addr)
	return uuid, guest, err == nil
}

// SysctlLink is the link whose setting a path below /proc/sys is, "" when it
// is the whole host's.
func SysctlLink(path string) string {
	for _, p := range []string{"net/ipv4/conf/", "net/ipv6/conf/", "net/ipv4/neigh/", "net/ipv6/neigh/"} {
		if rest, ok := strings.CutPrefix(path, p); ok {
			link, _, _ := strings.Cut(rest, "/")
			if link == "all" || link == "default" {
				return ""
			}
			return link
		}
	}
	return ""
}

// HostSysctls lists, sorted, the paths of the settings that are not of one of
// the state's own links: those that a read must be told to read.
func (s State) HostSysctls() []string {
	var paths []string
	for p := range s.Sysctls {
		if _, own := s.Links[SysctlLink(p)]; !own {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}

// TapNames lists, sorted, the taps that the state has.
func (s State) TapNames() []string { return slices.Sorted(maps.Keys(s.Taps)) }

// Only returns what belongs to the named links: no rules, no skeleton, no
// setting of the whole host. So the difference to an empty state removes these
// links and touches nothing that others use.
func Only(s State, links ...string) State {
	out := New()
	for _, l := range links {
		copyLink(&out, s, l)
	}
	return out
}

// Keep copies every object of have that belongs to link into want, in place of
// what want says of it: the state of a VM that cannot be planned now stays. The
// rules that its mark needs with the routes of its table that lead to no VM, the
// skeleton, and what covers the rest of a pool of which it has a part stay as well.
func Keep(want *State, have State, link string) {
	if want.Links == nil {
		*want = want.Clone()
	}
	dropLink(want, link)
	copyLink(want, have, link)
	keepCovers(want, have, link)
	if _, untracked := have.Elems[Elem{Set: SetNoTrack, Link: link}]; untracked {
		for e := range have.Elems {
			if e.Set == SetNoTrackUplink {
				want.Elems[e] = struct{}{}
			}
		}
	}
	if want.Skeleton == "" {
		want.Skeleton = have.Skeleton
	}
	for e := range want.Elems {
		if e.Set != SetMark || e.Link != link {
			continue
		}
		for marked := range have.Rules {
			if marked.Mark != e.Mark {
				continue
			}
			for r := range have.Rules {
				if r.Table == marked.Table || r.Mark == e.Mark || r.HostRoutesOnly {
					want.Rules[r] = struct{}{}
				}
			}
			if !marked.Unreachable {
				keepTable(want, have, marked.Table)
			}
		}
	}
}

// keepTable copies the routes of a table that lead to none of our bridges. Where
// something else is wanted in such a place, that is right.
func keepTable(want *State, have State, table uint32) {
	taken := map[routeKey]bool{}
	for r := range want.Routes {
		taken[r.key()] = true
	}
	for r := range have.Routes {
		if _, guest := have.Links[r.Link]; r.Table == table && !guest && !taken[r.key()] {
			want.Routes[r] = struct{}{}
		}
	}
}

// keepCovers copies the routes that refuse what is not in use of a prefix that
// the link has a part of. They name no link. Where something else is wanted in
// such a place, that is right.
func keepCovers(want *State, have State, link string) {
	var parts []Route
	for r := range have.Routes {
		if r.Link == link {
			parts = append(parts, r)
		}
	}
	taken := map[routeKey]bool{}
	for r := range want.Routes {
		taken[r.key()] = true
	}
	for c := range have.Routes {
		if c.Kind != "unreachable" || taken[c.key()] {
			continue
		}
		for _, r := range parts {
			if r.Table == c.Table && r.Dst.Bits() > c.Dst.Bits() && c.Dst.Contains(r.Dst.Addr()) {
				want.Routes[c] = struct{}{}
				break
			}
		}
	}
}

// copyLink copies what is the link's. Elements that translate and proxies carry the
// uplink's name or none, so they are known by the guest's address.
func copyLink(out *State, s State, link string) {
	if l, ok := s.Links[link]; ok {
		out.Links[link] = l
	}
	for p, v := range s.Sysctls {
		if SysctlLink(p) == link {
			out.Sysctls[p] = v
		}
	}
	for a := range s.Addrs {
		if a.Link == link {
			out.Addrs[a] = struct{}{}
		}
	}
	for k, m := range s.Neighs {
		if k.Link == link {
			out.Neighs[k] = m
		}
	}
	for name, bridge := range s.Taps {
		if bridge == link {
			out.Taps[name] = bridge
			if _, ok := s.Hairpins[name]; ok {
				out.Hairpins[name] = struct{}{}
			}
		}
	}
	for r := range s.Routes {
		if r.Link == link {
			out.Routes[r] = struct{}{}
		}
	}
	own := s.addresses(link)
	for k := range s.Proxies {
		if own[host(k.IP)] {
			out.Proxies[k] = struct{}{}
		}
	}
	for e := range s.Elems {
		if elemOf(e, link, own) {
			out.Elems[e] = struct{}{}
		}
	}
}

func dropLink(s *State, link string) {
	own := s.addresses(link)
	maps.DeleteFunc(s.Elems, func(e Elem, _ struct{}) bool { return elemOf(e, link, own) })
	maps.DeleteFunc(s.Proxies, func(k NeighKey, _ struct{}) bool { return own[host(k.IP)] })
	delete(s.Links, link)
	maps.DeleteFunc(s.Sysctls, func(p, _ string) bool { return SysctlLink(p) == link })
	maps.DeleteFunc(s.Addrs, func(a Addr, _ struct{}) bool { return a.Link == link })
	maps.DeleteFunc(s.Neighs, func(k NeighKey, _ mac.Addr) bool { return k.Link == link })
	maps.DeleteFunc(s.Hairpins, func(n string, _ struct{}) bool { return s.Taps[n] == link })
	maps.DeleteFunc(s.Taps, func(_, bridge string) bool { return bridge == link })
	maps.DeleteFunc(s.Routes, func(r Route, _ struct{}) bool { return r.Link == link })
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// addresses are the guest's addresses and prefixes behind a link.
func (s State) addresses(link string) map[netip.Prefix]bool {
	own := map[netip.Prefix]bool{}
	for e := range s.Elems {
		if e.Link == link && (e.Set == SetGuard4 || e.Set == SetGuard6) {
			own[e.Addr] = true
		}
	}
	for r := range s.Routes {
		if r.Link == link {
			own[r.Dst] = true
		}
	}
	return own
}

func elemOf(e Elem, link string, own map[netip.Prefix]bool) bool {
	switch e.Set {
	case SetMasq4, SetMasq6, SetSNAT4, SetSNAT6:
		return own[e.Addr]
	case SetInside4, SetInside6:
		return own[e.Addr] || own[e.Peer]
	case SetForward4, SetForward6, SetPublic4, SetPublic6:
		return own[host(e.To.Addr())]
	case SetNoTrackUplink:
		return false
	}
	return e.Link == link
}

// Last is the last address of a prefix, whose bits beyond its length are zero.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Split returns the parts of an IPv6 prefix that SetGuard6, SetMasq6 and SetSNAT6 have
// elements for: itself when its length is one of PrefixLengths, else those of the
// next longer one, at most 8. For a prefix longer than /64 or shorter than /45
// there are none.
func Split(p netip.Prefix) []netip.Prefix {
	for _, bits := range slices.Backward(PrefixLengths[:]) {
		more := int(bits) - p.Bits()
		if more < 0 {
			continue
		}
		if more > maxSplitBits {
			break
		}
		first := p.Masked().Addr().As16()
		from := binary.BigEndian.Uint64(first[:8])
		parts := make([]netip.Prefix, 0, 1<<more)
		for i := range uint64(1) << more {
			binary.BigEndian.PutUint64(first[:8], from|i<<(64-bits))
			parts = append(parts, netip.PrefixFrom(netip.AddrFrom16(first), int(bits)))
		}
		return parts
	}
	return nil
}

// maxSplitBits: PrefixLengths are 4 apart, so a prefix is at most 3 bits shorter.
const maxSplitBits = 3

// sorted returns the keys of m in the order of cmp.
func sorted[K comparable, V any](m map[K]V, cmp func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), cmp)
}

// without returns the keys of m for which there is no equal entry in other, in
// the order of cmp. Little differs mostly, so little is sorted.
func without[K comparable, V comparable](m, other map[K]V, cmp func(a, b K) int) []K {
	var keys []K
	if more := len(m) - len(other); more > 0 {
		keys = make([]K, 0, more)
	}
	for k, v := range m {
		if o, ok := other[k]; !ok || o != v {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, cmp)
	return keys
}

// apart returns what only have has and what only want has. How many have in common
// follows from the second: mostly all, and then have is not looked through.
func apart[K comparable, V comparable](have, want map[K]V, cmp func(a, b K) int) (gone, lacking []K) {
	lacking = without(want, have, cmp)
	if len(have) == len(want)-len(lacking) {
		return nil, lacking
	}
	return without(have, want, cmp), lacking
}
