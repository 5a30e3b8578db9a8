package kernel

import (
	"encoding/binary"
	"net"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// part is a piece of a rule: one or more expressions.
type part []expr.Any

func rule(parts ...part) []expr.Any {
	var r []expr.Any
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func meta(key expr.MetaKey) *expr.Meta { return &expr.Meta{Key: key, Register: 1} }

func fromGuest() part { return part{meta(expr.MetaKeyIIFGROUP), equal(host32(marks.LinkGroup))[0]} }
func toGuest() part   { return part{meta(expr.MetaKeyOIFGROUP), equal(host32(marks.LinkGroup))[0]} }
func iifname() part   { return part{meta(expr.MetaKeyIIFNAME)} }
func oifname() part   { return part{meta(expr.MetaKeyOIFNAME)} }
func setMark() part {
	return part{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
}

func ethernet() part {
	return part{meta(expr.MetaKeyIIFTYPE), equal([]byte{unix.ARPHRD_ETHER, 0})[0]}
}
func ipv4() part { return part{meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV4})[0]} }
func ipv6() part { return part{meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV6})[0]} }
func layer4(proto byte) part {
	return part{meta(expr.MetaKeyL4PROTO), equal([]byte{proto})[0]}
}

// field is a part of the packet.
type field struct {
	base           expr.PayloadBase
	offset, length uint32
}

func etherSource() field { return field{expr.PayloadBaseLLHeader, 6, 6} }
func saddr4() field      { return field{expr.PayloadBaseNetworkHeader, 12, 4} }
func daddr4() field      { return field{expr.PayloadBaseNetworkHeader, 16, 4} }
func daddr6() field      { return field{expr.PayloadBaseNetworkHeader, 24, 16} }
func saddr6() field      { return field{expr.PayloadBaseNetworkHeader, 8, 16} }
func destPort() field    { return field{expr.PayloadBaseTransportHeader, 2, 2} }
func bothPorts() field   { return field{expr.PayloadBaseTransportHeader, 0, 4} }
func icmpType() field    { return field{expr.PayloadBaseTransportHeader, 0, 1} }

func load(f field, register uint32) part {
	return part{&expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.length}}
}

func equal(b []byte) part { return part{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b}} }
func between(from, to byte) part {
	return part{
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{from}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{to}},
	}
}

func notEqual(b []byte) part { return part{&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: b}} }

// inside4 finds what goes from and to the subnets of one network.
func inside4() part {
	return slices.Concat(ipv4(), load(saddr4(), 1), load(daddr4(), firstRegister+1), lookup(state.SetInside4))
}

func inside6() part {
	return slices.Concat(ipv6(), load(saddr6(), 1), load(daddr6(), 2), lookup(state.SetInside6))
}

func masked(mask []byte) part { return maskedIn(1, mask) }

// prefixOf leaves of the address in register 2 that many bits.
func prefixOf(bits uint8) part { return maskedIn(2, net.CIDRMask(int(bits), 128)) }

func maskedIn(register uint32, mask []byte) part {
	return part{&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}}
}

func lookup(set string) part { return part{&expr.Lookup{SourceRegister: 1, SetName: set}} }
func noLookup(set string) part {
	return part{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}
}
func lookupMark() part {
	return part{&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: state.SetMark}}
}

func verdict(kind expr.VerdictKind, chain string) part {
	return part{&expr.Verdict{Kind: kind, Chain: chain}}
}

// fe80::/10 and its mask.
func linkLocal() []byte     { return []byte{0: 0xfe, 1: 0x80, 15: 0} }
func linkLocalMask() []byte { return []byte{0: 0xff, 1: 0xc0, 15: 0} }

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
