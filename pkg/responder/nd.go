package responder

import (
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// ndTemplates has the frames of Neighbour Discovery. The unicast ones are
// complete but for the destination address and the checksum.
type ndTemplates struct {
	advert []byte // solicited neighbour advertisement for the gateway
	proxy  []byte // the same for another address, which is to be filled in
	defend []byte // to all nodes: somebody wants the gateway's address
	ra     []byte // router advertisement to all nodes

	endings []ending // what counts down in it
}

var allNodes = netip.IPv6LinkLocalAllNodes()

func compileND(n NIC, p *prefixes6, search []byte, limit int) ndTemplates {
	na := func(dstMAC mac.Addr, dst netip.Addr, flags uint8) []byte {
		return ndFrame(n, dstMAC, dst, wire.AppendNA(nil, flags, n.V6.Gateway, n.GatewayMAC))
	}
	toAll := wire.MulticastMAC(allNodes)
	ra, endings := compileRA(n, p, search, offICMP6, limit-offICMP6)
	return ndTemplates{
		advert: na(n.GuestMAC, netip.IPv6Unspecified(), wire.NARouter|wire.NASolicited|wire.NAOverride),
		// Who answers for another does not override that one's own answer, nor is
		// that one a router (RFC 4861 §7.2.8).
		proxy:   na(n.GuestMAC, netip.IPv6Unspecified(), wire.NASolicited),
		defend:  na(toAll, allNodes, wire.NARouter|wire.NAOverride),
		ra:      ndFrame(n, toAll, allNodes, ra),
		endings: endings,
	}
}

// ndFrame wraps an ICMPv6 message from the gateway.
func ndFrame(n NIC, dstMAC mac.Addr, dst netip.Addr, message []byte) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: dstMAC, Src: n.GatewayMAC, Type: wire.EtherTypeIPv6})
	b = wire.AppendIPv6(b, wire.IPv6{
		Src:      n.V6.Gateway,
		Dst:      dst,
		Proto:    wire.ProtoICMPv6,
		HopLimit: wire.NDHopLimit,
	}, len(message))
	b = append(b, message...)
	wire.SetICMP6Checksum(b[offIPv6Src:offICMP6], b[offICMP6:])
	return b
}

// toGuest points a copy of a template at the guest's address dst.
func (l *Link) toGuest(out []byte, dst netip.Addr) []byte {
	copy(out, l.guest[:])
	x := dst.As16()
	copy(out[offIPv6Dst:], x[:])
	wire.SetICMP6Checksum(out[offIPv6Src:offICMP6], out[offICMP6:])
	return out
}

// respondND sorts an ICMPv6 message. The checksum is not verified: an emulated
// NIC may leave it to the host.
func (l *Link) respondND(g *Guest, now time.Time, ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	if len(b) < 4 {
		return nil, Truncated
	}
	switch typ := b[0]; {
	case typ < wire.ICMP6RouterSolicit || typ > wire.ICMP6Redirect:
		return nil, NotOurs
	case ip.HopLimit != wire.NDHopLimit:
		return nil, NDHopLimit
	case typ == wire.ICMP6RouterSolicit:
		return l.respondRS(now, ip, b, out)
	case typ == wire.ICMP6NeighbourSolicit:
		return l.respondNS(g, ip, b, out)
	case typ == wire.ICMP6RouterAdvert:
		return nil, NDRogueRA
	}
	return nil, NDNotSolicit
}

// respondNS answers for the gateway (RFC 4861 §7.2.4), with or without a
// source link-layer address, and defends the gateway's address (RFC 4862
// §5.4.3). It is silent on the guest's own addresses, which are the guest's to
// defend, and on those that are nobody's here. In a prefix that is on the link by
// the binding it answers for all that is not the guest's.
func (l *Link) respondNS(g *Guest, ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseNS(b)
	if !ok || ip.Src.IsMulticast() || !ip.Dst.IsMulticast() && ip.Dst != m.Target {
		return nil, NDMalformed
	}
	dad := ip.Src.IsUnspecified()
	if dad && (!m.Source.IsZero() || ip.Dst != wire.SolicitedNode(m.Target)) {
		return nil, NDMalformed // RFC 4861 §7.1.1
	}
	switch {
	case m.Target == l.gw6 && dad:
		return append(out[:0], l.nd.defend...), NDDefend
	case m.Target == l.gw6:
		return l.toGuest(append(out[:0], l.nd.advert...), ip.Src), NDAdvert
	case slices.Contains(l.own6, m.Target), g.leased6(m.Target), dad && m.Target.IsLinkLocalUnicast(), m.Target == ip.Src:
		return nil, NDOwn
	}
	switch x, ok := l.prefixes.advertises(m.Target); {
	case ok && x.onlink && !dad:
		out = append(out[:0], l.nd.proxy...)
		target := m.Target.As16()
		copy(out[offTarget:], target[:])
		return l.toGuest(out, ip.Src), NDProxy
	case ok:
		return nil, NDOwn
	}
	return nil, NDOther
}
