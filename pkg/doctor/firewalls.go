package doctor

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/problem"
)

// way is one of the ways of a packet that must be open.
type way int

const (
	out   way = iota // a guest's connection
	reply            // and what comes back
	in               // a connection to a guest
)

func (w way) String() string {
	return [...]string{"what guests send", "the replies to guests", "new connections to guests"}[w]
}

// connection states, the bits of nft and of iptables.
const (
	established = 2
	fresh       = 8
)

// packet is a TCP packet of a guest's or to it.
func packet(g Guest, uplink string, six bool, w way) firewall.Packet {
	name := func(s string) []byte {
		b := make([]byte, unix.IFNAMSIZ)
		copy(b[:unix.IFNAMSIZ-1], s)
		return b
	}
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	p := firewall.Packet{
		firewall.NFProto: {unix.NFPROTO_IPV4}, firewall.L4Proto: {unix.IPPROTO_TCP}, firewall.Bridged: {0}, firewall.CTState: number(fresh),
	}
	addr := g.IPv4
	if six {
		p[firewall.NFProto], addr = []byte{unix.NFPROTO_IPV6}, g.IPv6
	}
	guest := [3]firewall.Field{firewall.IIFName, firewall.IIFGroup, firewall.Source}
	other := [2]firewall.Field{firewall.OIFName, firewall.OIFGroup}
	if w != out {
		guest = [3]firewall.Field{firewall.OIFName, firewall.OIFGroup, firewall.Destination}
		other = [2]firewall.Field{firewall.IIFName, firewall.IIFGroup}
	}
	if w == reply {
		p[firewall.CTState] = number(established)
	} else {
		p[firewall.CTStatus] = number(0) // new, and not to a forwarded port
	}
	p[guest[0]], p[guest[1]], p[other[0]], p[other[1]] = name(g.Bridge), number(marks.LinkGroup), name(uplink), number(0)
	if addr.IsValid() {
		p[guest[2]] = addr.AsSlice()
	}
	return p
}

// blocked is what one chain does to guests.
type blocked struct {
	ways map[way]string // by what it is dropped
	vms  map[string]struct{}
}

// firewalls follows guests' packets through the chains of other programs.
func (f Facts) firewalls() []Finding {
	var found []Finding
	for _, c := range f.Rules.Chains {
		if !c.Forward {
			continue
		}
		b := blocked{ways: map[way]string{}, vms: map[string]struct{}{}}
		for _, six := range []bool{false, true} {
			if c.Family == "ip" && six || c.Family == "ip6" && !six {
				continue
			}
			if six && len(f.Guests) == 0 && f.best(true) == "" {
				continue // nobody has or may get IPv6
			}
			for _, uplink := range f.uplinks(six) {
				for _, g := range f.guests() {
					if len(f.Guests) > 0 && (six && !g.IPv6.IsValid() || !six && !g.IPv4.IsValid()) {
						continue
					}
					f.follow(c, g, uplink, six, &b)
				}
			}
		}
		if len(b.ways) > 0 {
			found = append(found, f.blockage(c, b)...)
		}
	}
	return found
}

func (f Facts) follow(c firewall.Chain, g Guest, uplink string, six bool, b *blocked) {
	for _, w := range []way{out, reply, in} {
		fate := f.Rules.Fate(c, packet(g, uplink, six, w))
		if !fate.Dropped || fate.Accepted {
			continue
		}
		if b.ways[w] == "" {
			b.ways[w] = fate.By
		}
		if g.VM != "" {
			b.vms[g.VM] = struct{}{}
		}
	}
}

// firewallKind is one of the programs that are known.
type firewallKind struct {
	name string
	code problem.Code
	mode func(config.Coexist) string
}

func kinds() (docker, ufw, firewalld, other firewallKind) {
	return firewallKind{"Docker", problem.WDocker, func(c config.Coexist) string { return c.Docker }},
		firewallKind{"ufw", problem.WUFW, func(c config.Coexist) string { return c.UFW }},
		firewallKind{"firewalld", problem.WFirewalld, func(c config.Coexist) string { return c.Firewalld }},
		firewallKind{"", problem.WForward, func(config.Coexist) string { return config.Warn }}
}

// has tells whether a table has a chain whose name begins so.
func has(s firewall.Ruleset, family, table, prefix string) bool {
	return slices.ContainsFunc(s.Chains, func(c firewall.Chain) bool {
		return c.Family == family && c.Table == table && strings.HasPrefix(c.Name, prefix)
	})
}

// kindOf tells whose a base chain is: by is where it drops.
func kindOf(s firewall.Ruleset, c firewall.Chain, by string) firewallKind {
	docker, ufw, firewalld, other := kinds()
	iptables := c.Table == "filter" && c.Name == "FORWARD" && c.Family != "inet"
	switch {
	case c.Family == "inet" && c.Table == "firewalld":
		return firewalld
	case iptables && strings.HasPrefix(by, "chain ufw"):
		return ufw
	case iptables && has(s, c.Family, c.Table, "DOCKER-USER"), strings.HasPrefix(by, "chain DOCKER"):
		return docker
	case iptables && has(s, c.Family, c.Table, "ufw"):
		return ufw
	}
	return other
}

// blockage says what one chain does, and what to do about it.
func (f Facts) blockage(c firewall.Chain, b blocked) []Finding {
	ways := slices.Sorted(maps.Keys(b.ways))
	kind := kindOf(f.Rules, c, b.ways[ways[0]])
	mode := kind.mode(f.Coexist)
	if mode == config.Ignore {
		return nil
	}
	var words []string
	for _, w := range ways {
		words = append(words, w.String())
	}
	impact := Partial
	if ways[0] != in {
		impact = Offline
	}
	what := fmt.Sprintf("%s in table %s %s drops %s", b.ways[ways[0]], c.Family, c.Table, join(words))
	if kind.name != "" {
		what = kind.name + ": " + what
	}
	if len(b.vms) > 0 {
		what += " (" + some(slices.Sorted(maps.Keys(b.vms))) + ")"
	}
	what += "; what table inet slash32 accepts is still asked of every other table"
	if mode == config.Manage {
		what += "; coexist says manage, and the agent's rules are not there or do not come first"
	}
	return []Finding{{problem.Problem{Code: kind.code, What: what, Fix: f.remedy(kind, c, mode)}, impact}}
}

// some names the first of many.
func some(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// join is a list in words.
func join(words []string) string {
	if n := len(words); n > 1 {
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
	return strings.Join(words, "")
}

// interfaces is how guests' bridges are named to ufw and firewalld, which know no
// groups: by the common beginning, or one by one.
func (f Facts) interfaces() []string {
	var names []string
	for _, g := range f.guests() {
		name := g.Bridge
		if ours(name) {
			name = "s32-+"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// remedy is the commands that let guests through.
func (f Facts) remedy(kind firewallKind, c firewall.Chain, mode string) string {
	var cmds []string
	manage := ""
	if mode != config.Manage && kind.name != "" {
		manage = fmt.Sprintf("write coexist: {%s: manage} in slash32.yaml, or run: ", strings.ToLower(kind.name))
	}
	docker, ufw, firewalld, _ := kinds()
	switch kind.code {
	case docker.code:
		cmds = iptablesFix(c, "DOCKER-USER")
	case ufw.code:
		for _, name := range f.interfaces() {
			cmds = append(cmds, "ufw route allow in on "+name, "ufw route allow out on "+name)
		}
	case firewalld.code:
		for _, name := range f.interfaces() {
			cmds = append(cmds, "firewall-cmd --permanent --zone=trusted --add-interface="+name)
		}
		cmds = append(cmds,
			"firewall-cmd --permanent --new-policy slash32",
			"firewall-cmd --permanent --policy slash32 --add-ingress-zone ANY",
			"firewall-cmd --permanent --policy slash32 --add-egress-zone trusted",
			"firewall-cmd --permanent --policy slash32 --set-target ACCEPT",
			"firewall-cmd --reload")
	default:
		if c.Table == "filter" && c.Name == "FORWARD" && c.Family != "inet" {
			cmds = iptablesFix(c, "FORWARD")
			break
		}
		for _, dir := range []string{"iifgroup", "oifgroup"} {
			cmds = append(cmds, fmt.Sprintf("nft insert rule %s %s %s %s %d accept", c.Family, c.Table, c.Name, dir, marks.LinkGroup))
		}
		manage = "add to its configuration, and run: "
	}
	return manage + strings.Join(cmds, "; ")
}

func iptablesFix(c firewall.Chain, chain string) []string {
	program := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[c.Family]
	return []string{
		fmt.Sprintf("%s -I %s -m devgroup --src-group %d -j ACCEPT", program, chain, marks.LinkGroup),
		fmt.Sprintf("%s -I %s -m devgroup --dst-group %d -j ACCEPT", program, chain, marks.LinkGroup),
	}
}

// place is a chain that is made, or fit, for rules like ours.
type place struct {
	kernel.Opening
	base string // the chain at the forward hook that leads to it
	mode func(config.Coexist) string
}

func places() []place {
	docker, ufw, firewalld, _ := kinds()
	var list []place
	for _, family := range []string{"ip", "ip6"} {
		six := strings.TrimPrefix(family, "ip")
		list = append(list,
			place{kernel.Opening{Family: family, Table: "filter", Chain: "DOCKER-USER"}, "FORWARD", docker.mode},
			place{kernel.Opening{Family: family, Table: "filter", Chain: "ufw" + six + "-user-forward"}, "FORWARD", ufw.mode})
	}
	return append(list, place{kernel.Opening{Family: "inet", Table: "firewalld", Chain: "filter_FORWARD", Native: true, First: true}, "filter_FORWARD", firewalld.mode})
}

// needed tells whether, without the rules of ours, the table may drop what goes from
// or to a guest.
func (f Facts) needed(p place) bool {
	bare := firewall.Ruleset{Partial: f.Rules.Partial}
	var base firewall.Chain
	for _, c := range f.Rules.Chains {
		if c.Family != p.Family || c.Table != p.Table {
			continue
		}
		c.Rules = slices.DeleteFunc(slices.Clone(c.Rules), kernel.Ours)
		bare.Chains = append(bare.Chains, c)
		if c.Name == p.base && c.Forward {
			base = c
		}
	}
	if base.Name == "" {
		return false
	}
	guest := Guest{Bridge: "s32-guest", IPv4: netip.Addr{}}
	for _, six := range []bool{false, true} {
		if p.Family == "ip" && six || p.Family == "ip6" && !six {
			continue
		}
		uplinks := f.uplinks(six)
		if len(uplinks) == 0 {
			uplinks = []string{"uplink"}
		}
		for _, uplink := range uplinks {
			for _, w := range []way{out, reply, in} {
				if bare.Fate(base, packet(guest, uplink, six, w)).Dropped {
					return true
				}
			}
		}
	}
	return false
}
