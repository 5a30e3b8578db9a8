package responder_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// reply4 is a DHCPv4 reply as another implementation reads it.
type reply4 struct {
	*dhcpv4.DHCPv4
	mac     mac.Addr
	dst     netip.Addr
	options []uint8 // in the order sent
	length  int     // of the DHCP message
	packet  int     // of the IP packet
}

// ask4 sends a DHCPv4 message through l and reads the reply.
func ask4(t *testing.T, l *responder.Link, frame []byte, want responder.Verdict) reply4 {
	t.Helper()
	b, v := respond(l, frame, make([]byte, responder.MaxReply))
	if v != want || b == nil {
		t.Fatalf("verdict %s and %d bytes, want %s and a reply", v, len(b), want)
	}
	eth, b, _ := wire.ParseEther(b)
	checkSums(t, eth.Type, b)
	packet := len(b)
	h, b, _ := wire.ParseIPv4(b)
	u, b, _ := wire.ParseUDP(b)
	if h.Src != gateway4 || u != (wire.UDP{Src: 67, Dst: 68}) {
		t.Errorf("from %s, ports %+v", h.Src, u)
	}
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	r := reply4{DHCPv4: m, mac: eth.Dst, dst: h.Dst, length: len(b), packet: packet}
	// By hand: the other implementation forgets the order and joins doubles.
	for o := b[wire.DHCP4FixedLen:]; len(o) > 1 && o[0] != wire.Opt4End; o = o[2+o[1]:] {
		r.options = append(r.options, o[0])
	}
	return r
}

// parameters are the options in words.
func (r reply4) parameters() map[string]any {
	p := map[string]any{
		"type":   r.MessageType().String(),
		"server": r.ServerIdentifier().String(),
		"yiaddr": r.YourIPAddr.String(),
		"ciaddr": r.ClientIPAddr.String(),
		"siaddr": r.ServerIPAddr.String(),
		"op":     r.OpCode.String(),
		"mac":    r.mac.String(),
		"dst":    r.dst.String(),
	}
	put := func(name, value string) {
		if value != "" {
			p[name] = value
		}
	}
	ips := func(as []net.IP) string {
		var s []string
		for _, a := range as {
			s = append(s, a.String())
		}
		return strings.Join(s, " ")
	}
	seconds := func(code uint8) string {
		d := dhcpv4.GetIP // the option has four bytes, like an address
		if x := d(dhcpv4.GenericOptionCode(code), r.Options).To4(); x != nil {
			return (time.Duration(uint32(x[0])<<24|uint32(x[1])<<16|uint32(x[2])<<8|uint32(x[3])) * time.Second).String()
		}
		return ""
	}
	put("router", ips(r.Router()))
	put("dns", ips(r.DNS()))
	put("ntp", ips(r.NTPServers()))
	put("domain", r.DomainName())
	put("hostname", r.HostName())
	put("lease", seconds(51))
	put("t1", seconds(58))
	put("t2", seconds(59))
	if m := r.SubnetMask(); m != nil {
		put("mask", net.IP(m).String())
	}
	if s := r.DomainSearch(); s != nil {
		put("search", strings.Join(s.Labels, " "))
	}
	var routes []string
	for _, x := range r.ClasslessStaticRoute() {
		routes = append(routes, x.Dest.String()+" via "+x.Router.String())
	}
	put("routes", strings.Join(routes, ", "))
	if string(r.Options[121]) == string(r.Options[249]) && r.Options[249] != nil {
		p["249"] = "as 121"
	}
	if m := r.Options[26]; m != nil {
		p["mtu"] = int(m[0])<<8 | int(m[1])
	}
	put("message", r.Message())
	put("client-id", string(r.Options[61]))
	return p
}

func fullParameters() map[string]any {
	return map[string]any{
		"type": "OFFER", "op": "BootReply", "server": "169.254.0.1", "router": "169.254.0.1",
		"yiaddr": "203.0.113.42", "ciaddr": "0.0.0.0", "siaddr": "0.0.0.0", "mask": "255.255.255.255",
		"routes": "169.254.0.1/32 via 0.0.0.0, 10.20.0.0/16 via 169.254.0.1, 0.0.0.0/0 via 169.254.0.1",
		"dns":    "9.9.9.9 1.1.1.1", "ntp": "203.0.113.1", "domain": "example.org",
		"search": "example.org eng.example.org", "hostname": "web1", "mtu": 1500,
		"lease": "1h0m0s", "t1": "30m0s", "t2": "52m30s",
		"mac": guestMAC.String(), "dst": "203.0.113.42",
	}
}

func TestDHCP4Replies(t *testing.T) {
	l := mustCompile(t, fullNIC())
	id := "\xff\x01\x02\x03\x04\x00\x02client"
	toAll := map[string]any{"mac": "ff:ff:ff:ff:ff:ff", "dst": "255.255.255.255"}
	nak := map[string]any{
		"type": "NAK", "op": "BootReply", "server": "169.254.0.1",
		"yiaddr": "0.0.0.0", "ciaddr": "0.0.0.0", "siaddr": "0.0.0.0",
		"mac": "ff:ff:ff:ff:ff:ff", "dst": "255.255.255.255", "message": "not your address on this link",
	}
	inform := map[string]any{"type": "ACK", "yiaddr": "0.0.0.0", "lease": nil, "t1": nil, "t2": nil}
	for _, c := range []struct {
		message string
		base    map[string]any   // fullParameters when nil
		change  map[string]any   // nil: absent
		more    []map[string]any // further changes
		options []uint8          // order, when it matters
		flags   uint16
	}{
		{message: "discover", change: map[string]any{"client-id": id}, options: []uint8{53, 54, 51, 61, 1, 3, 121, 6, 15, 12, 26, 119, 42, 58, 59}},
		{message: "discover_broadcast", change: toAll, flags: 0x8000},
		{message: "discover_msft", change: map[string]any{"249": "as 121"}},
		{message: "discover_asks_249", change: map[string]any{"249": "as 121", "dns": nil, "ntp": nil, "domain": nil, "search": nil, "hostname": nil, "mtu": nil}, options: []uint8{53, 54, 51, 1, 3, 249, 121, 58, 59}},
		{message: "discover_preferences", change: map[string]any{"client-id": id, "domain": nil, "hostname": nil, "mtu": nil}, options: []uint8{53, 54, 51, 61, 1, 42, 6, 121, 3, 119, 58, 59}},
		{message: "request_selecting", change: map[string]any{"type": "ACK", "client-id": id}},
		{message: "request_selecting_wrong", base: nak, change: map[string]any{"client-id": id}, options: []uint8{53, 54, 56, 61}},
		{message: "request_reboot", change: map[string]any{"type": "ACK"}},
		{message: "request_reboot_wrong", base: nak, options: []uint8{53, 54, 56}},
		{message: "request_renew", change: map[string]any{"type": "ACK", "ciaddr": "203.0.113.42"}},
		{message: "request_renew_wrong", base: nak},
		{message: "request_rebind", change: map[string]any{"type": "ACK", "ciaddr": "203.0.113.42"}},
		{message: "request_rebind_wrong", base: nak},
		{message: "inform", change: inform, more: []map[string]any{{"ciaddr": "203.0.113.43", "dst": "203.0.113.43"}}},
		{message: "inform_without_ciaddr", change: inform, more: []map[string]any{toAll}},
	} {
		t.Run(c.message, func(t *testing.T) {
			m := find(t, dhcp4Messages(), c.message)
			r := ask4(t, l, m.frame, m.want)
			want := fullParameters()
			if c.base != nil {
				want = map[string]any{}
				for k, v := range c.base {
					want[k] = v
				}
			}
			for _, change := range append([]map[string]any{c.change}, c.more...) {
				for k, v := range change {
					if want[k] = v; v == nil {
						delete(want, k)
					}
				}
			}
			if d := cmp.Diff(want, r.parameters()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if c.options != nil {
				if d := cmp.Diff(c.options, r.options); d != "" {
					t.Errorf("options (-want +got):\n%s", d)
				}
			}
			if r.TransactionID != [4]byte{0x11, 0x22, 0x33, 0x44} || r.Flags != c.flags || r.ClientHWAddr.String() != guestMAC.String() {
				t.Errorf("xid %s, flags %#x, chaddr %s", r.TransactionID, r.Flags, r.ClientHWAddr)
			}
			if r.length < 300 || r.packet > 576 {
				t.Errorf("%d bytes, packet of %d", r.length, r.packet)
			}
			seen := map[uint8]bool{}
			for _, o := range r.options {
				if seen[o] {
					t.Errorf("option %d is there twice", o)
				}
				seen[o] = true
			}
		})
	}
}

func find(t testing.TB, ms []message, name string) message {
	t.Helper()
	for _, m := range ms {
		if m.name == name {
			return m
		}
	}
	t.Fatalf("no message %s", name)
	return message{}
}

// TestDHCP4Exchange has the messages made by another implementation as well.
func TestDHCP4Exchange(t *testing.T) {
	l := mustCompile(t, fullNIC())
	frame := func(m *dhcpv4.DHCPv4, err error, src, dst netip.Addr) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return udp4Frame(src, dst, wire.UDP{Src: 68, Dst: 67}, m.ToBytes())
	}
	m, err := dhcpv4.NewDiscovery(guestMAC[:])
	offer := ask4(t, l, frame(m, err, zero4, all4), responder.DHCP4Offer)
	m, err = dhcpv4.NewRequestFromOffer(offer.DHCPv4)
	ack := ask4(t, l, frame(m, err, zero4, all4), responder.DHCP4Ack)
	m, err = dhcpv4.NewRenewFromAck(ack.DHCPv4)
	ask4(t, l, frame(m, err, guest4, gateway4), responder.DHCP4AckRenew)
	ask4(t, l, frame(m, err, guest4, all4), responder.DHCP4AckRebind)
	m, err = dhcpv4.NewInform(guestMAC[:], guest4.AsSlice())
	ask4(t, l, frame(m, err, guest4, all4), responder.DHCP4AckInform)
	m, err = dhcpv4.NewReleaseFromACK(ack.DHCPv4)
	if _, v := respond(l, frame(m, err, guest4, gateway4), make([]byte, responder.MaxReply)); v != responder.DHCP4Release {
		t.Errorf("release: %s", v)
	}
}

// TestRenewToAnyMAC: after a migration the guest may know the gateway by the
// MAC that another host had.
func TestRenewToAnyMAC(t *testing.T) {
	f := find(t, dhcp4Messages(), "request_renew").frame
	copy(f, strangeMAC[:])
	ask4(t, mustCompile(t, fullNIC()), f, responder.DHCP4AckRenew)
}

func TestHostnameIsOneLabel(t *testing.T) {
	for name, want := range map[string]string{
		"web1.example.org":               "web1",
		"":                               "",
		"a b":                            "",
		"$(reboot)":                      "",
		"under_score":                    "",
		strings.Repeat("x", 70):          strings.Repeat("x", 63),
		strings.Repeat("x", 62) + "-yyy": strings.Repeat("x", 62),
	} {
		n := fullNIC()
		n.Hostname = name
		r := ask4(t, mustCompile(t, n), client4{kind: wire.DHCP4Discover}.frame(), responder.DHCP4Offer)
		if got := r.HostName(); got != want {
			t.Errorf("host name %q is sent as %q, want %q", name, got, want)
		}
	}
}

func TestDHCP4Minimal(t *testing.T) {
	r := ask4(t, mustCompile(t, responder.NIC{
		GuestMAC: guestMAC, GatewayMAC: gatewayMAC,
		V4: responder.V4{Addr: guest4, Gateway: gateway4, Lease: 600, Client: "routed"},
	}), client4{kind: wire.DHCP4Discover}.frame(), responder.DHCP4Offer)
	want := fullParameters()
	for _, k := range []string{"dns", "ntp", "domain", "search", "hostname"} {
		delete(want, k)
	}
	want["routes"] = "169.254.0.1/32 via 0.0.0.0, 0.0.0.0/0 via 169.254.0.1"
	want["lease"], want["t1"], want["t2"] = "10m0s", "5m0s", "8m45s"
	if d := cmp.Diff(want, r.parameters()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if r.length != 300 {
		t.Errorf("message of %d bytes, want it padded to 300", r.length)
	}
}

// TestOptionsInPartsAndOverloaded: RFC 3396 and option 52.
func TestOptionsInPartsAndOverloaded(t *testing.T) {
	l := mustCompile(t, fullNIC())
	payload := client4{options: opt4(wire.Opt4Overload, "\x03") + opt4(wire.Opt4ClientID, "one")}.payload()
	copy(payload[108:236], opt4(wire.Opt4MessageType, "\x01")+opt4(wire.Opt4ClientID, "two")+"\xff")
	copy(payload[44:108], opt4(wire.Opt4ClientID, "three")+opt4(wire.Opt4ParameterList, "\xf9")+"\xff")
	r := ask4(t, l, udp4Frame(zero4, all4, wire.UDP{Src: 68, Dst: 67}, payload), responder.DHCP4Offer)
	if got := string(r.Options[61]); got != "onetwothree" {
		t.Errorf("client-id %q", got)
	}
	if r.Options[249] == nil {
		t.Error("249 is asked for in sname and not sent")
	}
}
