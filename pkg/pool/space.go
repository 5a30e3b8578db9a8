package pool

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
	"time"

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

// relative is the place of a part of a base; of what has all of the base, the
// whole of it.
func relative(base, part netip.Prefix) netip.Prefix {
	if part.Bits() <= base.Bits() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), base.Bits())
	}
	b, a := base.Addr().As16(), part.Addr().As16()
	for i := range a {
		a[i] &^= b[i]
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), part.Bits())
}

// inUse finds what overlaps x of what NICs have in one of the bases.
func (p *Pool) inUse(bases []Base, x netip.Prefix, now time.Time) (part netip.Prefix, ok bool) {
	for _, base := range bases {
		if base.over(now) || !base.Prefix.Overlaps(x) {
			continue
		}
		at := relative(base.Prefix, x)
		i, _ := p.find(at.Addr())
		for i = max(i-1, 0); i < len(p.Blocks); i++ { // the one before may reach into it
			b := p.Blocks[i]
			if at.Overlaps(b.At) && base.has(b) {
				return join(base.Prefix, b.At), true
			}
			if at.Addr().Less(b.At.Addr()) && !at.Contains(b.At.Addr()) {
				break
			}
		}
	}
	return netip.Prefix{}, false
}

// before tells whether a comes before b and they do not overlap.
func before(a, b Block) bool { return a.At.Addr().Less(b.At.Addr()) && !a.At.Overlaps(b.At) }

// hostTries is how many host parts are tried for one NIC.
const hostTries = 64

// freeAddr is a place for a NIC's address in a base: a hash of who it is, so that a
// VM finds the same one when the pool is lost. Small numbers are left to people, and
// what overlaps anything that avoid finds.
func (p *Pool) freeAddr(base netip.Prefix, vm uuid.UUID, nic mac.Addr, avoid func(netip.Prefix) (netip.Prefix, bool)) (netip.Prefix, bool) {
	for try := range hostTries {
		h := sha256.New()
		h.Write([]byte("slash32 address"))
		h.Write(vm[:])
		h.Write(nic[:])
		h.Write([]byte{byte(try)})
		var a [16]byte
		host := binary.BigEndian.Uint64(h.Sum(nil))
		if base.Bits() > areaBits {
			host &= 1<<(128-base.Bits()) - 1
		}
		binary.BigEndian.PutUint64(a[8:], host)
		addr := netip.AddrFrom16(a)
		if host < 1<<16 || addr.Is4In6() || anycast.Contains(addr) {
			continue
		}
		at := netip.PrefixFrom(addr, 128)
		if i, there := p.find(addr); there || i > 0 && p.Blocks[i-1].At.Contains(addr) {
			continue
		}
		if _, busy := avoid(join(base, at)); !busy {
			return at, true
		}
	}
	return netip.Prefix{}, false
}

// freePrefix is the first aligned place of a length in a base that does not overlap
// what avoid finds. The first /64 is for single addresses.
func (p *Pool) freePrefix(base netip.Prefix, bits int, avoid func(netip.Prefix) (netip.Prefix, bool)) (netip.Prefix, bool) {
	if bits <= base.Bits() || bits > areaBits {
		return netip.Prefix{}, false
	}
	size, end := uint64(1)<<(areaBits-bits), uint64(1)<<(areaBits-base.Bits()) // in /64s
	next := size                                                               // at 0 is the area
	behind := func(at netip.Prefix) {
		after := place(at.Addr()) + 1<<(areaBits-min(at.Bits(), areaBits))
		if after > next {
			next = (after + size - 1) &^ (size - 1)
		}
	}
	for i := 0; ; {
		for ; i < len(p.Blocks); i++ {
			at := p.Blocks[i].At
			if at.Bits() > areaBits {
				continue
			}
			if next+size <= place(at.Addr()) {
				break
			}
			behind(at)
		}
		if next >= end {
			return netip.Prefix{}, false
		}
		var a [16]byte
		binary.BigEndian.PutUint64(a[:8], next)
		at := netip.PrefixFrom(netip.AddrFrom16(a), bits)
		part, busy := avoid(join(base, at))
		if !busy {
			return at, true
		}
		behind(relative(base, part))
	}
}

// place counts the /64s before an address.
func place(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}
