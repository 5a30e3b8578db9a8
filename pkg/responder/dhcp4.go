package responder

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

const nakText = "not your address on this link"

// dhcp4Templates has what the replies are put together from.
type dhcp4Templates struct {
	head     []byte // from Ethernet to the magic cookie, without what the request decides
	serverID []byte // option 54
	tables   [numProfiles]*table4
	leases   [numProfiles]string // each profile's lease, for people
	nak      []byte              // option 56
}

func compileDHCP4(n NIC) (t dhcp4Templates, err error) {
	v := n.V4
	t.head = head4(n)
	t.serverID = wire.AppendOption4(nil, wire.Opt4ServerID, wire.AppendAddrs4(nil, v.Gateway))
	t.nak = wire.AppendOption4(nil, wire.Opt4Message, []byte(nakText))
	if !v.Addr.IsValid() {
		return t, nil
	}
	routed, err := compileTable(n, netip.PrefixFrom(v.Addr, 32), v.Gateway, false)
	if err != nil {
		return t, err
	}
	link, gateway := classic4(v, int(v.Classic))
	classic, err := compileTable(n, link, gateway, true)
	if err != nil {
		return t, err
	}
	t.tables = [numProfiles]*table4{routed, routed, classic}
	t.leases[ProfileRouted] = v.Addr.String() + "/32 via " + v.Gateway.String()
	t.leases[ProfileClassic] = netip.PrefixFrom(v.Addr, link.Bits()).String() + " via " + gateway.String()
	return t, nil
}

// head4 is a reply up to the magic cookie. The broadcast addresses are those
// of a NAK; the other replies overwrite them.
func head4(n NIC) []byte {
	b := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: n.GatewayMAC, Type: wire.EtherTypeIPv4})
	b = wire.AppendIPv4(b, wire.IPv4{Src: n.V4.Gateway, Dst: broadcast4, Proto: wire.ProtoUDP, TTL: 64}, 0)
	b = wire.AppendUDP(b, wire.UDP{Src: wire.DHCP4ServerPort, Dst: wire.DHCP4ClientPort}, 0)
	return wire.AppendDHCP4(b, wire.DHCP4{Op: 2, CHAddr: n.GuestMAC})
}

// respondDHCP4 answers a client's message (RFC 2131 §4.3). toGateway tells
// that it was sent to the gateway's address, as in RENEWING, not broadcast.
func (l *Link) respondDHCP4(g *Guest, now time.Time, toGateway bool, b, out []byte) ([]byte, Verdict) {
	m, ok := wire.ParseDHCP4(b)
	switch {
	case !ok:
		return nil, DHCP4Malformed
	case m.Op != 1:
		return nil, DHCP4Rogue
	case m.CHAddr != l.guest:
		return nil, DHCP4Foreign
	case !m.GIAddr.IsUnspecified() && (l.relays4() || !slices.Contains(l.own4, m.GIAddr)):
		// A relay of the guest's own may ask for the guest itself (load
		// generators do), not for others.
		return nil, DHCP4Relay
	}
	var r request4
	if !r.parse(&m) {
		return nil, DHCP4Malformed
	}
	if l.relays4() {
		return l.relayDHCP4(g, toGateway, &m, b, &r, out)
	}
	if !l.offer4.IsValid() {
		if r.kind == wire.DHCP4Discover && r.autoConf {
			return l.noAutoConfigure(&m, &r, out), DHCP4NoAutoConfigure
		}
		return nil, DHCP4NoAddress
	}
	v := l.judge4(&m, &r, toGateway)
	switch v {
	case DHCP4Decline:
		if l.hold {
			g.held = now.Add(holdTime).UnixNano()
		}
		return nil, v
	case DHCP4Nak:
		return l.reply4(&m, &r, nil, ProfileRouted, wire.DHCP4Nak, out), v
	case DHCP4Offer, DHCP4Ack, DHCP4AckReboot:
		if g.held > now.UnixNano() {
			return nil, DHCP4Held
		}
	case DHCP4AckRenew, DHCP4AckRebind, DHCP4AckInform:
	default:
		return nil, v
	}
	boot := l.bootFor(g, &r)
	p := l.profile(&r)
	kind := uint8(wire.DHCP4Ack)
	switch {
	case v == DHCP4Offer:
		kind = wire.DHCP4Offer
		g.meet(&r, p)
	case v != DHCP4AckInform:
		g.meet(&r, p)
		g.held = 0
		l.booted(g, r.firmware, boot)
	}
	return l.reply4(&m, &r, boot, p, kind, out), v
}

func (l *Link) judge4(m *wire.DHCP4, r *request4, toGateway bool) Verdict {
	switch r.kind {
	case wire.DHCP4Discover:
		return DHCP4Offer
	case wire.DHCP4Request:
		return l.judgeRequest4(m, r, toGateway)
	case wire.DHCP4Decline:
		if r.server.IsValid() && r.server != l.gw4 {
			return DHCP4OtherServer
		}
		return DHCP4Decline
	case wire.DHCP4Release:
		if r.server.IsValid() && r.server != l.gw4 {
			return DHCP4OtherServer
		}
		return DHCP4Release
	case wire.DHCP4Inform:
		return DHCP4AckInform
	case wire.DHCP4Offer, wire.DHCP4Ack, wire.DHCP4Nak:
		return DHCP4Rogue
	}
	return DHCP4Unknown
}

// judgeRequest4 tells the four states of RFC 2131 §4.3.2 apart. A client that
// asks for an address that is not its own is refused in each of them: it would
// else keep using what it was given before the VM's address changed.
func (l *Link) judgeRequest4(m *wire.DHCP4, r *request4, toGateway bool) Verdict {
	v, wanted := DHCP4AckReboot, r.requested
	switch {
	case r.server.IsValid() && r.server != l.gw4:
		return DHCP4OtherServer
	case r.server.IsValid():
		v = DHCP4Ack
	case !m.CIAddr.IsUnspecified() && toGateway:
		v = DHCP4AckRenew
	case !m.CIAddr.IsUnspecified():
		v = DHCP4AckRebind
	}
	if !wanted.IsValid() {
		wanted = m.CIAddr // RENEWING and REBINDING have no option 50
	}
	switch {
	case wanted.IsUnspecified():
		return DHCP4Malformed
	case wanted != l.offer4, !m.CIAddr.IsUnspecified() && m.CIAddr != l.offer4:
		return DHCP4Nak
	}
	return v
}

// noAutoConfigure tells a client for which there is no address not to give
// itself one (RFC 2563 §2.3).
func (l *Link) noAutoConfigure(m *wire.DHCP4, r *request4, out []byte) []byte {
	b := l.open4(m, wire.DHCP4Offer, out)
	b = l.appendClientID(b, r)
	b = append(b, wire.Opt4AutoConfigure, 1, 0, wire.Opt4End)
	return l.close4(b, m)
}

// open4 starts a reply, up to and with the server identifier. It is addressed
// to everybody.
func (l *Link) open4(m *wire.DHCP4, kind uint8, out []byte) []byte {
	b := append(out[:0], l.dhcp4.head...)
	binary.BigEndian.PutUint32(b[offXID4:], m.XID)
	binary.BigEndian.PutUint16(b[offFlags4:], m.Flags)
	b = append(b, wire.Opt4MessageType, 1, kind)
	return append(b, l.dhcp4.serverID...)
}

// reply4 writes a reply of the given kind (RFC 2131 table 3).
func (l *Link) reply4(m *wire.DHCP4, r *request4, boot *boot4, p Profile, kind uint8, out []byte) []byte {
	b := l.open4(m, kind, out)
	if kind == wire.DHCP4Nak {
		if !m.GIAddr.IsUnspecified() {
			b[offFlags4] |= wire.DHCP4Broadcast >> 8 // RFC 2131 §4.3.2: its address may be wrong
		}
		b = l.appendClientID(append(b, l.dhcp4.nak...), r)
		return l.close4(append(b, wire.Opt4End), m)
	}
	a := answer4{link: l, table: l.dhcp4.tables[p], req: r, boot: boot, lease: r.kind != wire.DHCP4Inform}
	l.address4(b, m, !a.lease, kind == wire.DHCP4Ack)
	if a.lease {
		b = append(b, a.table.get(wire.Opt4Lease).whole...)
	}
	if boot != nil {
		copy(b[offSIAddr4:], boot.siaddr[:])
		copy(b[offFile4:offFile4+fileLen], boot.file)
	}
	b = l.appendClientID(b, r)
	a.choose()
	// Option 57 counts the whole datagram, to be on the safe side.
	room := min(r.max, l.limit-wire.EtherLen) - (len(b) - wire.EtherLen)
	return l.close4(a.write(b, room), m)
}

// appendClientID echoes option 61 (RFC 6842).
func (l *Link) appendClientID(b []byte, r *request4) []byte {
	if r.idLen == 0 {
		return b
	}
	return wire.AppendOption4(b, wire.Opt4ClientID, r.clientID[:r.idLen])
}

// close4 pads a reply, turns one to the relay agent that asked (RFC 2131 §4.1)
// and fills in lengths and checksums.
func (l *Link) close4(b []byte, m *wire.DHCP4) []byte {
	for len(b) < offDHCP4+wire.DHCP4MinLen {
		b = append(b, 0)
	}
	if !m.GIAddr.IsUnspecified() {
		to := m.GIAddr.As4()
		copy(b, l.guest[:])
		copy(b[offIPv4Dst:], to[:])
		copy(b[offGIAddr4:], to[:])
		binary.BigEndian.PutUint16(b[offUDP4+2:], wire.DHCP4ServerPort)
	}
	l.finish4(b)
	return b
}

// finish4 fills in lengths and checksums.
func (l *Link) finish4(b []byte) {
	binary.BigEndian.PutUint16(b[offIPv4Len:], uint16(len(b)-wire.EtherLen))
	wire.SetIPv4Checksum(b[wire.EtherLen:])
	binary.BigEndian.PutUint16(b[offUDP4+4:], uint16(len(b)-offUDP4))
	wire.SetUDPChecksum(b[offIPv4Src:offUDP4], b[offUDP4:])
}

// address4 fills in ciaddr and yiaddr and chooses where an OFFER or ACK goes
// (RFC 2131 §4.1): to ciaddr when the client has an address, else by broadcast
// when it asks for that, else to the address that it is about to have.
func (l *Link) address4(b []byte, m *wire.DHCP4, inform, ack bool) {
	ci, yi := m.CIAddr.As4(), l.offer4.As4()
	if ack {
		copy(b[offCIAddr4:], ci[:])
	}
	if !inform {
		copy(b[offYIAddr4:], yi[:])
	}
	switch {
	case ack && ci != [4]byte{}:
		copy(b[offIPv4Dst:], ci[:])
	case inform || m.Flags&wire.DHCP4Broadcast != 0:
		return // head4 is addressed to everybody
	default:
		copy(b[offIPv4Dst:], yi[:])
	}
	copy(b, l.guest[:])
}
