package upstream

import (
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// The transmission parameters (RFC 8415 §7.6).
const (
	solMaxDelay = time.Second
	solMaxRT    = time.Hour // until a server names another, of minute to day
	minSolMaxRT = 60
	maxSolMaxRT = 86400
)

// timing is how a message is sent again (RFC 8415 §15). 0 is no limit.
type timing struct {
	initial, longest time.Duration // IRT, MRT
	count            int           // MRC
	duration         time.Duration // MRD
}

var (
	requestTiming = timing{initial: time.Second, longest: 30 * time.Second, count: 10}
	renewTiming   = timing{initial: 10 * time.Second, longest: 10 * time.Minute}
	rebindTiming  = timing{initial: 10 * time.Second, longest: 10 * time.Minute}
	releaseTiming = timing{initial: time.Second, count: 4}
	// A Rebind that verifies is sent as a Confirm is (§18.2.12).
	verifyTiming = timing{initial: time.Second, longest: 4 * time.Second, duration: 10 * time.Second}
)

// exchange is a message that is sent until it is answered.
type exchange struct {
	kind  dhcpv6.MessageType
	xid   dhcpv6.TransactionID
	began time.Time // when it was sent first
	at    time.Time // when it is sent next, or given up
	sent  int
	last  time.Duration // RT
	timing
}

// over tells whether it has been sent as often and for as long as it may.
func (x *exchange) over(now time.Time) bool {
	return x.count > 0 && x.sent >= x.count || x.duration > 0 && x.sent > 0 && !now.Before(x.began.Add(x.duration))
}

// send notes that it is sent now. random is of [0, 1).
func (x *exchange) send(now time.Time, random float64) {
	spread := func(d time.Duration) time.Duration { return time.Duration((random*0.2 - 0.1) * float64(d)) }
	switch {
	case x.sent > 0:
		x.last += x.last + spread(x.last)
	case x.kind == dhcpv6.MessageTypeSolicit: // more than IRT (§18.2.1)
		x.last = x.initial + time.Duration((0.001+random*0.099)*float64(x.initial))
	default:
		x.last = x.initial + spread(x.initial)
	}
	if x.longest > 0 && x.last > x.longest {
		x.last = x.longest + spread(x.longest)
	}
	if x.sent == 0 {
		x.began = now
	}
	x.sent++
	x.at = now.Add(x.last)
	if end := x.began.Add(x.duration); x.duration > 0 && x.at.After(end) {
		x.at = end
	}
}
