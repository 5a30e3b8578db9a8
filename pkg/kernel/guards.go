package kernel

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// What a guest may send beside its own packets, what it may reach on the host,
// and the counters of both: the parts of the tables that are not about sources.

const (
	protoICMP = 1

	typeEcho          = 8 // ICMP
	typeUnreachable   = 3
	typeTimeExceeded  = 11
	typeParameter     = 12
	typeUnreachable6  = 1 // ICMPv6, the first of the errors about single packets
	typeParameter6    = 4 // and the last
	typeRedirect      = 5
	typeEcho6         = 128 // ICMPv6
	typeRouterAdvert  = 134
	typeNeighbrAdvert = 136
	typeRedirect6     = 137

	hookARPInput    = 0   // NF_ARP_IN
	priorityService = 0   // after connection tracking
	priorityTraffic = 300 // after everybody's filters: what they drop is not counted

	// The kernel's share in bounding the log: samples a second, of all guests
	// together, for each reason. The agent lets a few a minute through.
	sampleRate  = 5
	sampleBurst = 20
	sampleBytes = 128 // of each packet
)

func guardSets() []set {
	name := []datatype{typeIfname()}
	list := []set{
		{name: state.SetGateway4, key: []datatype{typeIfname(), typeIPv4()}},
		{name: state.SetGateway6, key: []datatype{typeIfname(), typeIPv6()}},
		{name: state.SetService, key: []datatype{typeIfname(), typeProto(), typeService()}},
		{name: state.SetOpen, key: name},
		{name: state.SetLocal4, key: []datatype{typeIPv4()}, nets: true},
		{name: state.SetLocal6, key: []datatype{typeIPv6()}, nets: true},
		{family: unix.NFPROTO_ARP, name: state.SetARP, key: []datatype{typeIfname(), typeEther(), typeEther(), typeIPv4()}},
		{family: unix.NFPROTO_ARP, name: state.SetSpoofARP, key: name, counted: true},
	}
	for _, s := range []string{state.SetSpoofND, state.SetRogueRA, state.SetRedirect, state.SetClosed, state.SetApart, state.SetFragment} {
		list = append(list, set{name: s, key: name, counted: true})
	}
	for _, s := range state.TrafficCounters {
		list = append(list, set{name: s, key: name, counted: true})
	}
	return list
}

// dropChains are the ends of what is neither forwarded nor for the host.
func dropChains() []chain {
	guest6 := byTarget(verdict(expr.VerdictReturn, ""))
	return []chain{
		{name: "router_advert", rules: counted(state.SetRogueRA)},
		{name: "redirect", rules: counted(state.SetRedirect)},
		{name: "foreign_nd", rules: counted(state.SetSpoofND)},
		{name: "closed_service", rules: counted(state.SetClosed)},
		{name: "from_guest_icmp", rules: [][]expr.Any{
			rule(load(icmpType(), 1), equal([]byte{typeRedirect}), verdict(expr.VerdictGoto, "redirect")),
		}},
		// An advertisement of what is not the guest's changes nothing: its addresses
		// are permanent neighbours. It is evidence all the same.
		{name: "neighbour_advert", rules: append(append([][]expr.Any{
			rule(iifname(), load(ndTarget(), 2), lookup(state.SetGateway6), verdict(expr.VerdictGoto, "foreign_nd")),
			rule(load(ndTarget(), 1), masked(linkLocalMask()), equal(linkLocal()), verdict(expr.VerdictReturn, "")),
		}, guest6...), rule(verdict(expr.VerdictGoto, "foreign_nd")))},
		{name: "from_guest_nd", rules: [][]expr.Any{
			rule(load(icmpType(), 1), equal([]byte{typeNeighbrAdvert}), verdict(expr.VerdictGoto, "neighbour_advert")),
			rule(load(icmpType(), 1), equal([]byte{typeRouterAdvert}), verdict(expr.VerdictGoto, "router_advert")),
			rule(load(icmpType(), 1), equal([]byte{typeRedirect6}), verdict(expr.VerdictGoto, "redirect")),
			rule(load(icmpType(), 1), between(typeRouterSolicit, typeNeighbrSolicit), verdict(expr.VerdictDrop, "")),
		}},
		// None of it is for beyond the link (RFC 4861 §3.1).
		{name: "through_nd", rules: [][]expr.Any{
			rule(load(icmpType(), 1), equal([]byte{typeRouterAdvert}), verdict(expr.VerdictGoto, "router_advert")),
			rule(load(icmpType(), 1), equal([]byte{typeRedirect6}), verdict(expr.VerdictGoto, "redirect")),
			rule(load(icmpType(), 1), between(typeRouterSolicit, typeNeighbrAdvert), verdict(expr.VerdictGoto, "foreign_nd")),
		}},
	}
}

// byTarget looks for a neighbour advertisement's target among the guest's
// addresses and prefixes, and ends the rule that finds it.
func byTarget(end part) [][]expr.Any {
	rules := [][]expr.Any{rule(iifname(), load(ndTarget(), 2), lookup(state.SetGuard6), end)}
	for _, bits := range state.PrefixLengths {
		rules = append(rules, rule(iifname(), load(ndTarget(), 2), prefixOf(bits), lookup(prefixSet(state.SetGuard6, int(bits))), end))
	}
	return rules
}

// serviceChains say what a guest reaches on the host itself: answers to what the
// host began, the gateway by echo request, and what the network opens. DHCP and
// neighbour discovery have ended before, at the responder's socket.
func serviceChains() []chain {
	leave := verdict(expr.VerdictReturn, "")
	return []chain{
		{name: "to_host", rules: [][]expr.Any{
			rule(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), leave),
			rule(iifname(), lookup(state.SetOpen), leave),
			rule(iifname(), part{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister + 4}}, load(destPort(), firstRegister+5), lookup(state.SetService), leave),
			rule(ipv4(), layer4(protoICMP), load(icmpType(), 1), equal([]byte{typeEcho}), iifname(), load(daddr4(), 2), lookup(state.SetGateway4), leave),
			rule(ipv6(), layer4(protoICMPv6), load(icmpType(), 1), equal([]byte{typeEcho6}), iifname(), load(daddr6(), 2), lookup(state.SetGateway6), leave),
			rule(ipv6(), layer4(protoICMPv6), load(icmpType(), 1), equal([]byte{typeNeighbrAdvert}), leave),
			// What every system says to its link: nothing that is worth counting.
			rule(part{meta(expr.MetaKeyPKTTYPE)}, between(unix.PACKET_BROADCAST, unix.PACKET_MULTICAST), verdict(expr.VerdictDrop, "")),
			rule(verdict(expr.VerdictGoto, "closed_service")),
		}},
		{name: "services", kind: "filter", hook: hookInput, priority: priorityService, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictJump, "to_host")),
		}},
	}
}

// trafficChains count what is forwarded. Who is at the other end says in which
// class: there the addresses are as the guest sees them.
func trafficChains() []chain {
	return []chain{
		{name: "in_local", rules: [][]expr.Any{rule(oifname(), lookup(state.SetInLocal))}},
		{name: "out_local", rules: [][]expr.Any{rule(iifname(), lookup(state.SetOutLocal))}},
		{name: "in", rules: [][]expr.Any{
			rule(ipv4(), load(saddr4(), 1), lookup(state.SetLocal4), verdict(expr.VerdictGoto, "in_local")),
			rule(ipv6(), load(saddr6(), 1), lookup(state.SetLocal6), verdict(expr.VerdictGoto, "in_local")),
			rule(oifname(), lookup(state.SetInInternet)),
		}},
		{name: "out", rules: [][]expr.Any{
			rule(ipv4(), load(daddr4(), 1), lookup(state.SetLocal4), verdict(expr.VerdictGoto, "out_local")),
			rule(ipv6(), load(daddr6(), 1), lookup(state.SetLocal6), verdict(expr.VerdictGoto, "out_local")),
			rule(iifname(), lookup(state.SetOutInternet)),
		}},
		{name: "traffic", kind: "filter", hook: hookForward, priority: priorityTraffic, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictJump, "out")),
			rule(toGuest(), verdict(expr.VerdictJump, "in")),
		}},
	}
}

// arpChains keep ARP of guests from the kernel, which needs none of it: the
// responder's socket has had it, and the guests' addresses are permanent
// neighbours.
func arpChains() []chain {
	return []chain{
		{family: unix.NFPROTO_ARP, name: "from_guest", rules: append([][]expr.Any{
			rule(iifname(), load(etherSource(), firstRegister+4), load(arpSenderMAC(), firstRegister+6), load(arpSender(), firstRegister+8), lookup(state.SetARP), verdict(expr.VerdictDrop, "")),
		}, counted(state.SetSpoofARP)...)},
		{family: unix.NFPROTO_ARP, name: "input", kind: "filter", hook: hookARPInput, priority: priorityService, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictJump, "from_guest")),
		}},
	}
}

// sample sends the beginning of some packets to whoever listens to our group.
func sample(reason string) []expr.Any {
	return rule(part{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: sampleRate, Unit: expr.LimitTimeSecond, Burst: sampleBurst},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group: marks.LogGroup, Snaplen: sampleBytes, Data: []byte(reason),
		},
	})
}

func fragment4() field    { return field{expr.PayloadBaseNetworkHeader, 6, 2} }
func ndTarget() field     { return field{expr.PayloadBaseTransportHeader, 8, 16} }
func arpSenderMAC() field { return field{expr.PayloadBaseNetworkHeader, 8, 6} }
func arpSender() field    { return field{expr.PayloadBaseNetworkHeader, 14, 4} }

// fragment6 tells whether there is a fragment header.
func fragment6() part {
	return part{&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6}}
}

// untrackedICMP loads the type of a message that is not tracked.
func untrackedICMP(proto byte) part {
	return slices.Concat(layer4(proto), ctState(expr.CtStateBitUNTRACKED), load(icmpType(), 1))
}

// ctState matches connections in one of some states.
func ctState(bits uint32) part {
	return append(part{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}, append(masked(host32(bits)), notEqual(make([]byte, 4))...)...)
}
