package relay

import (
	"bytes"
	"net/netip"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// offGIAddr4 is where giaddr stands in a DHCPv4 message (RFC 2131 §2).
const offGIAddr4 = 24

// stamp writes giaddr.
func stamp(message []byte, addr netip.Addr) bool {
	if len(message) < wire.DHCP4FixedLen || !addr.Is4() {
		return false
	}
	a := addr.As4()
	copy(message[offGIAddr4:], a[:])
	return true
}

// own4 tells whether a request is of the NIC with a circuit identifier: chaddr and
// option 82 name it and nobody else. A responder that has been subverted could say
// otherwise, and so give another VM's lease back.
func own4(b, circuit []byte, guest mac.Addr) bool {
	m, ok := wire.ParseDHCP4(b)
	if !ok || m.Op != 1 || m.CHAddr != guest {
		return false
	}
	found := 0
	o := m.Options()
	for o.Next() {
		if o.Code == wire.Opt4RelayAgent {
			if !bytes.Equal(subCircuit(o.Data), circuit) {
				return false
			}
			found++
		}
	}
	return found == 1 && !o.Malformed()
}

// own6 is own4 for a RELAY-FORW: its first option, and no other, names the NIC.
func own6(b, circuit []byte) bool {
	if len(b) < relay6Len || b[0] != wire.DHCP6RelayForward {
		return false
	}
	n := 0
	o := wire.OptionsOf6(b[relay6Len:])
	for ; o.Next(); n++ {
		if (o.Code == wire.Opt6InterfaceID) != (n == 0) || n == 0 && !bytes.Equal(o.Data, circuit) {
			return false
		}
	}
	return n > 0 && !o.Malformed()
}

// circuit4 is the circuit identifier (RFC 3046 §3.1) in an answer to giaddr addr,
// or nil.
func circuit4(b []byte, addr netip.Addr) []byte {
	m, ok := wire.ParseDHCP4(b)
	if !ok || m.Op != 2 || m.GIAddr != addr {
		return nil
	}
	for o := m.Options(); o.Next(); {
		if o.Code != wire.Opt4RelayAgent {
			continue
		}
		if c := subCircuit(o.Data); c != nil {
			return c
		}
	}
	return nil
}

// subCircuit is the circuit identifier in an option 82, or nil.
func subCircuit(d []byte) []byte {
	for ; len(d) >= 2 && int(d[1]) <= len(d)-2; d = d[2+int(d[1]):] {
		if d[0] == 1 {
			return d[2 : 2+int(d[1])]
		}
	}
	return nil
}

// relay6Len is the length of a DHCPv6 relay's header (RFC 8415 §9).
const relay6Len = 34

// circuit6 is the Interface-Id of a RELAY-REPL, or nil.
func circuit6(b []byte) []byte {
	if len(b) < relay6Len || b[0] != wire.DHCP6RelayReply {
		return nil
	}
	for o := wire.OptionsOf6(b[relay6Len:]); o.Next(); {
		if o.Code == wire.Opt6InterfaceID {
			return o.Data
		}
	}
	return nil
}
