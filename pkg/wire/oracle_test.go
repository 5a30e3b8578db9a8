package wire_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/mdlayher/ndp"

	"github.com/slash32/slash32/pkg/wire"
)

func TestNames(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	for _, c := range []struct {
		names []string
		bad   bool
	}{
		{names: nil},
		{names: []string{"example.org"}},
		{names: []string{"example.org."}},
		{names: []string{"eng.example.org", "mail.example.org", "example.org", "org", "eng.example.org"}},
		{names: []string{"Example.org", "www.example.ORG"}},
		{names: []string{label63 + "." + label63 + "." + label63 + "." + strings.Repeat("a", 61)}},
		{names: []string{label63 + "." + label63 + "." + label63 + "." + strings.Repeat("a", 62)}, bad: true},
		{names: []string{label63 + "a.org"}, bad: true},
		{names: []string{"a..b"}, bad: true},
		{names: []string{""}, bad: true},
		{names: []string{"."}, bad: true},
	} {
		plain, err := wire.AppendNames(nil, c.names...)
		packed, err2 := wire.AppendNamesCompressed(nil, c.names...)
		if (err != nil) != c.bad || (err2 != nil) != c.bad {
			t.Errorf("%q: errors %v and %v, want any: %v", c.names, err, err2, c.bad)
			continue
		}
		if c.bad {
			continue
		}
		var want []string
		for _, n := range c.names {
			want = append(want, strings.ToLower(strings.TrimSuffix(n, ".")))
		}
		for kind, b := range map[string][]byte{"plain": plain, "compressed": packed} {
			labels, err := rfc1035label.FromBytes(b)
			if err != nil {
				t.Errorf("%q %s: %v", c.names, kind, err)
				continue
			}
			var got []string
			for _, n := range labels.Labels {
				got = append(got, strings.ToLower(n))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%q %s (-want +got):\n%s", c.names, kind, d)
			}
		}
		if len(packed) > len(plain) {
			t.Errorf("%q: compression makes %d bytes of %d", c.names, len(packed), len(plain))
		}
	}
}

func TestAppendNA(t *testing.T) {
	b := wire.AppendNA(nil, wire.NARouter|wire.NASolicited|wire.NAOverride, gw6, gateway)
	got, err := ndp.ParseMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &ndp.NeighborAdvertisement{
		Router: true, Solicited: true, Override: true,
		TargetAddress: gw6,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: gateway[:]}},
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAppendRA(t *testing.T) {
	names, err := wire.AppendNames(nil, "example.org", "example.net")
	if err != nil {
		t.Fatal(err)
	}
	routes := []netip.Prefix{
		netip.MustParsePrefix("::/0"),
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("2001:db8:0:1::/64"),
		netip.MustParsePrefix("2001:db8::1/128"),
	}
	b := wire.AppendRA(nil, wire.RA{HopLimit: 64, Flags: wire.RAManaged | wire.RAOther, Lifetime: 1800})
	b = wire.AppendNDLink(b, wire.OptNDSourceLink, gateway)
	b = wire.AppendNDMTU(b, 1500)
	b = wire.AppendRDNSS(b, 1800, []netip.Addr{addr6, addr4, gw6})
	b = wire.AppendRDNSS(b, 1800, []netip.Addr{addr4})
	b = wire.AppendDNSSL(b, 1800, names)
	b = wire.AppendDNSSL(b, 1800, nil)
	for _, to := range routes {
		b = wire.AppendNDRoute(b, 1800, to)
	}
	b = wire.AppendNDRoute(b, 1800, netip.MustParsePrefix("10.0.0.0/8"))
	got, err := ndp.ParseMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, OtherConfiguration: true,
		RouterLifetime: 1800 * time.Second,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: gateway[:]},
			ndp.NewMTU(1500),
			&ndp.RecursiveDNSServer{Lifetime: 1800 * time.Second, Servers: []netip.Addr{addr6, gw6}},
			&ndp.DNSSearchList{Lifetime: 1800 * time.Second, DomainNames: []string{"example.org", "example.net"}},
		},
	}
	for _, to := range routes {
		want.Options = append(want.Options, &ndp.RouteInformation{
			PrefixLength: uint8(to.Bits()), RouteLifetime: 1800 * time.Second, Prefix: to.Addr(),
		})
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSetICMP6Checksum(t *testing.T) {
	m := &ndp.NeighborAdvertisement{TargetAddress: addr6}
	want, err := ndp.MarshalMessageChecksum(m, gw6, addr6)
	if err != nil {
		t.Fatal(err)
	}
	src, dst := gw6.As16(), addr6.As16()
	got := append([]byte(nil), want...)
	wire.SetICMP6Checksum(append(src[:], dst[:]...), got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
