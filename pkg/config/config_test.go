package config_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/slash32/slash32/pkg/config"
)

var byValue = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()}

// TestReference holds that the shipped file is valid, has every key, and says
// nothing but the defaults.
func TestReference(t *testing.T) {
	b, err := os.ReadFile("../../packaging/slash32.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, ps := config.Parse("slash32.yaml", b)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	if d := cmp.Diff(config.Default(), got, byValue); d != "" {
		t.Error(d)
	}
	for _, key := range []string{"uplink", "table", "gateway4", "gateway6", "dns", "search", "ntp", "mtu", "lease", "nat", "announce", "isolate", "conflict", "probe", "probe_wait", "ipv6_pool", "proxy_ndp", "host_services"} {
		if !strings.Contains(string(b), "\n    "+key+":") {
			t.Errorf("no key %s", key)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	ar := txtar.Parse([]byte(`
-- slash32.yaml --
networks:
  default:
    dns: [9.9.9.9]
    lease: 2h
  public:
    uplink: bond0
    table: customers
    gateway4: 172.16.0.1
    nat: none
launch: process
-- conf.d/20.yaml --
networks:
  public: {table: "90", mtu: 1400, search: [Example.org.], announce: false}
  third:
libvirt: qemu+unix:///system?socket=/run/x
-- conf.d/10.yaml --
networks:
  public: {table: 0x1, uplink: bond1, gateway6: fe80::5, ntp: 192.0.2.1, lease: 7d}
-- conf.d/.30.yaml.swp --
]]]
-- conf.d/.hidden.yaml --
]]]
-- iproute2/rt_tables --
# names
254	main
100	customers # ours
-- iproute2/rt_tables.d/x.conf --
0x1 internal
`))
	for _, f := range ar.Files {
		write(t, filepath.Join(dir, f.Name), f.Data)
	}
	r := config.Reader{IPRoute2: []string{filepath.Join(dir, "iproute2")}}
	got, ps := r.Load(dir)
	if len(ps) != 1 || !strings.Contains(ps[0].String(), `networks.public.table: "0x1" is not a routing table`) {
		t.Fatal(ps)
	}
	want := config.Default()
	def := want.Networks["default"]
	third, public := def, def
	def.DNS, def.Lease = []netip.Addr{netip.MustParseAddr("9.9.9.9")}, 2*time.Hour
	third.Name = "third"
	public = config.Network{
		Name: "public", Uplink: "bond1", Table: 90, Gateway4: netip.MustParseAddr("172.16.0.1"), Gateway6: netip.MustParseAddr("fe80::5"),
		Search: []string{"example.org"}, NTP: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, MTU: 1400, Lease: 7 * 24 * time.Hour,
		NAT: config.NATNone, Announce: false, Conflict: "refuse", ProbeWait: 500 * time.Millisecond, Client: "auto", Classic: 24, Decline: "offer",
	}
	want.Networks = map[string]config.Network{"default": def, "public": public, "third": third}
	want.Launch, want.LibvirtURI = "process", "qemu+unix:///system?socket=/run/x"
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}

	for name, want := range map[string]config.Table{"customers": 100, "internal": 1, "main": 254} {
		c, ps := r.Parse("f", []byte("networks: {default: {table: "+name+"}}"))
		if len(ps) > 0 || c.Networks["default"].Table != want {
			t.Errorf("%s: %d %v", name, c.Networks["default"].Table, ps)
		}
	}
}

func TestProbe(t *testing.T) {
	type probe struct {
		arp, icmp bool
		wait      time.Duration
		conflict  string
	}
	const none, refuse = 500 * time.Millisecond, "refuse"
	for text, want := range map[string]probe{
		"probe: none":                                   {false, false, none, refuse},
		"probe: arp":                                    {true, false, none, refuse},
		"probe: [icmp], probe_wait: 50ms":               {false, true, 50 * time.Millisecond, refuse},
		"probe: [arp, icmp], probe_wait: 3s":            {true, true, 3 * time.Second, refuse},
		"probe: [], probe_wait: 1500ms, conflict: warn": {false, false, 1500 * time.Millisecond, "warn"},
	} {
		c, ps := config.Parse("f", []byte("networks: {default: {"+text+"}}"))
		n := c.Networks["default"]
		if got := (probe{n.ProbeARP, n.ProbeICMP, n.ProbeWait, n.Conflict}); got != want || len(ps) > 0 {
			t.Errorf("%s: %+v %v", text, got, ps)
		}
	}
	for text, want := range map[string]string{
		"probe: [arp, ping]": `f:1: networks.default.probe: "ping" is not known. Fix: write [arp], [icmp], [arp, icmp] or none`,
		"probe: [arp, none]": `f:1: networks.default.probe: "none" is there with something else. Fix: write [arp], [icmp], [arp, icmp] or none`,
		"probe_wait: 49ms":   `f:1: networks.default.probe_wait: "49ms" is not from 50ms to 3s. Fix: write it like 500ms or 1s`,
		"probe_wait: 3001ms": `f:1: networks.default.probe_wait: "3001ms" is not from 50ms to 3s. Fix: write it like 500ms or 1s`,
		"probe_wait: 1":      `f:1: networks.default.probe_wait: "1" has no unit`,
	} {
		if _, ps := config.Parse("f", []byte("networks: {default: {"+text+"}}")); len(ps) != 1 || !strings.Contains(ps[0].String(), want) {
			t.Errorf("%s: %v, want %s", text, ps, want)
		}
	}
}

func TestLoadWithoutFiles(t *testing.T) {
	got, ps := config.Load(filepath.Join(t.TempDir(), "none"))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	if d := cmp.Diff(config.Default(), got, byValue); d != "" {
		t.Error(d)
	}
}

func TestLoadNamesWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "conf.d"), []byte("a file"))
	if err := os.Mkdir(filepath.Join(dir, "slash32.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, ps := config.Load(dir)
	if len(ps) != 2 {
		t.Fatal(ps)
	}
	for _, p := range ps {
		if p.Code != "E112" || !strings.HasPrefix(p.File, dir) {
			t.Error(p)
		}
	}
}

func TestGolden(t *testing.T) {
	file := "testdata/problems.txtar"
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := config.Reader{IPRoute2: []string{t.TempDir()}}
	for i := 0; i+1 < len(ar.Files); i += 2 {
		in, want := ar.Files[i], &ar.Files[i+1]
		_, ps := r.Parse("slash32.yaml", in.Data)
		got := ""
		for _, p := range ps {
			got += p.String() + "\n"
		}
		if os.Getenv("UPDATE") != "" {
			want.Data = []byte(got)
		} else if d := cmp.Diff(string(want.Data), got); d != "" {
			t.Errorf("%s:\n%s", in.Name, d)
		}
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDomainFile(t *testing.T) {
	dir := t.TempDir()
	const id = "4fb7d61c-7e0d-4e12-a887-108288c9695d"
	d := func(name string) string { return filepath.Join(dir, "domains.d", name+".yaml") }
	write(t, filepath.Join(dir, "secret.yaml"), []byte("ipv4: 192.0.2.1"))
	write(t, d("web1"), []byte("by name"))
	write(t, d("web2"), nil)

	for _, tc := range []struct{ name, uuid, path, text string }{
		{"web1", id, d("web1"), "by name"},
		{"web2", id, d("web2"), ""},
		{"web3", id, "", ""},
		{"../secret", id, "", ""},
		{"a/../web1", "", "", ""},
		{"", "", "", ""},
		{".", "..", "", ""},
	} {
		path, b, err := config.DomainFile(dir, tc.name, tc.uuid)
		if err != nil || path != tc.path || string(b) != tc.text || (b == nil) != (path == "") {
			t.Errorf("%q: %q %q %v", tc.name, path, b, err)
		}
	}
	write(t, d(id), []byte("by UUID"))
	if path, b, err := config.DomainFile(dir, "web1", id); err != nil || path != d(id) || string(b) != "by UUID" {
		t.Errorf("%q %q %v", path, b, err)
	}
	write(t, d("big"), make([]byte, 1<<20+1))
	if path, b, err := config.DomainFile(dir, "big", ""); err == nil || path != d("big") || b != nil {
		t.Errorf("%q %d bytes %v", path, len(b), err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func FuzzConfig(f *testing.F) {
	b, err := os.ReadFile("../../packaging/slash32.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{
		"", "networks:\n", "networks: {a: {table: 5, mtu: auto, lease: 90s, dns: [::1, 9.9.9.9]}}", "networks: {default: {gateway4: 0.0.0.0, gateway6: ff02::1, nat: snat to x}}",
		"forwarding: check\nlaunch: x\nlibvirt: a\n", "- a", "networks: []", "networks: {../..: {}}", "networks: {a: {isolate: true, announce: no, conflict: warn, search: a.}}",
	} {
		f.Add([]byte(s))
	}
	r := config.Reader{IPRoute2: []string{"/nonexistent"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ps := r.Parse("slash32.yaml", b)
		if len(ps) > 40 {
			t.Errorf("%d problems", len(ps))
		}
		for _, p := range ps {
			if s := p.String(); strings.ContainsAny(s, "\n\r\x1b") || p.What == "" || p.Fix == "" || p.File == "" {
				t.Errorf("message %q", s)
			}
		}
		if _, ok := c.Networks["default"]; !ok || len(c.Networks) > config.MaxNetworks {
			t.Errorf("%d networks", len(c.Networks))
		}
		for name, n := range c.Networks {
			if n.Name != name || len(n.Uplink) > 15 || strings.ContainsAny(n.Uplink, "/ \x00") || !n.Gateway4.Is4() || n.Gateway4.IsMulticast() || n.Gateway4.IsUnspecified() ||
				!n.Gateway6.IsLinkLocalUnicast() || n.Gateway6.Zone() != "" || n.Lease < config.MinLease || n.Lease > config.MaxLease ||
				n.Table == 0 || n.Table == 255 || (n.MTU != 0 && n.MTU < config.MinMTU) || n.NAT == "" || n.Conflict == "" {
				t.Errorf("%+v", n)
			}
		}
		if c.Forwarding == "" || c.Launch == "" || c.LibvirtURI == "" {
			t.Errorf("%+v", c)
		}
	})
}

// TestShare holds how the networks that ask on one interface divide what it gives.
func TestShare(t *testing.T) {
	c := config.Config{Networks: map[string]config.Network{}}
	for name, upstream := range map[string]string{"a": "eth0", "b": "eth1", "c": "eth0", "d": "eth0", "e": ""} {
		c.Networks[name] = config.Network{Name: name, Pool6: config.Pool6{Upstream: upstream}}
	}
	given := netip.MustParsePrefix("2001:db8:1:f00::/56")
	for _, x := range []struct{ network, given, want string }{
		{"a", "2001:db8:1:f00::/56", "2001:db8:1:f00::/58"},
		{"c", "2001:db8:1:f00::/56", "2001:db8:1:f40::/58"},
		{"d", "2001:db8:1:f00::/56", "2001:db8:1:f80::/58"},
		{"b", "2001:db8:1:f00::/56", "2001:db8:1:f00::/56"},
		{"d", "2001:db8:8000::/33", "2001:db8:c000::/35"},
		{"d", "2001:db8:1:f00::/62", "2001:db8:1:f02::/64"},
		{"d", "2001:db8:1:f00::/63", ""},
		{"e", "2001:db8:1:f00::/56", ""},
		{"x", "2001:db8:1:f00::/56", ""},
	} {
		got, ok := c.Share(x.network, netip.MustParsePrefix(x.given))
		if ok != (x.want != "") || ok && got.String() != x.want {
			t.Errorf("%s of %s: %v %v, want %q", x.network, x.given, got, ok, x.want)
		}
	}
	if a, _ := c.Share("a", given); !given.Contains(a.Addr()) {
		t.Error(a)
	}
}

func TestCoexist(t *testing.T) {
	c, ps := config.Parse("f", []byte("coexist: {docker: manage, firewalld: ignore}\n"))
	if want := (config.Coexist{Docker: config.Manage, UFW: config.Warn, Firewalld: config.Ignore}); len(ps) > 0 || c.Coexist != want {
		t.Errorf("%+v, %v", c.Coexist, ps)
	}
	for text, want := range map[string]string{
		"coexist: manage\n":           "coexist holds a value where keys are expected",
		"coexist: {dokcer: manage}\n": `unknown key "dokcer" in coexist. Fix: did you mean "docker"?`,
		"coexist: {ufw: managed}\n":   `coexist.ufw: "managed" is not known. Fix: did you mean "manage"?`,
	} {
		if _, ps := config.Parse("f", []byte(text)); len(ps) != 1 || !strings.Contains(ps.Error(), want) {
			t.Errorf("%s: %v", text, ps)
		}
	}
}
