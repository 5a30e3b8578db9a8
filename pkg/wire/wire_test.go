package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

var (
	guest   = mac.MustParse("52:54:00:ab:cd:01")
	gateway = mac.MustParse("02:73:6c:33:32:01")
	addr4   = netip.MustParseAddr("203.0.113.42")
	gw4     = netip.MustParseAddr("169.254.0.1")
	addr6   = netip.MustParseAddr("2001:db8:1::42")
	gw6     = netip.MustParseAddr("fe80::1")
	compare = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// naiveChecksum is RFC 1071 as it is written.
func naiveChecksum(b []byte) uint16 {
	var s uint32
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

func TestARPRoundTrip(t *testing.T) {
	want := wire.ARP{Op: wire.ARPReply, SenderMAC: gateway, Sender: gw4, TargetMAC: guest, Target: addr4}
	b := wire.AppendARP(nil, want)
	if d := cmp.Diff(unhex(t, "0001 0800 06 04 0002 02736c333201 a9fe0001 525400abcd01 cb00712a"), b); d != "" {
		t.Errorf("bytes (-want +got):\n%s", d)
	}
	got, ok := wire.ParseARP(append(b, make([]byte, 18)...)) // padded to 60 on the wire
	if d := cmp.Diff(want, got, compare); !ok || d != "" {
		t.Errorf("ok %v, parsed (-want +got):\n%s", ok, d)
	}
}

func TestIPv4(t *testing.T) {
	payload := []byte("payload")
	h := wire.IPv4{Src: gw4, Dst: addr4, Proto: wire.ProtoUDP, TTL: 64}
	b := append(wire.AppendIPv4(nil, h, len(payload)), payload...)
	if c := wire.Checksum(b[:wire.IPv4Len]); c != 0 {
		t.Errorf("checksum over the finished header = %#x, want 0", c)
	}
	got, p, ok := wire.ParseIPv4(append(b, "padding"...))
	if d := cmp.Diff(h, got, compare); !ok || d != "" || !bytes.Equal(p, payload) {
		t.Errorf("ok %v, payload %q, header (-want +got):\n%s", ok, p, d)
	}

	for name, change := range map[string]func(b []byte) []byte{
		"version":              func(b []byte) []byte { b[0] = 0x65; return b },
		"header below 20":      func(b []byte) []byte { b[0] = 0x44; return b },
		"header beyond total":  func(b []byte) []byte { b[0] = 0x4f; return b },
		"total below header":   func(b []byte) []byte { b[3] = 19; return b },
		"total beyond packet":  func(b []byte) []byte { b[3]++; return b },
		"shorter than headers": func(b []byte) []byte { return b[:19] },
	} {
		if _, _, ok := wire.ParseIPv4(change(bytes.Clone(b))); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, flags := range []uint16{0x2000, 0x0001, 0x1fff} {
		f := bytes.Clone(b)
		binary.BigEndian.PutUint16(f[6:8], flags)
		if h, _, ok := wire.ParseIPv4(f); !ok || !h.Fragment {
			t.Errorf("flags and offset %#04x: ok %v, fragment %v, want a fragment", flags, ok, h.Fragment)
		}
	}
}

func TestIPv6(t *testing.T) {
	h := wire.IPv6{Src: gw6, Dst: addr6, Proto: wire.ProtoICMPv6, HopLimit: 255}
	b := append(wire.AppendIPv6(nil, h, 4), 1, 2, 3, 4)
	got, p, ok := wire.ParseIPv6(append(b, "padding"...))
	if d := cmp.Diff(h, got, compare); !ok || d != "" || len(p) != 4 {
		t.Errorf("ok %v, payload %x, header (-want +got):\n%s", ok, p, d)
	}
	if _, _, ok := wire.ParseIPv6(b[:43]); ok {
		t.Error("accepted a packet shorter than its payload length")
	}
}

func TestUDPChecksumIsNeverZero(t *testing.T) {
	addrs := make([]byte, 8)
	b := wire.AppendUDP(nil, wire.UDP{}, 2)
	b = append(b, 0, 0)
	// Choose the payload so that the sum comes to ffff, its complement to 0.
	binary.BigEndian.PutUint16(b[8:10], wire.SegmentChecksum(addrs, wire.ProtoUDP, b))
	wire.SetUDPChecksum(addrs, b)
	if b[6] != 0xff || b[7] != 0xff {
		t.Errorf("checksum %x, want ffff (RFC 768)", b[6:8])
	}
}

func TestDHCP4Header(t *testing.T) {
	want := wire.DHCP4{
		Op: 1, Hops: 2, XID: 0x01020304, Secs: 5, Flags: wire.DHCP4Broadcast,
		CIAddr: addr4, YIAddr: gw4, SIAddr: addr4, GIAddr: gw4, CHAddr: guest,
	}
	b := wire.AppendDHCP4(nil, want)
	if len(b) != wire.DHCP4FixedLen {
		t.Fatalf("header of %d bytes, want %d", len(b), wire.DHCP4FixedLen)
	}
	got, ok := wire.ParseDHCP4(b)
	if d := cmp.Diff(want, got, compare, cmpopts.IgnoreUnexported(wire.DHCP4{})); !ok || d != "" {
		t.Errorf("ok %v (-want +got):\n%s", ok, d)
	}
	for name, at := range map[string]int{"hardware type": 1, "hardware length": 2, "cookie": 239} {
		bad := bytes.Clone(b)
		bad[at]++
		if _, ok := wire.ParseDHCP4(bad); ok {
			t.Errorf("accepted another %s", name)
		}
	}
}

// message4 is a message with the given options, file and sname fields.
func message4(options, file, sname string) []byte {
	b := wire.AppendDHCP4(nil, wire.DHCP4{Op: 1, CHAddr: guest})
	copy(b[44:108], sname)
	copy(b[108:236], file)
	return append(b, options...)
}

func TestOptions4(t *testing.T) {
	type option struct {
		Code uint8
		Data string
	}
	for _, c := range []struct {
		name                 string
		options, file, sname string
		want                 []option
		malformed            bool
	}{
		{name: "none"},
		{name: "pad and end", options: "\x00\x00\x35\x01\x01\x00\xff\x32garbage", want: []option{{53, "\x01"}}},
		{name: "no end", options: "\x35\x01\x01", want: []option{{53, "\x01"}}},
		{name: "length missing", options: "\x35\x01\x01\x32", want: []option{{53, "\x01"}}, malformed: true},
		{name: "beyond the end", options: "\x35\x01\x01\x32\x04abc", want: []option{{53, "\x01"}}, malformed: true},
		{name: "empty option", options: "\x50\x00\xff", want: []option{{80, ""}}},
		{
			name: "file not overloaded", options: "\x35\x01\x01\xff", file: "\x0c\x01a\xff",
			want: []option{{53, "\x01"}},
		},
		{
			name: "file", options: "\x34\x01\x01\x35\x01\x01\xff", file: "\x0c\x01a\xff", sname: "\x0c\x01b\xff",
			want: []option{{53, "\x01"}, {12, "a"}},
		},
		{
			name: "sname", options: "\x34\x01\x02\xff", file: "\x0c\x01a\xff", sname: "\x0c\x01b\xff",
			want: []option{{12, "b"}},
		},
		{
			name: "file then sname, in parts", options: "\x34\x01\x03\x3d\x01x\xff", file: "\x3d\x01y\xff", sname: "\x3d\x01z\xff",
			want: []option{{61, "x"}, {61, "y"}, {61, "z"}},
		},
		{
			name: "overload within overload", options: "\x34\x01\x01\xff", file: "\x34\x01\x03\x0c\x01a\xff", sname: "\x0c\x01b\xff",
			want: []option{{12, "a"}},
		},
		{name: "malformed file", options: "\x34\x01\x01\xff", file: "\x0c\xff", malformed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, ok := wire.ParseDHCP4(message4(c.options, c.file, c.sname))
			if !ok {
				t.Fatal("message not parsed")
			}
			var got []option
			o := m.Options()
			for o.Next() {
				got = append(got, option{o.Code, string(o.Data)})
			}
			if d := cmp.Diff(c.want, got); d != "" || o.Malformed() != c.malformed {
				t.Errorf("malformed %v, want %v; options (-want +got):\n%s", o.Malformed(), c.malformed, d)
			}
		})
	}
}

func TestAppendOption4SplitsLongOnes(t *testing.T) {
	long := bytes.Repeat([]byte{7}, 300)
	want := append([]byte{121, 255}, long[:255]...)
	want = append(want, 121, 45)
	want = append(want, long[255:]...)
	if d := cmp.Diff(want, wire.AppendOption4(nil, 121, long)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAppendRoute4(t *testing.T) {
	for _, c := range []struct{ to, want string }{
		{"0.0.0.0/0", "00 a9fe0001"},
		{"10.0.0.0/8", "08 0a a9fe0001"},
		{"10.17.0.0/16", "10 0a11 a9fe0001"},
		{"10.27.129.0/24", "18 0a1b81 a9fe0001"},
		{"10.229.0.128/25", "19 0ae50080 a9fe0001"},
		{"10.198.122.47/32", "20 0ac67a2f a9fe0001"},
		{"10.27.129.7/9", "09 0a00 a9fe0001"},
		{"2001:db8::/32", ""},
	} {
		got := wire.AppendRoute4(nil, netip.MustParsePrefix(c.to), gw4)
		if d := cmp.Diff(unhex(t, c.want), got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.to, d)
		}
	}
}

func TestDHCP6(t *testing.T) {
	b := wire.AppendDHCP6(nil, wire.DHCP6{Type: wire.DHCP6Solicit, XID: 0xabcdef})
	b = wire.AppendOption6(b, wire.Opt6ClientID, []byte("duid"))
	at := len(b)
	b = wire.BeginIA6(b, wire.IA6{Code: wire.Opt6IANA, IAID: 7, T1: 8, T2: 9})
	b = wire.AppendIAAddr6(b, wire.IAAddr6{Addr: addr6, Preferred: 10, Valid: 20})
	b = wire.AppendStatus6(b, wire.Status6NoBinding, "text")
	b = wire.EndOption6(b, at)

	m, ok := wire.ParseDHCP6(b)
	if !ok || m.Type != wire.DHCP6Solicit || m.XID != 0xabcdef {
		t.Fatalf("parsed %v %+v", ok, m)
	}
	var codes []uint16
	for o := m.Options(); o.Next(); {
		codes = append(codes, o.Code)
		if o.Code != wire.Opt6IANA {
			continue
		}
		ia, ok := wire.ParseIA6(o.Code, o.Data)
		if !ok || ia.IAID != 7 || ia.T1 != 8 || ia.T2 != 9 {
			t.Errorf("IA %v %+v", ok, ia)
		}
		for o := ia.Options(); o.Next(); {
			codes = append(codes, o.Code)
			if a, ok := wire.ParseIAAddr6(o.Data); o.Code == wire.Opt6IAAddr && (!ok || a != wire.IAAddr6{Addr: addr6, Preferred: 10, Valid: 20}) {
				t.Errorf("address %v %+v", ok, a)
			}
		}
	}
	if d := cmp.Diff([]uint16{1, 3, 5, 13}, codes); d != "" {
		t.Errorf("options (-want +got):\n%s", d)
	}
	for n := range b[wire.DHCP6FixedLen:] {
		m, _ := wire.ParseDHCP6(b[:wire.DHCP6FixedLen+n])
		o := m.Options()
		for o.Next() {
		}
		if whole := n == 0 || n == 8; o.Malformed() == whole {
			t.Errorf("cut after %d bytes of options: malformed %v", n, o.Malformed())
		}
	}
}

func TestIAPrefix6RoundTrip(t *testing.T) {
	want := wire.IAPrefix6{Preferred: 1, Valid: 2, Prefix: netip.MustParsePrefix("2001:db8:1:a0::/60")}
	b := wire.AppendIAPrefix6(nil, want)
	m, _ := wire.ParseDHCP6(append(make([]byte, wire.DHCP6FixedLen), b...))
	o := m.Options()
	if !o.Next() || o.Code != wire.Opt6IAPrefix {
		t.Fatalf("no option 26 in %x", b)
	}
	if got, ok := wire.ParseIAPrefix6(o.Data); !ok || got != want {
		t.Errorf("got %v %+v, want %+v", ok, got, want)
	}
	b[12] = 129
	if _, ok := wire.ParseIAPrefix6(b[4:]); ok {
		t.Error("accepted a prefix of 129 bits")
	}
}

func TestPDExclude(t *testing.T) {
	pfx := netip.MustParsePrefix
	for _, c := range []struct{ prefix, exclude, data string }{
		{"2001:db8:dead:bee0::/59", "2001:db8:dead:beef::/64", "40 78"}, // RFC 6603 §4.2 has the bits 01111
		{"2001:db8::/56", "2001:db8:0:1::/64", "40 01"},
		{"2001:db8::/48", "2001:db8:0:abcd::/64", "40 abcd"},
		{"2001:db8::/47", "2001:db8:1:abcd::/64", "40 d5e680"},
		{"2001:db8::/60", "2001:db8:0:8::/61", "3d 80"},
		{"2001:db8::/120", "2001:db8::ff/128", "80 ff"},
		{"2001:db8::/56", "2001:db8::/56", ""},
		{"2001:db8::/56", "2001:db9::/64", ""},
	} {
		b := wire.AppendPDExclude(nil, pfx(c.prefix), pfx(c.exclude))
		want := unhex(t, c.data)
		if len(want) > 0 {
			want = append([]byte{0, wire.Opt6PDExclude, 0, uint8(len(want))}, want...)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s without %s: %x, want %x", c.prefix, c.exclude, b, want)
			continue
		}
		if len(b) == 0 {
			continue
		}
		if got, ok := wire.ParsePDExclude(pfx(c.prefix), b[4:]); !ok || got != pfx(c.exclude) {
			t.Errorf("%s: %x is read as %s", c.prefix, b[4:], got)
		}
	}
	for _, data := range []string{"", "40", "3b 78", "3c 7800", "81 78", "40 7800"} {
		if got, ok := wire.ParsePDExclude(pfx("2001:db8:dead:bee0::/59"), unhex(t, data)); ok {
			t.Errorf("%s is read as %s", data, got)
		}
	}
}

func TestParseRA(t *testing.T) {
	pfx := netip.MustParsePrefix
	ra := wire.RA{HopLimit: 64, Flags: wire.RAManaged, Lifetime: 1800}
	want := wire.NDPrefix{Prefix: pfx("2001:db8:1::/64"), Flags: wire.PrefixAutonomous | wire.PrefixPreferPD, Valid: 14400, Preferred: 7200}
	b := wire.AppendNDPrefix(wire.AppendRA(nil, ra), want)
	at := len(b)
	b = wire.AppendPREF64(b, 1801, pfx("64:ff9b::/96"))
	b = wire.AppendNDPrefix(b, wire.NDPrefix{Prefix: pfx("10.0.0.0/8")})
	b = wire.AppendPREF64(b, 1800, pfx("64:ff9b::/95"))
	got, o, ok := wire.ParseRA(b)
	if !ok || got != ra || len(b) != at+16 {
		t.Fatalf("%v %+v, %d bytes", ok, got, len(b))
	}
	if p, ok := wire.ParseNDPrefix(next(&o)); !ok || p != want || o.Type != wire.OptNDPrefix {
		t.Errorf("%v %+v, want %+v", ok, p, want)
	}
	if life, p, ok := wire.ParsePREF64(next(&o)); !ok || life != 1808 || p != pfx("64:ff9b::/96") || o.Type != wire.OptNDPREF64 {
		t.Errorf("%v %d %s", ok, life, p)
	}
	if o.Next() || o.Malformed() {
		t.Error("there is more")
	}
	for bits, data := range map[int]string{96: "3800 0064ff9b0102030405060708", 32: "3805 0064ff9b0000000000000000", 56: "3802 0064ff9b0102030000000000"} {
		if b := wire.AppendPREF64(nil, 14336, pfx(fmt.Sprintf("64:ff9b:102:304:506:708::/%d", bits))); !bytes.Equal(b, append([]byte{38, 2}, unhex(t, data)...)) {
			t.Errorf("/%d: %x", bits, b)
		}
	}
	if b := wire.AppendPREF64(nil, 1<<31, pfx("64:ff9b::/96")); b[2] != 0xff || b[3] != 0xf8 {
		t.Errorf("the longest lifetime: %x", b[2:4])
	}
	for _, short := range [][]byte{b[:15], {133, 15: 0}, {134, 1, 15: 0}} {
		if _, _, ok := wire.ParseRA(short); ok {
			t.Errorf("%x is read", short)
		}
	}
}

// next is the data of the next option.
func next(o *wire.OptionsND) []byte { o.Next(); return o.Data }

func TestParseND(t *testing.T) {
	link := "0101 525400abcd01"
	ns := "87 00 0000 00000000 fe800000000000000000000000000001"
	for _, c := range []struct {
		name, hex string
		ok        bool
		source    mac.Addr
	}{
		{"rs", "85 00 0000 00000000", true, mac.Addr{}},
		{"rs with link", "85 00 0000 00000000" + link, true, guest},
		{"rs with unknown option", "85 00 0000 00000000 0e01 000000000000" + link, true, guest},
		{"rs with code 1", "85 01 0000 00000000", false, mac.Addr{}},
		{"rs too short", "85 00 0000 000000", false, mac.Addr{}},
		{"rs, option of length 0", "85 00 0000 00000000 0100 525400abcd01", false, mac.Addr{}},
		{"rs, option too long", "85 00 0000 00000000 0102 525400abcd01", false, mac.Addr{}},
		{"rs, link option of 14 bytes", "85 00 0000 00000000 0102 525400abcd01 0000000000000000", true, mac.Addr{}},
		{"ns", ns, true, mac.Addr{}},
		{"ns with link", ns + link, true, guest},
		{"ns for a group", "87 00 0000 00000000 ff020000000000000000000000000001", false, mac.Addr{}},
		{"ns too short", ns[:len(ns)-2], false, mac.Addr{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := unhex(t, c.hex)
			var source mac.Addr
			var ok bool
			if strings.HasPrefix(c.name, "rs") {
				var m wire.RS
				m, ok = wire.ParseRS(b)
				source = m.Source
			} else {
				var m wire.NS
				m, ok = wire.ParseNS(b)
				source = m.Source
				if ok && m.Target != gw6 {
					t.Errorf("target %s", m.Target)
				}
			}
			if ok != c.ok || ok && source != c.source {
				t.Errorf("ok %v, source %q; want %v, %q", ok, source, c.ok, c.source)
			}
		})
	}
}

func TestGroups(t *testing.T) {
	a := netip.MustParseAddr("2001:db8::1234:5678")
	if g := wire.SolicitedNode(a); g != netip.MustParseAddr("ff02::1:ff34:5678") {
		t.Errorf("solicited-node group %s", g)
	}
	if m := wire.MulticastMAC(wire.SolicitedNode(a)); m != mac.MustParse("33:33:ff:34:56:78") {
		t.Errorf("MAC %s", m)
	}
}
