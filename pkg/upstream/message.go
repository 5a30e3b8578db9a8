package upstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/slash32/slash32/pkg/pool"
)

// What is read of a message at most. A DUID has 130 octets (RFC 8415 §11.1).
const (
	maxMessage  = 4096
	maxDUID     = 130
	maxPrefixes = 4
)

// infinity is the lifetime that means for ever (RFC 8415 §7.7).
const infinity = 1<<32 - 1

// answer is what counts of a server's message.
type answer struct {
	kind           dhcpv6.MessageType
	xid            dhcpv6.TransactionID
	client, server []byte // DUIDs
	preference     uint8
	rapid          bool
	status         iana.StatusCode
	solMaxRT       uint32 // seconds; 0: not there
	pd             *delegation
	auth           []byte // content of the option
	reconfigure    dhcpv6.MessageType
}

// delegation is the IA_PD of an answer.
type delegation struct {
	t1, t2   uint32 // seconds
	status   iana.StatusCode
	prefixes []delegated
	refused  int // prefixes that are of no use
}

// delegated is one prefix. Lifetimes are in seconds.
type delegated struct {
	prefix           netip.Prefix
	preferred, valid uint32
}

// some tells whether there is a prefix to be had.
func (d *delegation) some() bool {
	if d == nil || d.status != iana.StatusSuccess {
		return false
	}
	for _, p := range d.prefixes {
		if p.valid > 0 {
			return true
		}
	}
	return false
}

// parse reads a server's message: what concerns the IA_PD with that IAID.
func parse(b []byte, iaid [4]byte) (answer, error) {
	if len(b) < 4 || len(b) > maxMessage {
		return answer{}, fmt.Errorf("a message of %d bytes", len(b))
	}
	a := answer{kind: dhcpv6.MessageType(b[0]), xid: dhcpv6.TransactionID(b[1:4])}
	var options dhcpv6.Options
	if err := options.FromBytesWithParser(b[4:], parseOption); err != nil {
		return answer{}, err
	}
	for _, o := range options {
		switch o := o.(type) {
		case *dhcpv6.OptStatusCode:
			a.status = o.StatusCode
		case *dhcpv6.OptIAPD:
			if o.IaId == iaid && a.pd == nil {
				a.pd = parsePD(o)
			}
		case *dhcpv6.OptionGeneric:
			if err := a.option(o.OptionCode, o.OptionData); err != nil {
				return answer{}, err
			}
		}
	}
	return a, nil
}

// parseOption takes apart only what we look into, so that an option that is
// nothing to us cannot spoil a message.
func parseOption(code dhcpv6.OptionCode, b []byte) (dhcpv6.Option, error) {
	switch code {
	case dhcpv6.OptionIAPD, dhcpv6.OptionStatusCode:
		return dhcpv6.ParseOption(code, b)
	}
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: b}, nil
}

func (a *answer) option(code dhcpv6.OptionCode, b []byte) error {
	length := func(n int) error {
		if len(b) != n {
			return fmt.Errorf("option %s of %d bytes", code, len(b))
		}
		return nil
	}
	switch code {
	case dhcpv6.OptionClientID, dhcpv6.OptionServerID:
		if len(b) < 3 || len(b) > maxDUID {
			return fmt.Errorf("a DUID of %d bytes", len(b))
		}
		if code == dhcpv6.OptionClientID {
			a.client = bytes.Clone(b)
		} else {
			a.server = bytes.Clone(b)
		}
	case dhcpv6.OptionPreference:
		if err := length(1); err != nil {
			return err
		}
		a.preference = b[0]
	case dhcpv6.OptionRapidCommit:
		a.rapid = true
	case dhcpv6.OptionSolMaxRT:
		if err := length(4); err != nil {
			return err
		}
		a.solMaxRT = binary.BigEndian.Uint32(b)
	case dhcpv6.OptionReconfMessage:
		if err := length(1); err != nil {
			return err
		}
		a.reconfigure = dhcpv6.MessageType(b[0])
	case dhcpv6.OptionAuth:
		a.auth = bytes.Clone(b)
	}
	return nil
}

// parsePD takes what can be used of an IA_PD. It is nil for one that is to be
// ignored (RFC 8415 §21.21).
func parsePD(o *dhcpv6.OptIAPD) *delegation {
	d := &delegation{t1: seconds(o.T1), t2: seconds(o.T2)}
	if d.t1 > 0 && d.t2 > 0 && d.t1 > d.t2 {
		return nil
	}
	if s := o.Options.Status(); s != nil {
		d.status = s.StatusCode
	}
	for _, p := range o.Options.Prefixes() {
		x, err := parsePrefix(p)
		if err != nil || len(d.prefixes) == maxPrefixes || overlaps(d.prefixes, x.prefix) {
			d.refused++
			continue
		}
		d.prefixes = append(d.prefixes, x)
	}
	return d
}

func parsePrefix(o *dhcpv6.OptIAPrefix) (delegated, error) {
	x := delegated{preferred: seconds(o.PreferredLifetime), valid: seconds(o.ValidLifetime)}
	if x.preferred > x.valid {
		return x, errors.New("it is preferred for longer than it is valid")
	}
	if s := o.Options.Status(); s != nil && s.StatusCode != iana.StatusSuccess {
		return x, fmt.Errorf("status %s", s.StatusCode)
	}
	if o.Prefix == nil {
		return x, errors.New("a prefix without a length")
	}
	addr, ok := netip.AddrFromSlice(o.Prefix.IP)
	bits, of := o.Prefix.Mask.Size()
	if !ok || of != 128 || bits > 64 {
		return x, fmt.Errorf("a prefix of /%d", bits)
	}
	x.prefix = netip.PrefixFrom(addr, bits).Masked()
	return x, pool.Usable(x.prefix)
}

func overlaps(ps []delegated, p netip.Prefix) bool {
	for _, x := range ps {
		if x.prefix.Overlaps(p) {
			return true
		}
	}
	return false
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }

// question is what a message of ours says.
type question struct {
	kind     dhcpv6.MessageType
	xid      dhcpv6.TransactionID
	client   []byte
	server   []byte // nil: to any
	iaid     [4]byte
	prefixes []netip.Prefix
	hint     uint8 // the length that is asked for; 0: any
	elapsed  time.Duration
}

// bytes writes the message (RFC 8415 §8).
func (q question) bytes() []byte {
	m := dhcpv6.Message{MessageType: q.kind, TransactionID: q.xid}
	add := func(code dhcpv6.OptionCode, data ...byte) {
		m.Options.Add(&dhcpv6.OptionGeneric{OptionCode: code, OptionData: data})
	}
	add(dhcpv6.OptionClientID, q.client...)
	if q.server != nil {
		add(dhcpv6.OptionServerID, q.server...)
	}
	elapsed := min(max(q.elapsed/(10*time.Millisecond), 0), 0xffff) // in hundredths (§21.9)
	add(dhcpv6.OptionElapsedTime, byte(elapsed>>8), byte(elapsed))
	if q.kind != dhcpv6.MessageTypeRelease {
		m.Options.Add(dhcpv6.OptRequestedOption(dhcpv6.OptionSolMaxRT, dhcpv6.OptionInfMaxRT))
		add(dhcpv6.OptionReconfAccept)
	}
	if q.kind == dhcpv6.MessageTypeSolicit {
		add(dhcpv6.OptionRapidCommit)
	}
	pd := &dhcpv6.OptIAPD{IaId: q.iaid}
	for _, p := range q.prefixes {
		pd.Options.Add(iaPrefix(p))
	}
	if len(q.prefixes) == 0 && q.hint > 0 {
		pd.Options.Add(iaPrefix(netip.PrefixFrom(netip.IPv6Unspecified(), int(q.hint))))
	}
	m.Options.Add(pd)
	return m.ToBytes()
}

// iaPrefix is a prefix as a client names it: without lifetimes.
func iaPrefix(p netip.Prefix) *dhcpv6.OptIAPrefix {
	return &dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}}
}
