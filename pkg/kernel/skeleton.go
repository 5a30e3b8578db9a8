package kernel

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/state"
)

// The types of nft(8) that set keys are made of: its number and its length in
// bytes.
type datatype struct{ number, length uint32 }

func typeIPv4() datatype   { return datatype{7, 4} }
func typeIPv6() datatype   { return datatype{8, 16} }
func typeEther() datatype  { return datatype{9, 6} }
func typeMark() datatype   { return datatype{19, 4} }
func typeIfname() datatype { return datatype{41, unix.IFNAMSIZ} }

const (
	typeBits    = 6 // bits per type in the number of a concatenation
	counterExpr = "counter"

	udataKeyOrder  = 0 // NFTNL_UDATA_SET_KEYBYTEORDER
	udataDataOrder = 1 // NFTNL_UDATA_SET_DATABYTEORDER
	udataHostOrder = 1 // BYTEORDER_HOST_ENDIAN
	udataNetOrder  = 2 // BYTEORDER_BIG_ENDIAN

	setDescConcat      = 2    // NFTA_SET_DESC_CONCAT
	setFlagConcat      = 0x80 // NFT_SET_CONCAT
	setExpr            = 17   // NFTA_SET_EXPR
	hookPrerouting     = 0    // NF_INET_PRE_ROUTING
	hookInput          = 1    // NF_INET_LOCAL_IN
	hookForward        = 2    // NF_INET_FORWARD
	hookOutput         = 3    // NF_INET_LOCAL_OUT
	hookPostrouting    = 4    // NF_INET_POST_ROUTING
	priorityGuard      = -450 // before NF_IP_PRI_CONNTRACK_DEFRAG, -400
	priorityRaw        = -300 // NF_IP_PRI_RAW
	prioritySourceNAT  = 100  // NF_IP_PRI_NAT_SRC
	policyAccept       = 1    // NF_ACCEPT
	protoICMPv6        = 58
	protoUDP           = 17
	portDHCP           = 67
	portDHCPClient     = 68
	portDHCPv6         = 547
	portDHCPv6Client   = 546
	typeRouterSolicit  = 133 // RFC 4861
	typeNeighbrSolicit = 135
)

// set is one set or map of a table.
type set struct {
	family  byte // 0: inet
	name    string
	holds   string // the Set of its elements in package state, when that is not its name
	bits    int    // of the prefixes that it has; 0: whole addresses
	key     []datatype
	value   []datatype // of a map
	limited bool       // its elements allow so many connections
	counted bool       // its elements have a counter that a lookup counts in
	ranges  bool       // its addresses are prefixes of any length
	nets    bool       // its elements bound intervals of addresses
}

// byLink tells that its keys are names of links and nothing else.
func (s set) byLink() bool { return len(s.key) == 1 && s.key[0] == typeIfname() }

// chain is one chain; a base chain has a kind.
type chain struct {
	family   byte // 0: inet
	name     string
	kind     string // filter, nat
	hook     uint32
	priority int32
	rules    [][]expr.Any
}

func sets() []set {
	list := []set{
		{name: state.SetGuardMAC, key: []datatype{typeIfname(), typeEther()}},
		{name: state.SetGuard4, key: []datatype{typeIfname(), typeIPv4()}},
		{name: state.SetGuard6, key: []datatype{typeIfname(), typeIPv6()}},
		{name: state.SetSpoofMAC, key: []datatype{typeIfname()}, counted: true},
		{name: state.SetSpoof4, key: []datatype{typeIfname()}, counted: true},
		{name: state.SetSpoof6, key: []datatype{typeIfname()}, counted: true},
		{name: state.SetRogue, key: []datatype{typeIfname()}, counted: true},
		{name: state.SetMark, key: []datatype{typeIfname()}, value: []datatype{typeMark()}},
		{name: state.SetMasq4, key: []datatype{typeIfname(), typeIPv4()}},
		{name: state.SetMasq6, key: []datatype{typeIfname(), typeIPv6()}},
		{name: state.SetMasqNet4, key: []datatype{typeIfname(), typeIPv4()}, ranges: true},
		{name: state.SetMasqNet6, key: []datatype{typeIfname(), typeIPv6()}, ranges: true},
		{name: state.SetInside4, key: []datatype{typeIPv4(), typeIPv4()}, ranges: true},
		{name: state.SetInside6, key: []datatype{typeIPv6(), typeIPv6()}, ranges: true},
		{name: state.SetIsolated, key: []datatype{typeIfname()}},
		{name: state.SetItself, key: []datatype{typeIfname(), typeIfname()}},
	}
	list = append(list, guardSets()...)
	for _, holds := range []string{state.SetGuard6, state.SetMasq6} {
		for _, bits := range state.PrefixLengths {
			list = append(list, set{
				name: prefixSet(holds, int(bits)), holds: holds, bits: int(bits),
				key: []datatype{typeIfname(), typeIPv6()},
			})
		}
	}
	return slices.Concat(list, translations(), tracking())
}

// prefixSet names the set of prefixes of one length.
func prefixSet(holds string, bits int) string { return holds + "_" + strconv.Itoa(bits) }

// setOf names the set that an element is in.
func setOf(e state.Elem) string {
	if (e.Set == state.SetGuard6 || e.Set == state.SetMasq6 || e.Set == state.SetSNAT6) && !e.Addr.IsSingleIP() {
		return prefixSet(e.Set, e.Addr.Bits())
	}
	return e.Set
}

// familyOf is the family of the table that an element is in; 0 is inet.
func familyOf(e state.Elem) byte {
	if e.Set == state.SetARP || e.Set == state.SetSpoofARP {
		return unix.NFPROTO_ARP
	}
	return 0
}

// bySource looks for the IPv6 source, with the interface's name, in the set of
// addresses and then in those of prefixes, and ends the rule that finds it.
func bySource(ifname part, holds string, look func(set string) part, end part) [][]expr.Any {
	rules := [][]expr.Any{rule(ipv6(), ifname, load(saddr6(), 2), look(holds), end)}
	for _, bits := range state.PrefixLengths {
		rules = append(rules, rule(ipv6(), ifname, load(saddr6(), 2), prefixOf(bits), look(prefixSet(holds, int(bits))), end))
	}
	return rules
}

// chains is the static part of the table, in the order of creation: a chain is
// there before one that jumps to it. What a packet meets does not depend on the
// number of VMs.
func chains() []chain {
	return slices.Concat(dropChains(), []chain{
		// Whoever does not send from what is its own is counted and dropped.
		{name: "spoofed_mac", rules: counted(state.SetSpoofMAC)},
		{name: "rogue_server", rules: counted(state.SetRogue)},
		{name: "guard_ip", rules: append([][]expr.Any{
			rule(ipv4(), iifname(), load(saddr4(), 2), lookup(state.SetGuard4), verdict(expr.VerdictReturn, "")),
			// DHCP of a guest that has no address yet, or still an old one, must pass:
			// where br_netfilter is loaded (Docker does it), this chain is met before
			// the bridge hands the frame to the responder's socket. It ends in input;
			// nothing routes a broadcast.
			rule(ipv4(), load(daddr4(), 1), equal([]byte{255, 255, 255, 255}), layer4(protoUDP), load(destPort(), 1), equal([]byte{0, portDHCP}), verdict(expr.VerdictReturn, "")),
			rule(ipv4(), load(saddr4(), 1), equal(make([]byte, 4)), verdict(expr.VerdictDrop, "")),
		}, counted(state.SetSpoof4)...)},
		{name: "guard_ip6", rules: append(append(bySource(iifname(), state.SetGuard6, lookup, verdict(expr.VerdictReturn, "")),
			// Neighbour Discovery; no router forwards these (RFC 4291 §2.5).
			rule(ipv6(), load(saddr6(), 1), masked(linkLocalMask()), equal(linkLocal()), verdict(expr.VerdictReturn, "")),
			rule(ipv6(), load(saddr6(), 1), equal(make([]byte, 16)), verdict(expr.VerdictReturn, "")),
		), counted(state.SetSpoof6)...)},
		{name: "guard", rules: [][]expr.Any{
			rule(ethernet(), iifname(), load(etherSource(), 2), noLookup(state.SetGuardMAC), verdict(expr.VerdictGoto, "spoofed_mac")),
			rule(ipv4(), verdict(expr.VerdictGoto, "guard_ip")),
			rule(ipv6(), verdict(expr.VerdictGoto, "guard_ip6")),
		}},
		{name: "sent", rules: [][]expr.Any{
			rule(verdict(expr.VerdictJump, "guard")),
			rule(ipv4(), load(fragment4(), 1), masked([]byte{0x3f, 0xff}), notEqual([]byte{0, 0}), iifname(), lookup(state.SetFragment)),
			rule(ipv6(), fragment6(), equal([]byte{1}), iifname(), lookup(state.SetFragment)),
		}},
		// Before fragments are put together: those of others must not take up the
		// memory for it.
		{name: "prerouting", kind: "filter", hook: hookPrerouting, priority: priorityGuard, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictGoto, "sent")),
		}},
		{name: "routing", kind: "filter", hook: hookPrerouting, priority: priorityRaw, rules: append([][]expr.Any{
			// The whole mark is set: kernels before 6.13 cannot combine it with what
			// a map says. So it is set here, before anybody else sets a part of it.
			// Other interfaces that are in the map lead to other hosts' guests.
			rule(iifname(), lookupMark(), setMark()),
		}, untracked()...)},
		// The responder's sockets have seen these; the kernel must not answer a
		// second time ("port unreachable", another advertisement).
		{name: "from_guest", rules: [][]expr.Any{
			rule(layer4(protoUDP), load(destPort(), 1), equal([]byte{0, portDHCP}), verdict(expr.VerdictDrop, "")),
			rule(layer4(protoUDP), load(destPort(), 1), equal([]byte{portDHCPv6 >> 8, portDHCPv6 & 0xff}), verdict(expr.VerdictDrop, "")),
			rule(layer4(protoUDP), load(destPort(), 1), equal([]byte{0, portDHCPClient}), verdict(expr.VerdictGoto, "rogue_server")),
			rule(layer4(protoUDP), load(destPort(), 1), equal([]byte{portDHCPv6Client >> 8, portDHCPv6Client & 0xff}), verdict(expr.VerdictGoto, "rogue_server")),
			rule(ipv4(), layer4(protoICMP), verdict(expr.VerdictGoto, "from_guest_icmp")),
			rule(ipv6(), layer4(protoICMPv6), verdict(expr.VerdictGoto, "from_guest_nd")),
		}},
		// A guest may serve what is behind it, not clients beyond its link. What it
		// sends on the link ends at the responder's socket.
		{name: "through_udp", rules: [][]expr.Any{
			rule(ipv4(), load(bothPorts(), 1), equal([]byte{0, portDHCP, 0, portDHCPClient}), verdict(expr.VerdictGoto, "rogue_server")),
			rule(ipv6(), load(bothPorts(), 1), equal([]byte{portDHCPv6 >> 8, portDHCPv6 & 0xff, portDHCPv6Client >> 8, portDHCPv6Client & 0xff}), verdict(expr.VerdictGoto, "rogue_server")),
		}},
		{name: "through", rules: [][]expr.Any{
			rule(layer4(protoUDP), verdict(expr.VerdictGoto, "through_udp")),
			rule(ipv4(), layer4(protoICMP), verdict(expr.VerdictGoto, "from_guest_icmp")),
			rule(ipv6(), layer4(protoICMPv6), verdict(expr.VerdictGoto, "through_nd")),
		}},
		// Of what is between isolated VMs and others, errors about something else pass,
		// and what a VM sends to itself by way of the host.
		{name: "apart_from", rules: append(apart(), counted(state.SetApart)...)},
		{name: "apart_to", rules: append(apart(),
			rule(oifname(), lookup(state.SetApart), verdict(expr.VerdictDrop, "")),
			rule(verdict(expr.VerdictDrop, "")),
		)},
		{name: "isolated_from", rules: [][]expr.Any{
			rule(toGuest(), verdict(expr.VerdictGoto, "apart_from")),
			rule(inside4(), verdict(expr.VerdictGoto, "apart_from")),
			rule(inside6(), verdict(expr.VerdictGoto, "apart_from")),
		}},
		{name: "isolated_to", rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictGoto, "apart_to")),
			// Of a guest that is not tracked nothing says what an error is about; the MTU
			// of its paths goes by those of the router, which is inside.
			rule(ipv4(), untrackedICMP(protoICMP), equal([]byte{typeUnreachable}), verdict(expr.VerdictReturn, "")),
			rule(ipv4(), untrackedICMP(protoICMP), between(typeTimeExceeded, typeParameter), verdict(expr.VerdictReturn, "")),
			rule(ipv6(), untrackedICMP(protoICMPv6), between(typeUnreachable6, typeParameter6), verdict(expr.VerdictReturn, "")),
			rule(inside4(), verdict(expr.VerdictGoto, "apart_to")),
			rule(inside6(), verdict(expr.VerdictGoto, "apart_to")),
		}},
		{name: "forwarding", kind: "filter", hook: hookForward, priority: priorityRaw, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictJump, "through")),
			rule(fromGuest(), iifname(), lookup(state.SetIsolated), verdict(expr.VerdictJump, "isolated_from")),
			rule(toGuest(), oifname(), lookup(state.SetIsolated), verdict(expr.VerdictJump, "isolated_to")),
		}},
		{name: "input", kind: "filter", hook: hookInput, priority: priorityRaw, rules: [][]expr.Any{
			rule(fromGuest(), verdict(expr.VerdictJump, "from_guest")),
		}},
		{name: "postrouting", kind: "nat", hook: hookPostrouting, priority: prioritySourceNAT, rules: slices.Concat(
			backToGuest(),
			[][]expr.Any{
				// Within a network nothing is translated: its members know each other.
				rule(inside4(), verdict(expr.VerdictReturn, "")),
				rule(inside6(), verdict(expr.VerdictReturn, "")),
			},
			toGivenSource(),
			[][]expr.Any{
				rule(ipv4(), oifname(), load(saddr4(), 2), lookup(state.SetMasq4), part{&expr.Masq{}}),
				rule(ipv4(), oifname(), load(saddr4(), 2), lookup(state.SetMasqNet4), part{&expr.Masq{}}),
				rule(ipv6(), oifname(), load(saddr6(), 2), lookup(state.SetMasqNet6), part{&expr.Masq{}}),
			},
			bySource(oifname(), state.SetMasq6, lookup, part{&expr.Masq{}}),
		)},
	}, translating(), limiting(), serviceChains(), trafficChains(), arpChains())
}

// apart lets through what isolation makes an exception for.
func apart() [][]expr.Any {
	return [][]expr.Any{
		rule(ctState(expr.CtStateBitRELATED), verdict(expr.VerdictReturn, "")),
		rule(iifname(), part{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2}}, lookup(state.SetItself), verdict(expr.VerdictReturn, "")),
	}
}

// counted ends a chain: one packet more in the bridge's counter, and dropped,
// with or without a counter. A sample goes to the log under the set's name.
func counted(set string) [][]expr.Any {
	return [][]expr.Any{
		sample(set),
		rule(iifname(), lookup(set), verdict(expr.VerdictDrop, "")),
		rule(verdict(expr.VerdictDrop, "")),
	}
}

// families are those of our tables.
var families = [...]byte{unix.NFPROTO_INET, unix.NFPROTO_ARP}

// familyMessage starts a message about the table of a family; 0 is inet.
func familyMessage(family byte, typ uint16, flags uint16) message {
	m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, []byte{cmp.Or(family, unix.NFPROTO_INET), unix.NFNETLINK_V0, 0, 0})
	return m.str(unix.NFTA_TABLE_NAME, marks.NftTable) // attribute 1 in all of them
}

// skeletonMessages makes the tables anew, in whatever state they are: to be sent
// as one transaction.
func skeletonMessages() ([]message, error) {
	msgs := removeMessages()
	for _, f := range families {
		msgs = append(msgs, familyMessage(f, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE))
	}
	for i, s := range sets() {
		msgs = append(msgs, s.message(uint32(i+1)))
	}
	for _, c := range chains() {
		msgs = append(msgs, c.message())
		for _, r := range c.rules {
			m, err := ruleMessage(c, r)
			if err != nil {
				return nil, err
			}
			msgs = append(msgs, m)
		}
	}
	return msgs, nil
}

// removeMessages removes the tables, whether they are there or not.
func removeMessages() []message {
	var msgs []message
	for _, f := range families {
		msgs = append(msgs, familyMessage(f, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE), familyMessage(f, unix.NFT_MSG_DELTABLE, 0))
	}
	return msgs
}

// skeletonHash identifies what skeletonMessages makes: part of the version in
// package plan.
func skeletonHash() (string, error) {
	msgs, err := skeletonMessages()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, m := range msgs {
		h.Write(m)
	}
	return hex.EncodeToString(h.Sum(nil)[:4]), nil
}

func (s set) message(id uint32) message {
	var flags uint32
	key := concatenated(s.key)
	if s.ranges {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(s.key) > 1 {
		flags |= setFlagConcat
	}
	if len(s.value) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	if s.nets {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.limited {
		flags |= setFlagExpr
	}
	m := familyMessage(s.family, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE).
		str(unix.NFTA_SET_NAME, s.name).
		be32(unix.NFTA_SET_FLAGS, flags).
		be32(unix.NFTA_SET_KEY_TYPE, key.number).
		be32(unix.NFTA_SET_KEY_LEN, key.length).
		be32(unix.NFTA_SET_ID, id)
	if len(s.value) > 0 {
		value := concatenated(s.value)
		m = m.be32(unix.NFTA_SET_DATA_TYPE, value.number).be32(unix.NFTA_SET_DATA_LEN, value.length)
	}
	if len(s.key) > 1 {
		m = m.nest(unix.NFTA_SET_DESC, func(m message) message {
			return m.nest(setDescConcat, func(m message) message {
				for _, t := range s.key {
					m = m.nest(unix.NFTA_LIST_ELEM, func(m message) message { return m.be32(1, t.length) })
				}
				return m
			})
		})
	}
	if len(s.key) == 1 {
		// For nft(8) only: names and marks are in the host's byte order.
		order := uint32(udataHostOrder)
		if s.key[0] != typeIfname() {
			order = udataNetOrder
		}
		m = m.attr(unix.NFTA_SET_USERDATA, append(udata(udataKeyOrder, order), udata(udataDataOrder, order)...))
	}
	if s.limited {
		m = m.limit(setExpressions, templateLimit)
	}
	if s.counted {
		m = m.nest(setExpr, func(m message) message {
			return m.str(unix.NFTA_EXPR_NAME, counterExpr)
		})
	}
	return m
}

func udata(kind byte, order uint32) []byte { return append([]byte{kind, 4}, host32(order)...) }

// concatenated is the type of several fields, each padded to four bytes, or of
// one.
func concatenated(fields []datatype) datatype {
	if len(fields) == 1 {
		return fields[0]
	}
	var all datatype
	for _, t := range fields {
		all.number = all.number<<typeBits | t.number
		all.length += (t.length + 3) &^ 3
	}
	return all
}

func (c chain) message() message {
	m := familyMessage(c.family, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE).str(unix.NFTA_CHAIN_NAME, c.name)
	if c.kind == "" {
		return m
	}
	return m.nest(unix.NFTA_CHAIN_HOOK, func(m message) message {
		return m.be32(unix.NFTA_HOOK_HOOKNUM, c.hook).be32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
	}).be32(unix.NFTA_CHAIN_POLICY, policyAccept).str(unix.NFTA_CHAIN_TYPE, c.kind)
}

func ruleMessage(c chain, exprs []expr.Any) (message, error) {
	m := familyMessage(c.family, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND).str(unix.NFTA_RULE_CHAIN, c.name)
	m, err := expressions(m, exprs)
	if err != nil {
		return m, fmt.Errorf("encode a rule of chain %s: %w", c.name, err)
	}
	return m, nil
}

// expressions adds a rule's expressions to its message.
func expressions(m message, exprs []expr.Any) (message, error) {
	var err error
	m = m.nest(unix.NFTA_RULE_EXPRESSIONS, func(m message) message {
		m, err = appendExpressions(m, exprs)
		return m
	})
	return m, err
}

func appendExpressions(m message, exprs []expr.Any) (message, error) {
	for _, e := range exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return m, err
		}
		m = m.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
	}
	return m, nil
}
