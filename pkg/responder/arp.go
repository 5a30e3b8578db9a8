package responder

import (
	"net/netip"
	"slices"

	"github.com/slash32/slash32/pkg/wire"
)

// arpTemplates has the reply for the gateway, complete but for the target's
// protocol address.
type arpTemplates struct{ reply []byte }

const offARPTarget = wire.EtherLen + 24

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

// respondARP answers for the gateway and for nothing else. Silence on the
// guest's own addresses is what lets its duplicate detection succeed (RFC 5227
// §2.1.1); a probe for the gateway's address is answered, which is the defence
// of ours.
func (l *Link) respondARP(b, out []byte) ([]byte, Verdict) {
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
		out = append(out[:0], l.arp.reply...)
		sender := p.Sender.As4()
		copy(out[offARPTarget:], sender[:])
		return out, ARPReply
	case slices.Contains(l.own4, p.Target):
		return nil, ARPOwn
	}
	return nil, ARPOther
}
