package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/state"
)

func typeProto() datatype   { return datatype{12, 1} }
func typeService() datatype { return datatype{13, 2} }

const (
	priorityDestNAT = -100 // NF_IP_PRI_NAT_DST
	statusDNAT      = 1 << 5
	firstRegister   = unix.NFT_REG32_00 // the first of the registers of four bytes, where register 1 is, too; the name of an interface takes four
	keyField        = 4                 // bytes that a field of a concatenation is padded to
)

// translations are the maps by which addresses are translated.
func translations() []set {
	list := []set{
		{name: state.SetForward4, key: []datatype{typeIPv4(), typeProto(), typeService()}, value: []datatype{typeIPv4(), typeService()}},
		{name: state.SetForward6, key: []datatype{typeIPv6(), typeProto(), typeService()}, value: []datatype{typeIPv6(), typeService()}},
		{name: state.SetPublic4, key: []datatype{typeIPv4()}, value: []datatype{typeIPv4()}},
		{name: state.SetPublic6, key: []datatype{typeIPv6()}, value: []datatype{typeIPv6()}},
		{name: state.SetSNAT4, key: []datatype{typeIfname(), typeIPv4()}, value: []datatype{typeIPv4()}},
		{name: state.SetSNAT6, key: []datatype{typeIfname(), typeIPv6()}, value: []datatype{typeIPv6()}},
		{name: state.SetSNATNet4, key: []datatype{typeIfname(), typeIPv4()}, value: []datatype{typeIPv4()}, ranges: true},
		{name: state.SetSNATNet6, key: []datatype{typeIfname(), typeIPv6()}, value: []datatype{typeIPv6()}, ranges: true},
	}
	for _, bits := range state.PrefixLengths {
		list = append(list, set{
			name: prefixSet(state.SetSNAT6, int(bits)), holds: state.SetSNAT6, bits: int(bits),
			key: []datatype{typeIfname(), typeIPv6()}, value: []datatype{typeIPv6()},
		})
	}
	return list
}

// translating are the chains that translate. They see the first packet of a
// connection only. An address that stands for a guest's is the guest's whole; of the
// host's own addresses ports are.
func translating() []chain {
	return []chain{
		{name: "to_guest", rules: [][]expr.Any{
			rule(ipv4(), load(daddr4(), 1), translate(state.SetPublic4, unix.NFPROTO_IPV4, expr.NATTypeDestNAT)),
			rule(ipv6(), load(daddr6(), 1), translate(state.SetPublic6, unix.NFPROTO_IPV6, expr.NATTypeDestNAT)),
			rule(part{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}}, notEqual(host32(unix.RTN_LOCAL)), verdict(expr.VerdictReturn, "")),
			// What comes from these addresses, or is answered from them, cannot leave
			// the host or the link.
			rule(ipv4(), load(daddr4(), 1), masked([]byte{255, 0, 0, 0}), equal([]byte{127, 0, 0, 0}), verdict(expr.VerdictReturn, "")),
			rule(ipv6(), load(daddr6(), 1), equal(netip.IPv6Loopback().AsSlice()), verdict(expr.VerdictReturn, "")),
			rule(ipv6(), load(daddr6(), 1), masked(linkLocalMask()), equal(linkLocal()), verdict(expr.VerdictReturn, "")),
			rule(ipv4(), load(daddr4(), firstRegister), portKey(1), translate(state.SetForward4, unix.NFPROTO_IPV4, expr.NATTypeDestNAT)),
			rule(ipv6(), load(daddr6(), firstRegister), portKey(4), translate(state.SetForward6, unix.NFPROTO_IPV6, expr.NATTypeDestNAT)),
			rule(ipv4(), load(daddr4(), 1), masked(make([]byte, 4)), portKey(1), translate(state.SetForward4, unix.NFPROTO_IPV4, expr.NATTypeDestNAT)),
			rule(ipv6(), load(daddr6(), 1), masked(make([]byte, 16)), portKey(4), translate(state.SetForward6, unix.NFPROTO_IPV6, expr.NATTypeDestNAT)),
		}},
		{name: "translate_in", kind: "nat", hook: hookPrerouting, priority: priorityDestNAT, rules: [][]expr.Any{
			rule(verdict(expr.VerdictJump, "to_guest")),
		}},
		{name: "translate_local", kind: "nat", hook: hookOutput, priority: priorityDestNAT, rules: [][]expr.Any{
			rule(verdict(expr.VerdictJump, "to_guest")),
		}},
	}
}

// backToGuest are the rules for a guest that reaches itself by an address of the
// host's: it must not see its own address as the other end's. What leaves by the
// bridge that its source may come from is that.
func backToGuest() [][]expr.Any {
	masquerade := part{&expr.Masq{}}
	back := append(translated(), oifname()...)
	return append([][]expr.Any{rule(ipv4(), back, load(saddr4(), 2), lookup(state.SetGuard4), masquerade)},
		bySource(back, state.SetGuard6, lookup, masquerade)...)
}

// toGivenSource are the rules that translate sources to an address that somebody chose.
func toGivenSource() [][]expr.Any {
	given4 := func(set string) part { return translate(set, unix.NFPROTO_IPV4, expr.NATTypeSourceNAT) }
	given6 := func(set string) part { return translate(set, unix.NFPROTO_IPV6, expr.NATTypeSourceNAT) }
	return append([][]expr.Any{
		rule(ipv4(), oifname(), load(saddr4(), 2), given4(state.SetSNAT4)),
		rule(ipv4(), oifname(), load(saddr4(), 2), given4(state.SetSNATNet4)),
		rule(ipv6(), oifname(), load(saddr6(), 2), given6(state.SetSNATNet6)),
	}, bySource(oifname(), state.SetSNAT6, given6, nil)...)
}

// translated matches connections whose destination was translated.
func translated() part {
	return part{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(statusDNAT), Xor: make([]byte, 4)},
		notEqual(make([]byte, 4))[0],
	}
}

// portKey puts protocol and destination port behind an address of that many
// registers of four bytes.
func portKey(after uint32) part {
	return part{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister + after},
		load(destPort(), firstRegister+after+1)[0],
	}
}

// translate looks up what is in register 1 and translates to what it finds: an
// address, and in a map of forwards a port behind it.
func translate(set string, family uint32, kind expr.NATType) part {
	nat := &expr.NAT{Type: kind, Family: family, RegAddrMin: 1}
	switch set {
	case state.SetForward4:
		nat.RegProtoMin = firstRegister + 1
	case state.SetForward6:
		nat.RegProtoMin = firstRegister + 4
	}
	return part{&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: set}, nat}
}

// padded is a port as keys and values have it.
func padded(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// valueBytes is the value of an element of a map.
func valueBytes(e state.Elem) []byte {
	switch e.Set {
	case state.SetMark:
		return host32(e.Mark)
	case state.SetForward4, state.SetForward6:
		return append(e.To.Addr().AsSlice(), padded(e.To.Port())...)
	case state.SetPublic4, state.SetPublic6, state.SetSNAT4, state.SetSNAT6, state.SetSNATNet4, state.SetSNATNet6:
		return e.To.Addr().AsSlice()
	}
	return nil
}

func parseValue(e *state.Elem, b []byte) {
	var port uint16
	switch e.Set {
	case state.SetMark:
		e.Mark = hostU32(b)
		return
	case state.SetForward4, state.SetForward6:
		if len(b) < keyField {
			return
		}
		port = binary.BigEndian.Uint16(b[len(b)-keyField:])
		b = b[:len(b)-keyField]
	}
	if a, ok := netip.AddrFromSlice(b); ok {
		e.To = netip.AddrPortFrom(a, port)
	}
}
