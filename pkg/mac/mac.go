// Package mac has a MAC address as a small comparable value.
package mac

import (
	"encoding/hex"
	"fmt"
	"net/netip"
)

// Addr is a 48-bit MAC address. The zero value means "none".
type Addr [6]byte

// Broadcast is ff:ff:ff:ff:ff:ff.
var Broadcast = Addr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Parse reads the form that libvirt writes: six pairs of hex digits with
// colons between them.
func Parse(s string) (Addr, error) {
	var a Addr
	if len(s) != 17 {
		return Addr{}, fmt.Errorf("parse MAC %q: want six pairs of hex digits with colons, like 52:54:00:ab:cd:01", s)
	}
	for i := range a {
		if i > 0 && s[i*3-1] != ':' {
			return Addr{}, fmt.Errorf("parse MAC %q: want six pairs of hex digits with colons, like 52:54:00:ab:cd:01", s)
		}
		if _, err := hex.Decode(a[i:i+1], []byte(s[i*3:i*3+2])); err != nil {
			return Addr{}, fmt.Errorf("parse MAC %q: %w", s, err)
		}
	}
	return a, nil
}

// MustParse is Parse for constants; it panics on a malformed address.
func MustParse(s string) Addr {
	a, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return a
}

// IsZero tells whether a is the zero value.
func (a Addr) IsZero() bool { return a == Addr{} }

// IsMulticast tells whether a is a group address (which broadcast is, too).
func (a Addr) IsMulticast() bool { return a[0]&1 != 0 }

// String writes the address in libvirt's form; the zero value is "".
func (a Addr) String() string {
	if a.IsZero() {
		return ""
	}
	const digits = "0123456789abcdef"
	b := make([]byte, 0, 17)
	for i, x := range a {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, digits[x>>4], digits[x&15])
	}
	return string(b)
}

// MarshalText and UnmarshalText make Addr a string in JSON and YAML.
func (a Addr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText wrote; "" is the zero value.
func (a *Addr) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*a = Addr{}
		return nil
	}
	p, err := Parse(string(b))
	if err != nil {
		return err
	}
	*a = p
	return nil
}

// LinkLocal is the IPv6 link-local address that is made from a MAC address
// (modified EUI-64, RFC 4291 appendix A).
func (a Addr) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: a[0] ^ 2, 9: a[1], 10: a[2], 11: 0xff, 12: 0xfe, 13: a[3], 14: a[4], 15: a[5]})
}
