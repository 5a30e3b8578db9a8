package plan

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/state"
)

// Skeleton is the version of the static part of the tables slash32. It ends
// with a hash of what package kernel makes; a test there fails when they part.
const Skeleton = "v1_e3767bf4"

// MetricLocal is the metric of the routes of a network with "announce: false":
// they are ours like the others, and a routing daemon's filter that takes
// metrics up to marks.RouteMetric leaves them out.
const MetricLocal = 2 * marks.RouteMetric

const (
	defaultMTU = 1500 // bytes, when neither NIC, network nor uplink say
	minMTU6    = 1280 // RFC 8200 §5: below it the kernel has no IPv6 on a link

	// routerLifetime is how long a guest keeps its default route after the last
	// router advertisement, in seconds: three times the default
	// MaxRtrAdvInterval (RFC 4861 §6.2.1).
	routerLifetime = 1800

	defaultLease = time.Hour

	// About how many a VM with one NIC has.
	elemsPerVM   = 24
	sysctlsPerVM = 8
)

// Build plans the network of the VMs, all of them, and of the networks' pools:
// whatever is not in the result has no place on the host. The order of vms does not
// matter.
func Build(vms []intent.VM, c config.Config, f Facts) Desired {
	b := builder{
		config:  c,
		facts:   f,
		tables:  Tables(c),
		gateway: mac.MustParse(marks.GatewayMAC),
		state:   state.New(),
		places:  map[place]bool{},

		hostPlaces: map[place]bool{},
	}
	// Room at once: maps that grow take as long as the rest.
	b.state.Elems = make(map[state.Elem]struct{}, elemsPerVM*len(vms))
	b.state.Sysctls = make(map[string]string, sysctlsPerVM*len(vms))
	b.pools()
	d := Desired{State: b.state, Bindings: make(map[uuid.UUID]responder.Binding, len(vms))}
	used := map[string]bool{}
	for _, vm := range vms {
		d.Bindings[vm.UUID] = b.vm(vm)
		for _, n := range vm.NICs {
			used[n.Network.Name] = true
		}
	}
	if !b.networks(used) && len(vms) == 0 {
		return d
	}
	b.host()
	b.local()
	d.State.Skeleton = Skeleton
	return d
}

// Prepare is the part of a plan that must stand before a guest's first frame:
// bridges, settings, gateway addresses and the skeleton, which lets nothing
// through until the elements are there.
func Prepare(d Desired) state.State {
	s := state.New()
	s.Links = maps.Clone(d.State.Links)
	s.Sysctls = maps.Clone(d.State.Sysctls)
	for a := range d.State.Addrs {
		if _, bridge := s.Links[a.Link]; bridge {
			s.Addrs[a] = struct{}{}
		}
	}
	s.Skeleton = d.State.Skeleton
	return s
}

// Tables lists the routing tables other than main that the configuration's
// networks name, sorted. A table's place in it decides its rules' priorities
// and its mark.
func Tables(c config.Config) []config.Table {
	var t []config.Table
	for _, n := range c.Networks {
		if n.OwnTable() {
			t = append(t, n.Table)
		}
	}
	slices.Sort(t)
	return slices.Compact(t)
}

// Uplinks names the interfaces that a network's traffic leaves by, per family;
// "" when there is none.
func Uplinks(n config.Network, f Facts) (uplink4, uplink6 string) {
	if n.Uplink == "auto" || n.Uplink == "" {
		return f.Uplink4, f.Uplink6
	}
	return n.Uplink, n.Uplink
}

type builder struct {
	config  config.Config
	facts   Facts
	tables  []config.Table
	gateway mac.Addr
	state   state.State
	places  map[place]bool // that routes of VMs have

	hostPlaces map[place]bool // that other routes have
	sources    []netip.Prefix // of the NIC that is planned: addresses and prefixes
}

func (b *builder) vm(vm intent.VM) responder.Binding {
	bind := responder.Binding{
		Version: responder.BindingVersion,
		UUID:    vm.UUID.String(),
		Name:    vm.Name,
		NICs:    make([]responder.NIC, 0, len(vm.NICs)),
	}
	for _, n := range vm.NICs {
		mtu := b.mtu(n)
		b.sources = nil
		b.link(vm, n, mtu)
		b.policy(n)
		b.guard(n)
		for _, a := range n.Addrs4 {
			b.address(n, a)
		}
		if b.ipv6(mtu) {
			for _, a := range n.Addrs6 {
				b.address(n, a)
			}
			b.prefixes(n)
		}
		for _, a := range slices.Concat(n.Old6, n.Leased) {
			if a.Is4() || b.ipv6(mtu) {
				b.address(n, a)
			}
		}
		b.apart(n)
		b.toGuest(n, b.ipv6(mtu))
		b.tracking(n)
		nic := b.binding(vm, n, mtu)
		if nic.Relay != nil {
			nic.Relay.Index = uint8(len(bind.NICs))
		}
		bind.NICs = append(bind.NICs, nic)
	}
	return bind
}

func (b *builder) ipv6(mtu uint16) bool { return !b.facts.NoIPv6 && mtu >= minMTU6 }

func (b *builder) mtu(n intent.NIC) uint16 {
	up4, up6 := Uplinks(n.Network, b.facts)
	for _, m := range []uint16{n.MTU, n.Network.MTU, b.facts.MTU[up4], b.facts.MTU[up6]} {
		if m != 0 {
			return m
		}
	}
	return defaultMTU
}

// link plans the bridge: the host's end of the VM's own link. The responder
// speaks for it, so the kernel is kept from answering ARP (arp_ignore 8), from
// making itself a link-local address (addr_gen_mode 1) and from believing a
// guest's router advertisements.
func (b *builder) link(vm intent.VM, n intent.NIC, mtu uint16) {
	b.state.Links[n.Bridge] = state.Link{
		Name:  n.Bridge,
		UUID:  vm.UUID.String(),
		Guest: n.MAC,
		MAC:   b.gateway,
		MTU:   mtu,
		Up:    true,
	}
	if n.Tap != "" {
		b.state.Taps[n.Tap] = n.Bridge
		if b.facts.BridgeNF && (len(n.Forwards) > 0 || len(n.Public) > 0) {
			b.state.Hairpins[n.Tap] = struct{}{}
		}
	}
	set := func(path, value string) { b.state.Sysctls[path] = value }
	v4 := "net/ipv4/conf/" + n.Bridge + "/"
	set(v4+"arp_ignore", "8")
	set(v4+"forwarding", "1")
	set(v4+"rp_filter", "1")
	set(v4+"send_redirects", "0")
	if n.Network.Gateway4.IsValid() {
		b.gatewayAddr(n.Bridge, n.Network.Gateway4, 32)
	}
	if !b.ipv6(mtu) {
		return
	}
	v6 := "net/ipv6/conf/" + n.Bridge + "/"
	set(v6+"accept_ra", "0")
	set(v6+"addr_gen_mode", "1")
	set(v6+"disable_ipv6", "0")
	set(v6+"forwarding", "1")
	if n.Network.Gateway6.IsValid() {
		b.gatewayAddr(n.Bridge, n.Network.Gateway6, 64)
	}
}

func (b *builder) gatewayAddr(link string, a netip.Addr, bits int) {
	b.state.Addrs[state.Addr{Link: link, Prefix: netip.PrefixFrom(a, bits)}] = struct{}{}
}

// policy plans the mark of the bridge, which leads to its table.
func (b *builder) policy(n intent.NIC) {
	if i := slices.Index(b.tables, n.Network.Table); i >= 0 && i < marks.RulePriorityRange {
		b.elem(state.Elem{Set: state.SetMark, Link: n.Bridge, Mark: markOf(i)})
	}
}

// AF_INET and AF_INET6, as state.Rule has them.
const (
	familyIPv4 = 2
	familyIPv6 = 10
)

func (b *builder) rule(r state.Rule) { b.state.Rules[r] = struct{}{} }

func (b *builder) elem(e state.Elem) { b.state.Elems[e] = struct{}{} }

// guard plans who may send on the bridge and where what others send is
// counted.
func (b *builder) guard(n intent.NIC) {
	b.elem(state.Elem{Set: state.SetGuardMAC, Link: n.Bridge, MAC: n.MAC})
	b.elem(state.Elem{Set: state.SetARP, Link: n.Bridge, MAC: n.MAC, Addr: host(netip.IPv4Unspecified())}) // probes (RFC 5227)
	for _, set := range state.GuardCounters {
		if set != state.SetApart || n.Network.Isolate {
			b.elem(state.Elem{Set: set, Link: n.Bridge})
		}
	}
	if n.Network.Isolate {
		b.elem(state.Elem{Set: state.SetIsolated, Link: n.Bridge})
		b.elem(state.Elem{Set: state.SetItself, Link: n.Bridge})
	}
	for _, set := range state.TrafficCounters {
		b.elem(state.Elem{Set: set, Link: n.Bridge})
	}
	// Where this host is the network's router, that is a gateway, too.
	for _, a := range append([]netip.Addr{n.Network.Gateway4, n.Network.Gateway6}, n.Network.Addrs...) {
		switch {
		case a.Is4():
			b.elem(state.Elem{Set: state.SetGateway4, Link: n.Bridge, Addr: host(a)})
		case a.Is6():
			b.elem(state.Elem{Set: state.SetGateway6, Link: n.Bridge, Addr: host(a)})
		}
	}
	if n.Network.Open {
		b.elem(state.Elem{Set: state.SetOpen, Link: n.Bridge})
	}
	for _, s := range n.Network.Services {
		b.elem(state.Elem{Set: state.SetService, Link: n.Bridge, Proto: s.Proto, Port: s.Port})
	}
}

// local plans whose traffic is counted as local.
func (b *builder) local() {
	for _, p := range b.config.LocalPrefixes {
		set := state.SetLocal4
		if p.Addr().Is6() {
			set = state.SetLocal6
		}
		b.elem(state.Elem{Set: set, Addr: host(p.Addr())})
		if after := state.Last(p).Next(); after.IsValid() { // else it ends with the last of all
			b.elem(state.Elem{Set: set, Addr: host(after), End: true})
		}
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// address plans one address of the guest.
func (b *builder) address(n intent.NIC, a netip.Addr) {
	host := host(a)
	guard := state.SetGuard4
	if a.Is6() {
		guard = state.SetGuard6
	} else {
		b.elem(state.Elem{Set: state.SetARP, Link: n.Bridge, MAC: n.MAC, Addr: host})
	}
	b.elem(state.Elem{Set: guard, Link: n.Bridge, Addr: host})
	b.sources = append(b.sources, host)
	b.source(n, host)
	b.state.Neighs[state.NeighKey{Link: n.Bridge, IP: a}] = n.MAC
	b.route(n.Network, state.Route{Dst: host, Link: n.Bridge})
	b.proxy(n, a)
}

// host plans what is the whole host's. Package state sets the forwarding
// switches after accept_ra, else the host would lose its own default route.
func (b *builder) host() {
	if b.config.Forwarding != "manage" {
		return
	}
	b.state.Sysctls["net/ipv4/ip_forward"] = "1"
	if b.facts.NoIPv6 {
		return
	}
	b.state.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
	for _, name := range b.facts.AcceptRA {
		b.state.Sysctls["net/ipv6/conf/"+name+"/accept_ra"] = "2"
	}
}

func (b *builder) binding(vm intent.VM, n intent.NIC, mtu uint16) responder.NIC {
	lease := seconds(n)
	dns4, dns6 := byFamily(b.facts.dns(n))
	ntp4, ntp6 := byFamily(n.NTP)
	out := responder.NIC{
		Bridge:     n.Bridge,
		GuestMAC:   n.MAC,
		GatewayMAC: b.gateway,
		MTU:        mtu,
		Hostname:   vm.Hostname,
		Domain:     vm.Domain,
		Search:     slices.Clone(n.Search),
		Portal:     n.Portal,
		V4: responder.V4{
			Gateway: n.Network.Gateway4,
			DNS:     dns4,
			NTP:     ntp4,
			Lease:   lease,
			T1:      lease / 2,
			T2:      uint32(uint64(lease) * 7 / 8),
			Client:  n.Client,
			Classic: n.Network.Classic,
			Hold:    n.Network.Decline == "hold",
			V6Only:  uint32(n.Network.V6Only / time.Second),
		},
		V6: responder.V6{
			Gateway:   n.Network.Gateway6,
			DNS:       dns6,
			NTP:       ntp6,
			Preferred: lease,
			Valid:     lease,
		},
	}
	if standsIn(n) {
		out.V6.Preferred, out.V6.Valid = min(lease, stopgapLease), min(lease, stopgapLease)
	}
	for _, b := range n.Boots {
		out.V4.Boots = append(out.V4.Boots, responder.Boot{For: b.For, File: b.File, Server: b.Server, Once: b.Once, Params: b.Params})
	}
	for _, o := range n.Options {
		out.V4.Options = append(out.V4.Options, responder.Option{Code: o.Code, Data: o.Data, Force: o.Force})
	}
	for _, r := range n.Routes {
		if r.Addr().Is4() {
			out.V4.Routes = append(out.V4.Routes, r)
		} else {
			out.V6.Routes = append(out.V6.Routes, r)
		}
	}
	if len(n.Relay.Servers) > 0 {
		b.relay(vm, n, &out)
	}
	if n.Relays4() {
		out.V4.Extra = slices.Clone(n.Addrs4)
	} else if len(n.Addrs4) > 0 {
		out.V4.Addr = n.Addrs4[0]
		out.V4.Extra = slices.Clone(n.Addrs4[1:])
	}
	if b.ipv6(mtu) {
		out.V6.Addrs, out.V6.Terms = slices.Clone(n.Addrs6), terms(n)
	}
	// Also while nothing has been taken from the pool yet: a guest that has been
	// given something keeps its default route.
	if n.IPv6() && b.ipv6(mtu) {
		out.V6.RouterLifetime = routerLifetime
		out.V6.Prefixes = advertised(n.Prefixes)
		out.V6.PREF64, out.V6.AFTR = n.Network.PREF64, n.Network.AFTR
	}
	return out
}

// relay says where the guest's DHCP messages go.
func (b *builder) relay(vm intent.VM, n intent.NIC, out *responder.NIC) {
	servers4, servers6 := byFamily(n.Relay.Servers)
	out.Relay = &responder.Relay{
		Servers4: servers4, Servers6: servers6, Link4: n.Relay.Link4, Link6: n.Relay.Link6,
		Circuit: responder.CircuitID(vm.UUID, n.MAC), Host: b.facts.Host,
	}
}

// seconds is the lease time. 0xffffffff would mean "for ever" (RFC 2131 §3.3,
// RFC 8415 §7.7), so it is kept below.
func seconds(n intent.NIC) uint32 {
	lease := n.Lease
	if lease <= 0 {
		lease = n.Network.Lease
	}
	if lease <= 0 {
		lease = defaultLease
	}
	return uint32(min(int64(lease/time.Second), 0xfffffffe))
}

func byFamily(addrs []netip.Addr) (v4, v6 []netip.Addr) {
	for _, a := range addrs {
		if a.Unmap().Is4() {
			v4 = append(v4, a.Unmap())
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6
}
