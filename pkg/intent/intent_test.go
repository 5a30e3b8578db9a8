package intent_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

const yaml = `
networks:
  default: {dns: [192.0.2.53], search: [default.example]}
  public: {uplink: bond0, table: 90, gateway4: 172.16.0.1, nat: none, lease: 2h, mtu: 1450, ntp: [192.0.2.123]}
`

func configuration(t testing.TB) config.Config {
	t.Helper()
	c, ps := config.Parse("slash32.yaml", []byte(yaml))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	return c
}

func derive(t *testing.T, xml string) (intent.VM, problem.List) {
	t.Helper()
	d, ps := annotation.Parse([]byte(xml))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	return intent.Derive(d, configuration(t))
}

const head = `<domain type='kvm'><name>Web_1.prod</name><uuid>4fb7d61c-7e0d-4e12-a887-108288c9695d</uuid><metadata>`

func nic(n, bridge, more string) string {
	return "<interface type='bridge'><mac address='52:54:00:ab:cd:0" + n + "'/><source bridge='" + bridge + "'/>" + more + "</interface>"
}

func TestDeriveFillsDefaults(t *testing.T) {
	got, ps := derive(t, head+`<network xmlns="urn:slash32:domain:1" ipv4="203.0.113.42 203.0.113.43" ipv6="2001:db8::42"/>
</metadata><devices>`+nic("1", "s32-web1", "")+nic("2", "br0", "")+`</devices></domain>`)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	a := netip.MustParseAddr
	c := configuration(t)
	want := intent.VM{
		UUID: uuid.MustParse("4fb7d61c-7e0d-4e12-a887-108288c9695d"), Name: "Web_1.prod", Hostname: "web-1-prod",
		NICs: []intent.NIC{{
			MAC: mac.MustParse("52:54:00:ab:cd:01"), Bridge: "s32-web1", Network: c.Networks["default"], Line: 1,
			Addrs4: []netip.Addr{a("203.0.113.42"), a("203.0.113.43")}, Addrs6: []netip.Addr{a("2001:db8::42")},
			DNS: []netip.Addr{a("192.0.2.53")}, Search: []string{"default.example"}, Lease: time.Hour, NAT: config.NATPrivate, Client: "auto",
			Lines: map[netip.Addr]int{a("203.0.113.42"): 1, a("203.0.113.43"): 1, a("2001:db8::42"): 1},
		}},
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
}

func TestDeriveOverridesAndMatches(t *testing.T) {
	// The second interface is matched by MAC to the first NIC, the first one by
	// order to what is left, which is the third NIC: the second is claimed, too.
	got, ps := derive(t, head+`<network xmlns="urn:slash32:domain:1" hostname="x" domain="d.example">
<interface network="public"><address ip="203.0.113.1"/></interface>
<interface mac="52:54:00:ab:cd:01" mtu="1300"><address ip="203.0.113.2"/><dns server="9.9.9.9"/><search domain="a.example"/><ntp server="192.0.2.1"/><route to="10.0.0.0/8"/><nat mode="none"/></interface>
<interface mac="52:54:00:ab:cd:02"><address ip="203.0.113.3"/><nat/></interface>
</network></metadata><devices>`+nic("1", "b1", "<mtu size='1400'/>")+nic("2", "b2", "<mtu size='1400'/>")+nic("3", "b3", "<mtu size='1400'/>")+`</devices></domain>`)
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	if got.Hostname != "x" || got.Domain != "d.example" || len(got.NICs) != 3 {
		t.Fatalf("%+v", got)
	}
	a := netip.MustParseAddr
	c := configuration(t)
	want := []intent.NIC{
		{MAC: mac.MustParse("52:54:00:ab:cd:01"), Bridge: "b1", Network: c.Networks["default"], MTU: 1300, Addrs4: []netip.Addr{a("203.0.113.2")}, DNS: []netip.Addr{a("9.9.9.9")},
			Search: []string{"a.example"}, NTP: []netip.Addr{a("192.0.2.1")}, Routes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Lease: time.Hour, NAT: config.NATNone, Client: "auto"},
		{MAC: mac.MustParse("52:54:00:ab:cd:02"), Bridge: "b2", Network: c.Networks["default"], MTU: 1400, Addrs4: []netip.Addr{a("203.0.113.3")}, DNS: []netip.Addr{a("192.0.2.53")},
			Search: []string{"default.example"}, Lease: time.Hour, NAT: config.NATAll, Client: "auto"},
		{MAC: mac.MustParse("52:54:00:ab:cd:03"), Bridge: "b3", Network: c.Networks["public"], MTU: 1400, Addrs4: []netip.Addr{a("203.0.113.1")},
			NTP: []netip.Addr{a("192.0.2.123")}, Lease: 2 * time.Hour, NAT: config.NATNone, Client: "auto"},
	}
	if d := cmp.Diff(want, got.NICs, byValue, cmpopts.IgnoreFields(intent.NIC{}, "Line", "Lines")); d != "" {
		t.Error(d)
	}
}

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"web1": "web1", "Web_1": "web-1", "a.b c": "a-b-c", "-x-": "x", "...": "vm-4fb7d61c", "käse": "k-se",
		strings.Repeat("a", 62) + "_b": strings.Repeat("a", 62), strings.Repeat("x", 100): strings.Repeat("x", 63),
	} {
		vm, _ := intent.Derive(annotation.Domain{UUID: uuid.MustParse("4fb7d61c-7e0d-4e12-a887-108288c9695d"), Name: name, Network: &annotation.Network{}}, config.Default())
		if vm.Hostname != want {
			t.Errorf("%q: %q, want %q", name, vm.Hostname, want)
		}
	}
}

func TestDeriveIgnoresWhatIsNotAnnotated(t *testing.T) {
	vm, ps := intent.Derive(annotation.Domain{Name: "x", NICs: []annotation.NIC{{Type: "user"}}}, config.Default())
	if len(ps) > 0 || len(vm.NICs) > 0 {
		t.Error(vm, ps)
	}
}

// TestGolden compares messages: each archive has input.xml (and input.yaml
// when the annotation is in a file), a configuration if it matters, the XML of
// other VMs, and the problems.
// UPDATE=1 writes what came out.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		c := configuration(t)
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var d annotation.Domain
			var ps problem.List
			var others []intent.VM
			for i, f := range ar.Files {
				switch {
				case f.Name == "input.xml":
					d, ps = annotation.Parse(f.Data)
				case f.Name == "slash32.yaml":
					if c, ps = config.Parse(f.Name, f.Data); len(ps) > 0 {
						t.Fatal(ps)
					}
				case f.Name == "input.yaml":
					d.Network, ps = annotation.ParseYAML("domains.d/web2.yaml", f.Data)
				case strings.HasPrefix(f.Name, "other"):
					d, ps := annotation.Parse(f.Data)
					vm, more := intent.Derive(d, c)
					if len(ps)+len(more) > 0 {
						t.Fatal(ps, more)
					}
					others = append(others, vm)
				case f.Name == "problems":
					vm, more := intent.Derive(d, c)
					ps = append(append(ps, more...), intent.Conflicts(vm, others)...)
					got := ""
					for _, p := range ps {
						got += p.String() + "\n"
					}
					if len(more.Fatal()) > 0 && len(vm.NICs) > 0 {
						t.Error("NICs in spite of fatal problems")
					}
					if os.Getenv("UPDATE") != "" {
						ar.Files[i].Data = []byte(got)
					} else if d := cmp.Diff(string(f.Data), got); d != "" {
						t.Error(d)
					}
				default:
					t.Fatalf("%s: unknown part", f.Name)
				}
			}
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func FuzzDerive(f *testing.F) {
	f.Add([]byte(head+`<network xmlns="urn:slash32:domain:1" ipv4="203.0.113.42" ipv6="2001:db8::42"/></metadata><devices>`+nic("1", "s32-web1", "<mtu size='1400'/>")+`</devices></domain>`), []byte(yaml))
	f.Add([]byte(head+`<network xmlns="urn:slash32:domain:1"><interface network="public"><address ip="203.0.113.42"/></interface><interface mac="52:54:00:ab:cd:01"><address ip="203.0.113.43"/></interface></network></metadata><devices>`+nic("1", "a", "")+nic("2", "b", "")+`</devices></domain>`), []byte(yaml))
	f.Add([]byte(head+`<network xmlns="urn:slash32:domain:1" ipv4="169.254.0.1 172.16.0.1" nat="masquerade"/></metadata><devices>`+nic("1", "all", "")+`</devices></domain>`), []byte("networks: {default: {gateway4: 203.0.113.42}}"))
	f.Fuzz(func(t *testing.T, xml, conf []byte) {
		c, _ := config.Reader{IPRoute2: []string{"/nonexistent"}}.Parse("slash32.yaml", conf)
		d, _ := annotation.Parse(xml)
		vm, ps := intent.Derive(d, c)
		if len(ps) > 32 {
			t.Errorf("%d problems", len(ps))
		}
		for _, p := range ps {
			if s := p.String(); strings.ContainsAny(s, "\n\r\x1b") || p.What == "" || p.Fix == "" {
				t.Errorf("message %q", s)
			}
		}
		if len(ps.Fatal()) > 0 || d.Network == nil {
			if len(vm.NICs) > 0 {
				t.Error("NICs in spite of problems")
			}
			return
		}
		if len(vm.NICs) == 0 || len(vm.NICs) > annotation.MaxInterfaces || vm.Name == "" || vm.Hostname == "" {
			t.Errorf("%+v", vm)
		}
		bridges, addrs := map[string]bool{}, map[netip.Addr]bool{}
		for _, n := range vm.NICs {
			if n.Bridge == "" || len(n.Bridge) > 15 || strings.ContainsAny(n.Bridge, "/ :%\x00\n") || bridges[n.Bridge] || n.MAC.IsZero() || n.MAC.IsMulticast() || n.Network.Name == "" || n.Lease <= 0 || n.NAT == "" {
				t.Errorf("%+v", n)
			}
			bridges[n.Bridge] = true
			for i, a := range append(append([]netip.Addr{}, n.Addrs4...), n.Addrs6...) {
				if a.Is4() != (i < len(n.Addrs4)) || !a.IsGlobalUnicast() || a.Zone() != "" || a == n.Network.Gateway4 || addrs[a] || n.Lines[a] == 0 {
					t.Errorf("address %s", a)
				}
				addrs[a] = true
			}
			if len(addrs) == 0 || len(n.Addrs6) > 0 && n.MTU != 0 && n.MTU < 1280 {
				t.Errorf("%+v", n)
			}
		}
		same := vm
		if ps := intent.Conflicts(vm, []intent.VM{same}); len(ps) > 0 {
			t.Errorf("in conflict with itself: %v", ps)
		}
		same.UUID[0]++
		if ps := intent.Conflicts(vm, []intent.VM{same}); len(ps) != len(addrs)+len(bridges) {
			t.Errorf("%d conflicts with its clone: %v", len(ps), ps)
		}
	})
}
