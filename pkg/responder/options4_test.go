package responder_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// told4 is a DHCPv4 reply with its options, wherever in the message they stand.
type told4 struct {
	wire.DHCP4
	order   []uint8
	options map[uint8]string // parts of long ones are joined
	packet  int              // length of the IP packet
	dst     netip.Addr
	ports   wire.UDP
	file    string
}

// tell sends a client's message and reads the reply.
func tell(t *testing.T, l *responder.Link, g *responder.Guest, c client4) told4 {
	t.Helper()
	reply, v := l.Respond(g, epoch, c.frame(), make([]byte, responder.MaxReply))
	if reply == nil {
		t.Fatalf("no reply: %s", v)
	}
	return read4(t, reply)
}

func read4(t *testing.T, reply []byte) told4 {
	t.Helper()
	eth, b, _ := wire.ParseEther(reply)
	checkSums(t, eth.Type, b)
	r := told4{options: map[uint8]string{}, packet: len(b)}
	ip, b, _ := wire.ParseIPv4(b)
	udp, b, _ := wire.ParseUDP(b)
	m, ok := wire.ParseDHCP4(b)
	if !ok {
		t.Fatalf("not a DHCP message: %x", b)
	}
	r.DHCP4, r.dst, r.ports = m, ip.Dst, udp
	o := m.Options()
	for o.Next() {
		if _, again := r.options[o.Code]; !again {
			r.order = append(r.order, o.Code)
		}
		r.options[o.Code] += string(o.Data)
	}
	if o.Malformed() {
		t.Errorf("malformed options: %x", b)
	}
	if f := b[108:236]; f[0] >= ' ' && f[0] <= '~' {
		r.file = strings.TrimRight(string(f), "\x00")
	}
	return r
}

func list4(codes ...uint8) string { return opt4(wire.Opt4ParameterList, string(codes)) }

// TestProfiles: who asks for classless routes gets a /32, everybody else an
// ordinary prefix with the gateway in it.
func TestProfiles(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*responder.V4)
		options string
		want    string // mask router broadcast routes
	}{
		{"asks 121", nil, list4(1, 3, 28, 121), "/32 169.254.0.1 - 20a9fe000100000000 100a14a9fe0001 00a9fe0001"},
		{"asks 249", nil, list4(1, 3, 249), "/32 169.254.0.1 - 20a9fe000100000000 100a14a9fe0001 00a9fe0001"},
		{"asks neither", nil, list4(1, 3, 28), "/24 203.0.113.1 203.0.113.255 100a14cb007101 00cb007101"},
		{"no list", nil, "", "/24 203.0.113.1 203.0.113.255 100a14cb007101 00cb007101"},
		{"forced routed", func(v *responder.V4) { v.Client = "routed" }, list4(1, 3), "/32 169.254.0.1 - 20a9fe000100000000 100a14a9fe0001 00a9fe0001"},
		{"forced classic", func(v *responder.V4) { v.Client = "classic" }, list4(1, 3, 28, 121), "/24 203.0.113.1 203.0.113.255 100a14cb007101 00cb007101"},
		{"another prefix", func(v *responder.V4) { v.Classic = 29 }, list4(1, 3), "/29 203.0.113.41 - 100a14cb007129 00cb007129"},
		{"guest would be broadcast", func(v *responder.V4) { v.Addr, v.Classic = ip("203.0.113.47"), 29 }, list4(1, 3), "/27 203.0.113.33 - 100a14cb007121 00cb007121"},
		{"guest would be the network", func(v *responder.V4) { v.Addr = ip("203.0.113.0") }, list4(1, 3), "/23 203.0.112.1 - 100a14cb007001 00cb007001"},
		{"guest is the first", func(v *responder.V4) { v.Addr, v.Extra = ip("203.0.113.1"), []netip.Addr{ip("203.0.113.2")} }, list4(1, 3), "/24 203.0.113.3 - 100a14cb007103 00cb007103"},
		{"gateway in the prefix", func(v *responder.V4) { v.Gateway = ip("203.0.113.254") }, list4(1, 3), "/24 203.0.113.254 - 100a14cb0071fe 00cb0071fe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := fullNIC()
			n.V4.Client = ""
			if c.change != nil {
				c.change(&n.V4)
			}
			var g responder.Guest
			r := tell(t, mustCompile(t, n), &g, client4{kind: wire.DHCP4Discover, options: c.options})
			mask, bits := r.options[1], 0
			for _, b := range []byte(mask) {
				for ; b != 0; b <<= 1 {
					bits++
				}
			}
			router := netip.AddrFrom4([4]byte([]byte(r.options[3])))
			broadcast := "-"
			if b := r.options[28]; b != "" {
				broadcast = netip.AddrFrom4([4]byte([]byte(b))).String()
			}
			routes := fmt.Sprintf("%x", r.options[121])
			routes = strings.Replace(routes, "100a14", " 100a14", 1)
			routes = routes[:len(routes)-10] + " " + routes[len(routes)-10:]
			got := strings.Join(strings.Fields(fmt.Sprintf("/%d %s %s %s", bits, router, broadcast, routes)), " ")
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if want := map[bool]responder.Profile{true: responder.ProfileRouted, false: responder.ProfileClassic}[bits == 32]; g.Profile != want {
				t.Errorf("profile %q, want %q", g.Profile, want)
			}
		})
	}
}

// TestClassicARP: a guest that believes in its prefix is answered for all that
// is in it, and never for what is its own.
func TestClassicARP(t *testing.T) {
	n := fullNIC()
	n.V4.Client = ""
	l := mustCompile(t, n)
	var g responder.Guest
	out := make([]byte, responder.MaxReply)
	ask := func(target netip.Addr, sender netip.Addr) (string, responder.Verdict) {
		frame := ether(gatewayMAC, wire.EtherTypeARP, wire.AppendARP(nil, wire.ARP{Op: 1, SenderMAC: guestMAC, Sender: sender, Target: target}))
		b, v := l.Respond(&g, epoch, frame, out)
		if b == nil {
			return "", v
		}
		p, _ := wire.ParseARP(b[wire.EtherLen:])
		return fmt.Sprintf("%s is at %s, for %s", p.Sender, p.SenderMAC, p.Target), v
	}
	if s, v := ask(ip("203.0.113.1"), zero4); s != "" || v != responder.ARPOther {
		t.Errorf("before a lease: %q, %s", s, v)
	}
	// Configured already: the responder was started anew.
	if _, v := ask(ip("203.0.113.1"), guest4); v != responder.ARPProxy {
		t.Errorf("after a restart: %s", v)
	}
	tell(t, l, &g, client4{kind: wire.DHCP4Discover})
	for _, c := range []struct {
		target, sender string
		want           string
		verdict        responder.Verdict
	}{
		{"203.0.113.1", "203.0.113.42", "203.0.113.1 is at 02:73:6c:33:32:01, for 203.0.113.42", responder.ARPProxy},
		{"203.0.113.7", "203.0.113.42", "203.0.113.7 is at 02:73:6c:33:32:01, for 203.0.113.42", responder.ARPProxy},
		{"192.0.2.7", "203.0.113.42", "192.0.2.7 is at 02:73:6c:33:32:01, for 203.0.113.42", responder.ARPProxy},
		{"169.254.0.1", "203.0.113.42", "169.254.0.1 is at 02:73:6c:33:32:01, for 203.0.113.42", responder.ARPReply},
		{"203.0.113.42", "0.0.0.0", "", responder.ARPOwn},
		{"203.0.113.43", "203.0.113.42", "", responder.ARPOwn},
		{"169.254.7.7", "0.0.0.0", "", responder.ARPOther},
		{"255.255.255.255", "203.0.113.42", "", responder.ARPOther},
		{"224.0.0.1", "203.0.113.42", "", responder.ARPOther},
		{"0.0.0.0", "203.0.113.42", "", responder.ARPOther},
	} {
		if s, v := ask(ip(c.target), ip(c.sender)); s != c.want || v != c.verdict {
			t.Errorf("who has %s: %q, %s; want %q, %s", c.target, s, v, c.want, c.verdict)
		}
	}
	tell(t, l, &g, client4{kind: wire.DHCP4Discover, options: list4(121)})
	if s, v := ask(ip("203.0.113.1"), guest4); s != "" || v != responder.ARPOther {
		t.Errorf("after a routed lease: %q, %s", s, v)
	}
}

// TestDHCP4LittleRoom: when not everything fits, the least needed is left out,
// after the header's fields have been filled.
func TestDHCP4LittleRoom(t *testing.T) {
	n := fullNIC()
	for i := range 16 {
		n.V4.Routes = append(n.V4.Routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24))
	}
	n.Search = []string{strings.Repeat("a", 63) + ".example.org"}
	l := mustCompile(t, n)
	n.V4.Boots = []responder.Boot{{File: "x", Server: ip("203.0.113.5")}}
	booting := mustCompile(t, n)
	msft := opt4(wire.Opt4VendorClass, "MSFT 5.0")
	for _, c := range []struct {
		max, id  int
		link     *responder.Link
		want     []uint8 // sorted by place: options, file, sname
		overload string
		short    bool // routes without the extra ones
	}{
		{1500, 7, l, []uint8{53, 54, 51, 61, 1, 3, 121, 6, 15, 12, 26, 119, 42, 58, 59, 249}, "", false},
		{900, 7, l, []uint8{53, 54, 51, 61, 1, 3, 121, 6, 15, 12, 26, 119, 42, 58, 59, 249}, "", false},
		{0, 7, l, []uint8{53, 54, 51, 61, 1, 3, 121, 249, 6, 26, 15, 58, 59, 12, 42, 119}, "\x01", false},
		{10, 7, l, []uint8{53, 54, 51, 61, 1, 3, 121, 249, 6, 26, 15, 58, 59, 12, 42, 119}, "\x01", false},
		{576, 200, l, []uint8{53, 54, 51, 61, 1, 3, 121, 249, 6, 26, 15, 58, 59, 12, 119, 42}, "\x03", true},
		{576, 255, l, []uint8{53, 54, 51, 61, 1, 3, 121, 26, 249, 6, 15, 58, 59, 12, 42}, "\x03", true},
		{0, 7, booting, nil, "", false},
	} {
		options := msft + opt4(wire.Opt4ClientID, strings.Repeat("i", c.id))
		if c.max > 0 {
			options += opt4(wire.Opt4MaxMessage, string([]byte{byte(c.max >> 8), byte(c.max)}))
		}
		if c.link == booting {
			options += opt4(wire.Opt4Architecture, "\x00\x00")
		}
		var g responder.Guest
		r := tell(t, c.link, &g, client4{kind: wire.DHCP4Discover, options: options})
		name := fmt.Sprintf("maximum %d, client-id of %d", c.max, c.id)
		if most := max(576, c.max); r.packet > most {
			t.Errorf("%s: packet of %d", name, r.packet)
		}
		if len(r.options[61]) != c.id {
			t.Errorf("%s: it came back with %d", name, len(r.options[61]))
		}
		if c.link == booting {
			if r.file != "x" || r.options[1] == "" || r.options[121] == "" || r.options[67] != "x" {
				t.Errorf("%s: file %q, options %v", name, r.file, r.order)
			}
			continue
		}
		if short := len(r.options[121]) < 30; short != c.short {
			t.Errorf("%s: routes %x", name, r.options[121])
		}
		if d := cmp.Diff(c.want, r.order); d != "" {
			t.Errorf("%s: options (-want +got):\n%s", name, d)
		}
	}
	// The link may be narrower than the client.
	n.MTU = 576
	r := tell(t, mustCompile(t, n), &responder.Guest{}, client4{kind: wire.DHCP4Discover, options: msft + opt4(wire.Opt4MaxMessage, "\x05\xdc")})
	if r.packet > 576 {
		t.Errorf("MTU 576: packet of %d", r.packet)
	}
}

// TestOwnOptions: what the annotation adds is sent to who asks, or to all.
func TestOwnOptions(t *testing.T) {
	n := fullNIC()
	n.Portal = "https://portal.example.org/api"
	n.V4.V6Only = 1800
	long := strings.Repeat("v", 255)
	n.V4.Options = []responder.Option{
		{Code: 43, Data: []byte("vendor")},
		{Code: 150, Data: []byte("\xcb\x00\x71\x05"), Force: true},
		{Code: 6, Data: []byte("\x01\x02\x03\x04")},
		{Code: 224, Data: []byte(long)},
	}
	l := mustCompile(t, n)
	for _, c := range []struct {
		options string
		want    map[uint8]string // "" absent
	}{
		{list4(3), map[uint8]string{43: "", 150: "\xcb\x00\x71\x05", 6: "", 108: "", 114: "", 224: ""}},
		{list4(43, 6, 224) + opt4(57, "\x05\xdc"), map[uint8]string{43: "vendor", 150: "\xcb\x00\x71\x05", 6: "\x01\x02\x03\x04", 224: long}},
		{"", map[uint8]string{43: "", 150: "\xcb\x00\x71\x05", 6: "\x01\x02\x03\x04", 108: "", 114: ""}},
		{list4(108, 114), map[uint8]string{108: "\x00\x00\x07\x08", 114: n.Portal}},
		{list4(12, 81), map[uint8]string{12: "web1", 81: ""}},
		{opt4(81, "\x01\x00\x00old"), map[uint8]string{81: "\x08\xff\xffweb1.example.org"}},
		{opt4(81, "\x05\x00\x00\x03old\x00"), map[uint8]string{81: "\x0c\xff\xff\x04web1\x07example\x03org\x00"}},
		{opt4(81, "\x01"), map[uint8]string{81: ""}},
	} {
		r := tell(t, l, &responder.Guest{}, client4{kind: wire.DHCP4Discover, options: c.options})
		for code, want := range c.want {
			if got := r.options[code]; got != want {
				t.Errorf("asked with %q: option %d is %q, want %q", c.options, code, got, want)
			}
		}
	}
	n.V6.Addrs = nil
	if r := tell(t, mustCompile(t, n), &responder.Guest{}, client4{kind: wire.DHCP4Discover, options: list4(108)}); r.options[108] != "" {
		t.Error("a guest without IPv6 is told to do without IPv4")
	}
	n = fullNIC()
	n.Domain = ""
	if r := tell(t, mustCompile(t, n), &responder.Guest{}, client4{kind: wire.DHCP4Discover, options: opt4(81, "\x04\x00\x00")}); r.options[81] != "\x0c\xff\xff\x04web1" {
		t.Errorf("a partial name is %q", r.options[81])
	}
}

// TestOwnRelay: a relay agent in the guest that asks for the guest itself is
// answered at its port, also with a refusal (RFC 2131 §4.1, §4.3.2).
func TestOwnRelay(t *testing.T) {
	l := mustCompile(t, fullNIC())
	r := tell(t, l, &responder.Guest{}, client4{kind: wire.DHCP4Discover, m: wire.DHCP4{GIAddr: extra4, Hops: 1}})
	if r.dst != extra4 || r.ports != (wire.UDP{Src: 67, Dst: 67}) || r.GIAddr != extra4 || r.YIAddr != guest4 {
		t.Errorf("%+v", r)
	}
	r = tell(t, l, &responder.Guest{}, client4{kind: wire.DHCP4Request, m: wire.DHCP4{GIAddr: guest4}, options: opt4Addr(50, strange4)})
	if r.dst != guest4 || r.ports.Dst != 67 || r.options[53] != "\x06" || r.Flags != wire.DHCP4Broadcast {
		t.Errorf("%+v", r)
	}
}

// TestHold: a network may let a declined address rest.
func TestHold(t *testing.T) {
	n := fullNIC()
	n.V4.Hold = true
	l := mustCompile(t, n)
	var g responder.Guest
	out := make([]byte, responder.MaxReply)
	ours, wanted := opt4Addr(wire.Opt4ServerID, gateway4), opt4Addr(wire.Opt4RequestedIP, guest4)
	discover := client4{kind: wire.DHCP4Discover}
	renew := client4{kind: wire.DHCP4Request, m: wire.DHCP4{CIAddr: guest4}, src: guest4, dst: gateway4}
	for i, step := range []struct {
		after time.Duration
		c     client4
		want  responder.Verdict
	}{
		{0, discover, responder.DHCP4Offer},
		{0, client4{kind: wire.DHCP4Decline, options: ours + wanted}, responder.DHCP4Decline},
		{10 * time.Second, discover, responder.DHCP4Held},
		{10 * time.Second, client4{kind: wire.DHCP4Request, options: ours + wanted}, responder.DHCP4Held},
		{10 * time.Second, client4{kind: wire.DHCP4Request, options: wanted}, responder.DHCP4Held},
		{5*time.Minute - time.Nanosecond, discover, responder.DHCP4Held},
		{5 * time.Minute, discover, responder.DHCP4Offer},
		{5 * time.Minute, client4{kind: wire.DHCP4Decline, options: ours + wanted}, responder.DHCP4Decline},
		{5 * time.Minute, renew, responder.DHCP4AckRenew},
		{5 * time.Minute, discover, responder.DHCP4Offer},
	} {
		if _, v := l.Respond(&g, epoch.Add(step.after), step.c.frame(), out); v != step.want {
			t.Errorf("step %d: %s, want %s", i, v, step.want)
		}
	}
}

// TestNoAutoConfigure: a guest without an IPv4 address is told so when it asks
// (RFC 2563).
func TestNoAutoConfigure(t *testing.T) {
	n := fullNIC()
	n.V4.Addr, n.V4.Extra = netip.Addr{}, nil
	l := mustCompile(t, n)
	c := client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4AutoConfigure, "\x01") + opt4(wire.Opt4ClientID, "id")}
	r := tell(t, l, &responder.Guest{}, c)
	if r.options[53] != "\x02" || r.options[116] != "\x00" || r.options[61] != "id" || !r.YIAddr.IsUnspecified() || r.dst != all4 {
		t.Errorf("%+v", r)
	}
	c.options = opt4(wire.Opt4AutoConfigure, "\x00")
	if b, v := l.Respond(&responder.Guest{}, epoch, c.frame(), make([]byte, responder.MaxReply)); b != nil || v != responder.DHCP4NoAddress {
		t.Errorf("%s, %x", v, b)
	}
}

func TestVendorIsHarmless(t *testing.T) {
	var g responder.Guest
	vendor := "a\x1b[31m\"\\\n\xffz" + strings.Repeat("x", 100)
	tell(t, mustCompile(t, fullNIC()), &g, client4{kind: wire.DHCP4Discover, options: opt4(wire.Opt4VendorClass, vendor)})
	if got, want := g.Vendor(), "a.[31m....z"; !strings.HasPrefix(got, want) || len(got) > 42 {
		t.Errorf("%q", got)
	}
}

// TestBindingJSON: what is encoded by methods of its own comes back as it was, and
// is read as strictly as the rest.
func TestBindingJSON(t *testing.T) {
	n := relayNIC()
	n.V4.Boots = responder.Boots{{For: "ipxe", File: "x", Server: strange4, Once: true}}
	n.V4.Options = responder.Options{{Code: 43, Data: []byte("v"), Force: true}}
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	var got responder.NIC
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(n, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, text := range []string{`{"relay":{"servers":[]}}`, `{"v4":{"boots":[{"name":"x"}]}}`, `{"v4":{"options":[{"kode":1}]}}`} {
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s is read", text)
		}
	}
}
