package responder

import (
	"encoding/binary"
	"time"

	"github.com/slash32/slash32/pkg/wire"
)

const (
	// raHopLimit is the hop limit that the guest is told to use (RFC 4861
	// §4.2); 64 is what IANA recommends and every system defaults to.
	raHopLimit = 64

	// raMinLifetime is the least lifetime in seconds of what an RA says apart
	// from the default router: a NIC that is no default router (lifetime 0)
	// still has routes and resolvers. RFC 4861 §6.2.1 has it as the default
	// router lifetime, three times the interval of unsolicited RAs.
	raMinLifetime = 1800
)

// Lifetimes of an advertised prefix in seconds. Android takes no notice of
// prefixes that are preferred for less than two hours. What is deprecated ends
// after two hours at the latest, which is the least that a host believes (RFC
// 4862 §5.5.3).
const (
	piPreferred  = 7200
	piValid      = 14400
	piDeprecated = 7200
)

// ending is a prefix information option in the router advertisement whose
// lifetimes shrink.
type ending struct {
	at               int // of the lifetimes in the frame
	valid, preferred uint32
	until, waning    int64 // when they are over, as remaining has it
}

// compileRA makes the router advertisement of at most limit bytes. Options that do
// not fit are left out; the most needed come first. Offsets are counted from
// base.
func compileRA(n NIC, p *prefixes6, search []byte, base, limit int) (b []byte, endings []ending) {
	flags := uint8(wire.RAOther)
	if len(n.V6.Addrs)+len(n.V6.Terms) > 0 || p != nil && len(p.pools) > 0 || n.Relay != nil && len(n.Relay.Servers6) > 0 {
		flags |= wire.RAManaged
	}
	lifetime := max(uint32(n.V6.RouterLifetime), raMinLifetime)
	b = wire.AppendRA(nil, wire.RA{HopLimit: raHopLimit, Flags: flags, Lifetime: n.V6.RouterLifetime})
	b = wire.AppendNDLink(b, wire.OptNDSourceLink, n.GatewayMAC)
	b = wire.AppendNDMTU(b, uint32(n.MTU))
	if p != nil {
		b, endings = p.appendRA(b, base, limit)
	}
	options := [][]byte{
		wire.AppendRDNSS(nil, lifetime, n.V6.DNS),
		wire.AppendDNSSL(nil, lifetime, search),
		wire.AppendPREF64(nil, lifetime, n.V6.PREF64),
	}
	for _, to := range n.V6.Routes {
		options = append(options, wire.AppendNDRoute(nil, lifetime, to))
	}
	for _, o := range options {
		if len(b)+len(o) <= limit {
			b = append(b, o...)
		}
	}
	return b, endings
}

// appendRA appends the prefix information. No prefix is on the link unless the
// binding says so, and none is taken back: one that ends is deprecated first.
func (p *prefixes6) appendRA(b []byte, base, limit int) ([]byte, []ending) {
	var endings []ending
	for _, x := range p.advertised {
		if len(b)+wire.NDPrefixLen > limit {
			break
		}
		i := wire.NDPrefix{Prefix: x.net, Flags: wire.PrefixAutonomous, Valid: piValid, Preferred: piPreferred}
		if x.onlink {
			i.Flags |= wire.PrefixOnLink
		}
		switch {
		case x.deprecated:
			i.Valid, i.Preferred = piDeprecated, 0
		case p.delegates():
			i.Flags |= wire.PrefixPreferPD
		}
		if x.until != 0 || x.preferred != 0 {
			endings = append(endings, ending{
				at: base + len(b) + wire.NDPrefixTimes, valid: i.Valid, preferred: i.Preferred, until: x.until, waning: x.preferred,
			})
		}
		b = wire.AppendNDPrefix(b, i)
	}
	return b, endings
}

// advert copies the router advertisement as it is at now, its checksum that of
// the template.
func (l *Link) advert(out []byte, now time.Time) []byte {
	out = append(out[:0], l.nd.ra...)
	for _, e := range l.nd.endings {
		left := remaining(e.until, now.Unix())
		binary.BigEndian.PutUint32(out[e.at:], min(e.valid, left))
		binary.BigEndian.PutUint32(out[e.at+4:], min(e.preferred, remaining(e.waning, now.Unix()), left))
	}
	return out
}

// advertAll is the router advertisement to all nodes.
func (l *Link) advertAll(out []byte, now time.Time) []byte {
	out = l.advert(out, now)
	if len(l.nd.endings) > 0 {
		wire.SetICMP6Checksum(out[offIPv6Src:offICMP6], out[offICMP6:])
	}
	return out
}

// respondRS answers a router solicitation (RFC 4861 §6.2.6): to the sender, or
// to all nodes when it has no address yet.
//
// The former goes out at once. RFC 4861 has a router wait for up to half a second
// so that several routers do not answer together; on this link there is one.
func (l *Link) respondRS(now time.Time, ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseRS(b)
	if !ok || ip.Src.IsMulticast() || !ip.Dst.IsMulticast() && ip.Dst != l.gw6 {
		return nil, NDMalformed
	}
	if !ip.Src.IsUnspecified() {
		return l.toGuest(l.advert(out, now), ip.Src), RAReply
	}
	if !m.Source.IsZero() {
		return nil, NDMalformed // RFC 4861 §6.1.1
	}
	return l.advertAll(out, now), RAMulticast
}

// Unsolicited writes the router advertisement to all nodes (RFC 4861 §6.2.4) that
// is right at now into out, whose capacity must be at least MaxReply. It returns nil when the
// link has no IPv6.
func (l *Link) Unsolicited(now time.Time, out []byte) []byte {
	if !l.v6 {
		return nil
	}
	return l.advertAll(out, now)
}
