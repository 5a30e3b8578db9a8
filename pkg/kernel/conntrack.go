package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/state"
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGetStats            = 5 // IPCTNL_MSG_CT_GET_STATS
	ctStatsGlobalEntries  = 1 // CTA_STATS_GLOBAL_ENTRIES
	subsystemConntrack    = unix.NFNL_SUBSYS_CTNETLINK << 8
	conntrackUnknownCount = 1
)

// flush forgets the tracked connections from and to addresses and prefixes that
// go, and those that were translated by an element that went: the next owner must
// not get the rest of the last one's. One listing of the table serves all.
func (a *applier) flush(_ context.Context, changes []state.Change) {
	if a.k.connections() == 0 {
		return
	}
	match := flows{prefixes: map[int]map[netip.Prefix]bool{}, translated: map[netip.Addr][]state.Elem{}}
	families := map[netlink.InetFamily]bool{}
	for _, c := range changes {
		if c.Flow != nil {
			match.add(*c.Flow)
			families[netlink.InetFamily(family(c.Flow.Addr()))] = true
			continue
		}
		to := c.Translation.To.Addr()
		match.translated[to] = append(match.translated[to], *c.Translation)
		families[netlink.InetFamily(family(to))] = true
	}
	for f := range families {
		var err error
		for range dumpTries {
			var n uint
			n, err = a.k.conntrack.ConntrackDeleteFilters(netlink.ConntrackTable, f, match)
			a.writes += int(n)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			a.failed(fmt.Errorf("flush connections of %d addresses, prefixes and translations: %w", len(changes), err))
		}
	}
}

// connections is how many connections are tracked, of which there may be more
// than can be listed in passing.
func (k *Kernel) connections() uint32 {
	count := uint32(conntrackUnknownCount)
	m := newMessage(subsystemConntrack|ctGetStats, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	err := k.nft.get(m, func(_ uint16, b []byte) {
		nftAttrs(b, func(typ uint16, d []byte) {
			if typ == ctStatsGlobalEntries {
				count = netU32(d)
			}
		})
	})
	if err != nil {
		return 0 // no connection tracking in this kernel
	}
	return count
}

// flows matches the connections of some addresses and prefixes, in either
// direction, as they are and as they are translated, and those that elements
// translated.
type flows struct {
	prefixes   map[int]map[netip.Prefix]bool // by length, what has that length
	translated map[netip.Addr][]state.Elem   // by what they translate to
}

func (f flows) add(p netip.Prefix) {
	if f.prefixes[p.Bits()] == nil {
		f.prefixes[p.Bits()] = map[netip.Prefix]bool{}
	}
	f.prefixes[p.Bits()][p] = true
}

// MatchConntrackFlow makes flows a filter of package netlink.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			continue
		}
		for bits, prefixes := range f.prefixes {
			if p, err := a.Unmap().Prefix(bits); err == nil && prefixes[p] {
				return true
			}
		}
		for _, e := range f.translated[a.Unmap()] {
			if translatedBy(e, flow) {
				return true
			}
		}
	}
	return false
}

// translatedBy tells whether a connection was translated by an element.
func translatedBy(e state.Elem, flow *netlink.ConntrackFlow) bool {
	is := func(ip []byte, a netip.Addr) bool {
		got, ok := netip.AddrFromSlice(ip)
		return ok && got.Unmap() == a
	}
	from, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	switch e.Set {
	case state.SetForward4, state.SetForward6:
		return flow.Forward.Protocol == e.Proto && flow.Forward.DstPort == e.Port &&
			is(flow.Reverse.SrcIP, e.To.Addr()) && flow.Reverse.SrcPort == e.To.Port() &&
			(e.Addr.Addr().IsUnspecified() || is(flow.Forward.DstIP, e.Addr.Addr()))
	case state.SetPublic4, state.SetPublic6:
		return is(flow.Forward.DstIP, e.Addr.Addr()) && is(flow.Reverse.SrcIP, e.To.Addr())
	case state.SetSNAT4, state.SetSNAT6, state.SetSNATNet4, state.SetSNATNet6:
		return ok && e.Addr.Contains(from.Unmap()) && is(flow.Reverse.DstIP, e.To.Addr())
	}
	return false
}
