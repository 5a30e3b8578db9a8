package responder

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/slash32/slash32/pkg/wire"
)

const (
	// slaacBits is the length of a prefix in which a guest can make its own
	// addresses (RFC 4291 §2.5.1, RFC 2464 §4), and the longest that is delegated.
	slaacBits = 64

	// minPool is the length of the shortest pool, far below what anybody has.
	minPool = 16
)

// prefixes6 is what a link knows of its guest's prefixes. A link of a guest
// without any has none of it.
type prefixes6 struct {
	advertised []advertised6
	pools      []pool6
}

// advertised6 is a prefix in router advertisements.
type advertised6 struct {
	net        netip.Prefix
	onlink     bool
	deprecated bool
	preferred  int64
	until      int64
}

// pool6 is a prefix to delegate from.
type pool6 struct {
	net        netip.Prefix
	length     int          // of what is delegated without a hint
	exclude    netip.Prefix // stays on the link; may be not valid
	deprecated bool
	preferred  int64
	until      int64
}

func compilePrefixes(v V6) *prefixes6 {
	p := &prefixes6{}
	for _, x := range v.Prefixes {
		if net, ok := x.advertised(); ok {
			p.advertise(x, net)
		}
		if x.Mode == ModeDelegate {
			length := int(x.Length)
			if length == 0 {
				length = slaacBits
			}
			p.pools = append(p.pools, pool6{
				net: x.Net, length: min(max(length, x.Net.Bits()), slaacBits), exclude: x.Exclude,
				deprecated: x.Deprecated, preferred: x.Preferred, until: x.Until,
			})
		}
	}
	if len(p.advertised) == 0 && len(p.pools) == 0 {
		return nil
	}
	return p
}

// advertise adds net, which is x or its Exclude, unless it is there.
func (p *prefixes6) advertise(x Prefix, net netip.Prefix) {
	for _, a := range p.advertised {
		if a.net == net {
			return
		}
	}
	p.advertised = append(p.advertised, advertised6{net: net, onlink: x.OnLink, deprecated: x.Deprecated, preferred: x.Preferred, until: x.Until})
}

// Delegates tells whether the NIC has a pool to delegate from.
func (n NIC) Delegates() bool {
	for _, p := range n.V6.Prefixes {
		if p.Mode == ModeDelegate {
			return true
		}
	}
	return false
}

// delegates tells whether a client that asks for a prefix can get one.
func (p *prefixes6) delegates() bool {
	if p != nil {
		for _, x := range p.pools {
			if !x.deprecated {
				return true
			}
		}
	}
	return false
}

// list is the pools.
func (p *prefixes6) list() []pool6 {
	if p == nil {
		return nil
	}
	return p.pools
}

// advertises finds the advertised prefix that a is in.
func (p *prefixes6) advertises(a netip.Addr) (x advertised6, ok bool) {
	if p != nil {
		for _, x := range p.advertised {
			if x.net.Contains(a) {
				return x, true
			}
		}
	}
	return advertised6{}, false
}

// pool finds the pool that x is a part of, or nil.
func (p *prefixes6) pool(x netip.Prefix) *pool6 {
	if p == nil {
		return nil
	}
	for i := range p.pools {
		if in := p.pools[i].net; in.Bits() <= x.Bits() && in.Contains(x.Addr()) {
			return &p.pools[i]
		}
	}
	return nil
}

// remaining is how many seconds are left until a Unix time; infinity for 0, which
// is never.
func remaining(until, now int64) uint32 {
	if until == 0 {
		return infinity
	}
	return uint32(min(max(until-now, 0), math.MaxUint32-1))
}

func checkPrefixes(v V6) error {
	delegates := false
	for _, p := range v.Prefixes {
		if !p.Net.IsValid() || !p.Net.Addr().Is6() || p.Net.Addr().Is4In6() || p.Net != p.Net.Masked() {
			return fmt.Errorf("%s is not an IPv6 prefix", p.Net)
		}
		switch {
		case p.Mode == ModeSLAAC && p.Net.Bits() != slaacBits:
			return fmt.Errorf("the prefix %s cannot be advertised: hosts make addresses in a /%d alone", p.Net, slaacBits)
		case p.Mode == ModeDelegate && (p.Net.Bits() > slaacBits || p.Net.Bits() < minPool):
			return fmt.Errorf("the prefix %s cannot be delegated from: it is not a /%d to /%d", p.Net, minPool, slaacBits)
		case p.Mode == ModeDelegate && p.Exclude.IsValid() && (p.Exclude != p.Exclude.Masked() || p.Exclude.Bits() <= p.Net.Bits() || !p.Net.Contains(p.Exclude.Addr())):
			return fmt.Errorf("the prefix %s to exclude is not a part of %s", p.Exclude, p.Net)
		case p.Mode != ModeSLAAC && p.Mode != ModeDelegate && p.Mode != ModeRoute:
			return fmt.Errorf("the prefix %s is for %q, not for slaac, delegate or route", p.Net, p.Mode)
		}
		delegates = delegates || p.Mode == ModeDelegate
	}
	if delegates && (v.Preferred == 0 || v.Preferred > v.Valid) {
		return fmt.Errorf("the lifetimes of delegated prefixes, preferred %d and valid %d, are not in this order or 0", v.Preferred, v.Valid)
	}
	if v.PREF64.IsValid() && len(wire.AppendPREF64(nil, 0, v.PREF64)) == 0 {
		return fmt.Errorf("%s is not a prefix of a NAT64: not IPv6, or not of length 96, 64, 56, 48, 40 or 32", v.PREF64)
	}
	if len(v.AFTR) > maxAFTR {
		return errors.New("the AFTR's name is longer than a domain name can be")
	}
	return nil
}

// maxAFTR is the length of the longest domain name.
const maxAFTR = 253
