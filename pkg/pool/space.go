package pool

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/mac"
)

// area is where single addresses are, in a base.
var area = netip.MustParsePrefix("::/64")

// anycast are host parts that are reserved (RFC 2526, RFC 5453).
var anycast = netip.MustParsePrefix("::fdff:ffff:ffff:ff80/121")

const useAddr = "addr"

func usePrefix(n int) string { return "prefix:" + strconv.Itoa(n) }

func parseUse(s string) (n int, isPrefix bool) {
	digits, ok := strings.CutPrefix(s, "prefix:")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 0 && usePrefix(n) == s
}

// fits tells whether a base has a place.
func fits(base, at netip.Prefix) bool {
	return at.Bits() > base.Bits() && netip.PrefixFrom(at.Addr(), base.Bits()).Masked().Addr() == netip.IPv6Unspecified()
}

// join is what is at a place in a base.
func join(base, at netip.Prefix) netip.Prefix {
	b, a := base.Addr().As16(), at.Addr().As16()
	for i := range b {
		b[i] |= a[i]
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), at.Bits())
}

// before tells whether a comes before b and they do not overlap.
func before(a, b Block) bool { return a.At.Addr().Less(b.At.Addr()) && !a.At.Overlaps(b.At) }

// hostTries is how many host parts are tried for one NIC.
const hostTries = 64

// freeAddr is a place for a NIC's address in a base of that length: a hash of who
// it is, so that a VM finds the same one when the pool is lost. Small numbers are
// left to people.
func (p *Pool) freeAddr(base int, vm uuid.UUID, nic mac.Addr) (netip.Prefix, bool) {
	for try := range hostTries {
		h := sha256.New()
		h.Write([]byte("slash32 address"))
		h.Write(vm[:])
		h.Write(nic[:])
		h.Write([]byte{byte(try)})
		var a [16]byte
		host := binary.BigEndian.Uint64(h.Sum(nil))
		if base > areaBits {
			host &= 1<<(128-base) - 1
		}
		binary.BigEndian.PutUint64(a[8:], host)
		addr := netip.AddrFrom16(a)
		if host < 1<<16 || addr.Is4In6() || anycast.Contains(addr) {
			continue
		}
		at := netip.PrefixFrom(addr, 128)
		if i, there := p.find(addr); !there && (i == 0 || !p.Blocks[i-1].At.Contains(addr)) {
			return at, true
		}
	}
	return netip.Prefix{}, false
}

// freePrefix is the first aligned place of a length in a base. The first /64 is
// for single addresses.
func (p *Pool) freePrefix(base, bits int) (netip.Prefix, bool) {
	if bits <= base || bits > areaBits {
		return netip.Prefix{}, false
	}
	size, end := uint64(1)<<(areaBits-bits), uint64(1)<<(areaBits-base) // in /64s
	next := size                                                        // at 0 is the area
	for _, b := range p.Blocks {
		if b.At.Bits() > areaBits {
			continue
		}
		start := place(b.At.Addr())
		if next+size <= start {
			break
		}
		if after := start + 1<<(areaBits-b.At.Bits()); after > next {
			next = (after + size - 1) &^ (size - 1)
		}
	}
	if next >= end {
		return netip.Prefix{}, false
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], next)
	return netip.PrefixFrom(netip.AddrFrom16(a), bits), true
}

// place counts the /64s before an address.
func place(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}
