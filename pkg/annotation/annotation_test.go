package annotation_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

// domain puts metadata and NICs into a domain as libvirt writes it; the
// metadata begins in line 5.
func domain(metadata string, nics ...string) string {
	return "<domain type='kvm'>\n  <name>web1</name>\n  <uuid>4fb7d61c-7e0d-4e12-a887-108288c9695d</uuid>\n  <metadata>\n" +
		metadata + "\n  </metadata>\n  <devices>\n" + strings.Join(nics, "\n") + "\n  </devices>\n</domain>\n"
}

const nic1 = `    <interface type='bridge'>
      <mac address='52:54:00:ab:cd:01'/>
      <source bridge='s32-web1'/>
      <target dev='vnet3'/>
      <mtu size='1400'/>
    </interface>`

func TestParseFull(t *testing.T) {
	in := `<domain type='kvm' id='146'>
  <name>web1</name>
  <uuid>4fb7d61c-7e0d-4e12-a887-108288c9695d</uuid>
  <metadata>
    <other:thing xmlns:other="urn:other"><network ipv4="bogus"/></other:thing>
    <s:network xmlns:s="urn:slash32:domain:1" xmlns:o="urn:other" hostname="web1" domain="Example.org." o:colour="red">
      <s:interface mac="52:54:00:AB:CD:01" network="public" client="auto" mtu="1400">
        <address ip="203.0.113.42"/>
        <s:address ip="203.0.113.43"/>
        <address ip="2001:db8:1::42"/>
        <prefix net="2001:db8:1:42::/64" mode="slaac"/>
        <prefix net="2001:db8:1:a0::/60" mode="delegate" length="64"/>
        <dns server="9.9.9.9"/> <search domain="example.org"/> <ntp server="203.0.113.1"/>
        <route to="10.20.0.0/16"/>
        <nat mode="masquerade"/>
        <forward proto="tcp" port="8022" to="22"/>
        <boot server="203.0.113.5" file="ipxe.efi"/>
        <o:note>ignored</o:note>
      </s:interface>
    </s:network>
  </metadata>
  <devices>
` + nic1 + `
    <interface type='network'><mac address='52:54:00:ab:cd:02'/><source network='default' bridge='virbr0'/></interface>
    <interface type='bridge'><mac address='52:54:00:ab:cd:03'/><source network='lan' bridge='br1'/></interface>
  </devices>
</domain>
`
	got, ps := annotation.Parse([]byte(in))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	a := netip.MustParseAddr
	p := netip.MustParsePrefix
	want := annotation.Domain{
		UUID: uuid.MustParse("4fb7d61c-7e0d-4e12-a887-108288c9695d"), Name: "web1", ID: 146,
		NICs: []annotation.NIC{
			{Line: 23, MAC: mac.MustParse("52:54:00:ab:cd:01"), Type: "bridge", Bridge: "s32-web1", Tap: "vnet3", MTU: 1400},
			{Line: 29, MAC: mac.MustParse("52:54:00:ab:cd:02"), Type: "network", Bridge: "virbr0"},
			{Line: 30, MAC: mac.MustParse("52:54:00:ab:cd:03"), Type: "network", Bridge: "br1"},
		},
		Network: &annotation.Network{Line: 6, Hostname: "web1", Domain: "example.org", Interfaces: []annotation.Interface{{
			Line: 7, MAC: mac.MustParse("52:54:00:ab:cd:01"), Network: "public", Client: "auto", MTU: 1400,
			Addresses: []annotation.Address{{8, a("203.0.113.42")}, {9, a("203.0.113.43")}, {10, a("2001:db8:1::42")}},
			Prefixes: []annotation.Prefix{
				{Line: 11, Net: p("2001:db8:1:42::/64"), Mode: "slaac"},
				{Line: 12, Net: p("2001:db8:1:a0::/60"), Mode: "delegate", Length: 64},
			},
			DNS: []netip.Addr{a("9.9.9.9")}, Search: []string{"example.org"}, NTP: []netip.Addr{a("203.0.113.1")},
			Routes: []netip.Prefix{p("10.20.0.0/16")}, NAT: "masquerade", NATLine: 15,
			Forwards: []annotation.Forward{{Line: 16, Proto: "tcp", Port: 8022, Last: 8022, To: 22, Family: "both"}},
			Boots:    []annotation.Boot{{Line: 17, Server: netip.MustParseAddr("203.0.113.5"), File: "ipxe.efi"}},
		}}},
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
}

func TestYAMLSaysTheSameAsXML(t *testing.T) {
	xml := domain(`<network xmlns="urn:slash32:domain:1" hostname="web1"><interface mac="52:54:00:ab:cd:01" mtu="1400">
<address ip="203.0.113.42"/><address ip="2001:db8::42"/><prefix net="2001:db8:1::/64" mode="slaac"/><dns server="9.9.9.9"/>
<route to="10.0.0.0/8"/><nat/><forward port="80"/></interface></network>`)
	d, ps := annotation.Parse([]byte(xml))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	y, ps := annotation.ParseYAML("web1.yaml", []byte(`
hostname: web1
interface:
  - mac: 52:54:00:ab:cd:01
    mtu: 1400
    address: [203.0.113.42, "2001:db8::42"]
    prefix: {net: "2001:db8:1::/64", mode: slaac}
    dns: 9.9.9.9
    route: [10.0.0.0/8]
    nat: masquerade
    forward:
      - port: 80
`))
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	lines := cmp.FilterPath(func(p cmp.Path) bool { n := p.Last().String(); return n == ".Line" || n == ".NATLine" || n == ".File" }, cmp.Ignore())
	if d := cmp.Diff(d.Network, y, byValue, lines); d != "" {
		t.Error(d)
	}
}

// TestGolden compares messages. Each archive has input.xml or input.yaml, what
// is said of it ("ok" when nothing), and, if it cares, the annotation as JSON.
// UPDATE=1 writes what came out.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var n *annotation.Network
			var ps problem.List
			for i, f := range ar.Files {
				got := ""
				switch f.Name {
				case "input.xml":
					d, p := annotation.Parse(f.Data)
					n, ps = d.Network, p
					continue
				case "input.yaml":
					n, ps = annotation.ParseYAML("domains.d/web1.yaml", f.Data)
					continue
				case "problems":
					got = "ok\n"
					if len(ps) > 0 {
						got = ""
						for _, p := range ps {
							got += p.String() + "\n"
						}
					}
				case "network.json":
					b, err := json.MarshalIndent(n, "", " ")
					if err != nil {
						t.Fatal(err)
					}
					got = string(b) + "\n"
				default:
					t.Fatalf("%s: unknown part", f.Name)
				}
				if os.Getenv("UPDATE") != "" {
					ar.Files[i].Data = []byte(got)
				} else if d := cmp.Diff(string(f.Data), got); d != "" {
					t.Errorf("%s:\n%s", f.Name, d)
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

// TestHostile is XML that must cost little and change nothing.
func TestHostile(t *testing.T) {
	ns := `<network xmlns="urn:slash32:domain:1">`
	for _, tc := range []struct{ name, in string }{
		{"entity bomb", `<!DOCTYPE lolz [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>` + domain(`<network xmlns="urn:slash32:domain:1" hostname="&b;"/>`)},
		{"external entity", `<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd">` + domain("")},
		{"undefined entity", domain(`<network xmlns="urn:slash32:domain:1" hostname="&b;"/>`)},
		{"deep", strings.Repeat("<domain>", 100000)},
		{"deep in ours", domain(ns + strings.Repeat("<interface>", 200))},
		{"many elements", domain(ns + "<interface>" + strings.Repeat("<dns/>", 100000) + "</interface></network>")},
		{"many attributes", domain(`<network xmlns="urn:slash32:domain:1" ` + attrs(5000) + "/>")},
		{"many NICs", domain(ns+"</network>", strings.Repeat("<interface/>", 60000))},
		{"too long", domain(strings.Repeat(" ", annotation.MaxXML))},
		{"other charset", `<?xml version="1.0" encoding="utf-16"?>` + domain("")},
		{"two domains", domain("") + domain("")},
		{"not a domain", "<network><name>default</name></network>"},
		{"cut off", domain(ns)[:150]},
		{"nothing", ""},
		{"NUL", "<domain>\x00</domain>"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, ps := annotation.Parse([]byte(tc.in))
			if len(ps.Fatal()) == 0 {
				t.Fatal("taken")
			}
			for _, p := range ps {
				if s := p.String(); strings.Contains(s, "\n") || len(s) > 1100 {
					t.Errorf("not one short line: %q", s)
				}
			}
		})
	}
}

func attrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d='' ", i)
	}
	return b.String()
}

func TestSamplesOfLibvirtHaveNoProblems(t *testing.T) {
	for op, tap := range map[string]string{"prepare": "", "started": "vnet143"} {
		b, err := os.ReadFile("testdata/hook-" + op + ".xml")
		if err != nil {
			t.Fatal(err)
		}
		if annotation.Mentions(b) {
			t.Errorf("%s mentions us", op)
		}
		d, ps := annotation.Parse(b)
		if len(ps) > 0 || d.Network != nil || d.Name != "g1" || d.UUID == uuid.Nil || d.ID == 0 {
			t.Errorf("%s: %+v %v", op, d, ps)
		}
		want := []annotation.NIC{{Line: d.NICs[0].Line, MAC: mac.MustParse("52:54:00:00:00:01"), Type: "bridge", Bridge: "br0", Tap: tap}}
		if diff := cmp.Diff(want, d.NICs); diff != "" {
			t.Errorf("%s: %s", op, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		domain(`<network xmlns="urn:slash32:domain:1" ipv4="203.0.113.42" ipv6="2001:db8::1,2001:db8::2" dns="9.9.9.9" nat="none"/>`, nic1),
		domain(`<slash32:network xmlns:slash32="urn:slash32:domain:1"><interface><address ip="203.0.113.042"/><prefix net="::/0" mode="x"/></interface></slash32:network>`, nic1, nic1),
		domain(`<slash32:network/>`), `<!DOCTYPE x><domain/>`, `<domain id="-1"><uuid>x</uuid></domain>`, "", "<", "<domain>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, ps := annotation.Parse(b)
		if d.Network != nil && !annotation.Mentions(b) && !strings.Contains(string(b), "&") {
			t.Error("annotated without a mention")
		}
		check(t, d.Network, ps)
	})
}

func FuzzParseYAML(f *testing.F) {
	for _, s := range []string{
		"ipv4: 203.0.113.42\n", "hostname: a.b\nipv4: [1.2.3.4, ::1]\n", "interface:\n  - mac: x\n    address: [1.2.3.4, {ip: 1.2.3.4}]\n    nat: {}\n",
		"interface: {prefix: {net: 2001:db8::/64, mode: slaac}}", "- a", "", "a: &x [*x]", "ipv4: {a: b}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ps := annotation.ParseYAML("f.yaml", b)
		if n == nil && len(ps) == 0 {
			t.Error("nothing and no problem")
		}
		check(t, n, ps)
	})
}

// check holds what is true of every annotation, whatever it was read from.
func check(t *testing.T, n *annotation.Network, ps problem.List) {
	t.Helper()
	if len(ps) > 40 {
		t.Errorf("%d problems", len(ps))
	}
	for _, p := range ps {
		if s := p.String(); strings.ContainsAny(s, "\n\r\x1b") || len(s) > 1100 || p.What == "" || p.Fix == "" {
			t.Errorf("message %q", s)
		}
	}
	if n == nil {
		return
	}
	if len(n.Interfaces) == 0 || len(n.Interfaces) > annotation.MaxInterfaces {
		t.Errorf("%d interfaces", len(n.Interfaces))
	}
	for _, i := range n.Interfaces {
		if len(i.Addresses) > annotation.MaxAddresses || len(i.DNS) > annotation.MaxServers || len(i.NTP) > annotation.MaxServers ||
			len(i.Search) > annotation.MaxSearch || len(i.Routes) > annotation.MaxRoutes || len(i.Prefixes) > annotation.MaxPrefixes || len(i.Forwards) > annotation.MaxForwards {
			t.Errorf("too many: %+v", i)
		}
		for _, a := range i.Addresses {
			if !a.IP.IsGlobalUnicast() || a.IP.Zone() != "" || a.IP.Is4In6() {
				t.Errorf("address %s", a.IP)
			}
		}
		for _, r := range i.Routes {
			if r != r.Masked() || r.Bits() == 0 {
				t.Errorf("route %s", r)
			}
		}
		if i.MAC.IsMulticast() {
			t.Errorf("MAC %s", i.MAC)
		}
	}
}
