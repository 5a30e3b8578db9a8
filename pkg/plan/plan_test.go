package plan_test

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// input is the file "in" of a golden test.
type input struct {
	Facts struct {
		Uplink4, Uplink6 string
		MTU              map[string]uint16
		Resolvers        []string
		AcceptRA         []string `yaml:"accept_ra"`
		NoIPv6           bool     `yaml:"no_ipv6"`
		BridgeNF         bool     `yaml:"bridge_nf"`
		Pools            map[string][]string
		Links            map[string]struct {
			Down             bool
			Addrs            []string
			RPFilter         uint8  `yaml:"rp_filter"`
			Router4, Router6 string // an address, or "link" for one without
		}
	}
	Forwarding string
	Networks   map[string]struct {
		Uplink string
		Table  uint32
		NAT    string
		DNS    []string
		MTU    uint16
		Local  bool
		PREF64 string
		AFTR   string
		Proxy  bool `yaml:"proxy_ndp"`

		Router4, Router6 string
		Subnets, SNAT    []string
		Downlink         string
		Addrs            []string `yaml:"addresses"`
		Isolate          bool
		ProxyARP         bool   `yaml:"proxy_arp"`
		NoTrack          bool   `yaml:"notrack"`
		Limit            uint32 `yaml:"conntrack_limit"`
		Open             bool
	}
	Services map[string][]config.Service // by network
	Locals   []string                    `yaml:"local_prefixes"`
	VMs      []struct {
		UUID, Name, Hostname string
		NICs                 []struct {
			MAC, Bridge, Network string
			Tap                  string
			MTU                  uint16
			Addrs                []string
			DNS, NTP, Routes     []string
			Search               []string
			NAT                  string
			SNAT, Public         []string
			Forwards             []struct {
				Proto, Family, Addr string
				Port, Last, To      uint16
			}
			Lease       string
			Leased, Old []string
			Terms       []struct {
				Addr             string
				Preferred, Until int64
			}
			Prefixes []struct {
				Net, Mode, Exclude string
				Length             uint8
				OnLink, Deprecated bool
				Preferred, Until   int64
			}
			Delegated []struct{ Prefix, Via string }
		}
	}
}

func addrs(t *testing.T, in []string) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func (in input) config(t *testing.T) config.Config {
	t.Helper()
	c := config.Config{Forwarding: "manage", Networks: map[string]config.Network{"default": network("default")}}
	if in.Forwarding != "" {
		c.Forwarding = in.Forwarding
	}
	for name, n := range in.Networks {
		p := network(name)
		if n.Uplink != "" {
			p.Uplink = n.Uplink
		}
		if n.Table != 0 {
			p.Table = config.Table(n.Table)
		}
		if n.NAT != "" {
			p.NAT = config.NAT(n.NAT)
		}
		p.DNS, p.MTU, p.Announce = addrs(t, n.DNS), n.MTU, !n.Local
		p.PREF64, p.AFTR, p.ProxyNDP = prefix(n.PREF64), n.AFTR, n.Proxy
		p.Router4, p.Router6, p.Downlink = address(n.Router4), address(n.Router6), n.Downlink
		p.Subnets, p.Addrs, p.Isolate, p.ProxyARP = prefixes(n.Subnets), addrs(t, n.Addrs), n.Isolate, n.ProxyARP
		p.SNAT = addrs(t, n.SNAT)
		p.NoTrack, p.MaxConns = n.NoTrack, n.Limit
		p.Open, p.Services = n.Open, in.Services[name]
		c.Networks[name] = p
	}
	for _, l := range in.Locals {
		c.LocalPrefixes = append(c.LocalPrefixes, prefix(l))
	}
	return c
}

func address(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func prefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func router(s string) plan.Router {
	if s == "link" {
		return plan.Router{Found: true}
	}
	return plan.Router{Found: s != "", Via: address(s)}
}

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func network(name string) config.Network {
	return config.Network{
		Name:     name,
		Uplink:   "auto",
		Table:    config.TableMain,
		Gateway4: marks.DefaultGateway4,
		Gateway6: marks.DefaultGateway6,
		Lease:    time.Hour,
		NAT:      config.NATPrivate,
		Announce: true,
		Conflict: "refuse",
	}
}

func (in input) vms(t *testing.T, c config.Config) []intent.VM {
	t.Helper()
	var out []intent.VM
	for _, v := range in.VMs {
		vm := intent.VM{UUID: uuid.MustParse(v.UUID), Name: v.Name, Hostname: v.Hostname}
		for _, n := range v.NICs {
			name := n.Network
			if name == "" {
				name = "default"
			}
			nic := intent.NIC{
				MAC:     mac.MustParse(n.MAC),
				Bridge:  n.Bridge,
				Network: c.Networks[name],
				MTU:     n.MTU,
				DNS:     addrs(t, n.DNS),
				NTP:     addrs(t, n.NTP),
				Search:  n.Search,
				NAT:     c.Networks[name].NAT,
			}
			for _, a := range addrs(t, n.Addrs) {
				if a.Is4() {
					nic.Addrs4 = append(nic.Addrs4, a)
				} else {
					nic.Addrs6 = append(nic.Addrs6, a)
				}
			}
			nic.Tap = n.Tap
			nic.Leased, nic.Old6 = addrs(t, n.Leased), addrs(t, n.Old)
			for _, x := range n.Terms {
				nic.Terms = append(nic.Terms, intent.Term{Addr: netip.MustParseAddr(x.Addr), Preferred: x.Preferred, Until: x.Until})
			}
			for _, p := range n.Prefixes {
				nic.Prefixes = append(nic.Prefixes, intent.Prefix{
					Net: prefix(p.Net), Mode: p.Mode, Length: p.Length, Exclude: prefix(p.Exclude), OnLink: p.OnLink,
					Deprecated: p.Deprecated, Preferred: p.Preferred, Until: p.Until,
				})
			}
			for _, d := range n.Delegated {
				nic.Delegated = append(nic.Delegated, intent.Delegation{Prefix: prefix(d.Prefix), Via: netip.MustParseAddr(d.Via)})
			}
			for _, r := range n.Routes {
				nic.Routes = append(nic.Routes, netip.MustParsePrefix(r))
			}
			if n.NAT != "" {
				nic.NAT = config.NAT(n.NAT)
			}
			nic.SNAT, nic.Public = addrs(t, n.SNAT), addrs(t, n.Public)
			for _, f := range n.Forwards {
				x := annotation.Forward{Proto: f.Proto, Family: f.Family, Port: f.Port, Last: f.Last, To: f.To}
				if f.Addr != "" {
					x.Addr = netip.MustParseAddr(f.Addr)
				}
				nic.Forwards = append(nic.Forwards, x)
			}
			if n.Lease != "" {
				d, err := time.ParseDuration(n.Lease)
				if err != nil {
					t.Fatal(err)
				}
				nic.Lease = d
			}
			vm.NICs = append(vm.NICs, nic)
		}
		out = append(out, vm)
	}
	return out
}

func (in input) facts(t *testing.T) plan.Facts {
	t.Helper()
	pools := map[string][]netip.Prefix{}
	for name, bases := range in.Facts.Pools {
		for _, p := range bases {
			pools[name] = append(pools[name], prefix(p))
		}
	}
	links := map[string]plan.Link{}
	for name, l := range in.Facts.Links {
		links[name] = plan.Link{
			Up: !l.Down, Addrs: prefixes(l.Addrs), RPFilter: l.RPFilter,
			Router4: router(l.Router4), Router6: router(l.Router6),
		}
	}
	return plan.Facts{
		Links:     links,
		Uplink4:   in.Facts.Uplink4,
		Uplink6:   in.Facts.Uplink6,
		MTU:       in.Facts.MTU,
		Resolvers: addrs(t, in.Facts.Resolvers),
		AcceptRA:  in.Facts.AcceptRA,
		NoIPv6:    in.Facts.NoIPv6,
		BridgeNF:  in.Facts.BridgeNF,
		Pools:     pools,
	}
}

func parse(t *testing.T, b []byte) ([]intent.VM, config.Config, plan.Facts) {
	t.Helper()
	var in input
	if err := yaml.UnmarshalWithOptions(b, &in, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	c := in.config(t)
	return in.vms(t, c), c, in.facts(t)
}

// TestBuildGolden plans what testdata/*.txtar describe. Run with -update to
// write them anew, then read the difference.
func TestBuildGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			vms, c, f := parse(t, ar.Files[0].Data)
			d := plan.Build(vms, c, f)
			got := []txtar.File{
				ar.Files[0],
				{Name: "state", Data: []byte(strings.ReplaceAll(d.State.String(), plan.Skeleton, "SKELETON"))},
			}
			for _, vm := range vms {
				j, err := json.MarshalIndent(d.Bindings[vm.UUID], "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, txtar.File{Name: vm.Name + ".json", Data: append(j, '\n')})
			}
			if *update {
				ar.Files = got
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(text(ar.Files), text(got)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func text(files []txtar.File) string {
	return string(txtar.Format(&txtar.Archive{Files: files}))
}

// TestBuildOrder checks that the order in which VMs are listed is nothing to
// the plan.
func TestBuildOrder(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/tables.txtar")
	if err != nil {
		t.Fatal(err)
	}
	vms, c, f := parse(t, ar.Files[0].Data)
	want := plan.Build(vms, c, f)
	for range 20 {
		rand.Shuffle(len(vms), func(i, j int) { vms[i], vms[j] = vms[j], vms[i] })
		got := plan.Build(vms, c, f)
		if diff := cmp.Diff(want.State.String(), got.State.String()); diff != "" {
			t.Fatalf("state depends on the order of the VMs:\n%s", diff)
		}
		if changes := state.Diff(want.State, got.State); len(changes) > 0 {
			t.Fatalf("differences: %v", changes)
		}
		if diff := cmp.Diff(want.Bindings, got.Bindings, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Fatalf("bindings depend on the order of the VMs:\n%s", diff)
		}
	}
}

func TestBuildNothing(t *testing.T) {
	d := plan.Build(nil, config.Config{Forwarding: "manage"}, plan.Facts{Uplink4: "eth0"})
	if got := d.State.String(); got != "" {
		t.Errorf("plan for no VM: %s", got)
	}
	// A pool is covered all the same.
	f := plan.Facts{Pools: map[string][]netip.Prefix{"default": {netip.MustParsePrefix("2001:db8::/56")}, "none": {netip.MustParsePrefix("2001:db8:1::/56")}}}
	d = plan.Build(nil, config.Config{Networks: map[string]config.Network{"default": network("default")}}, f)
	if got, want := d.State.String(), "route unreachable 2001:db8::/56 table main proto 32 metric 4096\n"; got != want {
		t.Errorf("plan for a pool without VMs: %s", got)
	}
}

func TestPrepare(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/tables.txtar")
	if err != nil {
		t.Fatal(err)
	}
	d := plan.Build(parse(t, ar.Files[0].Data))
	p := plan.Prepare(d)
	if len(p.Links) != len(d.State.Links) || len(p.Sysctls) != len(d.State.Sysctls) || len(p.Addrs) != len(d.State.Addrs) || p.Skeleton == "" {
		t.Errorf("part of the preparation lacks:\n%s", p)
	}
	if n := len(p.Elems) + len(p.Routes) + len(p.Rules) + len(p.Neighs) + len(p.Proxies); n != 0 {
		t.Errorf("%d objects too many:\n%s", n, p)
	}
}
