package plan

import (
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/state"
)

// The protocols of which ports are forwarded (IPPROTO_TCP, IPPROTO_UDP).
const (
	protoTCP = 6
	protoUDP = 17
)

// source plans what becomes of a source of the NIC's on its uplink: an address or a
// part of a prefix.
func (b *builder) source(n intent.NIC, p netip.Prefix) {
	uplink, uplink6 := Uplinks(n.Network, b.facts)
	masq, snat := state.SetMasq4, state.SetSNAT4
	if p.Addr().Is6() {
		masq, snat, uplink = state.SetMasq6, state.SetSNAT6, uplink6
	}
	if uplink == "" {
		return
	}
	switch to, translated := translation(n, p); {
	case to.IsValid():
		b.elem(state.Elem{Set: snat, Link: uplink, Addr: p, To: netip.AddrPortFrom(to, 0)})
	case translated:
		b.elem(state.Elem{Set: masq, Link: uplink, Addr: p})
	}
}

// translation says whether a source of a NIC's is translated, and to what when it is
// not the uplink's own address.
func translation(n intent.NIC, p netip.Prefix) (to netip.Addr, translated bool) {
	a := p.Addr()
	i := slices.IndexFunc(n.Public, func(o netip.Addr) bool { return o.Is6() == a.Is6() })
	if i >= 0 && p.IsSingleIP() && n.Main(a.Is6()) == a {
		return n.Public[i], true
	}
	return given(n.NAT, n.SNAT, a)
}

// given says the same of any source to which these settings apply.
func given(nat config.NAT, snat []netip.Addr, a netip.Addr) (to netip.Addr, translated bool) {
	private := a.IsPrivate() || sharedSpace.Contains(a)
	switch nat {
	case config.NATAll:
		return to, true
	case config.NATPrivate:
		return to, private
	case config.NATSource:
		if i := slices.IndexFunc(snat, func(o netip.Addr) bool { return o.Is6() == a.Is6() }); i >= 0 {
			return snat[i], true
		}
		return to, private
	}
	return to, false
}

// tracking plans which connections of the NIC are tracked, and how many. Where
// something is translated all are: it takes the tracking.
func (b *builder) tracking(n intent.NIC) {
	if limit := n.Network.MaxConns; limit != 0 {
		b.elem(state.Elem{Set: state.SetLimitFrom, Link: n.Bridge, Limit: limit})
		b.elem(state.Elem{Set: state.SetLimitTo, Link: n.Bridge, Limit: limit})
	}
	if !n.Network.NoTrack || len(n.Forwards) > 0 || len(n.Public) > 0 {
		return
	}
	for _, a := range n.Addrs() {
		if _, translated := translation(n, netip.PrefixFrom(a, a.BitLen())); translated {
			return
		}
	}
	for _, p := range n.Nets() {
		if _, translated := translation(n, p); translated {
			return
		}
	}
	b.elem(state.Elem{Set: state.SetNoTrack, Link: n.Bridge})
	up4, up6 := Uplinks(n.Network, b.facts)
	for _, uplink := range []string{up4, up6} {
		if uplink != "" {
			b.elem(state.Elem{Set: state.SetNoTrackUplink, Link: uplink})
		}
	}
}

// sharedSpace is RFC 6598.
var sharedSpace = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

// toGuest plans the addresses that stand for the NIC's, which are routed to it so
// that routing daemons announce them, and the ports of the host's that are
// forwarded to it.
func (b *builder) toGuest(n intent.NIC, ipv6 bool) {
	for _, public := range n.Public {
		own := n.Main(public.Is6())
		if !own.IsValid() || public.Is6() && !ipv6 {
			continue
		}
		set := state.SetPublic4
		if public.Is6() {
			set = state.SetPublic6
		}
		p := netip.PrefixFrom(public, public.BitLen())
		if b.route(n.Network, state.Route{Dst: p, Link: n.Bridge}) {
			b.elem(state.Elem{Set: set, Addr: p, To: netip.AddrPortFrom(own, 0)})
			b.proxy(n, public)
		}
	}
	for _, f := range n.Forwards {
		if own := n.Main(false); own.IsValid() && f.Family != "ipv6" {
			b.forward(f, own)
		}
		if own := n.Main(true); own.IsValid() && f.Family != "ipv4" && ipv6 {
			b.forward(f, own)
		}
	}
}

func (b *builder) forward(f annotation.Forward, own netip.Addr) {
	set, at := state.SetForward4, netip.IPv4Unspecified()
	if own.Is6() {
		set, at = state.SetForward6, netip.IPv6Unspecified()
	}
	if f.Addr.IsValid() {
		at = f.Addr
	}
	protos := []uint8{protoTCP, protoUDP}
	switch f.Proto {
	case "tcp":
		protos = protos[:1]
	case "udp":
		protos = protos[1:]
	}
	for i := range int(f.Last-f.Port) + 1 {
		for _, proto := range protos {
			b.elem(state.Elem{
				Set: set, Addr: netip.PrefixFrom(at, at.BitLen()), Proto: proto, Port: f.Port + uint16(i),
				To: netip.AddrPortFrom(own, f.To+uint16(i)),
			})
		}
	}
}
