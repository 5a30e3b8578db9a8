package responder

import "time"

// Limit is a token bucket: Rate messages a second on average and Burst of them
// at once. The zero value does not limit.
type Limit struct {
	Rate, Burst uint32
}

// Limits are the buckets of one link, by class.
type Limits [NumClasses]Limit

// DefaultLimits are far above what a guest needs (a boot is two dozen messages
// in all) and far below what costs the host anything.
func DefaultLimits() Limits {
	return Limits{
		ClassNone:  {Rate: 1000, Burst: 2000},
		ClassARP:   {Rate: 1000, Burst: 2000},
		ClassND:    {Rate: 1000, Burst: 2000},
		ClassRA:    {Rate: 100, Burst: 200},
		ClassDHCP4: {Rate: 100, Burst: 200},
		ClassDHCP6: {Rate: 100, Burst: 200},
	}
}

// bucket keeps a Limit with one number, the time at which the bucket would be
// full again (the generic cell rate algorithm). Not safe for concurrent use.
type bucket struct {
	interval time.Duration // between two tokens; 0: no limit
	depth    time.Duration // Burst intervals
	full     time.Duration
}

func newBucket(l Limit) bucket {
	if l.Rate == 0 {
		return bucket{}
	}
	interval := time.Second / time.Duration(l.Rate)
	return bucket{interval: interval, depth: interval * time.Duration(max(l.Burst, 1))}
}

// take takes a token at time now, which is counted from any fixed moment and
// does not go back. It tells whether there was one.
func (b *bucket) take(now time.Duration) bool {
	full := max(b.full, now) + b.interval
	if full-now > b.depth {
		return false
	}
	b.full = full
	return true
}
