// Package problem is the one shape of a message to a person: who, what, why,
// how to fix it, and a stable code. It does no I/O.
package problem

import (
	"strconv"
	"strings"
)

// Code is stable: documentation and scripts may rely on it. E codes refuse a
// start, W codes warn.
type Code string

// Problem is one thing a person can act on. Its String is always one line.
type Problem struct {
	Code Code   `json:"code"`
	File string `json:"file,omitempty"` // file or source, when it is not the domain's XML
	Line int    `json:"line,omitempty"` // 1-based line in the XML or file; 0 when unknown
	VM   string `json:"vm,omitempty"`   // the domain's name
	What string `json:"what"`           // what is wrong and why, with the offending value quoted
	Fix  string `json:"fix,omitempty"`  // the likely fix, as an instruction or a command
}

// String is "web1: E103 line 3: unknown attribute ... Fix: ...". Control
// characters (values come from the annotation, so from an attacker) are
// escaped and the line is cut at 1 KiB.
func (p Problem) String() string {
	var b strings.Builder
	if p.VM != "" {
		b.WriteString(p.VM + ": ")
	}
	b.WriteString(string(p.Code) + " ")
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			b.WriteString(":" + strconv.Itoa(p.Line))
		}
		b.WriteString(": ")
	} else if p.Line > 0 {
		b.WriteString("line " + strconv.Itoa(p.Line) + ": ")
	}
	b.WriteString(p.What)
	if p.Fix != "" {
		b.WriteString(". Fix: " + p.Fix)
	}
	return oneLine(b.String())
}

func oneLine(s string) string {
	const limit = 1024
	var b strings.Builder
	for _, r := range s {
		if b.Len() > limit {
			b.WriteString("…")
			break
		}
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == 0x2028 || r == 0x2029 {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// List is what a parse or a check found; empty means none.
type List []Problem

// Fatal returns the problems that refuse a start (code E...).
func (l List) Fatal() List {
	var f List
	for _, p := range l {
		if strings.HasPrefix(string(p.Code), "E") {
			f = append(f, p)
		}
	}
	return f
}

// Error makes a list an error: all problems, "; " between them, on one line.
func (l List) Error() string {
	s := make([]string, len(l))
	for i, p := range l {
		s[i] = p.String()
	}
	return strings.Join(s, "; ")
}

// WithVM returns the list with the domain's name filled in where it lacks.
func (l List) WithVM(name string) List {
	out := make(List, len(l))
	for i, p := range l {
		if p.VM == "" {
			p.VM = name
		}
		out[i] = p
	}
	return out
}

// The codes. A number is never used again for something else.
const (
	EXML          Code = "E100" // the XML or YAML cannot be read
	EAddressInUse Code = "E101" // another domain has the address
	EValue        Code = "E102" // a value is malformed or out of range
	EUnknown      Code = "E103" // unknown element, attribute or key
	EBridgeShared Code = "E104" // the bridge is another NIC's
	ENoNIC        Code = "E105" // no NIC with that MAC, or more interfaces than NICs
	EBridgeInUse  Code = "E106" // the bridge has a foreign port or is not ours
	EBridgeName   Code = "E107" // the bridge's name is missing, too long or malformed
	ENICType      Code = "E108" // the NIC is not of type bridge
	EDuplicate    Code = "E109" // something is given twice within one VM
	ENamespace    Code = "E110" // the annotation is there but not as we can read it
	ENetwork      Code = "E111" // no such network in the configuration
	EConfig       Code = "E112" // the host's configuration is wrong
	EPoolFull     Code = "E113" // the network's IPv6 pool has no room for what is asked with auto
	EPortInUse    Code = "E115" // a port of the host's is forwarded to another VM
	EUnsupported  Code = "E120" // part of the schema that this version does not do
	EStart        Code = "E130" // the responder or bridge could not be set up
	WAddressInUse Code = "W101" // somebody else has the address, and the network says to start all the same
	WProbe        Code = "W102" // the network could not be asked whether somebody has the address
	WPortInUse    Code = "W115" // a port of the host's that is forwarded to the VM is in use on the host
	WClosed       Code = "W116" // the VM is told of a server that is this host, which it does not reach there
	WForwarding   Code = "W203" // ip_forward is off and we may not change it
	WUplink       Code = "W208" // no default route, so no uplink to masquerade to
	WLease        Code = "W209" // a lease of another server's cannot be used
	WBootLoop     Code = "W210" // iPXE is booted, and nothing says what iPXE boots
	WLink         Code = "W220" // an interface that a network names does not do what is wanted of it
	WTap          Code = "W221" // a guest's interface is in another bridge than its own
	WNoPool       Code = "W211" // the network's IPv6 pool has no prefix yet

	// What package doctor finds of the host's other programs and settings.
	WDocker    Code = "W301" // Docker's rules drop what guests send or are sent
	WUFW       Code = "W302" // ufw's rules do
	WFirewalld Code = "W303" // firewalld's rules do
	WForward   Code = "W304" // another forward chain does
	WLegacy    Code = "W305" // legacy iptables has a filter table, which is not read
	WBridgeNF  Code = "W306" // bridged frames go through those chains, too
	WNetworkd  Code = "W307" // systemd-networkd removes routes and rules, or manages our links
	WManager   Code = "W308" // NetworkManager manages our links
	WRPFilter  Code = "W309" // a strict rp_filter on an uplink
	WAcceptRA  Code = "W310" // the host will lose its default route from router advertisements
	WDefaults  Code = "W311" // there is a second default route
	WNoForward Code = "W312" // forwarding is off
	WCoexist   Code = "W313" // what coexist asks for cannot be done
)
