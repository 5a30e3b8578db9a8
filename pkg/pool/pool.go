// Package pool carves a network's IPv6 pool: which address and which prefixes of
// it each VM has that asks for some with auto. What it gives it gives relative to
// the pool's base, so that a base may change and every VM keeps its place. It is
// pure.
package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
)

// FileVersion is the version of the form that Encode writes.
const FileVersion = 1

// What a pool has at most. MinBits and MaxBits are the lengths of a base: one
// longer than /64 has room for single addresses only, as a /64 has.
const (
	MinBits   = 8
	MaxBits   = 96
	MaxBases  = 8
	MaxBlocks = 1 << 16
)

// areaBits is the length of the part of a base, its first, that single addresses
// are from, and the longest prefix that a VM is given.
const areaBits = 64

// Pool is what is kept of one network's pool. The zero value has no base.
type Pool struct {
	Version int     `json:"version"`
	Bases   []Base  `json:"bases"`  // the current one first, if there is one; then those on their way out, the last to go first
	Blocks  []Block `json:"blocks"` // by At
}

// Base is a prefix that the pool is, or was lately.
type Base struct {
	// Number counts the bases that the pool has had; a Block names its bases by it.
	Number uint64       `json:"number"`
	Prefix netip.Prefix `json:"prefix"`
	// Preferred and Until are the ends of its preferred and its valid lifetime
	// (RFC 4862 §5.5.4), in Unix time, seconds. 0: none.
	Preferred  int64 `json:"preferred,omitempty"`
	Until      int64 `json:"until,omitempty"`
	Deprecated bool  `json:"deprecated,omitempty"` // on its way out
}

// Block is what one NIC has been given.
type Block struct {
	VM  uuid.UUID `json:"vm"`
	MAC mac.Addr  `json:"mac"`
	Use string    `json:"use"` // "addr", or "prefix:N" for the NIC's N-th auto prefix, from 0
	// At is where it is in a base: the bits that the base leaves free, and the
	// length, like 0:0:0:1::/64 or ::7b3c:81ff:2:9/128.
	At netip.Prefix `json:"at"`
	// First and Last are the numbers of the bases that have it. Last 0: the current
	// one, and those to come.
	First uint64 `json:"first"`
	Last  uint64 `json:"last,omitempty"`
	// Seen is when the VM was known last, to a day, in Unix time, seconds.
	Seen int64 `json:"seen"`
}

// Encode writes a pool as its file has it.
func Encode(p Pool) ([]byte, error) {
	p.Version = FileVersion
	if err := p.valid(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Decode reads what Encode wrote. Anything else is an error.
func Decode(b []byte) (Pool, error) {
	var p Pool
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return Pool{}, fmt.Errorf("read a pool: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Pool{}, errors.New("read a pool: more follows it")
	}
	if err := p.valid(); err != nil {
		return Pool{}, fmt.Errorf("read a pool: %w", err)
	}
	return p, nil
}

func (p Pool) valid() error {
	switch {
	case p.Version != FileVersion:
		return fmt.Errorf("version %d, this build knows %d", p.Version, FileVersion)
	case len(p.Bases) > MaxBases:
		return fmt.Errorf("%d bases, at most %d are kept", len(p.Bases), MaxBases)
	case len(p.Blocks) > MaxBlocks:
		return fmt.Errorf("%d blocks, at most %d are kept", len(p.Blocks), MaxBlocks)
	}
	for i, b := range p.Bases {
		if err := b.valid(); err != nil {
			return err
		}
		if i > 0 && !b.Deprecated {
			return fmt.Errorf("base %s is not the first and not on its way out", b.Prefix)
		}
		for _, o := range p.Bases[:i] {
			if o.Number == b.Number || o.Prefix == b.Prefix {
				return fmt.Errorf("bases %s and %s are not two", o.Prefix, b.Prefix)
			}
		}
	}
	type owner struct {
		vm  uuid.UUID
		mac mac.Addr
		use string
	}
	owners := make(map[owner]bool, len(p.Blocks))
	for i, b := range p.Blocks {
		if err := b.valid(); err != nil {
			return err
		}
		if i > 0 && !before(p.Blocks[i-1], b) {
			return fmt.Errorf("blocks %s and %s overlap or are not in order", p.Blocks[i-1].At, b.At)
		}
		if o := (owner{b.VM, b.MAC, b.Use}); b.Last == 0 {
			if owners[o] {
				return fmt.Errorf("block %s: VM %s has another one for that", b.At, b.VM)
			}
			owners[o] = true
		}
	}
	return nil
}

func (b Base) valid() error {
	if err := Usable(b.Prefix); err != nil {
		return err
	}
	if b.Number == 0 || b.Preferred < 0 || b.Until < 0 {
		return fmt.Errorf("base %s: number %d, preferred %d and until %d: one is out of range", b.Prefix, b.Number, b.Preferred, b.Until)
	}
	return nil
}

// widest is as wide as a base can be; only its length counts.
var widest = netip.PrefixFrom(netip.IPv6Unspecified(), MinBits)

func (b Block) valid() error {
	_, isPrefix := parseUse(b.Use)
	switch {
	case !b.At.IsValid() || !b.At.Addr().Is6() || b.At.Addr().Is4In6() || b.At.Masked() != b.At || !fits(widest, b.At):
		return fmt.Errorf("block %q is not a place in a base", b.At)
	case b.VM == uuid.Nil || b.MAC.IsZero():
		return fmt.Errorf("block %s is nobody's", b.At)
	case b.First == 0 || b.Last != 0 && b.Last < b.First || b.Seen < 0:
		return fmt.Errorf("block %s: first %d, last %d and seen %d: one is out of range", b.At, b.First, b.Last, b.Seen)
	case b.Use == useAddr && b.At.Bits() == 128 && area.Contains(b.At.Addr()):
	case isPrefix && b.At.Bits() <= areaBits && !b.At.Contains(area.Addr()):
	default:
		return fmt.Errorf("block %s cannot be of use %q", b.At, b.Use)
	}
	return nil
}

// global and ula are what a base lies in: global unicast (RFC 4291 §2.4, as it is
// assigned) and unique local addresses (RFC 4193).
var (
	global = netip.MustParsePrefix("2000::/3")
	ula    = netip.MustParsePrefix("fc00::/7")
)

// Usable tells whether a prefix can be a base, and if not, why.
func Usable(p netip.Prefix) error {
	switch {
	case !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6():
		return fmt.Errorf("%q is not an IPv6 prefix", p)
	case p.Masked() != p:
		return fmt.Errorf("%s has bits set behind its length; write %s", p, p.Masked())
	case p.Bits() < MinBits || p.Bits() > MaxBits:
		return fmt.Errorf("%s: a pool has a length of /%d to /%d", p, MinBits, MaxBits)
	case !global.Overlaps(p) && !ula.Overlaps(p):
		return fmt.Errorf("%s is neither of global (%s) nor of unique local (%s) addresses", p, global, ula)
	}
	return nil
}

// ULA makes a prefix of unique local addresses, a /48, out of 40 bits of random
// (RFC 4193 §3.2).
func ULA(random io.Reader) (netip.Prefix, error) {
	a := [16]byte{0: 0xfd}
	if _, err := io.ReadFull(random, a[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("make a prefix of unique local addresses: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 48), nil
}

// Current is the base that VMs are numbered from.
func (p Pool) Current(now time.Time) (Base, bool) {
	if len(p.Bases) == 0 || p.Bases[0].Deprecated || p.Bases[0].over(now) {
		return Base{}, false
	}
	return p.Bases[0], true
}

// Base is the base that an address is of.
func (p Pool) Base(a netip.Addr, now time.Time) (Base, bool) {
	for _, b := range p.Bases {
		if b.Prefix.Contains(a) && !b.over(now) {
			return b, true
		}
	}
	return Base{}, false
}

// over tells whether its valid lifetime is.
func (b Base) over(now time.Time) bool { return b.Until != 0 && b.Until <= now.Unix() }

// deprecated tells whether it is not to be used for anything new: it is on its way
// out, or its preferred lifetime is over.
func (b Base) deprecated(now time.Time) bool {
	return b.Deprecated || b.Preferred != 0 && b.Preferred <= now.Unix()
}

// has tells whether a block is one of the base's: it was given while the base was
// there, and it has room in it.
func (b Base) has(k Block) bool {
	return k.First <= b.Number && (k.Last == 0 || b.Number <= k.Last) && fits(b.Prefix, k.At)
}

// sort puts the blocks in order.
func (p *Pool) sort() {
	slices.SortFunc(p.Blocks, func(a, b Block) int { return a.At.Addr().Compare(b.At.Addr()) })
}
