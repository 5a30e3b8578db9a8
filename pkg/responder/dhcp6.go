package responder

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

const (
	// maxAddrs6 is how many addresses an IA_NA is given at most, so that one
	// fits any MTU together with everything else.
	maxAddrs6 = 24

	// maxDUID is the longest DUID (RFC 8415 §11.1): a type and 128 bytes.
	maxDUID = 130

	// iaLen is the length of an IA with a status code and no address.
	iaLen = 16 + statusLen

	// iaAddrLen is the length of option 5.
	iaAddrLen = 4 + 24

	// statusLen is the room of a status code option with any text below.
	statusLen = 6 + 40

	infinity = math.MaxUint32 // RFC 8415 §7.7

	// minRefresh is IRT_MINIMUM in seconds (RFC 8415 §7.6).
	minRefresh = 600
)

var (
	allDHCP6Agents  = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 13: 1, 15: 2}) // ff02::1:2
	allDHCP6Servers = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x05, 13: 1, 15: 3}) // ff05::1:3
)

// dhcp6Templates has what the replies are put together from.
type dhcp6Templates struct {
	head  []byte // from Ethernet to UDP
	addrs addrs6
	room  int // length of the options 5 of an IA_NA

	preferred, valid uint32
	t2               uint32 // of an address that does not end
	dns              []byte // options, each empty when there is nothing to say
	search           []byte
	sntp             []byte
	ntp              []byte
	refresh          []byte
	aftr             []byte
}

func compileDHCP6(n NIC, search []byte) (dhcp6Templates, error) {
	v := n.V6
	t := dhcp6Templates{
		addrs:     compileAddrs6(v),
		room:      min(len(v.Addrs), maxAddrs6) * iaAddrLen,
		preferred: v.Preferred,
		valid:     v.Valid,
		t2:        fraction(v.Preferred, 4, 5),
	}
	put := func(code uint16, data []byte) []byte {
		if len(data) == 0 {
			return nil
		}
		return wire.AppendOption6(nil, code, data)
	}
	t.dns = put(wire.Opt6DNS, wire.AppendAddrs6(nil, v.DNS...))
	t.search = put(wire.Opt6Search, search)
	t.sntp = put(wire.Opt6SNTP, wire.AppendAddrs6(nil, v.NTP...))
	var ntp []byte
	for _, a := range v.NTP {
		if a.Is6() {
			ntp = wire.AppendOption6(ntp, ntpServerAddress, wire.AppendAddrs6(nil, a))
		}
	}
	t.ntp = put(wire.Opt6NTP, ntp)
	t.refresh = put(wire.Opt6InformationRefresh, binary.BigEndian.AppendUint32(nil, max(fraction(v.Preferred, 1, 2), minRefresh)))

	if v.AFTR != "" {
		name, err := wire.AppendNames(nil, v.AFTR)
		if err != nil {
			return t, fmt.Errorf("the AFTR's name: %w", err)
		}
		t.aftr = put(wire.Opt6AFTRName, name)
	}

	t.head = wire.AppendEther(nil, wire.Ether{Dst: n.GuestMAC, Src: n.GatewayMAC, Type: wire.EtherTypeIPv6})
	t.head = wire.AppendIPv6(t.head, wire.IPv6{
		Src:      v.Gateway,
		Dst:      netip.IPv6Unspecified(),
		Proto:    wire.ProtoUDP,
		HopLimit: 64,
	}, 0)
	t.head = wire.AppendUDP(t.head, wire.UDP{Src: wire.DHCP6ServerPort, Dst: wire.DHCP6ClientPort}, 0)
	return t, nil
}

// ntpServerAddress is the suboption of option 56 that has one unicast address
// (RFC 5908 §4.1).
const ntpServerAddress = 1

func fraction(x, num, den uint32) uint32 {
	if x == infinity {
		return infinity
	}
	return max(1, uint32(uint64(x)*uint64(num)/uint64(den)))
}

// respondDHCP6 answers a client's message (RFC 8415 §18.3). Of addresses all state
// is the binding, so that every IA_NA is the guest's whatever its IAID and DUID; of
// prefixes it is the binding and g.
func (l *Link) respondDHCP6(g *Guest, now time.Time, ip wire.IPv6, b, out []byte) ([]byte, Verdict) {
	unicast := ip.Dst == l.gw6
	if !unicast && ip.Dst != allDHCP6Agents && ip.Dst != allDHCP6Servers {
		return nil, NotOurs
	}
	m, ok := wire.ParseDHCP6(b)
	switch {
	case !ok, ip.Src.IsUnspecified(), ip.Src.IsMulticast():
		return nil, DHCP6Malformed
	case m.Type == wire.DHCP6RelayForward || m.Type == wire.DHCP6RelayReply:
		return nil, DHCP6Relay
	case m.Type == wire.DHCP6Advertise || m.Type == wire.DHCP6Reply || m.Type == wire.DHCP6Reconfigure:
		return nil, DHCP6Rogue
	case m.Type < wire.DHCP6Solicit || m.Type > wire.DHCP6InformationRequest:
		return nil, DHCP6Unknown
	case l.relays6():
		return l.relayDHCP6(g, ip.Src, &m, b, out)
	}
	var r request6
	if !r.parse(&m, &l.dhcp6, now.Unix()) {
		return nil, DHCP6Malformed
	}
	v := l.judge6(&r, unicast, now.Unix())
	if !v.answers6() {
		return nil, v
	}
	return l.reply6(g, now, &m, &r, ip.Src, v, out), v
}

// reply6 writes the reply that goes with a verdict to the guest's address dst.
func (l *Link) reply6(g *Guest, now time.Time, m *wire.DHCP6, r *request6, dst netip.Addr, v Verdict, out []byte) []byte {
	t := &l.dhcp6
	d := l.delegation(g, now, dst, r.wants.exclude)
	b := append(out[:0], t.head...)
	x := dst.As16()
	copy(b[offIPv6Dst:], x[:])

	kind := uint8(wire.DHCP6Reply)
	if v == DHCP6Advertise {
		kind = wire.DHCP6Advertise
	}
	b = wire.AppendDHCP6(b, wire.DHCP6{Type: kind, XID: m.XID})
	if r.clientID != nil {
		b = wire.AppendOption6(b, wire.Opt6ClientID, r.clientID)
	}
	b = append(b, 0, wire.Opt6ServerID, 0, uint8(len(marks.ServerDUID)))
	b = append(b, marks.ServerDUID...)

	switch v {
	case DHCP6UseMulticast:
		b = wire.AppendStatus6(b, wire.Status6UseMulticast, "send it to ff02::1:2")
	case DHCP6Confirm:
		b = wire.AppendStatus6(b, wire.Status6Success, "on this link")
	case DHCP6NotOnLink:
		b = wire.AppendStatus6(b, wire.Status6NotOnLink, "not an address of this link")
	case DHCP6Release, DHCP6Decline:
		b = wire.AppendStatus6(b, wire.Status6Success, "noted")
		b = l.appendIAs6(b, &d, m, v)
	case DHCP6Information:
		b = l.fit6(b, t.refresh)
		b = l.appendConfig6(b, g, r, v)
	case DHCP6Advertise:
		// 255: the client need not wait for other servers (RFC 8415 §18.2.1).
		b = append(b, 0, wire.Opt6Preference, 0, 1, 255)
		kept := g.Prefixes // an offer is none yet
		b = l.appendIAs6(b, &d, m, v)
		g.Prefixes = kept
		b = l.appendConfig6(b, g, r, v)
	case DHCP6RapidReply:
		b = append(b, 0, wire.Opt6RapidCommit, 0, 0)
		b = l.appendIAs6(b, &d, m, v)
		b = l.appendConfig6(b, g, r, v)
	default:
		b = l.appendIAs6(b, &d, m, v)
		b = l.appendConfig6(b, g, r, v)
	}

	return finish6(l.appendAccept6(b, g, now, r, dst, v))
}

// fit6 appends what fits the frame as a whole.
func (l *Link) fit6(b, option []byte) []byte {
	if len(b)+len(option) > l.limit {
		return b
	}
	return append(b, option...)
}

func (l *Link) appendConfig6(b []byte, g *Guest, r *request6, v Verdict) []byte {
	t := &l.dhcp6
	b = l.fit6(b, t.dns)
	b = l.fit6(b, t.search)
	if r.wants.ntp {
		b = l.fit6(b, t.ntp)
	}
	if r.wants.sntp {
		b = l.fit6(b, t.sntp)
	}
	if r.wants.aftr {
		b = l.fit6(b, t.aftr)
	}
	return l.appendBoot6(b, g, r, v)
}
