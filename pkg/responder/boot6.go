package responder

import (
	"encoding/binary"
	"strings"

	"github.com/slash32/slash32/pkg/wire"
)

// enterpriseIntel is the enterprise number under which firmware sends its vendor
// class (UEFI 2.10 §24.7.3.1).
const enterpriseIntel = 343

// boot6 is what a DHCPv6 client is sent to boot from a URL (RFC 5970 §3.1).
func boot6(b Boot) []byte {
	o := wire.AppendOption6(nil, wire.Opt6BootFileURL, []byte(b.File))
	if b.For != "http" {
		return o
	}
	// The firmware takes no offer without it.
	class := binary.BigEndian.AppendUint32(nil, enterpriseIntel)
	class = binary.BigEndian.AppendUint16(class, uint16(len(vendorHTTP)))
	return wire.AppendOption6(o, wire.Opt6VendorClass, append(class, vendorHTTP...))
}

// bootParams6 is the option of the file's parameters (RFC 5970 §3.2).
func bootParams6(params string) []byte {
	if params == "" {
		return nil
	}
	var data []byte
	for _, p := range strings.Fields(params) {
		data = append(binary.BigEndian.AppendUint16(data, uint16(len(p))), p...)
	}
	return wire.AppendOption6(nil, wire.Opt6BootFileParam, data)
}

// appendBoot6 appends the boot file for who asks for one, as DHCPv4 does.
func (l *Link) appendBoot6(b []byte, g *Guest, r *request6, v Verdict) []byte {
	if len(l.boots) == 0 {
		return b
	}
	var boot *boot4
	f := r.firmware()
	if r.wants.bootFile {
		if boot = l.choose(g, f, true); boot != nil {
			b = l.fit6(b, boot.url6)
			if r.wants.bootParams {
				b = l.fit6(b, boot.params6)
			}
		}
	}
	switch v {
	case DHCP6Request, DHCP6RapidReply, DHCP6Information:
		l.booted(g, f, boot)
	}
	return b
}
