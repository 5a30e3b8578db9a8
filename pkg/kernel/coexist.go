package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/google/nftables/expr"

	"github.com/slash32/slash32/pkg/firewall"
	"github.com/slash32/slash32/pkg/marks"
)

// openingComment marks the rules of ours in chains of other programs.
const openingComment = marks.NftTable

const (
	rulePosition = 6             // NFTA_RULE_POSITION
	commentBytes = 256           // xt_comment_info
	groupBytes   = (20 + 7) &^ 7 // xt_devgroup_info, as XT_ALIGN has it
)

// Opening is a chain of another program's in which two rules of ours accept what
// comes from and goes to guests: by the group of the bridges, so that they are two
// whatever VMs there are.
type Opening struct {
	Family, Table, Chain string
	// Native has the rules in nft's own words. iptables refuses to list a table with
	// such rules; in tables of its own the rules are as iptables writes them.
	Native bool
	// First puts the rules before all others. Else they are behind those that the
	// operator has there, before what ends the chain with a return.
	First bool
}

func (o Opening) String() string { return o.Family + " " + o.Table + " " + o.Chain }

// Ours tells whether a rule is one that Open makes.
func Ours(r firewall.Rule) bool {
	return r.Comment == openingComment && r.Verdict == firewall.Accept && len(r.Matches) == 1 && guestsGroup(r.Matches[0]) != firewall.Unknown
}

// guestsGroup is the field by which a match is met by guests' packets alone.
func guestsGroup(m firewall.Match) firewall.Field {
	group := host32(marks.LinkGroup)
	if (m.Field == firewall.IIFGroup || m.Field == firewall.OIFGroup) && !m.Negate &&
		len(m.Values) == 1 && slices.Equal(m.Values[0], group) && (m.Mask == nil || hostU32(m.Mask) == 1<<32-1) {
		return m.Field
	}
	return firewall.Unknown
}

// Open brings the rules of ours in a chain to two that accept, or, when they are not
// wanted, to none; it writes nothing when that is so. A chain that does not exist is no
// error. Of other rules none is touched.
func (k *Kernel) Open(ctx context.Context, o Opening, wanted bool) (changed bool, err error) {
	for range generationTries {
		changed, err = k.open1(ctx, o, wanted)
		if !errors.Is(err, unix.ENOENT) { // a rule that we were to delete or to stand before is gone
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("open chain %s for guests: %w", o, err)
	}
	return changed, nil
}

func (k *Kernel) open1(ctx context.Context, o Opening, wanted bool) (bool, error) {
	family := openingFamily(o.Family)
	var rules []firewall.Rule
	get := foreignMessage(unix.NFT_MSG_GETRULE, family).str(unix.NFTA_RULE_TABLE, o.Table).str(unix.NFTA_RULE_CHAIN, o.Chain)
	there := true
	err := k.nft.get(foreignMessage(unix.NFT_MSG_GETCHAIN, family).str(unix.NFTA_CHAIN_TABLE, o.Table).str(unix.NFTA_CHAIN_NAME, o.Chain), func(uint16, []byte) {})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = k.nft.dump(ctx, get, func() { rules = nil }, func(_ uint16, b []byte) {
		chain, r := parseForeignRule(b, func(string) []firewall.Case { return nil })
		if chain == o.Chain {
			rules = append(rules, r)
		}
	})
	if errors.Is(err, unix.ENOENT) {
		there, err = false, nil
	}
	if err != nil || !there {
		return false, err
	}
	before, ok := o.settled(rules, wanted)
	if ok {
		return false, nil
	}
	var msgs []message
	for _, r := range rules {
		if Ours(r) {
			msgs = append(msgs, openingMessage(unix.NFT_MSG_DELRULE, 0, family, o).attr(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, r.Handle)))
		}
	}
	if wanted {
		for _, field := range []firewall.Field{firewall.IIFGroup, firewall.OIFGroup} {
			flags := uint16(unix.NLM_F_CREATE)
			if before == 0 && !o.First {
				flags |= unix.NLM_F_APPEND
			}
			m := openingMessage(unix.NFT_MSG_NEWRULE, flags, family, o)
			if before != 0 {
				m = m.attr(rulePosition, binary.BigEndian.AppendUint64(nil, before))
			}
			if m, err = openingRule(m, o, field); err != nil {
				return false, err
			}
			msgs = append(msgs, m)
		}
	}
	return true, k.nft.transaction(ctx, msgs)
}

// settled tells whether the rules of ours are as they should be; else before is the
// handle of the rule that they are to stand before, 0 when there is none.
func (o Opening) settled(rules []firewall.Rule, wanted bool) (before uint64, ok bool) {
	ours := map[firewall.Field]int{}
	n := 0
	for _, r := range rules {
		switch {
		case Ours(r):
			n++
			if before == 0 {
				ours[guestsGroup(r.Matches[0])]++
			}
		case r.Unconditional() && r.Verdict == firewall.Return && before == 0 && !o.First:
			before = r.Handle
		}
	}
	if !wanted {
		return before, n == 0
	}
	return before, n == 2 && ours[firewall.IIFGroup] == 1 && ours[firewall.OIFGroup] == 1
}

func openingFamily(name string) byte {
	switch name {
	case "ip":
		return unix.NFPROTO_IPV4
	case "ip6":
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_INET
}

func openingMessage(typ, flags uint16, family byte, o Opening) message {
	m := foreignMessage(typ, family)
	m.setFlags(flags)
	return m.str(unix.NFTA_RULE_TABLE, o.Table).str(unix.NFTA_RULE_CHAIN, o.Chain)
}

// openingRule adds the expressions of one rule.
func openingRule(m message, o Opening, field firewall.Field) (message, error) {
	if o.Native {
		key := expr.MetaKeyIIFGROUP
		if field == firewall.OIFGroup {
			key = expr.MetaKeyOIFGROUP
		}
		m, err := expressions(m, rule(part{meta(key)}, equal(host32(marks.LinkGroup)), part{&expr.Counter{}}, verdict(expr.VerdictAccept, "")))
		comment := append([]byte(openingComment), 0)
		return m.attr(ruleUserdata, append([]byte{udataComment, byte(len(comment))}, comment...)), err
	}
	group := make([]byte, groupBytes)
	flags, at := uint32(groupSource), 4
	if field == firewall.OIFGroup {
		flags, at = groupDest, 12
	}
	copy(group, host32(flags))
	copy(group[at:], host32(marks.LinkGroup))
	copy(group[at+4:], host32(1<<32-1))
	comment := make([]byte, commentBytes)
	copy(comment, openingComment)
	var rest error
	m = m.nest(unix.NFTA_RULE_EXPRESSIONS, func(m message) message {
		m = xtMessage(m, "devgroup", group)
		m = xtMessage(m, "comment", comment)
		m, rest = appendExpressions(m, rule(part{&expr.Counter{}}, verdict(expr.VerdictAccept, "")))
		return m
	})
	return m, rest
}

func xtMessage(m message, name string, info []byte) message {
	return m.nest(unix.NFTA_LIST_ELEM, func(m message) message {
		return m.str(exprName, "match").nest(exprData, func(m message) message {
			return m.str(xtName, name).be32(xtRevision, 0).attr(xtInfo, info)
		})
	})
}
