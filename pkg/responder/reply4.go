package responder

import "github.com/slash32/slash32/pkg/wire"

// Lengths of the two header fields that can hold options, too (RFC 2131 §2).
const (
	snameLen = 64
	fileLen  = 128
)

// vital lists the options in the order in which they are given room when there
// is not enough for all; the others follow as the client prefers them.
var vital = [...]uint8{
	wire.Opt4SubnetMask, wire.Opt4Router, wire.Opt4ClasslessRoutes, wire.Opt4MicrosoftRoutes, wire.Opt4V6Only,
	wire.Opt4BootFile, wire.Opt4TFTPServer, wire.Opt4DNS, wire.Opt4MTU, wire.Opt4Domain, wire.Opt4T1, wire.Opt4T2,
}

// answer4 puts the options of one reply together.
type answer4 struct {
	link  *Link
	table *table4
	req   *request4
	boot  *boot4 // or nil
	lease bool   // not the answer to an INFORM
	seen  codes
	order [255]uint8
	n     int
}

// choose lists the codes to send: what the client asks for in its order (RFC
// 2132 §9.8), then what everybody needs.
func (a *answer4) choose() {
	if a.req.listed {
		a.take(wire.Opt4SubnetMask) // comes before the router (RFC 2132 §3.3)
		for _, code := range a.req.list[:a.req.listN] {
			a.take(code)
		}
		for _, code := range a.table.forced {
			a.take(code)
		}
	} else {
		for _, code := range a.table.common {
			a.take(code)
		}
	}
	if a.req.microsoft {
		a.take(wire.Opt4MicrosoftRoutes)
	}
	if a.req.fqdn {
		a.take(wire.Opt4FQDN)
	}
	if a.boot != nil {
		a.take(wire.Opt4TFTPServer)
		a.take(wire.Opt4BootFile)
		a.take(wire.Opt4VendorClass)
	}
	if a.req.firmware.ipxe {
		a.take(wire.Opt4IPXE)
	}
}

func (a *answer4) take(code uint8) {
	if a.seen.has(code) || len(a.bytes(code)) == 0 {
		return
	}
	a.seen.add(code)
	a.order[a.n] = code
	a.n++
}

// bytes is the option of the code as this client gets it, or nil.
func (a *answer4) bytes(code uint8) []byte {
	switch code {
	case wire.Opt4MessageType, wire.Opt4ServerID, wire.Opt4ClientID, wire.Opt4Lease:
		return nil // written where they belong
	case wire.Opt4T1, wire.Opt4T2:
		if !a.lease {
			return nil
		}
	case wire.Opt4FQDN:
		switch {
		case !a.req.fqdn:
			return nil
		case a.req.fqdnEncoded:
			return a.link.fqdn.encoded
		}
		return a.link.fqdn.text
	case wire.Opt4TFTPServer, wire.Opt4BootFile:
		if a.boot != nil && code == wire.Opt4TFTPServer {
			return a.boot.server
		}
		if a.boot != nil {
			return a.boot.name
		}
	case wire.Opt4VendorClass:
		if a.boot != nil && len(a.boot.class) > 0 {
			return a.boot.class
		}
	case wire.Opt4IPXE:
		if a.req.firmware.ipxe && a.table.get(code) == nil {
			return noProxyDHCP
		}
	}
	if o := a.table.get(code); o != nil {
		return o.whole
	}
	return nil
}

// short is what takes the option's place where there is little room, or nil.
func (a *answer4) short(code uint8) []byte {
	if o := a.table.get(code); o != nil {
		return o.short
	}
	return nil
}

// noProxyDHCP is iPXE's option 176 (no-pxedhcp) = 1: do not wait for an offer of
// a ProxyDHCP server, which saves three seconds of each boot.
var noProxyDHCP = []byte{wire.Opt4IPXE, 3, 176, 1, 1}

// write appends the options to the reply b, which has room bytes left for them
// and the end option. When they do not fit, the most needed go first, and those
// that are left go into the header's file and sname fields where these are free
// (option 52, RFC 2131 §4.1).
func (a *answer4) write(b []byte, room int) []byte {
	need := 1
	for _, code := range a.order[:a.n] {
		need += len(a.bytes(code))
	}
	if need <= room {
		for _, code := range a.order[:a.n] {
			b = append(b, a.bytes(code)...)
		}
		return append(b, wire.Opt4End)
	}
	return a.squeeze(b, room)
}

// squeeze is write where not everything fits.
func (a *answer4) squeeze(b []byte, room int) []byte {
	const overload = 3 // bytes of option 52
	start := len(b)
	sname := field{b[offSName4 : offSName4+snameLen], 0}
	file := field{b[offFile4 : offFile4+fileLen], 0}
	if a.boot != nil && len(a.boot.file) > 0 {
		file.b = nil
	}
	place := func(code uint8, o []byte) bool {
		if len(o) == 0 {
			return false
		}
		if len(b)-start+len(o)+overload+1 <= room {
			b = append(b, o...)
			return true
		}
		return file.put(o) || sname.put(o)
	}
	var done codes
	put := func(code uint8) {
		if !a.seen.has(code) || done.has(code) {
			return
		}
		done.add(code)
		if !place(code, a.bytes(code)) {
			place(code, a.short(code))
		}
	}
	for _, code := range vital {
		put(code)
	}
	for _, code := range a.order[:a.n] {
		put(code)
	}
	if used := file.used(1) | sname.used(2); used != 0 {
		b = append(b, wire.Opt4Overload, 1, used)
		file.end()
		sname.end()
	}
	return append(b, wire.Opt4End)
}

// field is one of the header's fields, filled with options from its start.
type field struct {
	b []byte
	n int
}

// put adds an option and leaves room for the end option.
func (f *field) put(o []byte) bool {
	if f.n+len(o)+1 > len(f.b) {
		return false
	}
	f.n += copy(f.b[f.n:], o)
	return true
}

// used is option 52's bit for the field if anything is in it.
func (f *field) used(bit uint8) uint8 {
	if f.n == 0 {
		return 0
	}
	return bit
}

func (f *field) end() {
	if f.n > 0 {
		f.b[f.n] = wire.Opt4End
	}
}

// Offsets into a reply's DHCPv4 message.
const (
	offXID4    = offDHCP4 + 4
	offFlags4  = offDHCP4 + 10
	offCIAddr4 = offDHCP4 + 12
	offYIAddr4 = offDHCP4 + 16
	offSIAddr4 = offDHCP4 + 20
	offGIAddr4 = offDHCP4 + 24
	offSName4  = offDHCP4 + 44
	offFile4   = offDHCP4 + 108
)
