package relay

import (
	"net/netip"

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
		for d := o.Data; len(d) >= 2 && int(d[1]) <= len(d)-2; d = d[2+int(d[1]):] {
			if d[0] == 1 {
				return d[2 : 2+int(d[1])]
			}
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
