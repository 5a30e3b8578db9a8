package wire_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/wire"
)

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(bytes.Repeat([]byte{0xff}, 67))
	f.Add(bytes.Repeat([]byte{0xff, 0xfe, 1}, 500))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return // the naive sum overflows beyond
		}
		if got, want := wire.Checksum(b), naiveChecksum(b); got != want {
			t.Errorf("checksum of %x = %#x, want %#x", b, got, want)
		}
		addrs := []byte{1, 2, 3, 4, 5, 6, 7, 8}
		pseudo := append(append(addrs, 0, 17, 0, 0, byte(len(b)>>8), byte(len(b))), b...)
		if got, want := wire.SegmentChecksum(addrs, 17, b), naiveChecksum(pseudo); len(b) < 1<<16 && got != want {
			t.Errorf("segment checksum of %x = %#x, want %#x", b, got, want)
		}
	})
}

func FuzzARP(f *testing.F) {
	f.Add(wire.AppendARP(nil, wire.ARP{Op: wire.ARPRequest, SenderMAC: guest, Sender: addr4, Target: gw4}))
	f.Add([]byte{0, 1, 8, 0, 6, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := wire.ParseARP(b)
		if ok && !bytes.Equal(wire.AppendARP(nil, p), b[:wire.ARPLen]) {
			t.Errorf("%x does not come back from %+v", b, p)
		}
	})
}

func FuzzIP(f *testing.F) {
	u := append(wire.AppendUDP(nil, wire.UDP{Src: 68, Dst: 67}, 4), 1, 2, 3, 4)
	f.Add(append(wire.AppendIPv4(nil, wire.IPv4{Src: addr4, Dst: gw4, Proto: wire.ProtoUDP, TTL: 1}, len(u)), u...))
	f.Add(append(wire.AppendIPv6(nil, wire.IPv6{Src: addr6, Dst: gw6, Proto: wire.ProtoUDP, HopLimit: 1}, len(u)), u...))
	f.Add(wire.AppendEther(nil, wire.Ether{Dst: gateway, Src: guest, Type: wire.EtherTypeIPv4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, rest, ok := wire.ParseEther(b); ok && !bytes.Equal(append(wire.AppendEther(nil, h), rest...), b) {
			t.Errorf("Ethernet: %x does not come back from %+v", b, h)
		}
		if _, p, ok := wire.ParseIPv4(b); ok {
			checkUDP(t, p)
		}
		if h, p, ok := wire.ParseIPv6(b); ok {
			checkUDP(t, p)
			again := append(wire.AppendIPv6(nil, h, len(p)), p...)
			if !bytes.Equal(again[4:], b[4:len(again)]) {
				t.Errorf("IPv6: %x does not come back from %+v", b, h)
			}
		}
	})
}

func checkUDP(t *testing.T, b []byte) {
	h, p, ok := wire.ParseUDP(b)
	if !ok {
		return
	}
	again := append(wire.AppendUDP(nil, h, len(p)), p...)
	if !bytes.Equal(again[:6], b[:6]) || !bytes.Equal(again[8:], b[8:len(again)]) {
		t.Errorf("UDP: %x does not come back from %+v", b, h)
	}
}

func FuzzDHCP4(f *testing.F) {
	f.Add(message4("\x35\x01\x01\x37\x03\x01\x03\x79\xff", "", ""))
	f.Add(message4("\x34\x01\x03\x35\x01\x03\xff", "\x3d\x02ab\xff", "\x3d\x02cd"))
	f.Add(message4("\x35\xff", "", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := wire.ParseDHCP4(b)
		if !ok {
			return
		}
		n := 0
		for o := m.Options(); o.Next(); {
			n += 2 + len(o.Data)
		}
		if n > len(b) {
			t.Errorf("options of %d bytes in a message of %d", n, len(b))
		}
	})
}

func FuzzDHCP6(f *testing.F) {
	b := wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Request, XID: 1})
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: wire.Opt6IANA, IAID: 1})
	b = wire.EndOption6(wire.AppendIAAddr6(b, wire.IAAddr6{Addr: addr6}), at)
	f.Add(b)
	at = len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: wire.Opt6IAPD, IAID: 1})
	b = wire.EndOption6(wire.AppendIAPrefix6(b, wire.IAPrefix6{Prefix: netip.PrefixFrom(addr6, 60)}), at)
	f.Add(b)
	f.Add([]byte{1, 0, 0, 0, 0, 3, 0, 4, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := wire.ParseDHCP6(b)
		if !ok {
			return
		}
		again := wire.AppendDHCP6(nil, m)
		o := m.Options()
		for o.Next() {
			at := len(again)
			again = wire.AppendOption6(again, o.Code, o.Data)
			ia, ok := wire.ParseIA6(o.Code, o.Data)
			if !ok || o.Code != wire.Opt6IANA {
				continue
			}
			// Rebuild the IA from its parts where every part is understood.
			rebuilt, whole := wire.BeginIA6(again[:at:at], ia), true
			in := ia.Options()
			for in.Next() {
				a, ok := wire.ParseIAAddr6(in.Data)
				whole = whole && ok && in.Code == wire.Opt6IAAddr && len(in.Data) == 24
				rebuilt = wire.AppendIAAddr6(rebuilt, a)
			}
			if whole && !in.Malformed() && !bytes.Equal(wire.EndOption6(rebuilt, at), again) {
				t.Errorf("IA: %x does not come back from %+v", o.Data, ia)
			}
		}
		if !o.Malformed() && !bytes.Equal(again, b) {
			t.Errorf("%x comes back as %x", b, again)
		}
		for o := m.Options(); o.Next(); {
			p, ok := wire.ParseIAPrefix6(o.Data)
			if ok && !p.Prefix.IsValid() {
				t.Errorf("prefix %v is not valid", p)
			}
			if x, ok := wire.ParsePDExclude(p.Prefix, o.Data[min(len(o.Data), wire.IAPrefixLen):]); ok {
				if again, ok := wire.ParsePDExclude(p.Prefix, wire.AppendPDExclude(nil, p.Prefix, x)[4:]); !ok || again != x {
					t.Errorf("%s in %s comes back as %s", x, p.Prefix, again)
				}
			}
		}
	})
}

func FuzzND(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6})
	f.Add(append([]byte{135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 15: 1}, 1, 0))
	f.Add(wire.AppendNA(nil, 0, gw6, gateway))
	ra := wire.AppendNDPrefix(wire.AppendRA(nil, wire.RA{}), wire.NDPrefix{Prefix: netip.PrefixFrom(addr6, 64), Flags: 0xc0, Valid: 2, Preferred: 1})
	f.Add(wire.AppendPREF64(ra, 1800, netip.PrefixFrom(addr6, 96)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, o, ok := wire.ParseRA(b); ok {
			for o.Next() {
				if p, ok := wire.ParseNDPrefix(o.Data); ok && o.Type == wire.OptNDPrefix {
					if again, ok := wire.ParseNDPrefix(wire.AppendNDPrefix(nil, p)[2:]); !ok || again.Prefix != p.Prefix.Masked() || again.Valid != p.Valid || again.Preferred != p.Preferred || again.Flags != p.Flags {
						t.Errorf("%+v comes back as %+v", p, again)
					}
				}
				if life, p, ok := wire.ParsePREF64(o.Data); ok && o.Type == wire.OptNDPREF64 {
					if l, again, ok := wire.ParsePREF64(wire.AppendPREF64(nil, life, p)[2:]); !ok || l != life || again != p.Masked() {
						t.Errorf("%s, %d comes back as %s, %d", p, life, again, l)
					}
				}
			}
		}
		if _, ok := wire.ParseRS(b); ok && b[0] != wire.ICMP6RouterSolicit {
			t.Errorf("%x taken for a router solicitation", b)
		}
		if m, ok := wire.ParseNS(b); ok && (b[0] != wire.ICMP6NeighbourSolicit || m.Target.IsMulticast()) {
			t.Errorf("%x taken for a neighbour solicitation", b)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("example.org,www.example.org")
	f.Add("a..b")
	f.Add(strings.Repeat("a.", 200))
	f.Fuzz(func(t *testing.T, s string) {
		list := strings.Split(s, ",")
		plain, err := wire.AppendNames(nil, list...)
		packed, err2 := wire.AppendNamesCompressed(nil, list...)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%q: errors %v and %v", list, err, err2)
		}
		if len(packed) > len(plain) {
			t.Errorf("%q: compression makes %d bytes of %d", list, len(packed), len(plain))
		}
	})
}
