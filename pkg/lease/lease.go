// Package lease is the form of the file in which a VM's responder keeps what must
// outlive it. It is pure: bytes in, values out.
//
// The responder has no right to make or rename files: it writes through one
// descriptor that it opened before it gave its rights up. So the file has two
// slots, which are written in turn, each with a number and a checksum: a write
// that is torn leaves the state before it.
package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"

	"github.com/slash32/slash32/pkg/mac"
)

// SlotSize is the length of a slot in bytes: one line, padded with spaces.
const SlotSize = 8192

// FileSize is the length of a file in bytes.
const FileSize = 2 * SlotSize

// MaxAddrs6 and MaxPrefixes are how many IPv6 addresses a NIC is leased, and how
// many prefixes it is delegated, at most.
const (
	MaxAddrs6   = 4
	MaxPrefixes = 8
)

// State is what is kept of one VM.
type State struct {
	Seq  uint64 `json:"seq"` // one more with each write
	NICs []NIC  `json:"nics"`
}

// NIC is what is kept of one link.
type NIC struct {
	MAC     mac.Addr `json:"mac"`
	Profile string   `json:"profile,omitempty"` // of the newest DHCPv4 lease: routed or classic
	Booting uint64   `json:"booting,omitempty,string"`
	Booted  uint64   `json:"booted,omitempty,string"`
	V4      V4       `json:"v4,omitzero"`
	V6      []V6     `json:"v6,omitempty"`

	Prefixes []Prefix `json:"prefixes,omitempty"`
}

// V4 is a DHCPv4 lease of another server's that was relayed.
type V4 struct {
	Addr    netip.Addr `json:"addr"`
	Bits    uint8      `json:"bits"`    // of its mask
	Server  netip.Addr `json:"server"`  // its server identifier
	From    netip.Addr `json:"from"`    // the server's address that we relay to
	Expires int64      `json:"expires"` // Unix time in seconds
}

// V6 is a DHCPv6 address of another server's that was relayed.
type V6 struct {
	Addr    netip.Addr `json:"addr"`
	Expires int64      `json:"expires"` // Unix time in seconds
}

// Prefix is a prefix that was delegated to the guest, by its responder or by
// another server through it.
type Prefix struct {
	Prefix  netip.Prefix `json:"prefix"`
	Via     netip.Addr   `json:"via"`     // the guest's address that asked for it
	IAID    uint32       `json:"iaid"`    // of the IA_PD that it is in
	Expires int64        `json:"expires"` // Unix time in seconds
}

// ErrEmpty says that a file has no state yet.
var ErrEmpty = errors.New("nothing was written yet")

// Decode reads a file: the newer of its slots that is whole. The error is
// ErrEmpty for a file that was never written, and another when it was and no slot
// is whole.
func Decode(b []byte) (State, error) {
	var best State
	found, blank := false, true
	var failed error
	for at := 0; at < len(b) && at < FileSize; at += SlotSize {
		slot := b[at:min(len(b), at+SlotSize)]
		if isBlank(slot) {
			continue
		}
		blank = false
		s, err := decodeSlot(slot)
		if err != nil {
			failed = err
			continue
		}
		if !found || s.Seq > best.Seq {
			best, found = s, true
		}
	}
	switch {
	case found:
		return best, nil
	case blank:
		return State{}, ErrEmpty
	}
	return State{}, fmt.Errorf("no slot is whole: %w", failed)
}

func isBlank(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// A slot is the checksum of the JSON in 8 hexadecimal digits, a space and the
// JSON, padded to the slot's end.
func decodeSlot(b []byte) (State, error) {
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\n') {
		b = b[:len(b)-1]
	}
	if len(b) < 9 || b[8] != ' ' {
		return State{}, errors.New("a slot has no checksum")
	}
	want, err := strconv.ParseUint(string(b[:8]), 16, 32)
	if err != nil {
		return State{}, errors.New("a slot's checksum is not a number")
	}
	if crc32.ChecksumIEEE(b[9:]) != uint32(want) {
		return State{}, errors.New("a slot's checksum is wrong")
	}
	var s State
	if err := json.Unmarshal(b[9:], &s); err != nil {
		return State{}, fmt.Errorf("read a slot: %w", err)
	}
	return s, nil
}

// AppendSlot appends s as one slot. It allocates nothing that b does not need.
func AppendSlot(b []byte, s State) ([]byte, error) {
	start := len(b)
	b = append(b, "00000000 "...)
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, s.Seq, 10)
	b = append(b, `,"nics":[`...)
	for i, n := range s.NICs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendNIC(b, n)
	}
	b = append(b, "]}"...)
	const digits = "0123456789abcdef"
	sum := crc32.ChecksumIEEE(b[start+9:])
	for i := range 8 {
		b[start+i] = digits[sum>>(28-4*i)&0xf]
	}
	if len(b)-start > SlotSize-1 {
		return b[:start], fmt.Errorf("the state of %d NICs takes %d bytes, a slot has %d", len(s.NICs), len(b)-start, SlotSize)
	}
	for len(b)-start < SlotSize-1 {
		b = append(b, ' ')
	}
	return append(b, '\n'), nil
}

func appendNIC(b []byte, n NIC) []byte {
	b = append(b, `{"mac":"`...)
	b = append(b, n.MAC.String()...)
	b = append(b, '"')
	if plain(n.Profile) {
		b = append(append(append(b, `,"profile":"`...), n.Profile...), '"')
	}
	if n.Booting != 0 {
		b = append(strconv.AppendUint(append(b, `,"booting":"`...), n.Booting, 10), '"')
	}
	if n.Booted != 0 {
		b = append(strconv.AppendUint(append(b, `,"booted":"`...), n.Booted, 10), '"')
	}
	if v := n.V4; v != (V4{}) {
		b = appendAddr(append(b, `,"v4":{"addr":"`...), v.Addr)
		b = strconv.AppendUint(append(b, `","bits":`...), uint64(v.Bits), 10)
		b = appendAddr(append(b, `,"server":"`...), v.Server)
		b = appendAddr(append(b, `","from":"`...), v.From)
		b = strconv.AppendInt(append(b, `","expires":`...), v.Expires, 10)
		b = append(b, '}')
	}
	for i, v := range n.V6 {
		if i == 0 {
			b = append(b, `,"v6":[`...)
		} else {
			b = append(b, ',')
		}
		b = appendAddr(append(b, `{"addr":"`...), v.Addr)
		b = strconv.AppendInt(append(b, `","expires":`...), v.Expires, 10)
		b = append(b, '}')
	}
	if len(n.V6) > 0 {
		b = append(b, ']')
	}
	for i, p := range n.Prefixes {
		if i == 0 {
			b = append(b, `,"prefixes":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"prefix":"`...)
		if p.Prefix.IsValid() { // else nothing, as netip marshals it
			b = p.Prefix.AppendTo(b)
		}
		b = appendAddr(append(b, `","via":"`...), p.Via)
		b = strconv.AppendUint(append(b, `","iaid":`...), uint64(p.IAID), 10)
		b = strconv.AppendInt(append(b, `,"expires":`...), p.Expires, 10)
		b = append(b, '}')
	}
	if len(n.Prefixes) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

// plain tells whether s is a word that JSON needs no escapes for.
func plain(s string) bool {
	for _, c := range []byte(s) {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return s != ""
}

// appendAddr appends nothing for an address that is not valid, as netip marshals
// it. A zone, which is another host's affair, is left out.
func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	return a.WithZone("").AppendTo(b)
}
