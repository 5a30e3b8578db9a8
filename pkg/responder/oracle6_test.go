package responder_test

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/mdlayher/ndp"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// reply6 takes a reply apart down to the IPv6 payload.
func reply6(t *testing.T, b []byte) (eth wire.Ether, h wire.IPv6, payload []byte) {
	t.Helper()
	eth, b, _ = wire.ParseEther(b)
	checkSums(t, eth.Type, b)
	h, payload, ok := wire.ParseIPv6(b)
	if !ok || h.Src != gateway6 {
		t.Fatalf("not from the gateway: %+v", h)
	}
	return eth, h, payload
}

func askND(t *testing.T, l *responder.Link, frame []byte, want responder.Verdict) (to mac.Addr, dst netip.Addr, m ndp.Message) {
	t.Helper()
	b, v := respond(l, frame, make([]byte, responder.MaxReply))
	if v != want || b == nil {
		t.Fatalf("verdict %s and %d bytes, want %s and a reply", v, len(b), want)
	}
	return readND(t, b)
}

func readND(t *testing.T, b []byte) (to mac.Addr, dst netip.Addr, m ndp.Message) {
	t.Helper()
	eth, h, p := reply6(t, b)
	if h.HopLimit != 255 || h.Proto != wire.ProtoICMPv6 {
		t.Errorf("hop limit %d, protocol %d", h.HopLimit, h.Proto)
	}
	m, err := ndp.ParseMessage(p)
	if err != nil {
		t.Fatal(err)
	}
	return eth.Dst, h.Dst, m
}

func TestNeighbourAdvertisement(t *testing.T) {
	l := mustCompile(t, fullNIC())
	allNodes, allMAC := ip("ff02::1"), mac.MustParse("33:33:00:00:00:01")
	for _, c := range []struct {
		message   string
		dst       netip.Addr
		mac       mac.Addr
		solicited bool
	}{
		{"ns_gateway", guestLL, guestMAC, true},
		{"ns_gateway_global_source", guest6, guestMAC, true},
		{"ns_gateway_unicast", guestLL, guestMAC, true},
		{"ns_dad_gateway", allNodes, allMAC, false},
	} {
		m := find(t, ndMessages(), c.message)
		to, dst, got := askND(t, l, m.frame, m.want)
		want := &ndp.NeighborAdvertisement{
			Router: true, Solicited: c.solicited, Override: true, TargetAddress: gateway6,
			Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: gatewayMAC[:]}},
		}
		if d := cmp.Diff(ndp.Message(want), got, compareAddrs); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.message, d)
		}
		if to != c.mac || dst != c.dst {
			t.Errorf("%s: to %s %s, want %s %s", c.message, to, dst, c.mac, c.dst)
		}
	}
}

func fullRA() *ndp.RouterAdvertisement {
	const life = 1800 * time.Second
	return &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, OtherConfiguration: true, RouterLifetime: life,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: gatewayMAC[:]},
			ndp.NewMTU(1500),
			&ndp.RecursiveDNSServer{Lifetime: life, Servers: []netip.Addr{ip("2620:fe::fe")}},
			&ndp.DNSSearchList{Lifetime: life, DomainNames: []string{"example.org", "eng.example.org"}},
			&ndp.RouteInformation{PrefixLength: 48, RouteLifetime: life, Prefix: ip("2001:db8:aa::")},
		},
	}
}

func TestRouterAdvertisement(t *testing.T) {
	l := mustCompile(t, fullNIC())
	allNodes, allMAC := ip("ff02::1"), mac.MustParse("33:33:00:00:00:01")
	check := func(name string, to, wantTo mac.Addr, dst, wantDst netip.Addr, got ndp.Message) {
		t.Helper()
		if d := cmp.Diff(ndp.Message(fullRA()), got, compareAddrs); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if to != wantTo || dst != wantDst {
			t.Errorf("%s: to %s %s, want %s %s", name, to, dst, wantTo, wantDst)
		}
	}
	to, dst, got := askND(t, l, find(t, ndMessages(), "rs").frame, responder.RAReply)
	check("rs", to, guestMAC, dst, guestLL, got)
	to, dst, got = askND(t, l, find(t, ndMessages(), "rs_unspecified").frame, responder.RAMulticast)
	check("rs_unspecified", to, allMAC, dst, allNodes, got)
	to, dst, got = readND(t, l.Unsolicited(epoch, make([]byte, responder.MaxReply)))
	check("unsolicited", to, allMAC, dst, allNodes, got)
}

func TestRouterAdvertisementFollowsBinding(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(n *responder.NIC)
		want   func(ra *ndp.RouterAdvertisement)
	}{
		{
			"no addresses", func(n *responder.NIC) { n.V6.Addrs = nil },
			func(ra *ndp.RouterAdvertisement) { ra.ManagedConfiguration = false },
		},
		{
			"no default router: the rest still lives", func(n *responder.NIC) { n.V6.RouterLifetime = 0 },
			func(ra *ndp.RouterAdvertisement) { ra.RouterLifetime = 0 },
		},
		{
			"domain without search", func(n *responder.NIC) { n.Search = nil },
			func(ra *ndp.RouterAdvertisement) {
				ra.Options[3] = &ndp.DNSSearchList{Lifetime: 1800 * time.Second, DomainNames: []string{"example.org"}}
			},
		},
		{
			"nothing but the link", func(n *responder.NIC) {
				n.Search, n.Domain, n.V6.DNS, n.V6.Routes, n.MTU = nil, "", nil, nil, 9000
			},
			func(ra *ndp.RouterAdvertisement) { ra.Options = []ndp.Option{ra.Options[0], ndp.NewMTU(9000)} },
		},
		{
			"what does not fit is left out", func(n *responder.NIC) {
				n.MTU = 1280
				n.Search = nil
				n.Domain = ""
				n.V6.DNS = make([]netip.Addr, 100)
				for i := range n.V6.DNS {
					n.V6.DNS[i] = ip("2620:fe::fe")
				}
			},
			func(ra *ndp.RouterAdvertisement) {
				ra.Options = []ndp.Option{ra.Options[0], ndp.NewMTU(1280), ra.Options[4]}
			},
		},
	} {
		n, want := fullNIC(), fullRA()
		c.change(&n)
		c.want(want)
		_, _, got := readND(t, mustCompile(t, n).Unsolicited(epoch, make([]byte, responder.MaxReply)))
		if d := cmp.Diff(ndp.Message(want), got, compareAddrs); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func ask6(t *testing.T, l *responder.Link, frame []byte, want responder.Verdict) *dhcpv6.Message {
	t.Helper()
	b, v := respond(l, frame, make([]byte, responder.MaxReply))
	if v != want || b == nil {
		t.Fatalf("verdict %s and %d bytes, want %s and a reply", v, len(b), want)
	}
	eth, h, b := reply6(t, b)
	u, b, _ := wire.ParseUDP(b)
	if eth.Dst != guestMAC || h.Dst != guestLL || u != (wire.UDP{Src: 547, Dst: 546}) {
		t.Errorf("to %s %s, ports %+v", eth.Dst, h.Dst, u)
	}
	return parse6(t, b)
}

func parse6(t *testing.T, b []byte) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// lines6 are a reply's options in words.
func lines6(m *dhcpv6.Message) []string {
	lines := []string{m.MessageType.String()}
	add := func(format string, a ...any) { lines = append(lines, fmt.Sprintf(format, a...)) }
	addrs := func(name string, as []net.IP) {
		for _, a := range as {
			add("%s %s", name, a)
		}
	}
	status := func(s *dhcpv6.OptStatusCode) string {
		if s == nil {
			return ""
		}
		return " " + s.StatusCode.String()
	}
	for _, o := range m.Options.Options {
		switch o := o.(type) {
		case *dhcpv6.OptIANA:
			add("IA_NA %d T1 %d T2 %d%s", o.IaId[3], o.T1/time.Second, o.T2/time.Second, status(o.Options.Status()))
			for _, a := range o.Options.Addresses() {
				add("  %s %d %d", a.IPv6Addr, a.PreferredLifetime/time.Second, a.ValidLifetime/time.Second)
			}
		case *dhcpv6.OptIATA:
			add("IA_TA %d%s", o.IaId[3], status(o.Options.Status()))
		case *dhcpv6.OptIAPD:
			add("IA_PD %d T1 %d T2 %d%s", o.IaId[3], o.T1/time.Second, o.T2/time.Second, status(o.Options.Status()))
			for _, p := range o.Options.Prefixes() {
				without := ""
				for _, o := range p.Options.Get(wire.Opt6PDExclude) {
					n, _ := p.Prefix.Mask.Size()
					a, _ := netip.AddrFromSlice(p.Prefix.IP)
					x, _ := wire.ParsePDExclude(netip.PrefixFrom(a, n), o.ToBytes())
					without = " without " + x.String()
				}
				add("  %s %d %d%s", p.Prefix, p.PreferredLifetime/time.Second, p.ValidLifetime/time.Second, without)
			}
		case *dhcpv6.OptStatusCode:
			add("status%s", status(o))
		default:
			switch o.Code() {
			case dhcpv6.OptionPreference:
				add("preference %d", m.Options.Preference())
			case dhcpv6.OptionRapidCommit:
				add("rapid commit")
			case dhcpv6.OptionInformationRefreshTime:
				add("refresh %d", m.Options.InformationRefreshTime(0)/time.Second)
			case dhcpv6.OptionDNSRecursiveNameServer:
				addrs("dns", m.Options.DNS())
			case dhcpv6.OptionDomainSearchList:
				add("search %s", strings.Join(m.Options.DomainSearchList().Labels, " "))
			case dhcpv6.OptionNTPServer:
				addrs("ntp", m.Options.NTPServers())
			case dhcpv6.OptionBootfileURL:
				add("boot %s", m.Options.BootFileURL())
			case dhcpv6.OptionBootfileParam:
				add("params %q", m.Options.BootFileParam())
			case dhcpv6.OptionVendorClass:
				add("class %q", o.(*dhcpv6.OptVendorClass).Data)
			case dhcpv6.OptionAFTRName:
				name, err := rfc1035label.FromBytes(o.ToBytes())
				add("aftr %v %v", name, err)
			case dhcpv6.OptionSNTPServerList:
				add("sntp %x", o.ToBytes())
			}
		}
	}
	return lines
}

func TestDHCP6Replies(t *testing.T) {
	l := mustCompile(t, fullNIC())
	lease := "IA_NA 7 T1 1800 T2 2880\n  2001:db8:1::42 3600 7200\n  2001:db8:1::43 3600 7200\n"
	dns := "dns 2620:fe::fe\nsearch example.org eng.example.org"
	ntp := "\nntp 2001:db8::123\nsntp 20010db8000000000000000000000123"
	for _, c := range []struct{ message, want string }{
		{"solicit", "ADVERTISE\npreference 255\n" + lease + dns + ntp},
		{"solicit_rapid", "REPLY\nrapid commit\n" + lease + dns},
		{"solicit_rapid_pd_only", "ADVERTISE\npreference 255\nIA_PD 8 T1 0 T2 0 NoPrefixAvail\n" + dns},
		{"solicit_several", "ADVERTISE\npreference 255\nIA_PD 8 T1 0 T2 0 NoPrefixAvail\n" + lease +
			"IA_NA 9 T1 0 T2 0 NoAddrsAvail\nIA_TA 10 NoAddrsAvail\n" + dns},
		{"request", "REPLY\n" + lease + dns + ntp},
		{"request_foreign", "REPLY\nIA_NA 7 T1 0 T2 0 NotOnLink\n" + dns},
		{"request_unicast", "REPLY\nstatus UseMulticast"},
		{"confirm", "REPLY\nstatus Success"},
		{"confirm_foreign", "REPLY\nstatus NotOnLink"},
		{"renew", "REPLY\n" + lease + dns},
		{"renew_foreign", "REPLY\n" + lease + "  2001:db8:bad::1 0 0\nIA_PD 8 T1 0 T2 0\n  2001:db8:bad::/56 0 0\n" + dns},
		{"rebind", "REPLY\n" + lease + "IA_PD 8 T1 0 T2 0 NoPrefixAvail\n" + dns},
		{"release6", "REPLY\nstatus Success"},
		{"release_foreign", "REPLY\nstatus Success\nIA_NA 7 T1 0 T2 0 NoBinding\nIA_PD 8 T1 0 T2 0 NoBinding"},
		{"decline6", "REPLY\nstatus Success"},
		{"information_request", "REPLY\nrefresh 1800\n" + dns + ntp},
		{"information_request_anonymous", "REPLY\nrefresh 1800\n" + dns},
	} {
		t.Run(c.message, func(t *testing.T) {
			m := find(t, dhcp6Messages(), c.message)
			r := ask6(t, l, m.frame, m.want)
			if d := cmp.Diff(strings.Split(c.want, "\n"), lines6(r)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if r.TransactionID != [3]byte{0x11, 0x22, 0x33} {
				t.Errorf("transaction %s", r.TransactionID)
			}
			if s := r.Options.ServerID(); s == nil || string(s.ToBytes()) != marks.ServerDUID {
				t.Errorf("server %v", s)
			}
			s := r.Options.ClientID()
			if anonymous := strings.HasSuffix(c.message, "anonymous"); anonymous != (s == nil) || s != nil && string(s.ToBytes()) != clientDUID {
				t.Errorf("client %v", s)
			}
		})
	}
}

// TestDHCP6WithoutAddresses is what stateless DHCPv6 looks like, and a guest
// whose addresses were taken away.
func TestDHCP6WithoutAddresses(t *testing.T) {
	n := fullNIC()
	n.V6.Addrs, n.V6.DNS, n.Search, n.Domain, n.V6.Preferred = nil, nil, nil, "", 0
	l := mustCompile(t, n)
	for _, c := range []struct {
		message string
		verdict responder.Verdict
		want    string
	}{
		{"solicit_rapid", responder.DHCP6Advertise, "ADVERTISE\npreference 255\nIA_NA 7 T1 0 T2 0 NoAddrsAvail"},
		{"request", responder.DHCP6Request, "REPLY\nIA_NA 7 T1 0 T2 0 NoAddrsAvail\nntp 2001:db8::123\nsntp 20010db8000000000000000000000123"},
		{"renew", responder.DHCP6Renew, "REPLY\nIA_NA 7 T1 0 T2 0\n  2001:db8:1::42 0 0\n  2001:db8:1::43 0 0"},
		{"confirm", responder.DHCP6NotOnLink, "REPLY\nstatus NotOnLink"},
		{"information_request_anonymous", responder.DHCP6Information, "REPLY\nrefresh 600"},
	} {
		r := ask6(t, l, find(t, dhcp6Messages(), c.message).frame, c.verdict)
		if d := cmp.Diff(strings.Split(c.want, "\n"), lines6(r)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.message, d)
		}
	}
}

func TestDHCP6InfiniteLifetime(t *testing.T) {
	n := fullNIC()
	n.V6.Preferred, n.V6.Valid = math.MaxUint32, math.MaxUint32
	r := ask6(t, mustCompile(t, n), find(t, dhcp6Messages(), "solicit").frame, responder.DHCP6Advertise)
	if ia := r.Options.OneIANA(); ia.T1 != math.MaxUint32*time.Second || ia.T2 != ia.T1 {
		t.Errorf("T1 %s, T2 %s, want them infinite as well", ia.T1, ia.T2)
	}
}

// TestDHCP6Exchange has the messages made by another implementation as well.
func TestDHCP6Exchange(t *testing.T) {
	l := mustCompile(t, fullNIC())
	send := func(m *dhcpv6.Message, err error, want responder.Verdict) *dhcpv6.Message {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		b := m.ToBytes()
		b = append(wire.AppendUDP(nil, wire.UDP{Src: 546, Dst: 547}, len(b)), b...)
		return ask6(t, l, ip6Frame(guestLL, agents6, wire.ProtoUDP, 1, b), want)
	}
	m, err := dhcpv6.NewSolicit(guestMAC[:])
	advertise := send(m, err, responder.DHCP6Advertise)
	m, err = dhcpv6.NewRequestFromAdvertise(advertise)
	reply := send(m, err, responder.DHCP6Request)
	if a := reply.Options.OneIANA().Options.OneAddress(); a == nil || a.IPv6Addr.String() != guest6.String() {
		t.Errorf("the first address is %v, want %s", a, guest6)
	}
	m.MessageType = dhcpv6.MessageTypeRenew
	send(m, nil, responder.DHCP6Renew)
}

// TestDHCP6ManyIAs: a message may ask for more than a reply can hold.
func TestDHCP6ManyIAs(t *testing.T) {
	n := fullNIC()
	n.MTU = 1280
	n.V6.Addrs = nil
	for i := range 60 {
		n.V6.Addrs = append(n.V6.Addrs, netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i + 1)}))
	}
	l := mustCompile(t, n)
	id := opt6(wire.Opt6ClientID, strings.Repeat("d", 130))
	ias := strings.Repeat(ia6(wire.Opt6IAPD, 1), 8)
	var foreign string
	for i := range 20 {
		foreign += addr6(netip.AddrFrom16([16]byte{0x20, 2, 15: byte(i)}))
	}
	for name, options := range map[string]string{
		"address last":  id + ias[:len(ias)/4] + ia6(wire.Opt6IANA, 1),
		"address first": id + ia6(wire.Opt6IANA, 1) + ias,
		"many foreign":  id + ia6(wire.Opt6IANA, 1, foreign) + ias,
	} {
		kind, want := uint8(wire.DHCP6Solicit), responder.DHCP6Advertise
		if name == "many foreign" {
			kind, want = wire.DHCP6Rebind, responder.DHCP6Rebind
		}
		f := client6{kind: kind, options: options}.frame()
		b, v := respond(l, f, make([]byte, responder.MaxReply))
		checkReply(t, l, n, f, b, v)
		r := ask6(t, l, f, want)
		if ia := r.Options.OneIANA(); ia == nil || len(ia.Options.Addresses()) < 24 {
			t.Errorf("%s: %v", name, lines6(r))
		}
	}
}
