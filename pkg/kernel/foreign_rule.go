package kernel

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
)

// register is what a register holds.
type register struct {
	field firewall.Field
	size  int
	mask  []byte
}

// ruleParser follows a rule's expressions.
type ruleParser struct {
	family byte
	set    func(name string) []firewall.Case
	regs   map[uint32]register
	rule   firewall.Rule
}

// parseForeignRule reads one rule of another program's and the name of its chain.
func parseForeignRule(b []byte, set func(name string) []firewall.Case) (chain string, r firewall.Rule) {
	if len(b) < 4 {
		return "", r
	}
	p := ruleParser{family: b[0], set: set, regs: map[uint32]register{}}
	nftAttrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			chain = cString(d)
		case unix.NFTA_RULE_HANDLE:
			if len(d) == 8 {
				p.rule.Handle = binary.BigEndian.Uint64(d)
			}
		case ruleUserdata:
			if len(d) >= 2 && d[0] == udataComment && int(d[1])+2 <= len(d) {
				p.rule.Comment = cString(d[2 : 2+int(d[1])])
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			attrs(d, func(_ uint16, d []byte) {
				p.expression(named(d, exprName, exprData))
			})
		}
	})
	return chain, p.rule
}

// numbers reads the attributes of an expression that are 32-bit numbers.
func numbers(b []byte) map[uint16]uint32 {
	n := map[uint16]uint32{}
	attrs(b, func(typ uint16, d []byte) {
		if len(d) == 4 {
			n[typ] = netU32(d)
		}
	})
	return n
}

// value reads a nested NFTA_DATA_VALUE.
func value(b []byte, attr uint16) (v []byte) {
	attrs(b, func(typ uint16, d []byte) {
		if typ == attr {
			attrs(d, func(typ uint16, d []byte) {
				if typ == dataValue {
					v = slices.Clone(d)
				}
			})
		}
	})
	return v
}

func (p *ruleParser) match(m firewall.Match) { p.rule.Matches = append(p.rule.Matches, m) }

func (p *ruleParser) unknown() { p.match(firewall.Match{}) }

func (p *ruleParser) expression(name string, b []byte) {
	switch name {
	case "counter", "log", "notrack", "objref", "flow_offload", "last":
	case "meta", "ct", "payload":
		p.load(name, numbers(b))
	case "bitwise":
		n := numbers(b)
		r := p.regs[n[unix.NFTA_BITWISE_SREG]]
		mask, xor := value(b, unix.NFTA_BITWISE_MASK), value(b, unix.NFTA_BITWISE_XOR)
		if r.mask != nil || mask == nil || slices.ContainsFunc(xor, func(c byte) bool { return c != 0 }) {
			r = register{}
		}
		r.mask = mask
		p.regs[n[unix.NFTA_BITWISE_DREG]] = r
	case "cmp":
		p.compare(numbers(b), value(b, unix.NFTA_CMP_DATA))
	case "lookup":
		p.lookup(b)
	case "immediate":
		if n := numbers(b); n[unix.NFTA_IMMEDIATE_DREG] == unix.NFT_REG_VERDICT {
			attrs(b, func(typ uint16, d []byte) {
				if typ == unix.NFTA_IMMEDIATE_DATA {
					p.rule.Verdict, p.rule.Chain = parseVerdict(d)
				}
			})
		} else {
			p.regs[n[unix.NFTA_IMMEDIATE_DREG]] = register{}
		}
	case "reject":
		p.rule.Verdict = firewall.Drop
	case "queue":
		p.rule.Verdict = firewall.Other
	case "match", "target":
		x, info := named(b, xtName, xtInfo)
		if name == "match" {
			p.xtMatch(x, info)
		} else {
			p.xtTarget(x)
		}
	case "fib", "rt", "hash", "numgen", "socket", "osf", "tunnel", "xfrm", "exthdr", "byteorder":
		for _, reg := range []uint32{1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15} { // one of them, and each says it in an attribute of its own
			p.regs[reg] = register{}
		}
		if name == "osf" || name == "exthdr" { // these may also end the rule
			p.unknown()
		}
	default: // limit, quota, connlimit, dynset, range, and what is newer than this
		p.unknown()
	}
}

// load notes what a register is loaded with.
func (p *ruleParser) load(name string, n map[uint16]uint32) {
	var r register
	dst := n[unix.NFTA_META_DREG] // attribute 1 in all three
	switch name {
	case "meta":
		switch n[unix.NFTA_META_KEY] {
		case unix.NFT_META_IIFNAME:
			r = register{field: firewall.IIFName, size: unix.IFNAMSIZ}
		case unix.NFT_META_OIFNAME:
			r = register{field: firewall.OIFName, size: unix.IFNAMSIZ}
		case unix.NFT_META_IIFGROUP:
			r = register{field: firewall.IIFGroup, size: 4}
		case unix.NFT_META_OIFGROUP:
			r = register{field: firewall.OIFGroup, size: 4}
		case unix.NFT_META_NFPROTO:
			r = register{field: firewall.NFProto, size: 1}
		case unix.NFT_META_L4PROTO:
			r = register{field: firewall.L4Proto, size: 1}
		}
	case "ct":
		dst = n[unix.NFTA_CT_DREG]
		switch n[unix.NFTA_CT_KEY] {
		case unix.NFT_CT_STATE:
			r = register{field: firewall.CTState, size: 4}
		case unix.NFT_CT_STATUS:
			r = register{field: firewall.CTStatus, size: 4}
		}
	case "payload":
		dst = n[unix.NFTA_PAYLOAD_DREG]
		r = p.payload(n[unix.NFTA_PAYLOAD_BASE], n[unix.NFTA_PAYLOAD_OFFSET], n[unix.NFTA_PAYLOAD_LEN])
	}
	if dst != 0 { // 0 with meta and ct: it sets something
		p.regs[dst] = r
	}
}

// payload tells which field a part of the network header is. A beginning of an
// address is how nft compares with a prefix of whole bytes.
func (p *ruleParser) payload(base, offset, length uint32) register {
	if base != unix.NFT_PAYLOAD_NETWORK_HEADER {
		return register{}
	}
	four := p.family == unix.NFPROTO_IPV4
	six := p.family == unix.NFPROTO_IPV6
	for _, m := range p.rule.Matches { // in table inet, by the match that nft puts before it
		if m.Field == firewall.NFProto && !m.Negate && len(m.Values) == 1 && len(m.Values[0]) == 1 {
			four = four || m.Values[0][0] == unix.NFPROTO_IPV4
			six = six || m.Values[0][0] == unix.NFPROTO_IPV6
		}
	}
	switch {
	case four && offset == 12 && length <= 4:
		return register{field: firewall.Source, size: int(length)}
	case four && offset == 16 && length <= 4:
		return register{field: firewall.Destination, size: int(length)}
	case four && offset == 9 && length == 1, six && offset == 6 && length == 1:
		return register{field: firewall.L4Proto, size: 1}
	case six && offset == 8 && length <= 16:
		return register{field: firewall.Source, size: int(length)}
	case six && offset == 24 && length <= 16:
		return register{field: firewall.Destination, size: int(length)}
	}
	return register{}
}

func (p *ruleParser) compare(n map[uint16]uint32, data []byte) {
	r := p.regs[n[unix.NFTA_CMP_SREG]]
	op := n[unix.NFTA_CMP_OP]
	if r.field == firewall.Unknown || op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
		p.unknown()
		return
	}
	p.match(firewall.Match{Field: r.field, Mask: r.mask, Values: [][]byte{data}, Negate: op == unix.NFT_CMP_NEQ})
}

func (p *ruleParser) lookup(b []byte) {
	var set string
	verdicts := false
	n := numbers(b)
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_LOOKUP_SET:
			set = cString(d)
		case unix.NFTA_LOOKUP_DREG:
			verdicts = netU32(d) == unix.NFT_REG_VERDICT
			if !verdicts {
				p.regs[netU32(d)] = register{}
			}
		}
	})
	r := p.regs[n[unix.NFTA_LOOKUP_SREG]]
	var list []firewall.Case
	if r.field != firewall.Unknown || verdicts {
		list = p.set(set)
	}
	fits := r.field != firewall.Unknown && r.mask == nil && list != nil &&
		!slices.ContainsFunc(list, func(c firewall.Case) bool { return len(c.Key) != r.size })
	switch {
	case verdicts && fits && len(list) > 0:
		p.rule.Field, p.rule.Cases = r.field, list
	case verdicts && list != nil:
		p.rule.Field, p.rule.Cases = firewall.Unknown, list
	case verdicts: // whatever it is
		p.unknown()
		p.rule.Verdict = firewall.Other
	case fits:
		m := firewall.Match{Field: r.field, Negate: n[unix.NFTA_LOOKUP_FLAGS]&unix.NFT_LOOKUP_F_INV != 0}
		for _, c := range list {
			m.Values = append(m.Values, c.Key)
		}
		p.match(m)
	default:
		p.unknown()
	}
}

// xtMatch reads a match of iptables'.
func (p *ruleParser) xtMatch(name string, b []byte) {
	switch {
	case name == "comment":
		p.rule.Comment = cString(b)
	case name == "devgroup" && len(b) >= 20:
		flags := hostU32(b)
		if flags&groupSource != 0 {
			p.match(firewall.Match{Field: firewall.IIFGroup, Mask: slices.Clone(b[8:12]), Values: [][]byte{slices.Clone(b[4:8])}, Negate: flags&groupSourceNot != 0})
		}
		if flags&groupDest != 0 {
			p.match(firewall.Match{Field: firewall.OIFGroup, Mask: slices.Clone(b[16:20]), Values: [][]byte{slices.Clone(b[12:16])}, Negate: flags&groupDestNot != 0})
		}
	case name == "conntrack" && len(b) >= conntrackFlags+6:
		flags, invert, states := binary.NativeEndian.Uint16(b[conntrackFlags:]), binary.NativeEndian.Uint16(b[conntrackFlags+2:]), binary.NativeEndian.Uint16(b[conntrackFlags+4:])
		p.states(flags == xtConntrackState, invert&xtConntrackState != 0, states)
	case name == "state" && len(b) >= 4:
		p.states(true, false, uint16(hostU32(b)))
	case name == "physdev" && len(b) >= physdevFlags+2:
		if b[physdevFlags+1]&xtPhysdevBridged != 0 {
			p.match(firewall.Match{Field: firewall.Bridged, Values: [][]byte{{1}}, Negate: b[physdevFlags]&xtPhysdevBridged != 0})
		}
		if b[physdevFlags+1] != xtPhysdevBridged {
			p.unknown()
		}
	default:
		p.unknown()
	}
}

// states adds the match of iptables' states, whose bits are those of nft's.
func (p *ruleParser) states(only, invert bool, states uint16) {
	p.match(firewall.Match{Field: firewall.CTState, Mask: host32(uint32(states)), Values: [][]byte{host32(0)}, Negate: !invert})
	if !only {
		p.unknown()
	}
}

// xtTarget reads a target of iptables'.
func (p *ruleParser) xtTarget(name string) {
	switch name {
	case "REJECT", "DROP", "TARPIT":
		p.rule.Verdict = firewall.Drop
	case "NFQUEUE":
		p.rule.Verdict = firewall.Other
	}
}
