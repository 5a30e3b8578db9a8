package intent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
)

// minMTU6 is the least MTU of a link with IPv6, in bytes (RFC 8200 §5).
const minMTU6 = 1280

// Derive makes the intent of an annotated domain. When a problem is fatal the
// VM has no NICs; without an annotation neither it nor the list has anything.
func Derive(d annotation.Domain, c config.Config) (VM, problem.List) {
	vm := VM{UUID: d.UUID, Name: d.Name}
	if d.Network == nil {
		return vm, nil
	}
	b := &builder{domain: d, network: d.Network, config: c, seen: map[netip.Addr]int{}}
	vm.File = d.Network.File
	vm.Domain = d.Network.Domain
	vm.Hostname = d.Network.Hostname
	if vm.Hostname == "" {
		vm.Hostname = hostname(d)
	}
	if d.Name == "" {
		b.add(problem.EXML, 0, "the domain has no name", "give the whole XML, as virsh dumpxml prints it")
	}
	owners := b.match()
	for i, n := range d.NICs { // in the domain's order
		if iface, ok := owners[i]; ok {
			vm.NICs = append(vm.NICs, b.nic(n, d.Network.Interfaces[iface]))
		}
	}
	b.duplicates(vm.NICs)
	if len(b.problems.Fatal()) > 0 {
		vm.NICs = nil
	}
	return vm, b.problems
}

// builder collects the problems of one domain.
type builder struct {
	domain   annotation.Domain
	network  *annotation.Network
	config   config.Config
	seen     map[netip.Addr]int // addresses so far, and their lines
	nets     []netip.Prefix     // prefixes so far
	forwards []annotation.Forward
	problems problem.List
}

// maxProblems is how many are reported of one domain.
const maxProblems = 32

// add reports a problem of the annotation.
func (b *builder) add(code problem.Code, line int, what, fix string) {
	if len(b.problems) < maxProblems {
		b.problems = append(b.problems, problem.Problem{Code: code, File: b.network.File, Line: line, VM: b.domain.Name, What: what, Fix: fix})
	}
}

// addXML reports a problem of the domain's XML itself.
func (b *builder) addXML(code problem.Code, line int, what, fix string) {
	if len(b.problems) < maxProblems {
		b.problems = append(b.problems, problem.Problem{Code: code, Line: line, VM: b.domain.Name, What: what, Fix: fix})
	}
}

// match gives each NIC's index the index of its interface in the annotation:
// by MAC, and those without one in order to the NICs that are left.
func (b *builder) match() map[int]int {
	owners := map[int]int{}
	claimed := map[mac.Addr]int{} // line
	for i, iface := range b.network.Interfaces {
		if iface.MAC.IsZero() {
			continue
		}
		if line, twice := claimed[iface.MAC]; twice {
			b.add(problem.EDuplicate, iface.Line, fmt.Sprintf("a second interface for the NIC %s; the first is in line %d", iface.MAC, line), "write one interface with both")
			continue
		}
		claimed[iface.MAC] = iface.Line
		n := slices.IndexFunc(b.domain.NICs, func(n annotation.NIC) bool { return n.MAC == iface.MAC })
		if n < 0 {
			b.add(problem.ENoNIC, iface.Line, fmt.Sprintf("no NIC has the MAC address %s; this domain has %s", iface.MAC, b.macs()), "write the MAC address of one of its NICs, or leave mac out to match by order")
			continue
		}
		owners[n] = i
	}
	next := 0
	for i, iface := range b.network.Interfaces {
		if !iface.MAC.IsZero() {
			continue
		}
		for ; next < len(b.domain.NICs); next++ {
			if _, taken := owners[next]; !taken {
				break
			}
		}
		if next == len(b.domain.NICs) {
			b.add(problem.ENoNIC, iface.Line, fmt.Sprintf("there is no NIC for interface %d of the annotation; this domain has %s", i+1, b.macs()),
				"add <interface type='bridge'><source bridge='"+b.proposed()+"'/></interface> to its devices")
			break
		}
		owners[next] = i
	}
	return owners
}

// macs lists the domain's NICs for a message.
func (b *builder) macs() string {
	const shown = 16
	var s []string
	for _, n := range b.domain.NICs[:min(len(b.domain.NICs), shown)] {
		m := n.MAC.String()
		if m == "" {
			m = "one without a MAC address"
		}
		s = append(s, m)
	}
	switch more := len(b.domain.NICs) - len(s); {
	case len(s) == 0:
		return "no NIC"
	case more > 0:
		s = append(s, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(s, ", ")
}

func (b *builder) nic(n annotation.NIC, i annotation.Interface) NIC {
	b.checkNIC(n)
	net, ok := b.profile(i)
	out := NIC{
		MAC: n.MAC, Bridge: n.Bridge, Network: net, Lease: net.Lease, Routes: i.Routes, Line: i.Line,
		DNS: either(i.DNS, net.DNS), NTP: either(i.NTP, net.NTP), Search: either(i.Search, net.Search),
		Client: cmp.Or(i.Client, net.Client), Boots: i.Boots, Options: i.Options, Portal: cmp.Or(i.Portal, net.Portal), Relay: net.Relay,
		Lines: make(map[netip.Addr]int, len(i.Addresses)),
	}
	out.Relay.Servers = either(i.Relay, net.Relay.Servers)
	b.bootLoop(i)
	if !ok {
		return out
	}
	if n.Bridge != "" && n.Bridge == net.Uplink {
		b.addXML(problem.EBridgeShared, n.Line, fmt.Sprintf("bridge %s is the uplink of network %s", n.Bridge, net.Name), b.bridgeFix())
	}
	for _, a := range i.Addresses {
		if line, twice := b.seen[a.IP]; twice {
			b.add(problem.EDuplicate, a.Line, fmt.Sprintf("address %s is given twice; the first is in line %d", a.IP, line), "remove one")
			continue
		}
		b.seen[a.IP] = a.Line
		if !b.free(a) {
			continue
		}
		out.Lines[a.IP] = a.Line
		if a.IP.Is4() {
			out.Addrs4 = append(out.Addrs4, a.IP)
		} else {
			out.Addrs6 = append(out.Addrs6, a.IP)
		}
	}
	b.prefixes(&out, i)
	b.nat(&out, i)
	if len(i.Addresses)+len(i.Prefixes) == 0 && !i.Auto6 && len(out.Relay.Servers) == 0 {
		b.add(problem.EValue, i.Line, "no address for the NIC "+b.describe(n), `write ipv4="203.0.113.42" or ipv6="2001:db8::42" on <network>, or <address ip="..."/> in its <interface>`)
	}
	out.MTU = b.mtu(n, i, net, out.IPv6())
	return out
}

func (b *builder) describe(n annotation.NIC) string {
	if n.MAC.IsZero() {
		return "in line " + fmt.Sprint(n.Line)
	}
	return n.MAC.String()
}

// checkNIC holds what a NIC must be in the domain's XML.
func (b *builder) checkNIC(n annotation.NIC) {
	switch {
	case n.Type != "bridge":
		what := fmt.Sprintf("the NIC %s is of type %s", b.describe(n), problem.Quote(n.Type))
		switch n.Type {
		case "network":
			what += ", whose bridge is libvirt's own and shared"
		case "ethernet", "direct", "user", "hostdev", "vhostuser", "vdpa", "internal", "mcast", "server", "client", "udp", "null":
			what += ", which has no bridge"
		}
		b.addXML(problem.ENICType, n.Line, what, b.bridgeFix())
	case n.Bridge == "":
		b.addXML(problem.EBridgeName, n.Line, "the NIC "+b.describe(n)+" names no bridge", b.bridgeFix())
	case len(n.Bridge) > names.MaxInterface:
		b.addXML(problem.EBridgeName, n.Line, fmt.Sprintf("bridge %s has %d characters; the kernel takes %d", problem.Quote(n.Bridge), len(n.Bridge), names.MaxInterface), b.bridgeFix())
	case !names.Interface(n.Bridge):
		b.addXML(problem.EBridgeName, n.Line, "bridge "+problem.Quote(n.Bridge)+" is not a name for a bridge", b.bridgeFix())
	}
	switch {
	case n.MAC.IsZero():
		b.addXML(problem.ENoNIC, n.Line, "the NIC in line "+fmt.Sprint(n.Line)+" has no MAC address", "define the domain, which gives it one, and check virsh dumpxml; or write <mac address='52:54:00:...'/>")
	case n.MAC.IsMulticast() || n.MAC.String() == marks.GatewayMAC:
		b.addXML(problem.EValue, n.Line, fmt.Sprintf("no NIC can have the MAC address %s: it is a group's or the gateway's", n.MAC), "write another, like 52:54:00:ab:cd:01")
	}
}

// bridgeFix is the interface that the domain should have.
func (b *builder) bridgeFix() string {
	return "use <interface type='bridge'> with <source bridge='" + b.proposed() + "'/>, a bridge of the NIC's own that slash32 makes"
}

// proposed is a name for a bridge that no NIC of the domain has.
func (b *builder) proposed() string {
	base := "s32-" + label(b.domain.Name)
	for i := 0; ; i++ {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("-%d", i)
		}
		name := strings.TrimRight(base[:min(len(base), names.MaxInterface-len(suffix))], "-") + suffix
		if !slices.ContainsFunc(b.domain.NICs, func(n annotation.NIC) bool { return n.Bridge == name }) {
			return name
		}
	}
}

func (b *builder) profile(i annotation.Interface) (config.Network, bool) {
	name := i.Network
	if name == "" {
		name = config.DefaultNetwork
	}
	if n, ok := b.config.Networks[name]; ok {
		return n, true
	}
	known := slices.Sorted(maps.Keys(b.config.Networks))
	fix := "use one of " + strings.Join(known[:min(len(known), 16)], ", ") + ", or add it to slash32.yaml"
	if near := problem.Nearest(name, known); near != "" {
		fix = fmt.Sprintf("did you mean %q? There are %s", near, strings.Join(known[:min(len(known), 16)], ", "))
	}
	b.add(problem.ENetwork, i.Line, "the configuration has no network "+problem.Quote(name), fix)
	return config.Network{}, false
}

// bootLoop warns of an iPXE that is loaded and has nothing to load: it is not
// given itself once more, so the machine would stop there.
func (b *builder) bootLoop(i annotation.Interface) {
	for _, boot := range i.Boots {
		if boot.For == "ipxe" || boot.For == "" && !names.IPXE(boot.File) {
			return
		}
	}
	for _, boot := range i.Boots {
		if names.IPXE(boot.File) {
			b.add(problem.WBootLoop, boot.Line, "boot file "+problem.Quote(boot.File)+" is iPXE, and nothing says what iPXE is to load", `add <boot for="ipxe" file="http://.../boot.ipxe"/>`)
			return
		}
	}
}

// free tells whether no gateway has the address.
func (b *builder) free(a annotation.Address) bool {
	for _, name := range slices.Sorted(maps.Keys(b.config.Networks)) {
		if n := b.config.Networks[name]; a.IP == n.Gateway4 || a.IP == n.Gateway6 {
			b.add(problem.EValue, a.Line, fmt.Sprintf("address %s is the gateway of network %s", a.IP, name), "give the VM another address, or the network another gateway")
			return false
		}
	}
	return true
}

// mtu is what the annotation says, else the network, else the NIC; 0 leaves it
// to plan.
func (b *builder) mtu(n annotation.NIC, i annotation.Interface, net config.Network, v6 bool) uint16 {
	mtu, line, say := n.MTU, n.Line, b.addXML
	switch {
	case i.MTU != 0:
		mtu, line, say = i.MTU, i.Line, b.add
		if n.MTU != 0 && i.MTU > n.MTU {
			b.add(problem.EValue, i.Line, fmt.Sprintf("mtu %d is more than the NIC's, which is %d", i.MTU, n.MTU), fmt.Sprintf("write at most %d, or change <mtu size='%[1]d'/> of the NIC", n.MTU))
		}
	case net.MTU != 0 && (n.MTU == 0 || net.MTU < n.MTU):
		mtu, line, say = net.MTU, i.Line, b.add
	}
	switch {
	case mtu == 0:
	case mtu < annotation.MinMTU:
		say(problem.EValue, line, fmt.Sprintf("the MTU %d is too small for IPv4", mtu), fmt.Sprintf("use at least %d", annotation.MinMTU))
	case v6 && mtu < minMTU6:
		say(problem.EValue, line, fmt.Sprintf("the MTU %d is too small for the IPv6 that the NIC has", mtu), fmt.Sprintf("use at least %d, or remove the IPv6 addresses and prefixes", minMTU6))
	}
	return mtu
}

// duplicates finds NICs that share a MAC address or a bridge; a bridge also with
// a NIC that is not annotated.
func (b *builder) duplicates(nics []NIC) {
	macs := map[mac.Addr]bool{}
	for _, n := range nics {
		if macs[n.MAC] && !n.MAC.IsZero() {
			b.addXML(problem.EDuplicate, 0, fmt.Sprintf("two NICs have the MAC address %s", n.MAC), "give each NIC its own")
		}
		macs[n.MAC] = true
	}
	ours := map[string]bool{}
	for _, n := range nics {
		ours[n.Bridge] = true
	}
	first := map[string]annotation.NIC{}
	for _, n := range b.domain.NICs {
		if n.Bridge == "" || !ours[n.Bridge] {
			continue
		}
		if other, twice := first[n.Bridge]; twice {
			b.addXML(problem.EBridgeShared, n.Line, fmt.Sprintf("bridge %s is also that of the NIC %s", problem.Quote(n.Bridge), b.describe(other)), "give each NIC a bridge of its own, such as "+b.proposed())
			continue
		}
		first[n.Bridge] = n
	}
}

func either[T any](first, second []T) []T {
	if len(first) > 0 {
		return first
	}
	return second
}

// hostname is the domain's name made a host name.
func hostname(d annotation.Domain) string {
	if l := label(d.Name); l != "" {
		return l
	}
	return "vm-" + d.UUID.String()[:8]
}

// label makes s one label: lower case, a dash for what a label can't have.
func label(s string) string {
	const limit = 63
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			c = '-'
		}
		if b.Len() == limit || c == '-' && (b.Len() == 0 || strings.HasSuffix(b.String(), "-")) {
			continue
		}
		b.WriteRune(c)
	}
	return strings.TrimRight(b.String(), "-")
}

// owner is who has something.
type owner struct {
	vm  *VM
	nic *NIC
}

// Conflicts finds what vm claims and another VM has: addresses, prefixes, bridges and
// forwarded ports.
// Another VM is one with another UUID.
func Conflicts(vm VM, others []VM) problem.List {
	addrs, bridges := map[netip.Addr]owner{}, map[string]owner{}
	var nets []netOwner
	for i := range others {
		if others[i].UUID == vm.UUID {
			continue
		}
		for j := range others[i].NICs {
			o := owner{&others[i], &others[i].NICs[j]}
			bridges[o.nic.Bridge] = o
			for _, a := range o.nic.Addrs() {
				addrs[a] = o
				if a.Is6() {
					nets = append(nets, netOwner{netip.PrefixFrom(a, a.BitLen()), o})
				}
			}
			for _, p := range o.nic.Nets() {
				nets = append(nets, netOwner{p, o})
			}
		}
	}
	var ps problem.List
	for _, n := range vm.NICs {
		for _, a := range n.Addrs() {
			if o, taken := addrs[a]; taken {
				ps = append(ps, problem.Problem{
					Code: problem.EAddressInUse, File: vm.File, Line: n.Lines[a], VM: vm.Name,
					What: fmt.Sprintf("address %s belongs to running VM %s (%s, bridge %s)", a, o.vm.Name, o.nic.MAC, o.nic.Bridge),
					Fix:  fmt.Sprintf("give %s another address, or stop %s", vm.Name, o.vm.Name),
				})
			}
		}
		if o, taken := bridges[n.Bridge]; taken {
			ps = append(ps, problem.Problem{
				Code: problem.EBridgeShared, VM: vm.Name,
				What: fmt.Sprintf("bridge %s of the NIC %s is also the bridge of running VM %s (%s)", n.Bridge, n.MAC, o.vm.Name, o.nic.MAC),
				Fix:  fmt.Sprintf("give each NIC a bridge of its own in <source bridge='...'/>, or stop %s", o.vm.Name),
			})
		}
	}
	return slices.Concat(ps, overlaps(vm, nets), ports(vm, others))
}
