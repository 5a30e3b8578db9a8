package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// What golang.org/x/sys/unix lacks of linux/if_link.h, ip.h and ipv6.h.
const (
	brAgeingTime       = 4  // IFLA_BR_AGEING_TIME
	brSTPState         = 5  // IFLA_BR_STP_STATE
	brMcastRouter      = 22 // IFLA_BR_MCAST_ROUTER
	brMcastSnooping    = 23 // IFLA_BR_MCAST_SNOOPING
	mcastRouterAlways  = 2  // MDB_RTR_TYPE_PERM
	filterSkipStats    = 8  // RTEXT_FILTER_SKIP_STATS
	inetConf           = 1  // IFLA_INET_CONF
	inet6Conf          = 2  // IFLA_INET6_CONF
	inet6AddrGenMode   = 8  // IFLA_INET6_ADDR_GEN_MODE
	kindBridge         = "bridge"
	minMTU, maxMTU     = 68, 65535
	nativeIfinfoLength = unix.SizeofIfInfomsg
)

// conf4 and conf6 are the places of the settings that we plan in the arrays in
// which the kernel lists a link's settings together with the link: eleven files
// less to open per bridge.
var conf4 = map[string]int{ // IPV4_DEVCONF_*, counted from 1
	"forwarding": 0, "send_redirects": 5, "rp_filter": 7, "arp_ignore": 18,
}

var conf6 = map[string]int{ // DEVCONF_*, counted from 0
	"forwarding": 0, "accept_ra": 3, "disable_ipv6": 26,
}

// link is what the kernel says of one interface.
type link struct {
	index    int
	name     string
	kind     string
	alias    string
	group    uint32
	mac      mac.Addr
	mtu      uint32
	up       bool
	master   int
	stp      bool
	learning bool
	snooping bool
	hairpin  bool   // a port in hairpin mode, as isHairpin has it
	members  bool   // multicasts come to the bridge itself only where it is a member
	conf4    []byte // u32 each
	conf6    []byte
	genMode  int // addr_gen_mode; -1: not listed
}

// ours tells whether a link carries our marks. One whose alias lacks was left by
// a hook that died between the request that creates and the next.
func (l link) ours() bool {
	return l.kind == kindBridge && (l.group == marks.LinkGroup || strings.HasPrefix(l.alias, marks.LinkAliasPrefix))
}

// linkNames are the links' names, sorted.
func linkNames(links []link) []string {
	var out []string
	for _, l := range links {
		out = append(out, l.name)
	}
	slices.Sort(out)
	return out
}

func (l link) state(ports []link) state.Link {
	out := state.Link{Name: l.name, MAC: l.mac, MTU: uint16(min(l.mtu, maxMTU)), Up: l.up, Index: l.index}
	if uuid, guest, ok := state.ParseAlias(l.alias); ok {
		out.UUID, out.Guest = uuid, guest
	}
	var bad []string
	if l.learning {
		bad = append(bad, "ageing_time")
	}
	if l.group != marks.LinkGroup {
		bad = append(bad, "group")
	}
	if l.members {
		bad = append(bad, "mcast_router")
	}
	if l.snooping {
		bad = append(bad, "mcast_snooping")
	}
	if l.stp {
		bad = append(bad, "stp")
	}
	out.Deviates = strings.Join(bad, ",")
	out.Ports = strings.Join(linkNames(ports), ",")
	return out
}

// settings calls f for each of the link's settings that we may plan.
func (l link) settings(f func(path, value string)) {
	for name, i := range conf4 {
		if len(l.conf4) >= 4*i+4 {
			f("net/ipv4/conf/"+l.name+"/"+name, strconv.Itoa(int(int32(hostU32(l.conf4[4*i:])))))
		}
	}
	for name, i := range conf6 {
		if len(l.conf6) >= 4*i+4 {
			f("net/ipv6/conf/"+l.name+"/"+name, strconv.Itoa(int(int32(hostU32(l.conf6[4*i:])))))
		}
	}
	if l.genMode >= 0 {
		f("net/ipv6/conf/"+l.name+"/addr_gen_mode", strconv.Itoa(l.genMode))
	}
}

func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, nativeIfinfoLength)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func parseLink(b []byte) link {
	l := link{genMode: -1}
	if len(b) < nativeIfinfoLength {
		return l
	}
	l.index = int(hostU32(b[4:]))
	l.up = hostU32(b[8:])&unix.IFF_UP != 0
	attrs(b[nativeIfinfoLength:], func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = cString(d)
		case unix.IFLA_IFALIAS:
			l.alias = cString(d)
		case unix.IFLA_GROUP:
			l.group = hostU32(d)
		case unix.IFLA_ADDRESS:
			if len(d) == len(l.mac) {
				l.mac = mac.Addr(d)
			}
		case unix.IFLA_MTU:
			l.mtu = hostU32(d)
		case unix.IFLA_MASTER:
			l.master = int(hostU32(d))
		case unix.IFLA_LINKINFO:
			l.parseInfo(d)
		case unix.IFLA_PROTINFO: // in a list of ports
			l.hairpin = isHairpin(d)
		case unix.IFLA_AF_SPEC:
			l.parseSpec(d)
		}
	})
	return l
}

func (l *link) parseInfo(b []byte) {
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.kind = cString(d)
		case unix.IFLA_INFO_SLAVE_DATA:
			l.hairpin = isHairpin(d) // of no other kind of master
		case unix.IFLA_INFO_DATA:
			if l.kind != kindBridge {
				return
			}
			attrs(d, func(typ uint16, d []byte) {
				switch typ {
				case brAgeingTime:
					l.learning = hostU32(d) != 0
				case brSTPState:
					l.stp = hostU32(d) != 0
				case brMcastRouter:
					l.members = len(d) > 0 && d[0] != mcastRouterAlways
				case brMcastSnooping:
					l.snooping = len(d) > 0 && d[0] != 0
				}
			})
		}
	})
}

func (l *link) parseSpec(b []byte) {
	attrs(b, func(family uint16, d []byte) {
		attrs(d, func(typ uint16, d []byte) {
			switch {
			case family == unix.AF_INET && typ == inetConf:
				l.conf4 = slices.Clone(d)
			case family == unix.AF_INET6 && typ == inet6Conf:
				l.conf6 = slices.Clone(d)
			case family == unix.AF_INET6 && typ == inet6AddrGenMode && len(d) > 0:
				l.genMode = int(d[0])
			}
		})
	})
}

// linkByName reads one link. The error is unix.ENODEV when there is none.
func (k *Kernel) linkByName(name string) (link, error) {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ {
		return link{}, unix.ENODEV
	}
	m := newMessage(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)).
		str(unix.IFLA_IFNAME, name).
		u32(unix.IFLA_EXT_MASK, filterSkipStats)
	var l link
	err := k.rt.get(m, func(typ uint16, b []byte) {
		if typ == unix.RTM_NEWLINK {
			l = parseLink(b)
		}
	})
	return l, err
}

// bridges reads our bridges: those named, or all.
func (k *Kernel) bridges(ctx context.Context, names []string) (map[int]link, error) {
	out := map[int]link{}
	if len(names) > 0 {
		for _, n := range names {
			l, err := k.linkByName(n)
			if errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read link %s: %w", n, err)
			}
			if l.ours() {
				out[l.index] = l
			}
		}
		return out, nil
	}
	m := newMessage(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0)).
		u32(unix.IFLA_EXT_MASK, filterSkipStats).
		nest(unix.IFLA_LINKINFO, func(m message) message { return m.attr(unix.IFLA_INFO_KIND, []byte(kindBridge)) })
	err := k.rt.dump(ctx, m, func() { clear(out) }, func(typ uint16, b []byte) {
		if l := parseLink(b); typ == unix.RTM_NEWLINK && l.ours() {
			out[l.index] = l
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	return out, nil
}

// ports reads the interfaces in bridges, by the bridge's index; in one bridge only
// when its index is given.
func (k *Kernel) ports(ctx context.Context, bridge int) (map[int][]link, error) {
	fixed := ifinfo(0, 0, 0)
	if bridge == 0 {
		fixed[0] = unix.AF_BRIDGE // ports only, and little of each
	}
	m := newMessage(unix.RTM_GETLINK, 0, fixed)
	if bridge != 0 {
		m = m.u32(unix.IFLA_EXT_MASK, filterSkipStats).u32(unix.IFLA_MASTER, uint32(bridge))
	}
	out := map[int][]link{}
	err := k.rt.dump(ctx, m, func() { clear(out) }, func(typ uint16, b []byte) {
		if l := parseLink(b); typ == unix.RTM_NEWLINK && l.master != 0 && l.master != l.index {
			out[l.master] = append(out[l.master], l)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list ports of bridges: %w", err)
	}
	return out, nil
}

// BridgeInfo is what is at a bridge's name, ours or not.
type BridgeInfo struct {
	Exists bool
	Kind   string // "bridge", or what else it is
	Alias  string
	Group  uint32
	Ports  []string // sorted
	Index  int
	MTU    uint16
}

// Bridge looks at the interface of that name; Exists is false when there is
// none.
func (k *Kernel) Bridge(ctx context.Context, name string) (BridgeInfo, error) {
	l, err := k.linkByName(name)
	if errors.Is(err, unix.ENODEV) {
		return BridgeInfo{}, nil
	}
	if err != nil {
		return BridgeInfo{}, fmt.Errorf("read link %s: %w", name, err)
	}
	ports, err := k.ports(ctx, l.index)
	if err != nil {
		return BridgeInfo{}, err
	}
	return BridgeInfo{
		Exists: true, Kind: l.kind, Alias: l.alias, Group: l.group,
		Ports: linkNames(ports[l.index]), Index: l.index, MTU: uint16(min(l.mtu, maxMTU)),
	}, nil
}

// createLink makes a bridge, down, in two requests: the kernel takes no alias
// when it creates. The MTU is given in the second, as a change: only an MTU that
// was changed stays as it is when a port with another one joins.
func createLink(l state.Link) []message {
	other := l.MTU + 1
	if l.MTU == maxMTU {
		other = l.MTU - 1
	}
	create := newMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0, 0)).
		str(unix.IFLA_IFNAME, l.Name).
		u32(unix.IFLA_MTU, uint32(other)).
		attr(unix.IFLA_ADDRESS, l.MAC[:]).
		u32(unix.IFLA_GROUP, marks.LinkGroup).
		nest(unix.IFLA_LINKINFO, bridgeOptions)
	change := newMessage(unix.RTM_NEWLINK, 0, ifinfo(0, 0, 0)).
		str(unix.IFLA_IFNAME, l.Name).
		u32(unix.IFLA_MTU, uint32(l.MTU)).
		str(unix.IFLA_IFALIAS, l.Alias())
	return []message{create, change}
}

// bridgeOptions are what a bridge of ours always has: nothing that a link with one
// guest has no use for. With an ageing time of 0 the bridge learns no MAC address:
// else a guest that sends from a million of them fills the host's memory. It does
// not snoop; where somebody makes it, with a querier on it, a multicast still comes
// to the bridge itself, where the responder listens without being a member of any
// group: to a router, that is.
func bridgeOptions(m message) message {
	return m.attr(unix.IFLA_INFO_KIND, []byte(kindBridge)).
		nest(unix.IFLA_INFO_DATA, func(m message) message {
			return m.u32(brAgeingTime, 0).u32(brSTPState, 0).u8(brMcastRouter, mcastRouterAlways).u8(brMcastSnooping, 0)
		})
}

// changeLink makes the request that turns a bridge of ours into what is wanted;
// nil when it is so already.
func changeLink(have link, want state.Link) message {
	var flags, change uint32
	if have.up != want.Up {
		change = unix.IFF_UP
		if want.Up {
			flags = unix.IFF_UP
		}
	}
	m := newMessage(unix.RTM_NEWLINK, 0, ifinfo(have.index, flags, change))
	empty := len(m)
	if have.mtu != uint32(want.MTU) {
		m = m.u32(unix.IFLA_MTU, uint32(want.MTU))
	}
	if have.mac != want.MAC {
		m = m.attr(unix.IFLA_ADDRESS, want.MAC[:])
	}
	if have.alias != want.Alias() {
		m = m.str(unix.IFLA_IFALIAS, want.Alias())
	}
	if have.group != marks.LinkGroup {
		m = m.u32(unix.IFLA_GROUP, marks.LinkGroup)
	}
	if have.stp || have.snooping || have.learning || have.members {
		m = m.nest(unix.IFLA_LINKINFO, bridgeOptions)
	}
	if len(m) == empty && change == 0 {
		return nil
	}
	return m
}
