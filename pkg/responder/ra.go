package responder

import "github.com/slash32/slash32/pkg/wire"

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

// compileRA makes the router advertisement of at most limit bytes: no prefix
// is on the link, addresses come by DHCPv6. Options that do not fit are left
// out; the most needed come first.
func compileRA(n NIC, search []byte, limit int) []byte {
	flags := uint8(wire.RAOther)
	if len(n.V6.Addrs) > 0 || n.Relay != nil && len(n.Relay.Servers6) > 0 {
		flags |= wire.RAManaged
	}
	lifetime := max(uint32(n.V6.RouterLifetime), raMinLifetime)
	b := wire.AppendRA(nil, wire.RA{HopLimit: raHopLimit, Flags: flags, Lifetime: n.V6.RouterLifetime})
	b = wire.AppendNDLink(b, wire.OptNDSourceLink, n.GatewayMAC)
	b = wire.AppendNDMTU(b, uint32(n.MTU))
	options := [][]byte{
		wire.AppendRDNSS(nil, lifetime, n.V6.DNS),
		wire.AppendDNSSL(nil, lifetime, search),
	}
	for _, to := range n.V6.Routes {
		options = append(options, wire.AppendNDRoute(nil, lifetime, to))
	}
	for _, o := range options {
		if len(b)+len(o) <= limit {
			b = append(b, o...)
		}
	}
	return b
}

// respondRS answers a router solicitation (RFC 4861 §6.2.6): to the sender, or
// to all nodes when it has no address yet.
func (l *Link) respondRS(ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseRS(b)
	if !ok || ip.Src.IsMulticast() || !ip.Dst.IsMulticast() && ip.Dst != l.gw6 {
		return nil, NDMalformed
	}
	if !ip.Src.IsUnspecified() {
		return l.ndUnicast(out, l.nd.ra, ip.Src), RAReply
	}
	if !m.Source.IsZero() {
		return nil, NDMalformed // RFC 4861 §6.1.1
	}
	return append(out[:0], l.nd.ra...), RAMulticast
}

// Unsolicited writes a router advertisement to all nodes (RFC 4861 §6.2.4)
// into out, whose capacity must be at least MaxReply. It returns nil when the
// link has no IPv6.
func (l *Link) Unsolicited(out []byte) []byte {
	if !l.v6 {
		return nil
	}
	return append(out[:0], l.nd.ra...)
}
