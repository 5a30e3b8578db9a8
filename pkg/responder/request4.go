package responder

import (
	"encoding/binary"
	"net/netip"

	"github.com/slash32/slash32/pkg/wire"
)

// minMessage4 is option 57's least value, also without it (RFC 2132 §9.10).
const minMessage4 = 576

// codes is a set of option codes.
type codes [4]uint64

func (s *codes) add(code uint8)      { s[code>>6] |= 1 << (code & 63) }
func (s *codes) has(code uint8) bool { return s[code>>6]&(1<<(code&63)) != 0 }

// request4 is what the options of a client's message say.
type request4 struct {
	kind      uint8
	requested netip.Addr // option 50
	server    netip.Addr // option 54
	max       int        // option 57, at least minMessage4

	list   [255]uint8 // option 55 in the client's order of preference
	listN  int
	wanted codes // the same
	listed bool  // it was there

	clientID [255]byte
	idLen    int

	vendor      [maxVendor]byte
	vendorN     uint8
	microsoft   bool // the vendor class is one of Microsoft's
	firmware    firmware
	autoConf    bool // RFC 2563: asks whether it may give itself an address
	fqdn        bool // RFC 4702
	fqdnEncoded bool // in DNS's encoding
	fqdnServer  bool // asks the server to update DNS
}

func (r *request4) wants(code uint8) bool { return r.wanted.has(code) }

// startsWith is strings.HasPrefix without the allocation of a string.
func startsWith(b []byte, s string) bool { return len(b) >= len(s) && string(b[:len(s)]) == s }

// parse reads the options; ok is false when they are malformed. An option of
// fixed length counts the first time only; parts of a long one are joined (RFC
// 3396).
func (r *request4) parse(m *wire.DHCP4) (ok bool) {
	r.max = minMessage4
	o := m.Options()
	for o.Next() {
		switch o.Code {
		case wire.Opt4MessageType:
			if len(o.Data) == 1 && r.kind == 0 {
				r.kind = o.Data[0]
			}
		case wire.Opt4RequestedIP:
			if len(o.Data) == 4 && !r.requested.IsValid() {
				r.requested = netip.AddrFrom4([4]byte(o.Data))
			}
		case wire.Opt4ServerID:
			if len(o.Data) == 4 && !r.server.IsValid() {
				r.server = netip.AddrFrom4([4]byte(o.Data))
			}
		case wire.Opt4MaxMessage:
			if len(o.Data) == 2 {
				r.max = max(minMessage4, int(binary.BigEndian.Uint16(o.Data)))
			}
		case wire.Opt4ParameterList:
			r.listed = true
			for _, c := range o.Data {
				if !r.wanted.has(c) && r.listN < len(r.list) {
					r.wanted.add(c)
					r.list[r.listN] = c
					r.listN++
				}
			}
		case wire.Opt4VendorClass:
			if r.vendorN == 0 {
				r.vendorN = uint8(copy(r.vendor[:], o.Data))
				r.microsoft = startsWith(o.Data, "MSFT")
				r.firmware.pxe = startsWith(o.Data, vendorPXE)
				r.firmware.http = startsWith(o.Data, vendorHTTP)
			}
		case wire.Opt4UserClass:
			// iPXE sends the bare word, others in the form of RFC 3004 §4.
			r.firmware.ipxe = r.firmware.ipxe || string(o.Data) == "iPXE" || string(o.Data) == "\x04iPXE"
		case wire.Opt4IPXE:
			r.firmware.ipxe = true
		case wire.Opt4Architecture:
			if len(o.Data) >= 2 && !r.firmware.hasArch {
				r.firmware.hasArch, r.firmware.arch = true, binary.BigEndian.Uint16(o.Data)
			}
		case wire.Opt4AutoConfigure:
			r.autoConf = len(o.Data) == 1 && o.Data[0] == 1
		case wire.Opt4FQDN:
			if len(o.Data) >= 3 {
				r.fqdn, r.fqdnServer, r.fqdnEncoded = true, o.Data[0]&fqdnS != 0, o.Data[0]&fqdnE != 0
			}
		case wire.Opt4ClientID:
			if len(o.Data) > len(r.clientID)-r.idLen {
				return false
			}
			r.idLen += copy(r.clientID[r.idLen:], o.Data)
		}
	}
	return !o.Malformed()
}
