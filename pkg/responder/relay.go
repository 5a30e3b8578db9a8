package responder

import (
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// RelayHeader is the length in bytes of what stands before a DHCP message
// between the responder and the process that has the sockets towards the servers:
// a version, the NIC's index in the binding, the family (4 or 6) and the server's
// index in the family's list, or RelayAll.
const RelayHeader = 4

// RelayVersion is the first byte of each message.
const RelayVersion = 1

// RelayAll stands for every server of the family.
const RelayAll = 0xff

// MaxRelayed is the length in bytes of the longest message that is relayed either
// way, without its header.
const MaxRelayed = maxPacket - wire.IPv4Len - wire.UDPLen

// maxHops4 is the hop limit: a message that came through more relays is in a loop
// (RFC 1542 §4.1.1).
const maxHops4 = 16

// relay is what a link needs to relay instead of answering.
type relay struct {
	servers4 []netip.Addr
	servers6 []netip.Addr
	agent    []byte // option 82, whole
	forward  []byte // options of a RELAY-FORW before the relayed message
	link6    [16]byte
	id       []byte // Interface-Id
}

// Relayed tells that Respond's output is not a frame for the guest but a message
// for the servers, with its header.
func (v Verdict) Relayed() bool {
	return v == DHCP4Relayed || v == DHCP4RelayedToOne || v == DHCP6Relayed
}

// CircuitLen is the length of what CircuitID makes.
const CircuitLen = 16 + 6

// CircuitID names a NIC towards DHCP servers, as option 82's circuit identifier
// and as DHCPv6's Interface-Id: the VM's UUID and the NIC's MAC address, in
// binary.
func CircuitID(uuid [16]byte, guest mac.Addr) []byte { return append(uuid[:], guest[:]...) }

// compileRelay prepares what every message gets.
func compileRelay(n NIC) *relay {
	r := &relay{servers4: n.Relay.Servers4, servers6: n.Relay.Servers6, id: n.Relay.Circuit}
	sub := func(b []byte, code uint8, data []byte) []byte {
		return append(append(b, code, uint8(len(data))), data...)
	}
	var info []byte // RFC 3046 §2.0
	info = sub(info, subCircuitID, n.Relay.Circuit)
	host := n.Relay.Host[:min(len(n.Relay.Host), 64)]
	if host != "" {
		info = sub(info, subRemoteID, []byte(host))
	}
	if n.Relay.Link4.Is4() {
		info = sub(info, subLinkSelection, n.Relay.Link4.AsSlice())
	}
	if n.V4.Gateway.Is4() {
		info = sub(info, subServerID, n.V4.Gateway.AsSlice())
	}
	r.agent = wire.AppendOption4(nil, wire.Opt4RelayAgent, info)

	if n.Relay.Link6.Is6() {
		r.link6 = n.Relay.Link6.As16()
	}
	r.forward = wire.AppendOption6(nil, wire.Opt6InterfaceID, n.Relay.Circuit)
	// A DUID is the guest's to choose; this is not (RFC 6939).
	r.forward = wire.AppendOption6(r.forward, wire.Opt6LinkLayer, append([]byte{0, arphrdEther}, n.GuestMAC[:]...))
	return r
}

// arphrdEther is the hardware type of Ethernet.
const arphrdEther = 1

// Suboptions of option 82.
const (
	subCircuitID     = 1  // RFC 3046
	subRemoteID      = 2  // RFC 3046
	subLinkSelection = 5  // RFC 3527
	subServerID      = 11 // RFC 5107
)

func relayHeader(out []byte, nic, family, server uint8) []byte {
	return append(out[:0], RelayVersion, nic, family, server)
}
