package responder

import (
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/wire"
)

// arpTemplates has the reply for the gateway, complete but for the target's
// protocol address.
type arpTemplates struct{ reply []byte }

const (
	offARPSender = wire.EtherLen + 14
	offARPTarget = wire.EtherLen + 24
)

func compileARP(n NIC) arpTemplates {
	b := wire.AppendEther(nil, wire.Ether{Dst: n.GuestMAC, Src: n.GatewayMAC, Type: wire.EtherTypeARP})
	return arpTemplates{reply: wire.AppendARP(b, wire.ARP{
		Op:        wire.ARPReply,
		SenderMAC: n.GatewayMAC,
		Sender:    n.V4.Gateway,
		TargetMAC: n.GuestMAC,
		Target:    netip.IPv4Unspecified(),
	})}
}

// respondARP answers for the gateway, and to a guest with a classic lease for
// all that it believes on its link. Silence on the guest's own addresses is what
// lets its duplicate detection succeed (RFC 5227 §2.1.1); a probe for the
// gateway's address is answered, which is the defence of ours.
func (l *Link) respondARP(g *Guest, b, out []byte) ([]byte, Verdict) {
	p, ok := wire.ParseARP(b)
	switch {
	case !ok:
		return nil, ARPMalformed
	case p.Op != wire.ARPRequest:
		return nil, ARPNotRequest
	case p.SenderMAC != l.guest:
		return nil, ARPForeign
	case p.Sender == p.Target:
		return nil, ARPAnnouncement
	case p.Target == l.gw4:
		return l.arpReply(p, out), ARPReply
	case slices.Contains(l.own4, p.Target) || p.Target == g.V4.Addr:
		return nil, ARPOwn
	case l.proxies(g, p) && arpable(p.Target):
		return l.arpReply(p, out), ARPProxy
	}
	return nil, ARPOther
}

// proxies tells whether the guest is to be answered for what it believes on its
// link. A guest that is configured already when the responder starts is taken for
// one with a classic lease until it asks: one with a /32 does not ask for others.
func (l *Link) proxies(g *Guest, p wire.ARP) bool {
	return g.Profile == ProfileClassic || g.Profile == ProfileUnknown && l.forced != ProfileRouted && slices.Contains(l.own4, p.Sender)
}

func (l *Link) arpReply(p wire.ARP, out []byte) []byte {
	out = append(out[:0], l.arp.reply...)
	target, sender := p.Target.As4(), p.Sender.As4()
	copy(out[offARPSender:], target[:])
	copy(out[offARPTarget:], sender[:])
	return out
}

// arpable tells whether a is an address that can be behind the gateway. Those
// of RFC 3927 are never routed: a guest that gives itself one must find it free.
func arpable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != broadcast4
}
