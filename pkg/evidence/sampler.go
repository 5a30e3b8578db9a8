package evidence

import "time"

// How many lines the log gets, whatever guests do.
const (
	perReason = 3  // a minute, for each bridge and reason
	perMinute = 60 // a minute, of all
	window    = time.Minute
)

// sampler lets a few through. The zero value is ready.
type sampler struct {
	begun time.Time
	all   int
	seen  map[kind]int
}

type kind struct{ bridge, reason string }

// allow tells whether one more of its kind is written. What it remembers is
// forgotten each minute, and is no more than what was written in it.
func (s *sampler) allow(bridge, reason string, now time.Time) bool {
	if s.seen == nil || now.Sub(s.begun) >= window || now.Before(s.begun) {
		s.begun, s.all, s.seen = now, 0, map[kind]int{}
	}
	k := kind{bridge, reason}
	if s.all >= perMinute || s.seen[k] >= perReason {
		return false
	}
	s.all++
	s.seen[k]++
	return true
}
