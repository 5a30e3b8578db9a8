package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// SpoofCount counts the packets that the guard met on one bridge. All but
// Fragments were dropped.
type SpoofCount struct {
	IPv4, IPv6, MAC uint64 // for their source
	Rogue           uint64 // as a DHCP server's
	ARP             uint64 // ARP with a sender that is not the guest
	ND              uint64 // neighbour advertisements of what is not the guest's, and ND for beyond the link
	RA              uint64 // router advertisements
	Redirect        uint64 // ICMP and ICMPv6 redirects
	Closed          uint64 // to what is not open on the host
	Apart           uint64 // to and from others, when it is isolated
	Fragments       uint64 // of its own packets; not dropped
}

// Spoofed reads the guard's counters by bridge. They start anew with a bridge's
// elements and when the table is made again.
func (k *Kernel) Spoofed(ctx context.Context) (map[string]SpoofCount, error) {
	out := map[string]SpoofCount{}
	for _, name := range state.GuardCounters {
		err := k.counters(ctx, name, func(link string, n traffic.Count) {
			c := out[link]
			*c.of(name) = n.Packets
			out[link] = c
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *SpoofCount) of(set string) *uint64 {
	return map[string]*uint64{
		state.SetSpoof4: &c.IPv4, state.SetSpoof6: &c.IPv6, state.SetSpoofMAC: &c.MAC,
		state.SetSpoofARP: &c.ARP, state.SetSpoofND: &c.ND, state.SetRogueRA: &c.RA, state.SetRedirect: &c.Redirect,
		state.SetRogue: &c.Rogue, state.SetClosed: &c.Closed, state.SetApart: &c.Apart, state.SetFragment: &c.Fragments,
	}[set]
}

func counterSet(name string) set {
	return set{family: familyOf(state.Elem{Set: name}), name: name, key: []datatype{typeIfname()}, counted: true}
}

// counters reads one set of counters by bridge. One that is gone has none.
func (k *Kernel) counters(ctx context.Context, name string, f func(link string, c traffic.Count)) error {
	s := counterSet(name)
	got := map[string]traffic.Count{}
	err := k.dumpElems(ctx, s, func() { clear(got) }, func(e state.Elem, c traffic.Count) { got[e.Link] = c })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read set %s of table %s: %w", name, marks.NftTable, err)
	}
	for link, c := range got {
		f(link, c)
	}
	return nil
}

// Traffic reads the counters of what was forwarded, by bridge. They start anew
// with a bridge's elements and when the table is made again. A bridge of which one
// is gone is left out: it may be about to be removed, and what is gone is not
// zero.
func (k *Kernel) Traffic(ctx context.Context) (map[string]traffic.Traffic, error) {
	out, found := map[string]traffic.Traffic{}, map[string]int{}
	for i, name := range state.TrafficCounters {
		err := k.counters(ctx, name, func(link string, n traffic.Count) {
			t := out[link]
			*t.Count(traffic.Counter(i)) = n
			out[link] = t
			found[link]++
		})
		if err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(out, func(link string, _ traffic.Traffic) bool { return found[link] < len(state.TrafficCounters) })
	return out, nil
}

// TrafficOf reads the counters of some bridges, in a time that the number of the
// others is nothing to. A bridge without counters is left out.
func (k *Kernel) TrafficOf(ctx context.Context, links []string) (map[string]traffic.Traffic, error) {
	out := map[string]traffic.Traffic{}
	for _, link := range links {
		for i, name := range state.TrafficCounters {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			err := k.getElem(counterSet(name), link, func(_ state.Elem, n traffic.Count) {
				t := out[link]
				*t.Count(traffic.Counter(i)) = n
				out[link] = t
			})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("read set %s of table %s: %w", name, marks.NftTable, err)
			}
		}
	}
	return out, nil
}
