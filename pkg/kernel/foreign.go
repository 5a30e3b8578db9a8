package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/marks"
)

// Bounds of what is read of other programs' tables.
const (
	maxForeignRules = 20_000
	maxForeignElems = 4_096
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables_compat.h.
const (
	exprName, exprData   = 1, 2     // NFTA_EXPR_NAME, NFTA_EXPR_DATA
	xtName, xtInfo       = 1, 3     // NFTA_MATCH_NAME, _INFO and those of a target
	xtRevision           = 2        // NFTA_MATCH_REV
	elemFlags, elemUntil = 3, 10    // NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY_END
	verdictCode          = 1        // NFTA_VERDICT_CODE
	verdictChain         = 2        // NFTA_VERDICT_CHAIN
	dataVerdict          = 2        // NFTA_DATA_VERDICT
	ruleUserdata         = 7        // NFTA_RULE_USERDATA
	udataComment         = 0        // NFTNL_UDATA_RULE_COMMENT
	xtConntrackState     = 1        // XT_CONNTRACK_STATE
	xtPhysdevBridged     = 1 << 2   // XT_PHYSDEV_OP_BRIDGED
	setFlagInterval      = 0x4      // NFT_SET_INTERVAL
	setFlagAnonymous     = 0x1      // NFT_SET_ANONYMOUS
	groupSource          = 1        // XT_DEVGROUP_MATCH_SRC
	groupSourceNot       = 1 << 1   // XT_DEVGROUP_INVERT_SRC
	groupDest            = 1 << 2   // XT_DEVGROUP_MATCH_DST
	groupDestNot         = 1 << 3   // XT_DEVGROUP_INVERT_DST
	conntrackFlags       = 146      // offset of match_flags in xt_conntrack_mtinfo1 to 3
	physdevFlags         = 4*16 + 0 // offset of invert in xt_physdev_info
)

// foreignTable names a table of another program's.
type foreignTable struct {
	family byte
	name   string
}

// Forwarding reads the chains that forwarded packets meet in tables that are not
// ours, with the rules as far as they can be understood. It takes CAP_NET_ADMIN.
func (k *Kernel) Forwarding(ctx context.Context) (firewall.Ruleset, error) {
	for range generationTries {
		before, err := k.generation()
		if err != nil {
			return firewall.Ruleset{}, fmt.Errorf("read generation of the nftables ruleset: %w", err)
		}
		s, err := k.forwarding(ctx)
		if err != nil {
			return firewall.Ruleset{}, fmt.Errorf("read the forward chains of other programs: %w", err)
		}
		if after, err := k.generation(); err == nil && before == after {
			return s, nil
		}
	}
	return firewall.Ruleset{}, fmt.Errorf("read the forward chains of other programs: the ruleset changed each of %d times", generationTries)
}

func (k *Kernel) forwarding(ctx context.Context) (firewall.Ruleset, error) {
	var s firewall.Ruleset
	var tables []foreignTable
	err := k.nft.dump(ctx, foreignMessage(unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC), func() { s.Chains, tables = nil, nil }, func(_ uint16, b []byte) {
		c, ok := parseChain(b)
		if !ok {
			return
		}
		s.Chains = append(s.Chains, c)
		if t := (foreignTable{b[0], c.Table}); c.Forward && !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	})
	if err != nil {
		return s, err
	}
	s.Chains = slices.DeleteFunc(s.Chains, func(c firewall.Chain) bool {
		return !slices.ContainsFunc(tables, func(t foreignTable) bool { return familyName(t.family) == c.Family && t.name == c.Table })
	})
	for _, t := range tables {
		if err := k.foreignRules(ctx, t, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func foreignMessage(typ uint16, family byte) message {
	return newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, 0, []byte{family, unix.NFNETLINK_V0, 0, 0})
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	}
	return ""
}

// parseChain reads a chain of a family that forwards IP and of a table that is
// not ours.
func parseChain(b []byte) (c firewall.Chain, ok bool) {
	if len(b) < 4 || familyName(b[0]) == "" {
		return c, false
	}
	c.Family = familyName(b[0])
	c.Table, c.Name = names(b)
	if c.Family == "inet" && c.Table == marks.NftTable {
		return c, false
	}
	nftAttrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_CHAIN_POLICY:
			c.Drop = netU32(d) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			attrs(d, func(typ uint16, d []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.Forward = netU32(d) == hookForward
				case unix.NFTA_HOOK_PRIORITY:
					c.Priority = int32(netU32(d))
				}
			})
		}
	})
	return c, true
}

// foreignRules reads the rules of one table into the chains of s.
func (k *Kernel) foreignRules(ctx context.Context, t foreignTable, s *firewall.Ruleset) error {
	at := map[string]*firewall.Chain{}
	for i := range s.Chains {
		if c := &s.Chains[i]; c.Family == familyName(t.family) && c.Table == t.name {
			at[c.Name] = c
		}
	}
	elems := map[string][]firewall.Case{} // by set; nil: not understood
	var raw [][]byte
	get := foreignMessage(unix.NFT_MSG_GETRULE, t.family).str(unix.NFTA_RULE_TABLE, t.name)
	err := k.nft.dump(ctx, get, func() { raw = nil }, func(_ uint16, b []byte) {
		if len(raw) < maxForeignRules {
			raw = append(raw, slices.Clone(b))
		} else {
			s.Partial = true
		}
	})
	if err != nil {
		return err
	}
	for _, b := range raw {
		var failed error
		chain, r := parseForeignRule(b, func(set string) []firewall.Case {
			if list, known := elems[set]; known {
				return list
			}
			list, err := k.foreignSet(ctx, t, set)
			failed = errors.Join(failed, err)
			elems[set] = list
			return list
		})
		if failed != nil {
			return failed
		}
		if c := at[chain]; c != nil {
			c.Rules = append(c.Rules, r)
		}
	}
	return nil
}

// foreignSet reads the elements of a set or verdict map; nil when it is one of
// intervals or larger than is read.
func (k *Kernel) foreignSet(ctx context.Context, t foreignTable, name string) ([]firewall.Case, error) {
	m := foreignMessage(unix.NFT_MSG_GETSETELEM, t.family).
		str(unix.NFTA_SET_ELEM_LIST_TABLE, t.name).
		str(unix.NFTA_SET_ELEM_LIST_SET, name)
	var list []firewall.Case
	odd := false
	err := k.nft.dump(ctx, m, func() { list, odd = []firewall.Case{}, false }, func(_ uint16, b []byte) {
		nftAttrs(b, func(typ uint16, d []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			attrs(d, func(_ uint16, d []byte) {
				c, ok := parseCase(d)
				odd = odd || !ok || len(list) == maxForeignElems
				if !odd {
					list = append(list, c)
				}
			})
		})
	})
	if errors.Is(err, unix.ENOENT) || odd {
		return nil, nil
	}
	return list, err
}

func parseCase(b []byte) (c firewall.Case, ok bool) {
	ok = true
	attrs(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			attrs(d, func(typ uint16, d []byte) {
				if typ == dataValue {
					c.Key = slices.Clone(d)
				}
			})
		case unix.NFTA_SET_ELEM_DATA:
			c.Verdict, c.Chain = parseVerdict(d)
		case elemFlags:
			ok = ok && netU32(d) == 0 // the end of an interval, or whatever no other element is
		case elemUntil:
			ok = false
		}
	})
	return c, ok && c.Key != nil
}

func parseVerdict(b []byte) (v firewall.Verdict, chain string) {
	attrs(b, func(typ uint16, d []byte) {
		if typ != dataVerdict {
			return
		}
		attrs(d, func(typ uint16, d []byte) {
			switch typ {
			case verdictCode:
				v = verdictOf(int32(netU32(d)))
			case verdictChain:
				chain = cString(d)
			}
		})
	})
	return v, chain
}

func verdictOf(code int32) firewall.Verdict {
	switch {
	case code&0xff == 0 && code >= 0: // NF_DROP
		return firewall.Drop
	case code == policyAccept:
		return firewall.Accept
	case code == unix.NFT_JUMP:
		return firewall.Jump
	case code == unix.NFT_GOTO:
		return firewall.Goto
	case code == unix.NFT_RETURN:
		return firewall.Return
	case code == unix.NFT_CONTINUE:
		return ""
	}
	return firewall.Other
}

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
				var name string
				var data []byte
				attrs(d, func(typ uint16, d []byte) {
					switch typ {
					case exprName:
						name = cString(d)
					case exprData:
						data = d
					}
				})
				p.expression(name, data)
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
		var x string
		var info []byte
		attrs(b, func(typ uint16, d []byte) {
			switch typ {
			case xtName:
				x = cString(d)
			case xtInfo:
				info = d
			}
		})
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
