package upstream

import (
	"net/netip"
	"strings"
	"time"
)

// Lease is a prefix that is delegated to us, of /8 to /64. The times are the ends
// of its lifetimes; zero: never. One whose Preferred is over is on its way out.
type Lease struct {
	Prefix           netip.Prefix
	Preferred, Valid time.Time
}

// times are T1 and T2 (RFC 8415 §14.2, §21.21), zero for never: the server's, or
// when it leaves them to us or they are later than the prefixes last, half and
// four fifths of the shortest preferred lifetime.
func times(d *delegation, leases []Lease, now time.Time) (t1, t2 time.Time) {
	var preferred, valid time.Duration // the shortest; 0: endless
	shorter := func(d *time.Duration, end time.Time) {
		if left := end.Sub(now); !end.IsZero() && left > 0 && (*d == 0 || left < *d) {
			*d = left
		}
	}
	for _, l := range leases {
		shorter(&preferred, l.Preferred)
		shorter(&valid, l.Valid)
	}
	base := preferred
	if base == 0 {
		base = valid
	}
	pick := func(given uint32, share time.Duration) time.Time {
		after := time.Duration(given) * time.Second
		if given == 0 || base > 0 && (given == infinity || valid > 0 && after >= valid) {
			after = base * share / 10
		}
		if after == 0 || given == infinity && base == 0 {
			return time.Time{}
		}
		return now.Add(max(after, minRenew))
	}
	return pick(d.t1, 5), pick(d.t2, 8)
}

func (m *machine) list() string {
	if len(m.leases) == 0 {
		return "nothing"
	}
	return strings.Join(names(prefixes(m.leases)), ", ")
}

func instead(had []netip.Prefix) string {
	if len(had) == 0 {
		return ""
	}
	return " instead of " + strings.Join(names(had), ", ")
}

func names(ps []netip.Prefix) []string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return s
}

func prefixes(leases []Lease) []netip.Prefix {
	ps := make([]netip.Prefix, len(leases))
	for i, l := range leases {
		ps[i] = l.Prefix
	}
	return ps
}
